//! `/v1/vaults/{vault_id}/credentials`: what goes in here never comes out.

use std::sync::Arc;

use axum::extract::State;
use selfsame_store::CREDENTIAL_KEY;
use selfsame_types::{
    ApiError, CredentialId, Page, Position, VaultId, WorkspaceId,
    vault::{
        CreateCredential, Credential, CredentialDeletedType, CredentialValidation,
        DeletedCredential, UpdateCredential,
    },
};

use super::ListQuery;
use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Json, NoQuery, Path, Query, RequestId},
};

fn not_found(id: CredentialId) -> Error {
    ApiError::not_found("Credential", id).into()
}

/// A taken key is the client's to solve.
fn key_taken(error: Error) -> Error {
    match error {
        Error::Store(fault) if fault.constraint() == Some(CREDENTIAL_KEY) => ApiError::conflict(
            "auth: the vault has a credential in use for this `mcp_server_url` or `secret_name`; change that \
             one, or archive it first",
        )
        .into(),
        error => error,
    }
}

/// Why there is no such credential: perhaps there is no such vault.
async fn missing(app: &App, workspace: WorkspaceId, vault: VaultId, id: CredentialId) -> Error {
    match app.store.vault_get(workspace, vault).await {
        Ok(Some(_)) => not_found(id),
        Ok(None) => super::not_found(vault),
        Err(fault) => fault.into(),
    }
}

/// Adds a credential to a vault.
#[utoipa::path(post, path = "/v1/vaults/{vault_id}/credentials", operation_id = "create_credential",
    tag = "vaults",
    params(("vault_id" = String, Path)),
    request_body = CreateCredential,
    responses((status = 200, description = "The credential, without its secrets", body = Credential)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path(vault): Path<VaultId>,
    NoQuery: NoQuery,
    Json(body): Json<CreateCredential>,
) -> Result<Json<Credential>> {
    let actor = principal.actor(&request);
    let created = app
        .store
        .credential_create(principal.workspace, vault, &actor, |vault, active, now| {
            // What is wrong with the request is said before what is wrong with the vault.
            let new = body.resolve(now)?;
            vault.check_room(active)?;
            Ok(new)
        })
        .await
        .map_err(key_taken)?
        .ok_or_else(|| super::not_found(vault))?;
    app.engine.vaults_changed();
    Ok(Json(created))
}

/// Lists a vault's credentials, newest first.
#[utoipa::path(get, path = "/v1/vaults/{vault_id}/credentials", operation_id = "list_credentials",
    tag = "vaults",
    params(("vault_id" = String, Path), ListQuery),
    responses((status = 200, description = "A page of credentials", body = Page<Credential>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(vault): Path<VaultId>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Credential>>> {
    let list = format!("credentials of {vault}");
    let (filter, limit) = query.filter(&list)?;
    let workspace = principal.workspace;
    if app.store.vault_get(workspace, vault).await?.is_none() {
        return Err(super::not_found(vault));
    }
    let rows = app.store.credential_list(workspace, vault, &filter).await?;
    Ok(Json(Page::cut(rows, limit, |last| {
        Position {
            created_at: last.created_at,
            id: last.id.0,
        }
        .cursor(&list)
    })))
}

/// Retrieves a credential.
#[utoipa::path(get, path = "/v1/vaults/{vault_id}/credentials/{credential_id}",
    operation_id = "get_credential", tag = "vaults",
    params(("vault_id" = String, Path), ("credential_id" = String, Path)),
    responses((status = 200, description = "The credential, without its secrets", body = Credential)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path((vault, id)): Path<(VaultId, CredentialId)>,
    NoQuery: NoQuery,
) -> Result<Json<Credential>> {
    match app
        .store
        .credential_get(principal.workspace, vault, id)
        .await?
    {
        Some(credential) => Ok(Json(credential)),
        None => Err(missing(&app, principal.workspace, vault, id).await),
    }
}

/// Changes a credential: its secrets, its name, its metadata. What it is for cannot be changed.
#[utoipa::path(post, path = "/v1/vaults/{vault_id}/credentials/{credential_id}",
    operation_id = "update_credential", tag = "vaults",
    params(("vault_id" = String, Path), ("credential_id" = String, Path)),
    request_body = UpdateCredential,
    responses((status = 200, description = "The credential as it is now", body = Credential)))]
pub(crate) async fn update(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path((vault, id)): Path<(VaultId, CredentialId)>,
    NoQuery: NoQuery,
    Json(body): Json<UpdateCredential>,
) -> Result<Json<Credential>> {
    let actor = principal.actor(&request);
    let workspace = principal.workspace;
    let updated = app
        .store
        .credential_update(workspace, vault, id, &actor, |credential, now| {
            body.change(credential, now).map_err(Error::from)
        })
        .await?;
    match updated {
        Some(credential) => {
            app.engine.vaults_changed();
            Ok(Json(credential))
        }
        None => Err(missing(&app, workspace, vault, id).await),
    }
}

/// Deletes a credential.
#[utoipa::path(delete, path = "/v1/vaults/{vault_id}/credentials/{credential_id}",
    operation_id = "delete_credential", tag = "vaults",
    params(("vault_id" = String, Path), ("credential_id" = String, Path)),
    responses((status = 200, description = "It is gone", body = DeletedCredential)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path((vault, id)): Path<(VaultId, CredentialId)>,
    NoQuery: NoQuery,
) -> Result<Json<DeletedCredential>> {
    let actor = principal.actor(&request);
    let workspace = principal.workspace;
    if !app
        .store
        .credential_delete(workspace, vault, id, &actor)
        .await?
    {
        return Err(missing(&app, workspace, vault, id).await);
    }
    app.engine.vaults_changed();
    Ok(Json(DeletedCredential {
        id,
        r#type: CredentialDeletedType,
    }))
}

/// Archives a credential for good: its secrets are gone, another one may take its place.
#[utoipa::path(post, path = "/v1/vaults/{vault_id}/credentials/{credential_id}/archive",
    operation_id = "archive_credential", tag = "vaults",
    params(("vault_id" = String, Path), ("credential_id" = String, Path)),
    responses((status = 200, description = "The archived credential", body = Credential)))]
pub(crate) async fn archive(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path((vault, id)): Path<(VaultId, CredentialId)>,
    NoQuery: NoQuery,
) -> Result<Json<Credential>> {
    let actor = principal.actor(&request);
    let workspace = principal.workspace;
    match app
        .store
        .credential_archive(workspace, vault, id, &actor)
        .await?
    {
        Some(credential) => {
            app.engine.vaults_changed();
            Ok(Json(credential))
        }
        None => Err(missing(&app, workspace, vault, id).await),
    }
}

/// Tries an `mcp_oauth` credential at its MCP server, and refreshes its access token if that is refused.
#[utoipa::path(post, path = "/v1/vaults/{vault_id}/credentials/{credential_id}/mcp_oauth_validate",
    operation_id = "validate_credential", tag = "vaults",
    params(("vault_id" = String, Path), ("credential_id" = String, Path)),
    responses((status = 200, description = "What came of it", body = CredentialValidation)))]
pub(crate) async fn validate(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path((vault, id)): Path<(VaultId, CredentialId)>,
    NoQuery: NoQuery,
) -> Result<Json<CredentialValidation>> {
    let workspace = principal.workspace;
    match app.engine.vaults().validate(workspace, vault, id).await? {
        Some(validation) => Ok(Json(validation)),
        None => Err(missing(&app, workspace, vault, id).await),
    }
}
