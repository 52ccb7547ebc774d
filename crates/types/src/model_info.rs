//! What `GET /v1/models` lists.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{Timestamp, wire};

wire::literals! { ModelInfoType = "model"; }

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelLifecycle {
    #[default]
    Active,
    Deprecated,
    Retired,
}

/// A model that agents may name.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ModelInfo {
    #[schema(inline)]
    pub r#type: ModelInfoType,
    pub id: String,
    pub display_name: String,
    pub created_at: Timestamp,
    pub lifecycle: ModelLifecycle,
    #[schema(required)]
    pub max_input_tokens: Option<i64>,
    #[schema(required)]
    pub max_tokens: Option<i64>,
    #[schema(required)]
    pub deprecated_at: Option<Timestamp>,
    #[schema(required)]
    pub retires_at: Option<Timestamp>,
    /// Always null: what a model can do is known to its provider alone.
    #[schema(required, value_type = Option<Object>)]
    pub line: Option<serde_json::Value>,
    #[schema(required)]
    pub allowed_fallback_models: Option<Vec<String>>,
    /// Always null, like `line`.
    #[schema(required, value_type = Option<Object>)]
    pub capabilities: Option<serde_json::Value>,
}

impl ModelInfo {
    /// A model of which nothing but its name is known.
    #[must_use]
    pub fn named(id: String, display_name: String) -> Self {
        Self {
            r#type: ModelInfoType,
            id,
            display_name,
            created_at: Timestamp::from_micros(0),
            lifecycle: ModelLifecycle::Active,
            max_input_tokens: None,
            max_tokens: None,
            deprecated_at: None,
            retires_at: None,
            line: None,
            allowed_fallback_models: None,
            capabilities: None,
        }
    }
}

/// The page of lists that are walked by id.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct IdPage<T> {
    pub data: Vec<T>,
    pub has_more: bool,
    #[schema(required)]
    pub first_id: Option<String>,
    #[schema(required)]
    pub last_id: Option<String>,
}
