use serde_json::{Value, json};

use super::*;
use crate::ErrorKind;

/// A `tools` array as a request has it, resolved.
fn tools(value: Value) -> Result<Vec<Tool>, ApiError> {
    let params: Vec<ToolParams> =
        serde_json::from_value(value).map_err(|error| ApiError::invalid(error.to_string()))?;
    resolve_tools(params)
}

#[track_caller]
fn refused(value: Value, part: &str) {
    let error = tools(value.clone()).expect_err(&value.to_string());
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
    assert!(error.message.contains(part), "{part}\n{}", error.message);
}

fn toolset(configs: Value) -> Value {
    json!([{"type": "agent_toolset_20260401", "configs": configs}])
}

fn custom(change: impl FnOnce(&mut Value)) -> Value {
    let mut tool = json!({
        "type": "custom", "name": "lookup", "description": "d", "input_schema": {"type": "object"},
    });
    change(&mut tool);
    json!([tool])
}

fn schema(input_schema: Value) -> Value {
    custom(|tool| tool["input_schema"] = input_schema)
}

#[test]
fn a_bare_toolset_gets_its_defaults() {
    let resolved = tools(json!([{"type": "agent_toolset_20260401"}])).unwrap();
    insta::assert_json_snapshot!(resolved, @r#"
    [
      {
        "type": "agent_toolset_20260401",
        "default_config": {
          "enabled": true,
          "permission_policy": {
            "type": "always_allow"
          }
        },
        "configs": []
      }
    ]
    "#);
}

#[test]
fn entries_fall_back_to_the_default_and_are_written_in_full() {
    let resolved = tools(json!([{
        "type": "agent_toolset_20260401",
        "default_config": {"enabled": false, "permission_policy": null},
        "configs": [
            {"name": "bash", "permission_policy": {"type": "always_ask"}},
            {"name": "web_fetch", "type": "web_fetch", "enabled": true, "max_content_tokens": 5},
            {"name": "web_search", "blocked_domains": ["Example.com"]},
        ],
    }]))
    .unwrap();
    insta::assert_json_snapshot!(resolved[0], @r#"
    {
      "type": "agent_toolset_20260401",
      "default_config": {
        "enabled": false,
        "permission_policy": {
          "type": "always_allow"
        }
      },
      "configs": [
        {
          "type": "bash",
          "name": "bash",
          "enabled": false,
          "permission_policy": {
            "type": "always_ask"
          }
        },
        {
          "type": "web_fetch",
          "name": "web_fetch",
          "enabled": true,
          "permission_policy": {
            "type": "always_allow"
          },
          "allowed_domains": null,
          "blocked_domains": null,
          "max_content_tokens": 5,
          "url_sources": null
        },
        {
          "type": "web_search",
          "name": "web_search",
          "enabled": false,
          "permission_policy": {
            "type": "always_allow"
          },
          "allowed_domains": null,
          "blocked_domains": [
            "Example.com"
          ],
          "user_location": null
        }
      ]
    }
    "#);
    // What is stored reads back, and is a valid request for the same thing.
    let text = serde_json::to_string(&resolved).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Tool>>(&text).unwrap(), resolved);
    assert_eq!(
        tools(serde_json::from_str(&text).unwrap()).unwrap(),
        resolved
    );
    let Tool::Agent(toolset) = &resolved[0] else {
        panic!()
    };
    assert!(!toolset.setting(BuiltinTool::Read).enabled);
    assert!(toolset.setting(BuiltinTool::WebFetch).enabled);
    let bash = toolset.setting(BuiltinTool::Bash);
    assert_eq!(bash.policy, PermissionPolicy::ALWAYS_ASK);
}

#[test]
fn mcp_asks_by_default() {
    let resolved = tools(json!([{
        "type": "mcp_toolset", "mcp_server_name": "s",
        "configs": [{"name": "x", "permission_policy": {"type": "always_allow"}}],
    }]))
    .unwrap();
    insta::assert_json_snapshot!(resolved[0], @r#"
    {
      "type": "mcp_toolset",
      "mcp_server_name": "s",
      "default_config": {
        "enabled": true,
        "permission_policy": {
          "type": "always_ask"
        }
      },
      "configs": [
        {
          "name": "x",
          "enabled": true,
          "permission_policy": {
            "type": "always_allow"
          }
        }
      ]
    }
    "#);
    let Tool::Mcp(toolset) = &resolved[0] else {
        panic!()
    };
    assert_eq!(toolset.setting("x").policy, PermissionPolicy::ALWAYS_ALLOW);
    assert_eq!(toolset.setting("y").policy, PermissionPolicy::ALWAYS_ASK);
}

#[test]
fn shapes_that_are_no_tools() {
    refused(json!([{"name": "x"}]), "missing field `type`");
    refused(json!(["bash"]), "must be an object with a `type`");
    refused(json!([{"type": 1}]), "type: must be a string");
    refused(
        json!([{"type": "browser_toolset_20260801"}]),
        "is not known here",
    );
    refused(
        json!([{"type": "agent_toolset_20260401", "cache_control": null}]),
        "unknown field `cache_control`",
    );
    refused(
        toolset(json!([{"name": "rm"}])),
        "configs[0].name: unknown variant `rm`",
    );
    refused(
        toolset(json!([{"enabled": true}])),
        "configs[0]: missing field `name`",
    );
    refused(
        toolset(json!([{"name": "bash", "max_uses": 1}])),
        "unknown field `max_uses`",
    );
    refused(
        json!([{"type": "agent_toolset_20260401",
            "default_config": {"permission_policy": {"type": "always_allow", "x": 1}}}]),
        "default_config.permission_policy.x: unknown field `x`",
    );
    refused(
        json!([{"type": "mcp_toolset"}]),
        "missing field `mcp_server_name`",
    );
    refused(
        json!([{"type": "mcp_toolset", "mcp_server_name": "s", "configs": [{"name": "x", "type": "x"}]}]),
        "unknown field `type`",
    );
}

#[test]
fn rules_of_the_array() {
    let many: Vec<Value> = (0..257)
        .map(|_| json!({"type": "agent_toolset_20260401"}))
        .collect();
    refused(Value::Array(many), "tools: must have at most 256 entries");
    refused(
        json!([{"type": "agent_toolset_20260401"}, {"type": "agent_toolset_20260401"}]),
        "tools[1]: a second `agent_toolset_20260401`",
    );
    let mcp = json!({"type": "mcp_toolset", "mcp_server_name": "s"});
    refused(
        json!([mcp, mcp]),
        "tools[1]: a second `mcp_toolset` for server `s`",
    );
    let twin = custom(|_| ())[0].clone();
    refused(
        json!([twin, twin]),
        "tools[1]: a second custom tool named `lookup`",
    );
}

#[test]
fn rules_of_built_in_entries() {
    refused(
        toolset(json!([{"name": "bash"}, {"name": "bash"}])),
        "tools[0].configs[1].name: `bash` is configured twice",
    );
    refused(
        toolset(json!([{"name": "bash", "type": "read"}])),
        "tools[0].configs[0].type: must equal `name`",
    );
    for policy in ["default_config", "configs"] {
        let auto = json!({"permission_policy": {"type": "auto"}});
        let value = if policy == "configs" {
            toolset(json!([{"name": "bash", "permission_policy": {"type": "auto"}}]))
        } else {
            json!([{"type": "agent_toolset_20260401", "default_config": auto}])
        };
        refused(value, "`auto` is not supported");
    }
    for (name, key, value) in [
        ("bash", "allowed_domains", json!(["example.com"])),
        ("read", "blocked_domains", json!(["example.com"])),
        ("web_search", "max_content_tokens", json!(1)),
        ("web_search", "url_sources", json!({})),
        ("web_fetch", "user_location", json!({"type": "approximate"})),
    ] {
        refused(
            toolset(json!([{"name": name, key: value}])),
            &format!("{key}: is a setting of"),
        );
    }
    refused(
        toolset(json!([{"name": "web_fetch", "max_content_tokens": 0}])),
        "max_content_tokens: must be greater than 0",
    );
    refused(
        toolset(json!([{"name": "web_fetch", "allowed_domains": ["10.0.0.1"]}])),
        "tools[0].configs[0].allowed_domains.0: IP addresses are not supported; provide a plain \
         hostname like \"example.com\"",
    );
    refused(
        toolset(json!([{"name": "web_fetch", "allowed_domains": ["example.com/a"]}])),
        "paths are not supported",
    );
    tools(toolset(
        json!([{"name": "web_search", "allowed_domains": ["example.com/a"]}]),
    ))
    .unwrap();
}

#[test]
fn rules_of_mcp_entries() {
    let mcp = |change: Value| {
        let mut tool = json!({"type": "mcp_toolset", "mcp_server_name": "s"});
        tool.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        json!([tool])
    };
    refused(
        mcp(json!({"mcp_server_name": ""})),
        "mcp_server_name: must have 1 to 255",
    );
    refused(
        mcp(json!({"configs": [{"name": "x"}, {"name": "x"}]})),
        "configs[1].name: `x` is configured twice",
    );
    refused(
        mcp(json!({"configs": [{"name": ""}]})),
        "configs[0].name: must have 1 to 128",
    );
    refused(
        mcp(json!({"default_config": {"permission_policy": {"type": "auto"}}})),
        "`auto` is not supported",
    );
}

#[test]
fn user_location() {
    let location = |value: Value| toolset(json!([{"name": "web_search", "user_location": value}]));
    tools(location(json!({
        "type": "approximate", "city": "Köln", "country": "DE", "region": null,
        "timezone": "Europe/Berlin",
    })))
    .unwrap();
    refused(
        location(json!({"city": "Köln"})),
        "user_location: missing field `type`",
    );
    refused(
        location(json!({"type": "exact"})),
        "user_location.type: unknown variant `exact`",
    );
    for country in ["de", "XX", "DEU", ""] {
        refused(
            location(json!({"type": "approximate", "country": country})),
            "user_location.country",
        );
    }
    refused(
        location(json!({"type": "approximate", "timezone": "Mars/Olympus"})),
        "user_location.timezone: `Mars/Olympus` is not an IANA time zone",
    );
    refused(
        location(json!({"type": "approximate", "city": ""})),
        "user_location.city",
    );
}

#[test]
fn url_sources() {
    let sources = |value: Value| {
        json!([
            {"type": "agent_toolset_20260401",
             "configs": [{"name": "web_fetch", "url_sources": value}]},
            custom(|_| ())[0],
        ])
    };
    let resolved = tools(sources(json!({
        "user_input": "all",
        "client_tool_results": {"type": "only", "tools": [{"type": "tool_reference", "name": "lookup"}]},
    })))
    .unwrap();
    let resolved = serde_json::to_value(&resolved[0]).unwrap();
    assert_eq!(
        resolved["configs"][0]["url_sources"],
        json!({
            "user_input": {"type": "all"},
            "client_tool_results": {
                "type": "only", "tools": [{"type": "tool_reference", "name": "lookup"}],
            },
            "server_tool_results": null,
        })
    );
    let only =
        |name: &str| json!({"type": "only", "tools": [{"type": "tool_reference", "name": name}]});
    for (value, part) in [
        (
            json!({"user_input": "none", "client_tool_results": {"type": "none"}, "server_tool_results": "none"}),
            "all three sources are `none`",
        ),
        (
            json!({"user_input": only("lookup")}),
            "user_input.type: must be `all` or `none` here",
        ),
        (json!({"user_input": "only"}), "the short forms are"),
        (
            json!({"user_input": "some"}),
            "user_input: unknown variant `some`",
        ),
        (
            json!({"user_input": 1}),
            "must be \"all\", \"none\" or an object",
        ),
        (
            json!({"client_tool_results": only("other")}),
            "must be a custom tool of this agent",
        ),
        (
            json!({"server_tool_results": only("bash")}),
            "must be `web_search` or `web_fetch`",
        ),
        (
            json!({"server_tool_results": {"type": "except"}}),
            ".tools: is required",
        ),
        (
            json!({"server_tool_results": {"type": "except", "tools": []}}),
            "at least 1",
        ),
        (
            json!({"server_tool_results": {"type": "all", "tools": []}}),
            ".tools: belongs to `only` and `except`",
        ),
        (
            json!({"client_tool_results": {"type": "only", "tools": [
                {"type": "tool_reference", "name": "lookup"},
                {"type": "tool_reference", "name": "lookup"},
            ]}}),
            "`lookup` is named twice",
        ),
        (json!({"other": "all"}), "unknown field `other`"),
    ] {
        refused(sources(value), part);
    }
}

#[test]
fn custom_tools_are_kept_as_they_are() {
    let input_schema = json!({
        "type": "object", "title": "t", "required": ["b", "a"],
        "properties": {
            "b": {"type": "array", "items": {"oneOf": [{"type": "string"}, {"const": {"$ref": 1}}]}},
            "a": {"enum": ["$ref"], "default": null},
        },
        "additionalProperties": false, "$defs": {"unused thing": {"type": "number", "maximum": 1.5}},
    });
    let resolved = tools(schema(input_schema.clone())).unwrap();
    let Tool::Custom(tool) = &resolved[0] else {
        panic!()
    };
    assert_eq!(
        serde_json::to_string(&tool.input_schema).unwrap(),
        input_schema.to_string()
    );
    for nothing in [json!({}), json!({"properties": null, "required": null})] {
        let resolved = tools(schema(nothing)).unwrap();
        let Tool::Custom(tool) = &resolved[0] else {
            panic!()
        };
        assert_eq!(tool.input_schema.keys().next().unwrap(), "type");
        assert_eq!(tool.input_schema["type"], "object");
    }
}

#[test]
fn rules_of_custom_names() {
    let named = |name: &str| custom(|tool| tool["name"] = name.into());
    tools(named(&"n".repeat(128))).unwrap();
    for (name, part) in [
        ("", "must have 1 to 128"),
        ("a b", "may only have letters"),
        ("ä", "may only have letters"),
        ("bash", "is a built-in tool"),
        ("web_fetch", "is a built-in tool"),
        ("mcp__x", "`mcp__` is reserved"),
        ("ant__x", "`ant__` is reserved"),
    ] {
        refused(named(name), part);
    }
    refused(
        named(&"n".repeat(129)),
        "must have 1 to 128 characters, has 129",
    );
    let described = |text: String| custom(|tool| tool["description"] = text.into());
    refused(described(String::new()), "description: must have 1 to");
    refused(
        described("d".repeat(16_385)),
        "description: must have 1 to 16384",
    );
    refused(
        custom(|tool| tool["strict"] = true.into()),
        "unknown field `strict`",
    );
    refused(schema(json!("object")), "input_schema");
}

#[test]
fn rules_of_input_schemas() {
    for (value, part) in [
        (
            json!({"type": "string"}),
            "input_schema.type: must be `object`",
        ),
        (
            json!({"oneOf": []}),
            "input_schema.oneOf: is not allowed at the top level",
        ),
        (json!({"anyOf": []}), "input_schema.anyOf"),
        (json!({"allOf": []}), "input_schema.allOf"),
        (
            json!({"properties": []}),
            "properties: must be an object or null",
        ),
        (
            json!({"required": "a"}),
            "required: must be a list of strings",
        ),
        (
            json!({"required": [1]}),
            "required: must be a list of strings",
        ),
        (
            json!({"$ref": "#"}),
            "input_schema.$ref: references are not supported",
        ),
        (
            json!({"properties": {"a": {"items": [{"anyOf": [{"$ref": "#"}]}]}}}),
            "input_schema.properties.a.items[0].anyOf[0].$ref: references",
        ),
        (json!({"$defs": {"x": {"$dynamicRef": "#"}}}), "$dynamicRef"),
        (
            json!({"properties": {"a b": {}}}),
            "property name `a b` must have",
        ),
        (
            json!({"properties": {"": {}}}),
            "property name `` must have",
        ),
        (
            json!({"properties": {"a": {"properties": {"ü": {}}}}}),
            "properties.a.properties: property name `ü`",
        ),
    ] {
        refused(schema(value), part);
    }
    let long = "p".repeat(65);
    refused(schema(json!({"properties": {long: {}}})), "property name");
}

#[test]
fn deep_schemas_do_not_overflow() {
    let deep = format!(
        r#"[{{"type":"custom","name":"n","description":"d","input_schema":{}{}}}]"#,
        r#"{"items":"#.repeat(100_000),
        "}".repeat(100_000)
    );
    assert!(serde_json::from_str::<Vec<ToolParams>>(&deep).is_err());
    // As deep as the parser lets through.
    let depth = 120;
    let deep = format!(
        r#"[{{"type":"custom","name":"n","description":"d","input_schema":{}{{}}{}}}]"#,
        r#"{"items":"#.repeat(depth),
        "}".repeat(depth)
    );
    tools(serde_json::from_str(&deep).unwrap()).unwrap();
}
