//! Pages and their cursors.
//!
//! A cursor is `page_` + base64url of a small JSON value. It is opaque to clients, and it is *not* a
//! secret: whoever decodes one must treat its content as input.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{Timestamp, error::ApiError};

/// `{"data": [...], "next_page": ...}`
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Page<T> {
    pub data: Vec<T>,
    /// Null on the last page.
    #[schema(required)]
    pub next_page: Option<String>,
}

/// The page of `GET /v1/sessions`, which can be walked both ways.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct TwoWayPage<T> {
    pub data: Vec<T>,
    /// Null on the last page.
    #[schema(required)]
    pub next_page: Option<String>,
    /// Null on the first page.
    #[schema(required)]
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
        .ok_or_else(not_of_this_list)
}

fn not_of_this_list() -> ApiError {
    ApiError::invalid(
        "page: not a cursor of this list; pass a `next_page` value as it was returned",
    )
}

/// A place in a list that is ordered by creation time, then id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub created_at: Timestamp,
    pub id: Uuid,
}

/// The cursor of one named list, so that no list takes another's.
#[derive(Serialize, Deserialize)]
struct PositionCursor {
    list: String,
    at: i64,
    id: Uuid,
}

impl Position {
    /// Before everything, in descending order.
    pub const NEWEST: Self = Self {
        created_at: Timestamp::LATEST,
        id: Uuid::max(),
    };

    /// The cursor of the page that follows this position in the list of that name.
    #[must_use]
    pub fn cursor(self, list: &str) -> String {
        encode_cursor(&PositionCursor {
            list: list.to_owned(),
            at: self.created_at.as_micros(),
            id: self.id,
        })
    }

    /// Reads a cursor that a client sent for the list of that name.
    pub fn from_cursor(list: &str, text: &str) -> Result<Self, ApiError> {
        let cursor: PositionCursor = decode_cursor(text)?;
        if cursor.list != list {
            return Err(not_of_this_list());
        }
        Ok(Self {
            created_at: Timestamp::from_micros(cursor.at).storable(),
            id: cursor.id,
        })
    }
}

impl<T> Page<T> {
    /// A page of at most `limit` rows; one row more says that there is a next page.
    #[must_use]
    pub fn cut(mut rows: Vec<T>, limit: usize, cursor: impl FnOnce(&T) -> String) -> Self {
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_page = match rows.last() {
            Some(last) if more => Some(cursor(last)),
            _ => None,
        };
        Self {
            data: rows,
            next_page,
        }
    }
}

/// The page size a client asked for. Out of range is an error, not a smaller page.
pub fn check_limit(limit: Option<i64>, default: u32, max: u32) -> Result<usize, ApiError> {
    let limit = limit.unwrap_or_else(|| i64::from(default));
    match usize::try_from(limit) {
        Ok(limit) if (1..=max as usize).contains(&limit) => Ok(limit),
        _ => Err(ApiError::invalid(format!(
            "limit: must be between 1 and {max}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_survive_and_belong_to_their_list() {
        let position = Position {
            created_at: Timestamp::from_micros(1_234_567),
            id: Uuid::from_u128(7),
        };
        let cursor = position.cursor("agents");
        assert!(cursor.starts_with("page_"));
        assert_eq!(Position::from_cursor("agents", &cursor), Ok(position));
        assert!(Position::from_cursor("environments", &cursor).is_err());
        for bad in [
            "",
            "page_",
            "page_!!",
            "nonsense",
            &cursor[..cursor.len() - 4],
        ] {
            assert!(Position::from_cursor("agents", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_ends_where_the_next_begins() {
        let page = Page::cut(vec![1, 2, 3], 2, ToString::to_string);
        assert_eq!(
            (page.data, page.next_page),
            (vec![1, 2], Some("2".to_owned()))
        );
        let page = Page::cut(vec![1, 2], 2, ToString::to_string);
        assert_eq!((page.data, page.next_page), (vec![1, 2], None));
        let page = Page::cut(Vec::<i32>::new(), 2, ToString::to_string);
        assert_eq!(page.next_page, None);
    }

    #[test]
    fn limits_are_refused_not_clamped() {
        assert_eq!(check_limit(None, 20, 100), Ok(20));
        assert_eq!(check_limit(Some(100), 20, 100), Ok(100));
        for bad in [0, -1, 101, i64::MAX] {
            let error = check_limit(Some(bad), 20, 100).unwrap_err();
            assert_eq!(error.message, "limit: must be between 1 and 100");
        }
    }
}
