use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// One tool call. Its id is what makes it run once: the hands never run an id twice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The id of the event that asked for it.
    pub id: Uuid,
    /// Which persistent shell it uses: one per thread of the session.
    pub shell: Uuid,
    /// `bash`, `read`, `write`, `edit`, `glob` or `grep`.
    pub tool: String,
    pub input: Value,
    /// File name (without `.txt`) under the tool-outputs directory for an output that is too long
    /// to return.
    pub spill_name: String,
}

/// What a tool call gave. A tool that failed is a result, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallResult {
    pub content: Vec<Content>,
    pub is_error: bool,
    /// After `bash`, `write` and `edit`: a number that differs from the one before when a file in the
    /// outputs directory was added, changed or removed, and 0 when there is none. Otherwise 0.
    #[serde(default)]
    pub outputs: u64,
}

/// What a model is told about a full disk, as a clause.
#[must_use]
pub fn disk_full(used: u64, limit: u64) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    format!(
        "the sandbox's disk is full ({} MiB are used, {} MiB are allowed): nothing can be written \
         before files are deleted, which works as always",
        mib(used),
        limit >> 20
    )
}

impl CallResult {
    /// A successful result of one text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            content: vec![Content::Text(text.into())],
            is_error: false,
            outputs: 0,
        }
    }

    /// A failed result of one text.
    #[must_use]
    pub fn error(text: impl Into<String>) -> Self {
        Self {
            content: vec![Content::Text(text.into())],
            is_error: true,
            outputs: 0,
        }
    }

    /// The texts of all text blocks, joined by line ends.
    #[must_use]
    pub fn joined_text(&self) -> String {
        let texts: Vec<&str> = self
            .content
            .iter()
            .filter_map(|content| match content {
                Content::Text(text) => Some(text.as_str()),
                Content::Image { .. } | Content::Document { .. } => None,
            })
            .collect();
        texts.join("\n")
    }
}

/// A block of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    Text(String),
    Image {
        media_type: String,
        data_base64: String,
    },
    Document {
        media_type: String,
        data_base64: String,
    },
}
