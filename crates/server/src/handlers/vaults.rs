//! `/v1/vaults`: where clients keep the credentials that agents use.

pub mod credentials;

use std::sync::Arc;

use axum::extract::State;
use selfsame_store::VaultFilter;
use selfsame_types::{
    ApiError, Page, Position, VaultId, WorkspaceId,
    page::check_limit,
    session::no_vault,
    vault::{CreateVault, DeletedVault, UpdateVault, Vault, VaultDeletedType},
};
use serde::Deserialize;

use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Json, NoQuery, Path, Query, RequestId},
};

/// The name of the list in its cursors.
const LIST: &str = "vaults";

pub(crate) fn not_found(id: VaultId) -> Error {
    ApiError::not_found("Vault", id).into()
}

/// Refuses a session's vaults unless all of them are there and in use.
pub(crate) async fn check_all(app: &App, workspace: WorkspaceId, ids: &[VaultId]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let known = app.store.vaults_known(workspace, ids).await?;
    for (index, id) in ids.iter().enumerate() {
        match known.iter().find(|(known, _)| known == id) {
            None => return Err(no_vault(index, id).into()),
            Some((_, true)) => {
                return Err(ApiError::invalid(format!(
                    "vault_ids[{index}]: the vault is archived: {id}; name another one, or leave it out"
                ))
                .with_code("vault_archived")
                .into());
            }
            Some((_, false)) => {}
        }
    }
    Ok(())
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Archived ones, too.
    include_archived: Option<bool>,
    /// Page size.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

impl ListQuery {
    /// The filter, with room for one row more than the page size, which is the second.
    fn filter(&self, list: &str) -> Result<(VaultFilter, usize), ApiError> {
        let limit = check_limit(self.limit, 20, 100)?;
        let after = match &self.page {
            None => Position::NEWEST,
            Some(page) => Position::from_cursor(list, page)?,
        };
        let filter = VaultFilter {
            include_archived: self.include_archived.unwrap_or(false),
            after,
            limit: limit + 1,
        };
        Ok((filter, limit))
    }
}

/// Creates a vault.
#[utoipa::path(post, path = "/v1/vaults", operation_id = "create_vault", tag = "vaults",
    request_body = CreateVault,
    responses((status = 200, description = "The vault", body = Vault)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
    Json(body): Json<CreateVault>,
) -> Result<Json<Vault>> {
    let (spec, actor) = (body.resolve()?, principal.actor(&request));
    let vault = app.store.vault_create(principal.workspace, spec, &actor);
    Ok(Json(vault.await?))
}

/// Lists vaults, newest first.
#[utoipa::path(get, path = "/v1/vaults", operation_id = "list_vaults", tag = "vaults",
    params(ListQuery),
    responses((status = 200, description = "A page of vaults", body = Page<Vault>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Vault>>> {
    let (filter, limit) = query.filter(LIST)?;
    let rows = app.store.vault_list(principal.workspace, &filter).await?;
    Ok(Json(Page::cut(rows, limit, |last| {
        Position {
            created_at: last.created_at,
            id: last.id.0,
        }
        .cursor(LIST)
    })))
}

/// Retrieves a vault.
#[utoipa::path(get, path = "/v1/vaults/{vault_id}", operation_id = "get_vault", tag = "vaults",
    params(("vault_id" = String, Path)),
    responses((status = 200, description = "The vault", body = Vault)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path(id): Path<VaultId>,
    NoQuery: NoQuery,
) -> Result<Json<Vault>> {
    app.store
        .vault_get(principal.workspace, id)
        .await?
        .map(Json)
        .ok_or_else(|| not_found(id))
}

/// Changes a vault's name or metadata.
#[utoipa::path(post, path = "/v1/vaults/{vault_id}", operation_id = "update_vault", tag = "vaults",
    params(("vault_id" = String, Path)),
    request_body = UpdateVault,
    responses((status = 200, description = "The vault as it is now", body = Vault)))]
pub(crate) async fn update(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path(id): Path<VaultId>,
    NoQuery: NoQuery,
    Json(body): Json<UpdateVault>,
) -> Result<Json<Vault>> {
    let actor = principal.actor(&request);
    app.store
        .vault_update(principal.workspace, id, &actor, |vault| {
            body.change(vault).map_err(Error::from)
        })
        .await?
        .map(Json)
        .ok_or_else(|| not_found(id))
}

/// Deletes a vault with all its credentials. Sessions that use it go on without them.
#[utoipa::path(delete, path = "/v1/vaults/{vault_id}", operation_id = "delete_vault", tag = "vaults",
    params(("vault_id" = String, Path)),
    responses((status = 200, description = "It is gone", body = DeletedVault)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path(id): Path<VaultId>,
    NoQuery: NoQuery,
) -> Result<Json<DeletedVault>> {
    let actor = principal.actor(&request);
    if !app
        .store
        .vault_delete(principal.workspace, id, &actor)
        .await?
    {
        return Err(not_found(id));
    }
    app.engine.vaults_changed();
    Ok(Json(DeletedVault {
        id,
        r#type: VaultDeletedType,
    }))
}

/// Archives a vault for good, and with it its credentials. Sessions that use it go on without them; new ones are
/// refused.
#[utoipa::path(post, path = "/v1/vaults/{vault_id}/archive", operation_id = "archive_vault",
    tag = "vaults",
    params(("vault_id" = String, Path)),
    responses((status = 200, description = "The archived vault", body = Vault)))]
pub(crate) async fn archive(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    RequestId(request): RequestId,
    Path(id): Path<VaultId>,
    NoQuery: NoQuery,
) -> Result<Json<Vault>> {
    let actor = principal.actor(&request);
    let archived = app
        .store
        .vault_archive(principal.workspace, id, &actor)
        .await?
        .ok_or_else(|| not_found(id))?;
    app.engine.vaults_changed();
    Ok(Json(archived))
}

#[cfg(test)]
mod tests;
