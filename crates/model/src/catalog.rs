//! What is known about models: for `GET /v1/models`, for token limits, for how to ask them to think.

use selfsame_types::{
    ApiError, Timestamp,
    model::{ModelConfig, Speed},
};
use serde::Serialize;

use crate::Thinking;

/// One model, with the keys of the API's model object that we can fill.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelInfo {
    pub id: String,
    pub display_name: String,
    /// The epoch when unknown, as the API does it.
    pub created_at: Timestamp,
    /// The context window, tokens.
    pub max_input_tokens: Option<u64>,
    /// Most output tokens of one request.
    pub max_tokens: Option<u32>,
    #[serde(skip)]
    pub thinking: ThinkingSupport,
    /// The levels of `effort` it takes; `None`: not known, whatever is asked is passed on.
    #[serde(skip)]
    pub efforts: Option<Vec<String>>,
    /// Whether `speed: fast` can be asked for; `None`: not known.
    #[serde(skip)]
    pub fast: Option<bool>,
}

/// How a model can be asked to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ThinkingSupport {
    #[default]
    None,
    Budget,
    Adaptive,
}

/// The models of this deployment, newest first.
#[derive(Debug, Clone)]
pub struct Models {
    list: Vec<ModelInfo>,
    /// The operator's own list: there are no others.
    closed: bool,
}

/// For models that say nothing about themselves: small enough for any current one.
const DEFAULT_WINDOW: u64 = 200_000;
const DEFAULT_OUTPUT: u32 = 32_000;

impl Default for Models {
    /// The models the official clients know by name.
    fn default() -> Self {
        let list = BUILT_IN
            .iter()
            .map(|&(id, name, day)| built_in(id, name, day));
        Self {
            list: list.collect(),
            closed: false,
        }
    }
}

impl Models {
    /// A list of the operator's own, in the order it shall be shown.
    #[must_use]
    pub fn new(list: Vec<ModelInfo>) -> Self {
        Self { list, closed: true }
    }

    /// Whether an agent may be saved with this model: it must be one of the operator's list, if there
    /// is one, and able to do what is asked of it as far as that is known.
    ///
    /// # Errors
    /// 400 that says what to ask for instead.
    pub fn check(&self, model: &ModelConfig) -> Result<(), ApiError> {
        let Some(info) = self.get(&model.id) else {
            if !self.closed {
                return Ok(());
            }
            let known: Vec<_> = self.list.iter().take(20).map(|m| m.id.as_str()).collect();
            return Err(ApiError::invalid(format!(
                "model: `{}` is not a model of this server; it has {}",
                model.id.chars().take(100).collect::<String>(),
                known.join(", ")
            )));
        };
        if model.speed == Speed::Fast && info.fast == Some(false) {
            return Err(ApiError::invalid(format!(
                "model.speed: `{}` has no fast mode; use `standard`",
                info.id
            )));
        }
        let level = model.effort.r#type.as_str();
        match &info.efforts {
            // `high` is what a model without levels is saved with.
            Some(levels) if level != "high" && !levels.iter().any(|known| known == level) => {
                Err(ApiError::invalid(format!(
                    "model.effort: `{}` does not take `{level}`; it takes {}",
                    info.id,
                    if levels.is_empty() {
                        "no effort".to_owned()
                    } else {
                        levels.join(", ")
                    }
                )))
            }
            _ => Ok(()),
        }
    }

    #[must_use]
    pub fn list(&self) -> &[ModelInfo] {
        &self.list
    }

    #[must_use]
    pub fn get(&self, id: &str) -> Option<&ModelInfo> {
        self.list.iter().find(|m| m.id == id)
    }

    /// The context window, tokens; a careful guess for models that are not listed.
    #[must_use]
    pub fn window(&self, id: &str) -> u64 {
        self.get(id)
            .and_then(|m| m.max_input_tokens)
            .unwrap_or(DEFAULT_WINDOW)
    }

    /// The `max_tokens` to ask with; a careful guess for models that are not listed.
    #[must_use]
    pub fn max_tokens(&self, id: &str) -> u32 {
        self.get(id)
            .and_then(|m| m.max_tokens)
            .unwrap_or(DEFAULT_OUTPUT)
    }

    /// How to ask this model to think, leaving at least half of `max_tokens` for the answer.
    #[must_use]
    pub fn thinking(&self, id: &str, max_tokens: u32) -> Thinking {
        match self.get(id).map(|m| m.thinking).unwrap_or_default() {
            ThinkingSupport::Adaptive => Thinking::Adaptive,
            ThinkingSupport::Budget if max_tokens >= 2048 => {
                Thinking::Budget((max_tokens / 2).min(16_384))
            }
            ThinkingSupport::Budget | ThinkingSupport::None => Thinking::Off,
        }
    }

    /// The `effort` to ask with, given what the agent wants: nothing for models without it.
    #[must_use]
    pub fn effort(&self, id: &str, wanted: Option<&str>) -> Option<String> {
        let wanted = wanted?;
        match self.get(id).and_then(|m| m.efforts.as_ref()) {
            Some(levels) if !levels.iter().any(|l| l == wanted) => None,
            _ => Some(wanted.to_owned()),
        }
    }
}

/// Id, display name, release day where it is part of the id.
const BUILT_IN: &[(&str, &str, Option<&str>)] = &[
    ("claude-fable-5-2", "Claude Fable 5.2", None),
    ("claude-haiku-5-5", "Claude Haiku 5.5", None),
    ("claude-sonnet-5-5", "Claude Sonnet 5.5", None),
    ("claude-opus-5-5", "Claude Opus 5.5", None),
    ("claude-fable-5-1", "Claude Fable 5.1", None),
    ("claude-sonnet-5", "Claude Sonnet 5", None),
    ("claude-fable-5", "Claude Fable 5", None),
    ("claude-opus-5", "Claude Opus 5", None),
    ("claude-opus-4-8", "Claude Opus 4.8", None),
    ("claude-opus-4-7", "Claude Opus 4.7", None),
    ("claude-opus-4-6", "Claude Opus 4.6", None),
    ("claude-sonnet-4-6", "Claude Sonnet 4.6", None),
    ("claude-opus-4-5", "Claude Opus 4.5", Some("2025-11-01")),
    (
        "claude-opus-4-5-20251101",
        "Claude Opus 4.5",
        Some("2025-11-01"),
    ),
    ("claude-haiku-4-5", "Claude Haiku 4.5", Some("2025-10-01")),
    (
        "claude-haiku-4-5-20251001",
        "Claude Haiku 4.5",
        Some("2025-10-01"),
    ),
    ("claude-sonnet-4-5", "Claude Sonnet 4.5", Some("2025-09-29")),
    (
        "claude-sonnet-4-5-20250929",
        "Claude Sonnet 4.5",
        Some("2025-09-29"),
    ),
];

fn built_in(id: &str, name: &str, day: Option<&str>) -> ModelInfo {
    let created_at = match day {
        Some(day) => format!("{day}T00:00:00Z")
            .parse()
            .unwrap_or_else(|_| epoch()),
        None => epoch(),
    };
    // The 4.5 generation thinks by budget, and only its Opus knows effort. Later ones decide for
    // themselves; which levels and speeds each takes is left to the upstream to say.
    let old = id.contains("-4-5");
    let efforts = match (old, id.contains("opus")) {
        (true, true) => Some(vec!["low".into(), "medium".into(), "high".into()]),
        (true, false) => Some(Vec::new()),
        (false, _) => None,
    };
    ModelInfo {
        id: id.to_owned(),
        display_name: name.to_owned(),
        created_at,
        max_input_tokens: Some(DEFAULT_WINDOW),
        max_tokens: Some(64_000),
        thinking: if old {
            ThinkingSupport::Budget
        } else {
            ThinkingSupport::Adaptive
        },
        efforts,
        fast: old.then_some(false),
    }
}

fn epoch() -> Timestamp {
    Timestamp::from_micros(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_list() {
        let models = Models::default();
        assert_eq!(models.list().len(), BUILT_IN.len());
        let dates: Vec<_> = models.list().iter().map(|m| m.created_at).collect();
        assert_eq!(dates.iter().filter(|d| **d != epoch()).count(), 6);
        let json = serde_json::to_value(models.get("claude-sonnet-4-5").unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "id": "claude-sonnet-4-5",
                "display_name": "Claude Sonnet 4.5",
                "created_at": "2025-09-29T00:00:00.000000Z",
                "max_input_tokens": 200_000,
                "max_tokens": 64_000,
            })
        );
    }

    #[test]
    fn what_to_ask_with() {
        let models = Models::default();
        for (id, window, max, thinking) in [
            ("claude-opus-5-5", 200_000, 64_000, Thinking::Adaptive),
            (
                "claude-haiku-4-5",
                200_000,
                64_000,
                Thinking::Budget(16_384),
            ),
            ("my-own-model", 200_000, 32_000, Thinking::Off),
        ] {
            assert_eq!(models.window(id), window);
            assert_eq!(models.max_tokens(id), max);
            assert_eq!(models.thinking(id, max), thinking);
        }
        assert_eq!(
            models.thinking("claude-haiku-4-5", 2048),
            Thinking::Budget(1024)
        );
        assert_eq!(models.thinking("claude-haiku-4-5", 2047), Thinking::Off);
        for (id, wanted, sent) in [
            ("claude-opus-5-5", Some("max"), Some("max")),
            ("claude-opus-4-5", Some("high"), Some("high")),
            ("claude-opus-4-5", Some("max"), None),
            ("claude-haiku-4-5", Some("high"), None),
            ("my-own-model", Some("high"), Some("high")),
            ("claude-opus-5-5", None, None),
        ] {
            assert_eq!(
                models.effort(id, wanted).as_deref(),
                sent,
                "{id} {wanted:?}"
            );
        }
    }

    #[test]
    fn an_operators_list_is_closed_and_abilities_are_checked() {
        let model = |json: &str| serde_json::from_str::<ModelConfig>(json).unwrap();
        let plain = |id: &str, speed: &str, effort: &str| {
            model(&format!(
                r#"{{"id":"{id}","effort":{{"type":"{effort}"}},"inference_geo":null,"speed":"{speed}"}}"#
            ))
        };
        let open = Models::default();
        assert!(open.check(&plain("anything", "fast", "max")).is_ok());
        assert!(
            open.check(&plain("claude-sonnet-4-5", "standard", "high"))
                .is_ok()
        );
        assert!(
            open.check(&plain("claude-sonnet-4-5", "standard", "low"))
                .is_err()
        );
        let mut info = open.list()[0].clone();
        (info.id, info.fast) = ("mine".to_owned(), Some(false));
        let closed = Models::new(vec![info]);
        assert!(closed.check(&plain("mine", "standard", "high")).is_ok());
        assert!(closed.check(&plain("mine", "fast", "high")).is_err());
        let refused = closed
            .check(&plain("other", "standard", "high"))
            .unwrap_err();
        assert!(refused.message.contains("`other`") && refused.message.contains("mine"));
    }
}
