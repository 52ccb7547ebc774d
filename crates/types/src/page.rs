//! Pages and their cursors.
//!
//! A cursor is `page_` + base64url of a small JSON value. It is opaque to clients, and it is *not* a
//! secret: whoever decodes one must treat its content as input.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::ApiError;

/// `{"data": [...], "next_page": ...}`
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Page<T> {
    pub data: Vec<T>,
    pub next_page: Option<String>,
}

/// The page of `GET /v1/sessions`, which can be walked both ways.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct TwoWayPage<T> {
    pub data: Vec<T>,
    pub next_page: Option<String>,
    pub prev_page: Option<String>,
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    Asc,
    #[default]
    Desc,
}

/// Writes a cursor.
///
/// # Panics
/// Never: cursors are plain structs of numbers and strings.
pub fn encode_cursor<T: Serialize>(cursor: &T) -> String {
    let json = serde_json::to_vec(cursor).expect("cursors serialize");
    format!("page_{}", URL_SAFE_NO_PAD.encode(json))
}

/// Reads a cursor that a client sent.
pub fn decode_cursor<T: DeserializeOwned>(text: &str) -> Result<T, ApiError> {
    text.strip_prefix("page_")
        .and_then(|rest| URL_SAFE_NO_PAD.decode(rest).ok())
        .and_then(|json| serde_json::from_slice(&json).ok())
        .ok_or_else(|| {
            ApiError::invalid(
                "page: not a cursor of this list; pass a `next_page` value as it was returned",
            )
        })
}
