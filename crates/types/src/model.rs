//! Which model an agent uses, and how.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{ApiError, Patch, check, wire};

/// How hard the model may think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EffortLevel {
    Low,
    Medium,
    /// Also the default of a model.
    #[default]
    High,
    Xhigh,
    Max,
}

impl EffortLevel {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Xhigh => "xhigh",
            Self::Max => "max",
        }
    }
}

/// `{"type": "high"}`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Effort {
    pub r#type: EffortLevel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Speed {
    #[default]
    Standard,
    Fast,
}

/// Where inference may run. Kept and shown; this server has no regions of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InferenceGeo {
    Us,
    Global,
}

/// A model and its settings, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelConfig {
    pub id: String,
    pub effort: Effort,
    /// `null`: the workspace's default.
    #[schema(required)]
    pub inference_geo: Option<InferenceGeo>,
    pub speed: Speed,
}

/// A model in a request: its id, or an object with settings.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
pub enum ModelParams {
    Id(String),
    Config(ModelConfigParams),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfigParams {
    #[schema(min_length = 1, max_length = 256)]
    pub id: String,
    #[serde(default)]
    #[schema(value_type = Option<EffortParams>)]
    pub effort: Patch<EffortParams>,
    pub inference_geo: Option<InferenceGeo>,
    pub speed: Option<Speed>,
}

/// A level, bare or as `{"type": level}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
pub enum EffortParams {
    Level(EffortLevel),
    Object(Effort),
}

impl<'de> Deserialize<'de> for ModelParams {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(id) => Ok(Self::Id(id)),
            object @ Value::Object(_) => wire::from_value(object).map(Self::Config),
            _ => Err(serde::de::Error::custom(
                "must be a model id or an object with an `id`",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for EffortParams {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            level @ Value::String(_) => wire::from_value(level).map(Self::Level),
            object @ Value::Object(_) => wire::from_value(object).map(Self::Object),
            _ => Err(serde::de::Error::custom(
                "must be an effort level or an object with a `type`",
            )),
        }
    }
}

impl From<EffortParams> for Effort {
    fn from(params: EffortParams) -> Self {
        match params {
            EffortParams::Level(r#type) => Self { r#type },
            EffortParams::Object(effort) => effort,
        }
    }
}

impl ModelConfig {
    /// A model as it is when nothing else is said of it.
    #[must_use]
    pub fn of(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            effort: Effort::default(),
            inference_geo: None,
            speed: Speed::default(),
        }
    }
}

impl ModelParams {
    /// Fills in what the request leaves out. `stored` is the model an update replaces: its effort
    /// stays when the id stays; geo and speed do not.
    pub fn resolve(self, stored: Option<&ModelConfig>) -> Result<ModelConfig, ApiError> {
        let params = self.into_config();
        check::text("model.id", &params.id, 1..=256)?;
        let effort = match params.effort {
            Patch::Value(effort) => effort.into(),
            Patch::Null => Effort::default(),
            Patch::Absent => stored
                .filter(|stored| stored.id == params.id)
                .map_or_else(Effort::default, |stored| stored.effort),
        };
        Ok(ModelConfig {
            id: params.id,
            effort,
            inference_geo: params.inference_geo,
            speed: params.speed.unwrap_or_default(),
        })
    }

    /// As the `model` of a session's overrides: the session runs at the model's default effort,
    /// whatever the agent or the override says.
    pub fn resolve_override(self) -> Result<ModelConfig, ApiError> {
        let mut params = self.into_config();
        params.effort = Patch::Null;
        Self::Config(params).resolve(None)
    }

    fn into_config(self) -> ModelConfigParams {
        match self {
            Self::Id(id) => ModelConfigParams {
                id,
                effort: Patch::Absent,
                inference_geo: None,
                speed: None,
            },
            Self::Config(config) => config,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<ModelParams, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    fn stored() -> ModelConfig {
        read(json!({"id": "m", "effort": "low", "inference_geo": "us", "speed": "fast"}))
            .unwrap()
            .resolve(None)
            .unwrap()
    }

    #[test]
    fn both_forms_resolve_to_the_same_object() {
        let expected = json!({
            "id": "m", "effort": {"type": "high"}, "inference_geo": null, "speed": "standard",
        });
        for form in [
            json!("m"),
            json!({"id": "m"}),
            json!({"id": "m", "effort": null, "inference_geo": null, "speed": null}),
            json!({"id": "m", "effort": "high"}),
            json!({"id": "m", "effort": {"type": "high"}}),
        ] {
            let config = read(form).unwrap().resolve(None).unwrap();
            assert_eq!(serde_json::to_value(&config).unwrap(), expected);
            let again: ModelConfig = serde_json::from_value(expected.clone()).unwrap();
            assert_eq!(config, again);
        }
    }

    #[test]
    fn an_update_keeps_effort_only_for_the_same_id() {
        for (form, effort) in [
            (json!("m"), EffortLevel::Low),
            (json!({"id": "m"}), EffortLevel::Low),
            (json!({"id": "m", "effort": null}), EffortLevel::High),
            (json!({"id": "m", "effort": "max"}), EffortLevel::Max),
            (json!("other"), EffortLevel::High),
        ] {
            let config = read(form).unwrap().resolve(Some(&stored())).unwrap();
            assert_eq!(config.effort.r#type, effort);
            assert_eq!(config.inference_geo, None);
            assert_eq!(config.speed, Speed::Standard);
        }
    }

    #[test]
    fn an_override_ignores_effort() {
        let params = read(json!({"id": "m", "effort": "low", "speed": "fast"})).unwrap();
        let config = params.resolve_override().unwrap();
        assert_eq!(config.effort.r#type, EffortLevel::High);
        assert_eq!(config.speed, Speed::Fast);
    }

    #[test]
    fn bad_models_are_refused_with_their_place() {
        for (form, part) in [
            (json!(1), "model id"),
            (json!({}), "missing field `id`"),
            (json!({"id": "m", "temperature": 1}), "temperature"),
            (
                json!({"id": "m", "effort": "huge"}),
                "effort: unknown variant `huge`",
            ),
            (
                json!({"id": "m", "effort": {"type": "low", "x": 1}}),
                "unknown field `x`",
            ),
            (
                json!({"id": "m", "inference_geo": "eu"}),
                "inference_geo: unknown variant",
            ),
            (
                json!({"id": "m", "speed": "slow"}),
                "speed: unknown variant",
            ),
        ] {
            let error = read(form).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
        for id in [String::new(), "m".repeat(257), "\0".to_owned()] {
            assert!(ModelParams::Id(id).resolve(None).is_err());
        }
    }
}
