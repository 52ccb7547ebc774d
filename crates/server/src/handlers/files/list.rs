//! `GET /v1/files`, in both generations of answers.

use std::{collections::HashSet, sync::Arc};

use axum::{extract::State, http::HeaderMap};
use selfsame_store::{FileQuery, FileRecord, FileStart};
use selfsame_types::{ApiError, FileId, Page, Position, SessionId, file::File, page::check_limit};
use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    error::Result,
    extract::{Auth, Json, Query},
    middleware::lists_beta,
};

/// The name of the list in its cursors.
const LIST: &str = "files";
/// Clients that name this get answers of the first generation.
const LEGACY: &str = "files-api-2025-04-14";
const MOST_IDS: usize = 100;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// The files of this session: what it was given, and what it has made. Without it: uploads.
    #[param(value_type = Option<String>)]
    scope_id: Option<SessionId>,
    /// Only these files, at most 100; not together with parameters for pages.
    #[serde(default, rename = "ids[]")]
    #[param(rename = "ids[]", value_type = Vec<String>)]
    ids: Vec<FileId>,
    /// Page size.
    #[param(minimum = 1, maximum = 1000, default = 20)]
    limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    page: Option<String>,
    /// The page that starts after this file.
    #[param(value_type = Option<String>)]
    after_id: Option<FileId>,
    /// The page that ends before this file.
    #[param(value_type = Option<String>)]
    before_id: Option<FileId>,
}

/// A page of either generation.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum FileList {
    Current(Page<File>),
    Legacy(LegacyFilePage),
}

/// A page whose cursors are ids, for `anthropic-beta: files-api-2025-04-14`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LegacyFilePage {
    data: Vec<File>,
    has_more: bool,
    #[schema(required)]
    first_id: Option<FileId>,
    #[schema(required)]
    last_id: Option<FileId>,
}

impl FileList {
    fn new(rows: Vec<FileRecord>, more: bool, legacy: bool) -> Self {
        let data: Vec<File> = rows.into_iter().map(|row| row.file).collect();
        if legacy {
            return Self::Legacy(LegacyFilePage {
                has_more: more,
                first_id: data.first().map(|file| file.id),
                last_id: data.last().map(|file| file.id),
                data,
            });
        }
        let next_page = data.last().filter(|_| more).map(|last| {
            let (created_at, id) = (last.created_at, last.id.0);
            Position { created_at, id }.cursor(LIST)
        });
        Self::Current(Page { data, next_page })
    }
}

/// Lists files, newest first.
#[utoipa::path(get, path = "/v1/files", operation_id = "list_files", tag = "files",
    params(ListQuery),
    responses((status = 200, description = "A page of files", body = FileList)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Auth(principal): Auth,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Result<Json<FileList>> {
    let legacy = lists_beta(&headers, LEGACY);
    if !query.ids.is_empty() {
        let ids = chosen(&query)?;
        let found = app
            .store
            .file_find(principal.workspace, &ids, query.scope_id);
        return Ok(Json(FileList::new(found.await?, false, legacy)));
    }
    let wanted = FileQuery {
        scope: query.scope_id,
        start: start(&query)?,
        limit: check_limit(query.limit, 20, 1000)?,
    };
    let (rows, more) = app.store.file_list(principal.workspace, &wanted).await?;
    // A page before a file always has something behind it: that file.
    let backwards = matches!(wanted.start, FileStart::Before(_));
    let more = more || (backwards && !legacy && !rows.is_empty());
    Ok(Json(FileList::new(rows, more, legacy)))
}

/// The ids asked for, each once.
fn chosen(query: &ListQuery) -> Result<Vec<FileId>, ApiError> {
    let pages = query.limit.is_some()
        || query.page.is_some()
        || query.after_id.is_some()
        || query.before_id.is_some();
    if pages {
        return Err(ApiError::invalid(
            "ids[]: cannot be used together with limit, page, after_id or before_id",
        ));
    }
    let ids: HashSet<FileId> = query.ids.iter().copied().collect();
    if ids.len() > MOST_IDS {
        return Err(ApiError::invalid(format!(
            "ids[]: must have at most {MOST_IDS} entries, has {}",
            ids.len()
        )));
    }
    Ok(ids.into_iter().collect())
}

fn start(query: &ListQuery) -> Result<FileStart, ApiError> {
    match (&query.page, query.after_id, query.before_id) {
        (None, None, None) => Ok(FileStart::Newest),
        (Some(page), None, None) => {
            let position = Position::from_cursor(LIST, page)?;
            Ok(FileStart::After(FileId(position.id)))
        }
        (None, Some(id), None) => Ok(FileStart::After(id)),
        (None, None, Some(id)) => Ok(FileStart::Before(id)),
        _ => Err(ApiError::invalid(
            "page, after_id and before_id cannot be used together",
        )),
    }
}
