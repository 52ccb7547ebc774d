//! What servers say they can do, and what of it a model is offered.
//!
//! A server's list is judged tool by tool: one that no model API would take is left out, because a request
//! with it would fail as a whole. The names that models see are `mcp__<server>__<tool>` as far as their
//! alphabet and length allow it; what had to be changed, or meets another, gets a tail that depends on
//! nothing but server and tool. So the same servers always give the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
};

use selfsame_types::{
    agent::AgentSpec,
    tool::{PolicyKind, ToolSetting},
};
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};
use sha2::{Digest as _, Sha256};

use crate::machine::{Permission, Verdict};

/// Longest name of a tool, as its server and as events have it.
const MAX_NAME: usize = 128;
/// Longest name that every model API takes.
const MAX_OFFERED: usize = 64;
const MAX_DESCRIPTION: usize = 16_384;
const MAX_SCHEMA: usize = 64 << 10;
const MAX_DEPTH: usize = 32;
/// Tools of all servers of an agent together.
const MAX_TOOLS: usize = 256;

/// A tool as its server describes it, fit for a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Described {
    pub name: String,
    pub description: String,
    pub schema: Map<String, Value>,
}

/// Reads one entry of a server's list; `None` when no model could be offered it.
pub(super) fn read(entry: &Value) -> Option<Described> {
    let name = entry["name"].as_str()?;
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return None;
    }
    let text = |key: &str| entry[key].as_str().filter(|text| !text.trim().is_empty());
    let description = text("description").or_else(|| text("title"));
    let description: String = description
        .unwrap_or(name)
        .chars()
        .take(MAX_DESCRIPTION)
        .collect();
    let mut schema = match &entry["inputSchema"] {
        Value::Null => Map::new(),
        Value::Object(schema) => schema.clone(),
        _ => return None,
    };
    // A tool's input is an object, and model APIs refuse a choice at this level.
    if schema.get("type").is_some_and(|kind| kind != "object") {
        return None;
    }
    schema.insert("type".to_owned(), "object".into());
    for choice in ["oneOf", "anyOf", "allOf"] {
        schema.shift_remove(choice);
    }
    let names_fit = match schema.get("properties") {
        None => true,
        Some(Value::Object(properties)) => properties.keys().all(|name| is_property(name)),
        Some(_) => false,
    };
    let schema = Value::Object(schema);
    if !names_fit || !is_schema(&schema, MAX_DEPTH) || schema.to_string().len() > MAX_SCHEMA {
        return None;
    }
    let Value::Object(schema) = schema else {
        return None;
    };
    Some(Described {
        name: name.to_owned(),
        description,
        schema,
    })
}

fn is_property(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Whether a JSON Schema is one as far as its shape goes: a model API refuses a whole request over one
/// keyword of the wrong type. `$ref`s are not followed, so none can lead in circles.
fn is_schema(schema: &Value, depth: usize) -> bool {
    let Some(deeper) = depth.checked_sub(1) else {
        return false;
    };
    let keywords = match schema {
        Value::Bool(_) => return true,
        Value::Object(keywords) => keywords,
        _ => return false,
    };
    let sub = |schema: &Value| is_schema(schema, deeper);
    keywords
        .iter()
        .all(|(keyword, value)| match keyword.as_str() {
            "type" => match value {
                Value::Array(types) => !types.is_empty() && types.iter().all(is_type),
                one => is_type(one),
            },
            "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas" => {
                value
                    .as_object()
                    .is_some_and(|schemas| schemas.values().all(sub))
            }
            "oneOf" | "anyOf" | "allOf" | "prefixItems" => value
                .as_array()
                .is_some_and(|schemas| !schemas.is_empty() && schemas.iter().all(sub)),
            "items"
            | "additionalProperties"
            | "not"
            | "if"
            | "then"
            | "else"
            | "contains"
            | "propertyNames"
            | "unevaluatedItems"
            | "unevaluatedProperties" => sub(value),
            "required" => value.as_array().is_some_and(|names| {
                let unique: BTreeSet<_> = names.iter().filter_map(Value::as_str).collect();
                unique.len() == names.len()
            }),
            "enum" | "examples" => value.is_array() && fits(value, deeper),
            "title" | "description" | "format" | "pattern" | "$ref" | "$id" | "$schema"
            | "$anchor" | "$comment" => value.is_string(),
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties"
            | "maxProperties" => {
                value.as_u64().is_some()
                    || value.as_f64().is_some_and(|n| n >= 0.0 && n.fract() == 0.0)
            }
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => value.is_number(),
            "multipleOf" => value.as_f64().is_some_and(|n| n > 0.0),
            "uniqueItems" | "deprecated" | "readOnly" | "writeOnly" => value.is_boolean(),
            _ => fits(value, deeper),
        })
}

fn is_type(value: &Value) -> bool {
    value.as_str().is_some_and(|name| {
        [
            "object", "array", "string", "number", "integer", "boolean", "null",
        ]
        .contains(&name)
    })
}

fn fits(value: &Value, depth: usize) -> bool {
    let Some(deeper) = depth.checked_sub(1) else {
        return false;
    };
    match value {
        Value::Array(values) => values.iter().all(|value| fits(value, deeper)),
        Value::Object(values) => values.values().all(|value| fits(value, deeper)),
        _ => true,
    }
}

/// The tools of MCP servers that a thread's model is offered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Toolset {
    definitions: Vec<Box<RawValue>>,
    tools: HashMap<String, Offered>,
    /// More were to be offered than a request can hold.
    pub(super) left_out: BTreeMap<String, usize>,
}

#[derive(Debug, Clone)]
struct Offered {
    server: String,
    tool: String,
    setting: ToolSetting,
}

impl Toolset {
    /// What an agent's settings leave of what its servers have.
    pub(super) fn new(agent: &AgentSpec, servers: Vec<(String, Vec<Described>)>) -> Self {
        let mut all = Vec::new();
        for (server, described) in servers {
            for tool in described {
                let setting = agent.mcp(&server, &tool.name);
                if setting.enabled {
                    all.push((server.clone(), setting, tool));
                }
            }
        }
        // The order is nobody's choice: a server that lists its tools in another one changes no byte.
        all.sort_by(|a, b| (&a.0, &a.2.name).cmp(&(&b.0, &b.2.name)));
        let mut left_out = BTreeMap::new();
        for (server, ..) in all.drain(all.len().min(MAX_TOOLS)..) {
            *left_out.entry(server).or_default() += 1;
        }
        let mut taken = HashMap::<String, usize>::new();
        for (server, _, tool) in &all {
            *taken.entry(plain(server, &tool.name)).or_default() += 1;
        }
        let mut toolset = Self {
            left_out,
            ..Self::default()
        };
        for (server, setting, tool) in all {
            let plain = plain(&server, &tool.name);
            let whole = plain == format!("mcp__{server}__{}", tool.name)
                && plain.len() <= MAX_OFFERED
                && taken[&plain] == 1;
            let offered = if whole {
                plain
            } else {
                tailed(&plain, &server, &tool.name)
            };
            let definition = json!({
                "name": offered, "description": tool.description, "input_schema": tool.schema,
            });
            toolset
                .definitions
                .push(to_raw_value(&definition).expect("tools serialize"));
            let tool = tool.name;
            toolset.tools.insert(
                offered,
                Offered {
                    server,
                    tool,
                    setting,
                },
            );
        }
        toolset
    }

    /// The tools as requests name them.
    pub(crate) fn definitions(&self) -> &[Box<RawValue>] {
        &self.definitions
    }

    /// What becomes of a call by the name that the model was offered.
    pub(crate) fn judge(&self, offered: &str) -> Option<Verdict> {
        let found = self.tools.get(offered)?;
        let (permission, policy) = match found.setting.policy.r#type {
            PolicyKind::AlwaysAllow => (Permission::Allow, "always_allow"),
            PolicyKind::AlwaysAsk | PolicyKind::Auto => (Permission::Ask, "always_ask"),
        };
        Some(Verdict::Mcp {
            server: found.server.clone(),
            tool: found.tool.clone(),
            permission,
            policy,
        })
    }
}

/// The name in the alphabet of model APIs.
fn plain(server: &str, tool: &str) -> String {
    format!("mcp__{server}__{tool}")
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
                c
            } else {
                '_'
            }
        })
        .collect()
}

fn tailed(plain: &str, server: &str, tool: &str) -> String {
    let mut hash = Sha256::new();
    hash.update((server.len() as u64).to_be_bytes());
    hash.update(server);
    hash.update(tool);
    let mut tail = String::from("_");
    for byte in &hash.finalize()[..5] {
        let _ = write!(tail, "{byte:02x}");
    }
    // ASCII by now, so any place is good to cut.
    format!(
        "{}{tail}",
        &plain[..plain.len().min(MAX_OFFERED - tail.len())]
    )
}

#[cfg(test)]
mod tests;
