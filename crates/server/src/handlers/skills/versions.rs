//! `/v1/skills/{skill_id}/versions`

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::Response,
};
use selfsame_types::{
    ApiError, Page,
    page::{check_limit, decode_cursor, encode_cursor},
    skill::{
        DeletedSkillVersion, Generation, SkillKey, SkillPage, SkillVersionDeletedType,
        SkillVersionRecord, SkillVersionView, VersionKey,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    Asked, PARTS, SkillVersionUpload, Upload, keep, not_found, other_name, pack, read_only, refused,
};
use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Form, Json, NoQuery, Path, Query, RequestId},
    openapi::Binary,
};

fn version_not_found(key: &SkillKey, version: VersionKey) -> ApiError {
    let version = match version {
        VersionKey::Latest => "latest".to_owned(),
        VersionKey::Id(id) => id.to_string(),
        VersionKey::Number(number) => number.to_string(),
    };
    ApiError::not_found(
        "Skill version",
        format_args!("{key}` at version `{version}"),
    )
}

/// Adds a version to a skill: all of its files, under the skill's own name.
#[utoipa::path(post, path = "/v1/skills/{skill_id}/versions", operation_id = "create_skill_version",
    tag = "skills",
    params(("skill_id" = String, Path)),
    request_body(content = SkillVersionUpload, content_type = "multipart/form-data"),
    responses((status = 200, description = "The version", body = SkillVersionView)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Asked(generation): Asked,
    Path(key): Path<SkillKey>,
    NoQuery: NoQuery,
    form: Form<PARTS>,
) -> Result<Json<SkillVersionView>> {
    let workspace = principal.workspace;
    let skill = app.store.skill_get(workspace, &key).await?;
    let skill = skill.ok_or_else(|| not_found(&key))?;
    if matches!(key, SkillKey::Short(_)) {
        return Err(read_only(&key).into());
    }
    let packed = pack(&app, Upload::read(form, false)?.files).await?;
    if packed.name != skill.name {
        return Err(other_name(&skill.name).into());
    }
    let new = keep(&app, packed).await?;
    let made = app
        .store
        .skill_version_create(workspace, &key, &new)
        .await?;
    match made {
        Ok(made) => Ok(Json(made.view(generation))),
        // Deleted since we looked.
        Err(refusal) => {
            app.store.blobs().discard(new.blob.id).await;
            Err(refused(&key, false)(refusal).into())
        }
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VersionsQuery {
    /// Page size.
    #[param(minimum = 1, maximum = 1000, default = 20)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

/// Where a page of versions begins.
#[derive(Serialize, Deserialize)]
struct VersionCursor {
    below_number: i64,
}

/// Lists the versions of a skill, newest first.
#[utoipa::path(get, path = "/v1/skills/{skill_id}/versions", operation_id = "list_skill_versions",
    tag = "skills",
    params(("skill_id" = String, Path), VersionsQuery),
    responses((status = 200, description = "A page of versions",
        body = SkillPage<SkillVersionView>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Asked(generation): Asked,
    Path(key): Path<SkillKey>,
    Query(query): Query<VersionsQuery>,
) -> Result<Json<SkillPage<SkillVersionView>>> {
    let limit = check_limit(query.limit, 20, 1000)?;
    let below = match &query.page {
        None => None,
        Some(page) => Some(decode_cursor::<VersionCursor>(page)?.below_number),
    };
    let versions = app
        .store
        .skill_version_list(principal.workspace, &key, below, limit + 1)
        .await?
        .ok_or_else(|| not_found(&key))?;
    let page = Page::cut(versions, limit, |last: &SkillVersionRecord| {
        encode_cursor(&VersionCursor {
            below_number: last.version.number,
        })
    });
    let views = page
        .data
        .into_iter()
        .map(|version| version.view(generation));
    Ok(Json(SkillPage::new(
        views.collect(),
        page.next_page,
        generation,
    )))
}

/// Retrieves a version: by its id, its number, or as `latest`.
#[utoipa::path(get, path = "/v1/skills/{skill_id}/versions/{version}",
    operation_id = "get_skill_version", tag = "skills",
    params(("skill_id" = String, Path), ("version" = String, Path)),
    responses((status = 200, description = "The version", body = SkillVersionView)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Asked(generation): Asked,
    Path((key, version)): Path<(SkillKey, VersionKey)>,
    NoQuery: NoQuery,
) -> Result<Json<SkillVersionView>> {
    let (found, _) = app
        .store
        .skill_version_get(principal.workspace, &key, version)
        .await?
        .ok_or_else(|| version_not_found(&key, version))?;
    Ok(Json(found.view(generation)))
}

/// Deletes a version. Sessions keep what they were created with. A skill keeps its last version, except
/// in the older generation.
#[utoipa::path(delete, path = "/v1/skills/{skill_id}/versions/{version}",
    operation_id = "delete_skill_version", tag = "skills",
    params(("skill_id" = String, Path), ("version" = String, Path)),
    responses((status = 200, description = "It is gone", body = DeletedSkillVersion)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Asked(generation): Asked,
    Path((key, version)): Path<(SkillKey, VersionKey)>,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
) -> Result<Json<DeletedSkillVersion>> {
    if version == VersionKey::Latest {
        return Err(ApiError::invalid(
            "version: name the version to delete by its id; `latest` may be another one by now",
        )
        .into());
    }
    let current = generation == Generation::Current;
    let actor = principal.actor(&request);
    let gone = app
        .store
        .skill_version_delete(principal.workspace, &key, version, current, &actor)
        .await?
        .map_err(|refusal| match refusal {
            selfsame_store::SkillRefusal::NotFound => version_not_found(&key, version),
            other => refused(&key, false)(other),
        })?;
    Ok(Json(DeletedSkillVersion {
        id: if current {
            gone.shown(key.source())
        } else {
            gone.number.to_string()
        },
        r#type: SkillVersionDeletedType,
    }))
}

/// Downloads a version's files as a zip, in one directory named after the skill.
#[utoipa::path(get, path = "/v1/skills/{skill_id}/versions/{version}/content",
    operation_id = "download_skill_version", tag = "skills",
    params(("skill_id" = String, Path), ("version" = String, Path)),
    responses((status = 200, description = "A zip", content_type = "application/zip",
        body = inline(Binary))))]
pub(crate) async fn content(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Path((key, version)): Path<(SkillKey, VersionKey)>,
    NoQuery: NoQuery,
) -> Result<Response> {
    let (found, archive) = app
        .store
        .skill_version_get(principal.workspace, &key, version)
        .await?
        .ok_or_else(|| version_not_found(&key, version))?;
    let content = app.store.blobs().get(archive.blob).await;
    let mut response = Response::new(Body::from_stream(content?));
    // A skill's name is letters, digits and hyphens.
    let disposition = format!("attachment; filename=\"{}.zip\"", found.name);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/zip"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(archive.size));
    headers.insert(
        header::CONTENT_DISPOSITION,
        HeaderValue::try_from(disposition).map_err(Error::internal)?,
    );
    Ok(response)
}
