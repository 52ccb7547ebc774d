//! `/v1/models`: what clients fill their model pickers from. A list that the configuration names, or a built-in one.

use std::sync::Arc;

use axum::extract::State;
use selfsame_types::{ApiError, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    error::Result,
    extract::{Json, NoQuery, Path, Query},
};

#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ModelInfo {
    id: String,
    /// Always `model`.
    r#type: &'static str,
    display_name: String,
    created_at: Timestamp,
    lifecycle: Lifecycle,
    max_input_tokens: Option<u64>,
    max_tokens: Option<u32>,
    deprecated_at: Option<Timestamp>,
    retires_at: Option<Timestamp>,
    line: Option<serde_json::Value>,
    allowed_fallback_models: Option<Vec<String>>,
    capabilities: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    Active,
    Deprecated,
    Retired,
}

impl From<&selfsame_model::ModelInfo> for ModelInfo {
    fn from(known: &selfsame_model::ModelInfo) -> Self {
        Self {
            id: known.id.clone(),
            r#type: "model",
            display_name: known.display_name.clone(),
            created_at: known.created_at,
            lifecycle: Lifecycle::Active,
            max_input_tokens: known.max_input_tokens,
            max_tokens: known.max_tokens,
            deprecated_at: None,
            retires_at: None,
            line: None,
            allowed_fallback_models: None,
            capabilities: None,
        }
    }
}

/// A page of the older kind, whose cursors are ids.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ModelPage {
    data: Vec<ModelInfo>,
    has_more: bool,
    first_id: Option<String>,
    last_id: Option<String>,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// The page that starts after this id.
    after_id: Option<String>,
    /// The page that ends before this id.
    before_id: Option<String>,
    /// Page size.
    #[param(minimum = 1, maximum = 1000, default = 20)]
    limit: Option<u32>,
    /// Only models in one of these stages.
    #[serde(default, rename = "lifecycle[]")]
    #[param(rename = "lifecycle[]", inline)]
    lifecycle: Vec<Lifecycle>,
}

/// Lists models, newest first.
#[utoipa::path(get, path = "/v1/models", operation_id = "list_models", tag = "models", params(ListQuery),
    responses((status = 200, description = "A page of models", body = ModelPage)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Query(query): Query<ListQuery>,
) -> Result<Json<ModelPage>> {
    let limit = query.limit.unwrap_or(20);
    if !(1..=1000).contains(&limit) {
        return Err(ApiError::invalid("limit: must be between 1 and 1000").into());
    }
    let models: Vec<ModelInfo> = app
        .engine
        .models()
        .list()
        .iter()
        .map(ModelInfo::from)
        .filter(|model| query.lifecycle.is_empty() || query.lifecycle.contains(&model.lifecycle))
        .collect();
    Ok(Json(page(
        models,
        query.after_id.as_deref(),
        query.before_id.as_deref(),
        limit as usize,
    )?))
}

fn page(
    models: Vec<ModelInfo>,
    after: Option<&str>,
    before: Option<&str>,
    limit: usize,
) -> Result<ModelPage, ApiError> {
    let position = |name: &str, id: &str| {
        models
            .iter()
            .position(|model| model.id == id)
            .ok_or_else(|| ApiError::invalid(format!("{name}: `{id}` is not in this list")))
    };
    let (data, has_more) = match (after, before) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                "after_id and before_id cannot be used together",
            ));
        }
        (None, Some(id)) => {
            let end = position("before_id", id)?;
            let start = end.saturating_sub(limit);
            (models[start..end].to_vec(), start > 0)
        }
        (after, None) => {
            let start = match after {
                Some(id) => position("after_id", id)? + 1,
                None => 0,
            };
            let end = start.saturating_add(limit).min(models.len());
            (models[start..end].to_vec(), end < models.len())
        }
    };
    Ok(ModelPage {
        has_more,
        first_id: data.first().map(|model| model.id.clone()),
        last_id: data.last().map(|model| model.id.clone()),
        data,
    })
}

/// Retrieves one model.
#[utoipa::path(get, path = "/v1/models/{model_id}", operation_id = "get_model", tag = "models",
    params(("model_id" = String, Path, description = "As listed")),
    responses((status = 200, description = "The model", body = ModelInfo)))]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    NoQuery: NoQuery,
) -> Result<Json<ModelInfo>> {
    let known = app.engine.models().get(&id);
    let known = known.ok_or_else(|| ApiError::not_found("Model", &id))?;
    Ok(Json(ModelInfo::from(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(after: Option<&str>, before: Option<&str>, limit: usize) -> (String, bool) {
        let models = ["a", "b", "c", "d"]
            .map(|id| {
                let models = selfsame_model::Models::default();
                let mut model = ModelInfo::from(&models.list()[0]);
                id.clone_into(&mut model.id);
                model
            })
            .to_vec();
        let page = page(models, after, before, limit).unwrap();
        let ids = page.data.iter().map(|model| model.id.as_str()).collect();
        (ids, page.has_more)
    }

    #[test]
    fn pages_walk_both_ways() {
        assert_eq!(ids(None, None, 3), ("abc".to_owned(), true));
        assert_eq!(ids(Some("c"), None, 3), ("d".to_owned(), false));
        assert_eq!(ids(Some("d"), None, 3), (String::new(), false));
        assert_eq!(ids(None, Some("d"), 2), ("bc".to_owned(), true));
        assert_eq!(ids(None, Some("b"), 2), ("a".to_owned(), false));
        assert!(page(Vec::new(), Some("x"), None, 1).is_err());
    }
}
