//! `/v1/skills`: folders of instructions that agents read when they need them.
//!
//! Two generations of clients are served by the same rows; `anthropic-beta: skills-2025-10-02` asks for
//! the older one.

pub(crate) mod versions;

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, State},
    http::request::Parts,
};
use futures_util::stream;
use selfsame_engine::skills::archive::{self, MAX_ENTRIES, Packed};
use selfsame_store::{NewSkillVersion, ResolvedSkill, SkillFilter, SkillRefusal};
use selfsame_types::{
    ApiError, ErrorKind, Page, Position, WorkspaceId,
    agent::SkillRef,
    page::check_limit,
    skill::{
        DeletedSkill, Generation, LEGACY_SKILLS_BETA, SkillDeletedType, SkillKey, SkillPage,
        SkillSource, SkillView, check_display_name,
    },
};
use serde::Deserialize;

use crate::{
    app::App,
    error::{Error, Result},
    extract::{Auth, Form, Json, NoQuery, Path, Query, RequestId},
    middleware::lists_beta,
    openapi::Binary,
};

/// The name of the list in its cursors.
const LIST: &str = "skills";
/// Files and the fields beside them.
const PARTS: usize = MAX_ENTRIES + 2;

/// The generation that a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked(Generation);

impl FromRequestParts<Arc<App>> for Asked {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Error> {
        Ok(Self(if lists_beta(&parts.headers, LEGACY_SKILLS_BETA) {
            Generation::Legacy
        } else {
            Generation::Current
        }))
    }
}

fn not_found(key: &SkillKey) -> ApiError {
    ApiError::not_found("Skill", key)
}

/// What a refusal of the store means for a client.
fn refused(key: &SkillKey, legacy: bool) -> impl FnOnce(SkillRefusal) -> ApiError {
    move |refusal| match refusal {
        SkillRefusal::NotFound => not_found(key),
        SkillRefusal::ReadOnly => read_only(key),
        SkillRefusal::OtherName(name) => other_name(&name),
        SkillRefusal::Versions if legacy => {
            ApiError::invalid(format!("skill `{key}` has versions; delete them first"))
        }
        SkillRefusal::Versions => ApiError::invalid(format!(
            "this is the last version of skill `{key}`, which always has one; delete the skill instead"
        )),
    }
}

fn read_only(key: &SkillKey) -> ApiError {
    ApiError::new(
        ErrorKind::Permission,
        format!("Skill `{key}` is provided by the operator of this server and can only be read"),
    )
}

fn other_name(name: &str) -> ApiError {
    ApiError::invalid(format!(
        "files[]: a version of this skill must have its name, `{name}`, in the front matter of `SKILL.md`"
    ))
}

/// The form of an upload.
#[derive(Debug, utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what `Upload::read` reads")]
pub struct SkillUpload {
    /// Each with its path as file name, all in one directory with a `SKILL.md`; or one zip of them.
    #[schema(rename = "files[]", inline, min_items = 1)]
    files: Vec<Binary>,
    /// One line to show to people; the skill's name when absent. Older clients call it `display_title`.
    #[schema(max_length = 255, nullable = false)]
    display_name: Option<String>,
}

/// The form of a further version.
#[derive(Debug, utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what `Upload::read` reads")]
pub struct SkillVersionUpload {
    /// All files, not only changed ones.
    #[schema(rename = "files[]", inline, min_items = 1)]
    files: Vec<Binary>,
}

/// A form as it was sent.
struct Upload {
    display_name: Option<String>,
    files: Vec<archive::Part>,
}

impl Upload {
    fn read(form: Form<PARTS>, named: bool) -> Result<Self, ApiError> {
        let mut display_name = None;
        let mut files = Vec::new();
        for part in form.0 {
            match &*part.name {
                "files[]" | "files" => files.push(archive::Part {
                    path: part.filename.unwrap_or_default(),
                    data: part.data,
                }),
                field @ ("display_name" | "display_title") if named => {
                    let text = std::str::from_utf8(&part.data)
                        .map_err(|_| ApiError::invalid(format!("{field}: is not UTF-8 text")))?;
                    let name = check_display_name(field, text)?;
                    if display_name.replace(name).is_some() {
                        return Err(ApiError::invalid(format!(
                            "{field}: may be given only once"
                        )));
                    }
                }
                other => {
                    let shown: String = other.chars().take(80).collect();
                    return Err(ApiError::invalid(format!(
                        "{shown}: unknown field of the form; expected `files[]`{}",
                        if named { " or `display_name`" } else { "" }
                    )));
                }
            }
        }
        if files.is_empty() {
            return Err(ApiError::invalid(
                "files[]: this field is required: one part for each file of the skill, or one zip",
            ));
        }
        Ok(Self {
            display_name: display_name.flatten(),
            files,
        })
    }
}

/// Checks an upload and brings it into its normal form, where that may take a while.
async fn pack(app: &App, files: Vec<archive::Part>) -> Result<Packed> {
    let _permit = app.packing.acquire().await.map_err(Error::internal)?;
    let packed = tokio::task::spawn_blocking(move || archive::pack(files)).await;
    Ok(packed.map_err(Error::internal)?.map_err(ApiError::from)?)
}

/// Writes an archive where contents are kept.
async fn keep(app: &App, packed: Packed) -> Result<NewSkillVersion> {
    let size = packed.archive.len() as u64;
    let content = stream::iter([Ok(packed.archive)]);
    let blob = app.store.blobs().put(content, size).await;
    Ok(NewSkillVersion {
        name: packed.name,
        description: packed.description,
        blob: blob?,
    })
}

/// What these references mean now, or the refusal of the first that means nothing. `at` is the path of
/// their list in the request.
pub(crate) async fn resolve(
    app: &App,
    workspace: WorkspaceId,
    at: &str,
    skills: &[SkillRef],
) -> Result<Result<Vec<ResolvedSkill>, ApiError>> {
    resolve_lists(app, workspace, &[(at.to_owned(), skills)]).await
}

/// The same for several lists, one behind the other.
pub(crate) async fn resolve_lists(
    app: &App,
    workspace: WorkspaceId,
    lists: &[(String, &[SkillRef])],
) -> Result<Result<Vec<ResolvedSkill>, ApiError>> {
    let all: Vec<SkillRef> = lists
        .iter()
        .flat_map(|(_, skills)| skills.iter().cloned())
        .collect();
    // Most have none, and must not pay for this.
    if all.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    let found = app
        .store
        .skill_versions_for_session(workspace, &all)
        .await?;
    let places = lists
        .iter()
        .flat_map(|(at, skills)| skills.iter().enumerate().map(move |place| (at, place)));
    Ok(found
        .into_iter()
        .zip(places)
        .map(|(found, (at, (index, skill)))| found.ok_or_else(|| missing(at, index, skill)))
        .collect())
}

fn missing(at: &str, index: usize, skill: &SkillRef) -> ApiError {
    let (id, version) = (&skill.skill_id, &skill.version);
    let which = match (skill.r#type, &**version) {
        (SkillSource::Custom, "latest") => format!("there is no skill `{id}`"),
        (SkillSource::Custom, _) => format!("there is no skill `{id}` with a version `{version}`"),
        (SkillSource::Anthropic, "latest") => {
            format!("the operator of this server has registered no skill `{id}`")
        }
        (SkillSource::Anthropic, _) => format!(
            "the operator of this server has registered no skill `{id}` with a version `{version}`"
        ),
    };
    ApiError::invalid(format!("{at}[{index}]: {which}")).with_code("skill_not_found")
}

/// Creates a skill with its first version.
#[utoipa::path(post, path = "/v1/skills", operation_id = "create_skill", tag = "skills",
    request_body(content = SkillUpload, content_type = "multipart/form-data"),
    responses((status = 200, description = "The skill", body = SkillView)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Asked(generation): Asked,
    NoQuery: NoQuery,
    form: Form<PARTS>,
) -> Result<Json<SkillView>> {
    let upload = Upload::read(form, true)?;
    let new = keep(&app, pack(&app, upload.files).await?).await?;
    let skill = app
        .store
        .skill_create(principal.workspace, upload.display_name, &new)
        .await?;
    let view = skill.view(generation);
    view.map(Json)
        .ok_or_else(|| Error::internal("a new skill has no version"))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only the workspace's own (`custom`), or only those provided by the operator (`anthropic`).
    #[param(inline)]
    source: Option<SkillSource>,
    /// Page size.
    #[param(minimum = 1, maximum = 1000, default = 20)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
}

/// Lists skills, newest first.
#[utoipa::path(get, path = "/v1/skills", operation_id = "list_skills", tag = "skills",
    params(ListQuery),
    responses((status = 200, description = "A page of skills", body = SkillPage<SkillView>)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Asked(generation): Asked,
    Query(query): Query<ListQuery>,
) -> Result<Json<SkillPage<SkillView>>> {
    let limit = check_limit(query.limit, 20, 1000)?;
    let after = match &query.page {
        None => Position::NEWEST,
        Some(page) => Position::from_cursor(LIST, page)?,
    };
    let filter = SkillFilter {
        source: query.source,
        empty: generation == Generation::Legacy,
        after,
        limit: limit + 1,
    };
    let rows = app.store.skill_list(principal.workspace, &filter).await?;
    let page = Page::cut(rows, limit, |(id, last)| {
        Position {
            created_at: last.created_at,
            id: *id,
        }
        .cursor(LIST)
    });
    let views = page.data.into_iter();
    Ok(Json(SkillPage::new(
        views
            .filter_map(|(_, skill)| skill.view(generation))
            .collect(),
        page.next_page,
        generation,
    )))
}

/// Retrieves a skill.
#[utoipa::path(get, path = "/v1/skills/{skill_id}", operation_id = "get_skill", tag = "skills",
    params(("skill_id" = String, Path)),
    responses((status = 200, description = "The skill", body = SkillView)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Asked(generation): Asked,
    Path(key): Path<SkillKey>,
    NoQuery: NoQuery,
) -> Result<Json<SkillView>> {
    let skill = app.store.skill_get(principal.workspace, &key).await?;
    let view = skill.and_then(|skill| skill.view(generation));
    view.map(Json).ok_or_else(|| not_found(&key).into())
}

/// Deletes a skill and all its versions. Sessions keep what they were created with. In the older
/// generation its versions must be deleted first.
#[utoipa::path(delete, path = "/v1/skills/{skill_id}", operation_id = "delete_skill", tag = "skills",
    params(("skill_id" = String, Path)),
    responses((status = 200, description = "It is gone", body = DeletedSkill)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Asked(generation): Asked,
    Path(key): Path<SkillKey>,
    RequestId(request): RequestId,
    NoQuery: NoQuery,
) -> Result<Json<DeletedSkill>> {
    let all = generation == Generation::Current;
    app.store
        .skill_delete(principal.workspace, &key, all, &principal.actor(&request))
        .await?
        .map_err(refused(&key, true))?;
    Ok(Json(DeletedSkill {
        id: key.to_string(),
        r#type: SkillDeletedType,
    }))
}

#[cfg(test)]
mod tests;
