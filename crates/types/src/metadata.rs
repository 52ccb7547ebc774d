//! Free key-value pairs on agents, environments and sessions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ApiError, check};

/// Most pairs on one object.
pub const MAX_PAIRS: usize = 16;
/// Longest key, in characters.
pub const MAX_KEY: usize = 64;
/// Longest value, in characters.
pub const MAX_VALUE: usize = 512;

/// A map of strings to strings: at most 16 pairs, keys of 1 to 64 characters, values of up to 512.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct Metadata(pub BTreeMap<String, String>);

/// An update of metadata: a string sets a key, `null` deletes it, keys that are not named stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct MetadataPatch(pub BTreeMap<String, Option<String>>);

/// What an empty string means in a patch: agents and environments delete, sessions store it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyValue {
    Deletes,
    IsStored,
}

impl Metadata {
    /// Checks count and lengths. The message names each problem.
    pub fn validate(&self) -> Result<(), ApiError> {
        let mut problems = Vec::new();
        if self.0.len() > MAX_PAIRS {
            problems.push(format!(
                "at most {MAX_PAIRS} pairs are allowed, not {}",
                self.0.len()
            ));
        }
        // Enough to repair a request with; a hostile one does not get a message as long as itself.
        for (key, value) in self.0.iter().take(MAX_PAIRS + 1) {
            let name = check::excerpt(key);
            let (key_length, value_length) = (key.chars().count(), value.chars().count());
            if !(1..=MAX_KEY).contains(&key_length) {
                problems.push(format!(
                    "key `{name}` must have 1 to {MAX_KEY} characters, has {key_length}"
                ));
            }
            if value_length > MAX_VALUE {
                problems.push(format!(
                    "the value of `{name}` must have at most {MAX_VALUE} characters, has {value_length}"
                ));
            }
            if key.contains('\0') || value.contains('\0') {
                problems.push(format!("`{name}` must not contain the character U+0000"));
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        let message = format!("metadata: {}", problems.join("; "));
        Err(ApiError::invalid(message).with_code("invalid_metadata"))
    }
}

impl MetadataPatch {
    /// `current` with this patch applied, checked as a whole.
    pub fn apply(self, current: &Metadata, empty: EmptyValue) -> Result<Metadata, ApiError> {
        let mut merged = current.clone();
        for (key, value) in self.0 {
            match value {
                Some(value) if !(value.is_empty() && empty == EmptyValue::Deletes) => {
                    merged.0.insert(key, value);
                }
                _ => {
                    merged.0.remove(&key);
                }
            }
        }
        merged.validate()?;
        Ok(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Metadata {
        Metadata(
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn limits_are_counted_in_characters_and_every_problem_is_named() {
        of(&[(&"ä".repeat(64), &"ö".repeat(512))])
            .validate()
            .unwrap();
        let error = of(&[(&"k".repeat(65), &"v".repeat(513)), ("", "x"), ("n", "\0")])
            .validate()
            .unwrap_err();
        assert_eq!(error.code, Some("invalid_metadata"));
        for part in [
            "has 65",
            "has 513",
            "key `` must have",
            "`n` must not contain",
        ] {
            assert!(error.message.contains(part), "{part}: {}", error.message);
        }
        let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
        let many = Metadata(many.into_iter().map(|key| (key, String::new())).collect());
        assert!(
            many.validate()
                .unwrap_err()
                .message
                .contains("at most 16 pairs")
        );
    }

    #[test]
    fn a_patch_sets_deletes_and_keeps() {
        let current = of(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let patch: MetadataPatch =
            serde_json::from_str(r#"{"a":null,"b":"","d":"4","absent":null}"#).unwrap();
        let deleting = patch.clone().apply(&current, EmptyValue::Deletes).unwrap();
        assert_eq!(deleting, of(&[("c", "3"), ("d", "4")]));
        let storing = patch.apply(&current, EmptyValue::IsStored).unwrap();
        assert_eq!(storing, of(&[("b", ""), ("c", "3"), ("d", "4")]));
    }

    #[test]
    fn values_must_be_strings() {
        assert!(serde_json::from_str::<Metadata>(r#"{"a":1}"#).is_err());
        assert!(serde_json::from_str::<MetadataPatch>(r#"{"a":1}"#).is_err());
    }
}
