//! Outcomes: what a client wants to have, and the rubric by which it is judged.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    ApiError, FileId, OutcomeId, check,
    content::{FileType, TextType},
    wire,
};

/// `max_iterations` of an outcome that does not say.
pub const DEFAULT_MAX_ITERATIONS: u32 = 3;
/// Most evaluations of one outcome.
pub const MAX_ITERATIONS: u32 = 20;
/// Longest description, in characters.
pub const MAX_DESCRIPTION: usize = 65_536;
/// Longest rubric, in characters.
pub const MAX_RUBRIC: usize = 262_144;

wire::literals! {
    UserDefineOutcomeType = "user.define_outcome";
}

// Parameters -------------------------------------------------------------------------------------

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserDefineOutcomeParams {
    #[schema(inline)]
    pub r#type: UserDefineOutcomeType,
    /// What is to be produced: the task as the agent receives it.
    #[schema(min_length = 1, max_length = 65_536)]
    pub description: String,
    pub rubric: RubricParams,
    /// Most evaluations. Default 3.
    #[schema(minimum = 1, maximum = 20)]
    pub max_iterations: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("text" = "#/components/schemas/TextRubric"),
    ("file" = "#/components/schemas/FileRubric"),
)))]
pub enum RubricParams {
    Text(TextRubric),
    File(FileRubric),
}

wire::tagged_union! { RubricParams:
    "text" => Text,
    "file" => File,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextRubric {
    #[schema(inline)]
    pub r#type: TextType,
    /// Plain text or Markdown.
    #[schema(min_length = 1, max_length = 262_144)]
    pub content: String,
}

/// A text that was uploaded. It is read when the event is accepted; the event in the log has its content.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileRubric {
    #[schema(inline)]
    pub r#type: FileType,
    #[schema(min_length = 1, max_length = 128)]
    pub file_id: String,
}

// Checked ----------------------------------------------------------------------------------------

/// A checked definition; a file is still to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserDefineOutcome {
    pub description: String,
    pub rubric: Rubric,
    /// 1 to 20.
    pub max_iterations: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rubric {
    Text(TextRubric),
    File(FileId),
}

/// A definition as it stands in the log: its own fields, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinedOutcome {
    pub outcome_id: OutcomeId,
    pub description: String,
    pub rubric: TextRubric,
    pub max_iterations: u32,
}

impl TextRubric {
    /// # Errors
    /// 400 when it is empty, too long, or has a character that cannot be kept.
    pub fn new(content: String) -> Result<Self, ApiError> {
        let rubric = Self {
            r#type: TextType,
            content,
        };
        rubric.check("rubric.content")?;
        Ok(rubric)
    }

    fn check(&self, at: &str) -> Result<(), ApiError> {
        check::text(at, &self.content, 1..=MAX_RUBRIC)
    }
}

impl UserDefineOutcomeParams {
    pub(crate) fn check(self) -> Result<UserDefineOutcome, ApiError> {
        check::text("description", &self.description, 1..=MAX_DESCRIPTION)?;
        let max_iterations = match self.max_iterations {
            None => DEFAULT_MAX_ITERATIONS,
            Some(wanted) => u32::try_from(wanted)
                .ok()
                .filter(|wanted| (1..=MAX_ITERATIONS).contains(wanted))
                .ok_or_else(|| ApiError::invalid("max_iterations: must be 1 to 20"))?,
        };
        let rubric = match self.rubric {
            RubricParams::Text(rubric) => {
                rubric.check("rubric.content")?;
                Rubric::Text(rubric)
            }
            RubricParams::File(rubric) => {
                Rubric::File(crate::inbound::parse_id("rubric.file_id", &rubric.file_id)?)
            }
        };
        Ok(UserDefineOutcome {
            description: self.description,
            rubric,
            max_iterations,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(rubric: &serde_json::Value) -> Result<UserDefineOutcome, ApiError> {
        let params = json!({"type": "user.define_outcome", "description": "d", "rubric": rubric});
        serde_json::from_value::<UserDefineOutcomeParams>(params)
            .unwrap()
            .check()
    }

    #[test]
    fn a_rubric_is_a_text_or_a_file() {
        let file = FileId::new();
        let outcome = check(&json!({"type": "file", "file_id": file})).unwrap();
        assert_eq!(outcome.rubric, Rubric::File(file));
        assert_eq!(outcome.max_iterations, DEFAULT_MAX_ITERATIONS);
        let error = check(&json!({"type": "file", "file_id": "rubric.md"})).unwrap_err();
        assert!(
            error
                .message
                .starts_with("rubric.file_id: `rubric.md` is not a valid id")
        );
        let outcome = check(&json!({"type": "text", "content": "r"})).unwrap();
        assert_eq!(
            outcome.rubric,
            Rubric::Text(TextRubric::new("r".to_owned()).unwrap())
        );
    }

    #[test]
    fn the_log_has_the_fields_of_the_event() {
        let defined = DefinedOutcome {
            outcome_id: OutcomeId::new(),
            description: "d".to_owned(),
            rubric: TextRubric::new("r".to_owned()).unwrap(),
            max_iterations: 3,
        };
        assert_eq!(
            crate::event::fields(&defined),
            format!(
                r#""outcome_id":"{}","description":"d","rubric":{{"type":"text","content":"r"}},"max_iterations":3"#,
                defined.outcome_id
            )
        );
    }

    #[test]
    fn rubrics_have_a_length() {
        for (content, fragment) in [
            (String::new(), "must have 1"),
            ("r".repeat(MAX_RUBRIC + 1), "must have 1 to 262144"),
            ("a\0b".to_owned(), "U+0000"),
        ] {
            let error = TextRubric::new(content).unwrap_err();
            assert!(error.message.contains(fragment), "{}", error.message);
        }
        assert!(TextRubric::new("ü".repeat(MAX_RUBRIC)).is_ok());
    }
}
