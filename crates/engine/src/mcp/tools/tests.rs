//! Lists of every kind, and the names that come of them.

use selfsame_types::agent::AgentSpec;
use serde_json::{Value, json};

use super::*;

fn entry(name: &str, schema: Value) -> Value {
    json!({"name": name, "description": "does it", "inputSchema": schema})
}

fn object() -> Value {
    json!({"type": "object"})
}

fn described(name: &str) -> Described {
    read(&entry(name, object())).unwrap()
}

/// An agent with these servers, whose toolsets say this.
fn agent(servers: &[&str], toolset: Value) -> AgentSpec {
    let tools: Vec<Value> = servers
        .iter()
        .map(|server| {
            let mut tool = json!({
                "type": "mcp_toolset", "mcp_server_name": server, "configs": [],
                "default_config": {"enabled": true, "permission_policy": {"type": "always_ask"}},
            });
            for (key, value) in toolset.as_object().unwrap() {
                tool[key] = value.clone();
            }
            tool
        })
        .collect();
    let servers: Vec<Value> = servers
        .iter()
        .map(|name| json!({"type": "url", "name": name, "url": "https://example.com"}))
        .collect();
    serde_json::from_value(json!({
        "name": "a", "description": null, "system": null, "skills": [],
        "model": {"id": "m", "speed": "standard", "effort": {"type": "high"}, "inference_geo": null},
        "tools": tools, "mcp_servers": servers, "execution_identity": {"type": "service_account"},
    }))
    .unwrap()
}

fn names(toolset: &Toolset) -> Vec<String> {
    toolset
        .definitions()
        .iter()
        .map(|tool| {
            serde_json::from_str::<Value>(tool.get()).unwrap()["name"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

#[test]
fn tools_that_models_take() {
    let tool = read(&entry(
        "search",
        json!({
            "properties": {"query": {"type": "string", "minLength": 1}, "tree": {"$ref": "#/$defs/node"}},
            "required": ["query"], "additionalProperties": false, "x-own": {"a": [1]},
            "$defs": {"node": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "anyOf": [{"required": ["query"]}],
        }),
    ))
    .unwrap();
    assert_eq!(tool.schema["type"], "object");
    assert!(!tool.schema.contains_key("anyOf"), "not at this level");
    assert_eq!(
        tool.schema["$defs"]["node"]["anyOf"][0]["$ref"],
        "#/$defs/node"
    );
    // What may be missing is.
    let bare = read(&json!({"name": "x"})).unwrap();
    assert_eq!(bare.description, "x");
    assert_eq!(Value::Object(bare.schema), object());
    let titled =
        read(&json!({"name": "x", "title": "The X", "description": " ", "inputSchema": {}}));
    assert_eq!(titled.unwrap().description, "The X");
    let long = read(&json!({"name": "x", "description": "ä".repeat(MAX_DESCRIPTION + 1)})).unwrap();
    assert_eq!(long.description.chars().count(), MAX_DESCRIPTION);
}

#[test]
fn tools_that_no_model_takes() {
    let (mut deep, mut bomb) = (object(), json!({"type": "string"}));
    for _ in 0..MAX_DEPTH {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    for _ in 0..12 {
        bomb = json!({"anyOf": [bomb.clone(), bomb]});
    }
    let property = |schema: Value| json!({"type": "object", "properties": {"a": schema}});
    for (what, tool) in [
        ("no name", json!({"inputSchema": object()})),
        ("an empty name", entry("", object())),
        ("a number", json!({"name": 5, "inputSchema": object()})),
        ("a newline", entry("a\nb", object())),
        ("an escape", entry("a\u{1b}[2J", object())),
        ("U+0000", entry("a\0", object())),
        ("an absurd length", entry(&"a".repeat(129), object())),
        ("not an object", json!(["name"])),
        ("a list for a schema", entry("a", json!([]))),
        ("a text for a schema", entry("a", json!("object"))),
        ("another type", entry("a", json!({"type": "string"}))),
        ("two types", entry("a", json!({"type": ["object", "null"]}))),
        (
            "properties that are none",
            entry("a", json!({"properties": []})),
        ),
        (
            "a property no API takes",
            entry("a", json!({"properties": {"a b": {}}})),
        ),
        (
            "an unknown type",
            entry("a", property(json!({"type": "text"}))),
        ),
        (
            "a type that is a number",
            entry("a", property(json!({"type": 5}))),
        ),
        (
            "required twice",
            entry("a", json!({"required": ["a", "a"]})),
        ),
        ("required numbers", entry("a", json!({"required": [1]}))),
        (
            "a negative length",
            entry("a", property(json!({"minLength": -1}))),
        ),
        (
            "an empty choice",
            entry("a", property(json!({"anyOf": []}))),
        ),
        (
            "a choice of texts",
            entry("a", property(json!({"anyOf": ["b"]}))),
        ),
        (
            "an enum that is none",
            entry("a", property(json!({"enum": "b"}))),
        ),
        ("too deep", entry("a", deep)),
        ("too large", entry("a", property(bomb))),
    ] {
        assert_eq!(read(&tool), None, "{what}");
    }
}

#[test]
fn names_are_the_plain_ones_where_they_can_be() {
    let agent = agent(&["files", "we ather"], json!({}));
    let servers = vec![
        ("we ather".to_owned(), vec![described("now")]),
        (
            "files".to_owned(),
            vec![described("write"), described("réad"), described("list.all")],
        ),
    ];
    let toolset = Toolset::new(&agent, servers.clone());
    let names = names(&toolset);
    assert_eq!(names[2], "mcp__files__write");
    for (name, start) in [
        (&names[0], "mcp__files__list_all_"),
        (&names[1], "mcp__files__r_ad_"),
        (&names[3], "mcp__we_ather__now_"),
    ] {
        assert!(name.starts_with(start), "{name}");
        assert_eq!(name.len(), start.len() + 10, "{name}");
    }
    let Some(Verdict::Mcp { server, tool, .. }) = toolset.judge(&names[1]) else {
        panic!("{:?}", toolset.judge(&names[1]));
    };
    assert_eq!((server.as_str(), tool.as_str()), ("files", "réad"));
    assert!(toolset.judge("mcp__files__read").is_none());

    // Another order of servers and tools gives the same bytes.
    let mut turned = servers;
    turned.reverse();
    for (_, tools) in &mut turned {
        tools.reverse();
    }
    let turned = Toolset::new(&agent, turned);
    let bytes = |toolset: &Toolset| {
        toolset
            .definitions()
            .iter()
            .map(|d| d.get().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(bytes(&turned), bytes(&toolset));
}

#[test]
fn no_two_tools_have_one_name() {
    let (one, other) = ("a__b", "a");
    let agent = agent(&[one, other], json!({}));
    let long = "x".repeat(128);
    let toolset = Toolset::new(
        &agent,
        vec![
            (
                one.to_owned(),
                vec![
                    described("c"),
                    described(&long),
                    described("d.e"),
                    described("d e"),
                ],
            ),
            (other.to_owned(), vec![described("b__c"), described(&long)]),
        ],
    );
    let mut names = names(&toolset);
    assert!(
        !names.contains(&"mcp__a__b__c".to_owned()),
        "whose would it be? {names:?}"
    );
    for name in &names {
        assert!(name.len() <= MAX_OFFERED, "{name}");
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)),
            "{name}"
        );
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!((names.len(), count), (6, 6));
}

#[test]
fn settings_choose_among_them() {
    let agent = agent(
        &["s"],
        json!({
            "default_config": {"enabled": false, "permission_policy": {"type": "always_ask"}},
            "configs": [
                {"name": "on", "enabled": true, "permission_policy": {"type": "always_allow"}},
                {"name": "asks", "enabled": true, "permission_policy": {"type": "always_ask"}},
                {"name": "elsewhere", "enabled": true, "permission_policy": {"type": "always_ask"}},
            ],
        }),
    );
    let toolset = Toolset::new(
        &agent,
        vec![(
            "s".to_owned(),
            vec![described("off"), described("on"), described("asks")],
        )],
    );
    assert_eq!(names(&toolset), ["mcp__s__asks", "mcp__s__on"]);
    let permission = |name: &str| match toolset.judge(name) {
        Some(Verdict::Mcp {
            permission, policy, ..
        }) => (permission, policy),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        permission("mcp__s__on"),
        (Permission::Allow, "always_allow")
    );
    assert_eq!(permission("mcp__s__asks"), (Permission::Ask, "always_ask"));
    assert!(toolset.judge("mcp__s__off").is_none());
}

#[test]
fn more_tools_than_a_request_holds() {
    let many = |count: usize| {
        (0..count)
            .map(|n| described(&format!("t{n:04}")))
            .collect::<Vec<_>>()
    };
    let agent = agent(&["a", "b"], json!({}));
    let servers = vec![("b".to_owned(), many(200)), ("a".to_owned(), many(100))];
    let toolset = Toolset::new(&agent, servers);
    assert_eq!(toolset.definitions().len(), MAX_TOOLS);
    assert_eq!(toolset.left_out, [("b".to_owned(), 44)].into());
}
