//! Tools that the client runs, and what their input schemas may not contain.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::BuiltinTool;
use crate::{ApiError, check, wire};

wire::literals! { CustomToolType = "custom"; }

/// Longest description of a custom tool, in characters.
const MAX_DESCRIPTION: usize = 16_384;

/// A tool of the client's own. Request and response look alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CustomTool {
    #[schema(inline)]
    pub r#type: CustomToolType,
    /// Letters, digits, `_` and `-`. Unique, and not the name of a built-in tool.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9_-]+$")]
    pub name: String,
    #[schema(min_length = 1, max_length = 16384)]
    pub description: String,
    /// A JSON Schema of type `object`, without references. Kept as it was sent.
    #[schema(value_type = Object)]
    pub input_schema: Map<String, Value>,
}

impl CustomTool {
    pub(super) fn resolve(mut self, at: &str) -> Result<Self, ApiError> {
        self.check_name(at)?;
        check::text(
            format_args!("{at}.description"),
            &self.description,
            1..=MAX_DESCRIPTION,
        )?;
        let at = format!("{at}.input_schema");
        // Clients of the first hour left the type out.
        if !self.input_schema.contains_key("type") {
            let rest = std::mem::take(&mut self.input_schema);
            self.input_schema
                .insert("type".to_owned(), Value::from("object"));
            self.input_schema.extend(rest);
        }
        check_top(&self.input_schema, &at)?;
        check_object(&self.input_schema, &at)?;
        Ok(self)
    }

    fn check_name(&self, at: &str) -> Result<(), ApiError> {
        let refuse = |reason: &str| Err(ApiError::invalid(format!("{at}.name: {reason}")));
        check::text(format_args!("{at}.name"), &self.name, 1..=128)?;
        if !self
            .name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        {
            return refuse("may only have letters, digits, `_` and `-`");
        }
        if BuiltinTool::parse(&self.name).is_some() {
            return refuse(&format!(
                "`{}` is a built-in tool; choose another name",
                self.name
            ));
        }
        for prefix in ["mcp__", "ant__"] {
            if self.name.starts_with(prefix) {
                return refuse(&format!(
                    "the prefix `{prefix}` is reserved; choose another name"
                ));
            }
        }
        Ok(())
    }
}

/// Rules of the outermost schema alone.
fn check_top(schema: &Map<String, Value>, at: &str) -> Result<(), ApiError> {
    if schema.get("type") != Some(&Value::from("object")) {
        return Err(ApiError::invalid(format!("{at}.type: must be `object`")));
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        if schema.contains_key(key) {
            return Err(ApiError::invalid(format!(
                "{at}.{key}: is not allowed at the top level; describe one object with `properties`"
            )));
        }
    }
    match schema.get("properties") {
        None | Some(Value::Null | Value::Object(_)) => {}
        Some(_) => {
            return Err(ApiError::invalid(format!(
                "{at}.properties: must be an object or null"
            )));
        }
    }
    match schema.get("required") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => Ok(()),
        Some(_) => Err(ApiError::invalid(format!(
            "{at}.required: must be a list of strings or null"
        ))),
    }
}

/// Rules of every schema inside. The depth is bounded by the JSON parser's own limit.
fn check_schema(schema: &Value, at: &str) -> Result<(), ApiError> {
    match schema {
        Value::Object(schema) => check_object(schema, at),
        Value::Array(schemas) => schemas
            .iter()
            .enumerate()
            .try_for_each(|(index, schema)| check_schema(schema, &format!("{at}[{index}]"))),
        _ => Ok(()),
    }
}

fn check_object(schema: &Map<String, Value>, at: &str) -> Result<(), ApiError> {
    for (key, value) in schema {
        let at = format!("{at}.{}", check::excerpt(key));
        match (key.as_str(), value) {
            ("$ref" | "$dynamicRef" | "$recursiveRef", _) => {
                return Err(ApiError::invalid(format!(
                    "{at}: references are not supported; write the schema out in place"
                )));
            }
            // Literal data, not schemas.
            ("const" | "enum" | "default" | "examples", _) => {}
            ("properties", Value::Object(properties)) => {
                for (name, schema) in properties {
                    check_property_name(name, &at)?;
                    check_schema(schema, &format!("{at}.{name}"))?;
                }
            }
            // Keys here are patterns or names of definitions, not keywords.
            (
                "patternProperties" | "$defs" | "definitions" | "dependentSchemas",
                Value::Object(schemas),
            ) => {
                for (name, schema) in schemas {
                    check_schema(schema, &format!("{at}.{}", check::excerpt(name)))?;
                }
            }
            _ => check_schema(value, &at)?,
        }
    }
    Ok(())
}

fn check_property_name(name: &str, at: &str) -> Result<(), ApiError> {
    let valid = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "{at}: property name `{}` must have 1 to 64 of letters, digits, `_`, `.` and `-`",
        check::excerpt(name)
    )))
}
