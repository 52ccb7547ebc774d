use serde_json::{Value, json};

use super::*;
use crate::ErrorKind;

fn create(body: Value) -> Result<AgentConfig, ApiError> {
    serde_json::from_value::<CreateAgent>(body)
        .map_err(|error| ApiError::invalid(error.to_string()))?
        .resolve(AgentId(uuid::Uuid::from_u128(1)), &Members::default())
}

/// A valid body, changed.
fn body(change: Value) -> Value {
    let mut body = json!({"name": "Coder", "model": "m"});
    let object = body.as_object_mut().unwrap();
    object.extend(change.as_object().unwrap().clone());
    body
}

fn agent(change: Value) -> Agent {
    let at = Timestamp::from_micros(1_000_000);
    let config = create(body(change)).unwrap();
    Agent::new(AgentId(uuid::Uuid::from_u128(1)), 3, config, at, at, None)
}

fn update(agent: &Agent, change: Value) -> Result<AgentConfig, ApiError> {
    serde_json::from_value::<UpdateAgent>(change)
        .map_err(|error| ApiError::invalid(error.to_string()))?
        .change(agent, &Members::default())
}

#[track_caller]
fn refused(result: Result<AgentConfig, ApiError>, kind: ErrorKind, part: &str) {
    let error = result.expect_err(part);
    assert_eq!(error.kind, kind, "{}", error.message);
    assert!(error.message.contains(part), "{part}\n{}", error.message);
}

#[test]
fn the_whole_shape() {
    let agent = agent(json!({
        "system": "s", "metadata": {"b": "2", "a": "1"},
        "tools": [{"type": "agent_toolset_20260401"}],
    }));
    insta::assert_json_snapshot!(agent, @r#"
    {
      "type": "agent",
      "id": "agent_011111111111111111111112",
      "version": 3,
      "name": "Coder",
      "description": null,
      "model": {
        "id": "m",
        "effort": {
          "type": "high"
        },
        "inference_geo": null,
        "speed": "standard"
      },
      "system": "s",
      "tools": [
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
      ],
      "mcp_servers": [],
      "skills": [],
      "execution_identity": {
        "type": "service_account"
      },
      "multiagent": null,
      "metadata": {
        "a": "1",
        "b": "2"
      },
      "created_at": "1970-01-01T00:00:01.000000Z",
      "updated_at": "1970-01-01T00:00:01.000000Z",
      "archived_at": null
    }
    "#);
    let text = serde_json::to_string(&agent).unwrap();
    assert_eq!(serde_json::from_str::<Agent>(&text).unwrap(), agent);
    let config = serde_json::to_string(&agent.config).unwrap();
    assert_eq!(
        serde_json::from_str::<AgentConfig>(&config).unwrap(),
        agent.config
    );

    let snapshot = serde_json::to_value(agent.snapshot(&Members::default()).unwrap()).unwrap();
    let keys: Vec<&String> = snapshot.as_object().unwrap().keys().collect();
    insta::assert_compact_debug_snapshot!(keys, @r#"["type", "id", "version", "name", "description", "model", "system", "tools", "mcp_servers", "skills", "execution_identity", "multiagent"]"#);
    let read: AgentSnapshot = serde_json::from_value(snapshot).unwrap();
    assert_eq!(read, agent.snapshot(&Members::default()).unwrap());
    let thread = serde_json::to_value(read.thread_agent()).unwrap();
    assert!(thread.get("multiagent").is_none());
    let read: ThreadAgent = serde_json::from_value(thread).unwrap();
    assert_eq!(read.spec, agent.config.spec);
}

#[test]
fn nulls_and_empty_texts_are_nothing() {
    let plain = create(body(json!({}))).unwrap();
    for nothing in [
        json!({"description": null, "system": null, "multiagent": null, "execution_identity": null}),
        json!({"description": "", "system": "", "tools": [], "mcp_servers": [], "skills": [], "metadata": {}}),
        json!({"execution_identity": {"type": "service_account"}}),
    ] {
        assert_eq!(create(body(nothing)).unwrap(), plain);
    }
}

#[test]
fn fields_are_checked() {
    for (change, part) in [
        (
            json!({"name": ""}),
            "name: must have 1 to 256 characters, has 0",
        ),
        (json!({"name": "n".repeat(257)}), "has 257"),
        (
            json!({"name": "a\u{0}"}),
            "name: must not contain the character U+0000",
        ),
        (json!({"name": null}), "invalid type: null"),
        (
            json!({"description": "d".repeat(2049)}),
            "description: must have 0 to 2048",
        ),
        (json!({"description": "\u{0}"}), "U+0000"),
        (
            json!({"system": "s".repeat(100_001)}),
            "system: must have 0 to 100000",
        ),
        (json!({"model": null}), "must be a model id or an object"),
        (json!({"model": ""}), "model.id: must have 1 to 256"),
        (
            json!({"metadata": {"k": "v".repeat(513)}}),
            "metadata: the value of `k`",
        ),
        (json!({"metadata": {"k": 1}}), "expected a string"),
        (json!({"temperature": 1}), "unknown field `temperature`"),
        (
            json!({"tools": null}),
            "invalid type: null, expected a sequence",
        ),
        (
            json!({"mcp_servers": [{"type": "url", "name": "", "url": "https://x"}]}),
            "mcp_servers[0].name",
        ),
        (
            json!({"mcp_servers": [{"type": "url", "name": "a", "url": "ftp://x"}]}),
            "must begin with https://",
        ),
        (
            json!({"mcp_servers": [{"type": "url", "name": "a", "url": "https:///x"}]}),
            "a URL with a host",
        ),
        (
            json!({"mcp_servers": [{"type": "url", "name": "a", "url": "https://me:secret@x/mcp"}]}),
            "mcp_servers[0].url: must not contain a user name",
        ),
        (
            json!({"mcp_servers": [{"type": "stdio", "name": "a", "url": "https://x"}]}),
            "expected `url`",
        ),
        (
            json!({"mcp_servers": [{"type": "url", "name": "a", "url": "https://x", "authorization_token": "t"}]}),
            "unknown field `authorization_token`",
        ),
        (
            json!({"mcp_servers": [{"type": "url", "name": "a", "url": "https://x"}, {"type": "url", "name": "a", "url": "https://y"}]}),
            "mcp_servers[1].name: `a` is taken",
        ),
        (
            json!({"mcp_servers": [{"type": "url", "name": "a", "url": "https://x"}]}),
            "mcp_servers[0]: `a` is not used",
        ),
        (
            json!({"tools": [{"type": "mcp_toolset", "mcp_server_name": "a"}]}),
            "tools[0].mcp_server_name: no entry of `mcp_servers` is named `a`",
        ),
        (
            json!({"skills": [{"type": "custom", "skill_id": ""}]}),
            "skills[0].skill_id: must have 1 to 64",
        ),
        (
            json!({"skills": [{"type": "custom", "skill_id": "s", "version": ""}]}),
            "skills[0].version",
        ),
        (
            json!({"skills": [{"type": "mine", "skill_id": "s"}]}),
            "is not known here; expected `anthropic`, `custom`",
        ),
        (
            json!({"skills": [{"type": "anthropic", "skill_id": "xlsx"}]}),
            "skills: need the `agent_toolset_20260401`",
        ),
        (
            json!({"skills": [{"type": "anthropic", "skill_id": "xlsx"}],
                "tools": [{"type": "agent_toolset_20260401", "configs": [{"name": "read", "enabled": false}]}]}),
            "with `read` enabled",
        ),
        (
            json!({"skills": vec![json!({"type": "anthropic", "skill_id": "xlsx"}); 501],
                "tools": [{"type": "agent_toolset_20260401"}]}),
            "skills: must have at most 500",
        ),
        (
            json!({"multiagent": {"type": "coordinator", "agents": []}}),
            "multiagent.agents: must have at least 1",
        ),
        (
            json!({"multiagent": {"type": "swarm"}}),
            "is not known here",
        ),
        (
            json!({"multiagent": {"type": "coordinator", "agents": [{"type": "self", "x": 1}]}}),
            "unknown field `x`",
        ),
        (
            json!({"execution_identity": {"type": "aws_role", "role_arn": ""}}),
            "role_arn: must have 1 to 2048",
        ),
        (
            json!({"execution_identity": {"type": "root"}}),
            "is not known here",
        ),
    ] {
        refused(create(body(change)), ErrorKind::InvalidRequest, part);
    }
    let many: Vec<Value> = (0..21)
        .map(|n| json!({"type": "url", "name": n.to_string(), "url": "https://x"}))
        .collect();
    refused(
        create(body(json!({"mcp_servers": many}))),
        ErrorKind::InvalidRequest,
        "at most 20",
    );
}

#[test]
fn servers_and_toolsets_belong_together() {
    let two = json!({
        "mcp_servers": [
            {"type": "url", "name": "a", "url": "https://x/mcp?to=me@home"},
            {"type": "url", "name": "b", "url": "http://x:8080"},
        ],
        "tools": [
            {"type": "mcp_toolset", "mcp_server_name": "b"},
            {"type": "mcp_toolset", "mcp_server_name": "a", "default_config": {"enabled": false},
             "configs": [{"name": "t", "enabled": true, "permission_policy": {"type": "always_allow"}}]},
        ],
    });
    let spec = create(body(two)).unwrap().spec;
    assert_eq!(
        spec.mcp("b", "any"),
        ToolSetting {
            enabled: true,
            policy: PermissionPolicy::ALWAYS_ASK
        }
    );
    assert!(!spec.mcp("a", "any").enabled);
    assert_eq!(spec.mcp("a", "t").policy, PermissionPolicy::ALWAYS_ALLOW);
    assert!(!spec.mcp("c", "t").enabled);
}

#[test]
fn what_is_not_offered_is_501_never_ignored() {
    refused(
        create(body(
            json!({"execution_identity": {"type": "aws_role", "role_arn": "arn:aws:iam::1:role/r"}}),
        )),
        ErrorKind::NotImplemented,
        "execution_identity: this server does not offer `aws_role`",
    );
}

#[test]
fn an_update_keeps_clears_and_replaces() {
    let agent = agent(json!({
        "description": "d", "system": "s", "metadata": {"a": "1", "b": "2"},
        "model": {"id": "m", "effort": "low", "inference_geo": "us", "speed": "fast"},
        "tools": [{"type": "agent_toolset_20260401"}],
    }));
    for unchanged in [
        json!({}),
        json!({"version": null}),
        json!({"version": 3, "name": "Coder", "metadata": null}),
        json!({"metadata": {"a": "1", "c": null}}),
        json!({"tools": [{"type": "agent_toolset_20260401", "configs": [], "default_config": null}]}),
        json!({"model": {"id": "m", "effort": {"type": "low"}, "inference_geo": "us", "speed": "fast"}}),
        json!({"execution_identity": null}),
        json!({"multiagent": null}),
    ] {
        assert_eq!(update(&agent, unchanged).unwrap(), agent.config);
    }
    let cleared = update(
        &agent,
        json!({"description": null, "system": "", "tools": null, "metadata": {"a": null, "b": ""}}),
    )
    .unwrap();
    assert_eq!(cleared.spec.description, None);
    assert_eq!(cleared.spec.system, None);
    assert_eq!(cleared.spec.tools, []);
    assert_eq!(cleared.metadata, Metadata::default());
    let replaced = update(&agent, json!({"name": "New", "model": "m", "tools": []})).unwrap();
    assert_eq!(replaced.spec.name, "New");
    assert_eq!(
        serde_json::to_value(&replaced.spec.model).unwrap(),
        json!({"id": "m", "effort": {"type": "low"}, "inference_geo": null, "speed": "standard"})
    );
}

#[test]
fn an_update_is_checked_as_a_whole() {
    let agent = agent(json!({}));
    for (change, part) in [
        (json!({"name": null}), "name: cannot be null"),
        (json!({"name": ""}), "name: must have"),
        (json!({"model": null}), "model: cannot be null"),
        (json!({"version": 0}), "version: must be 1 or greater"),
        (json!({"version": -1}), "version: must be 1 or greater"),
        (json!({"id": "x"}), "unknown field `id`"),
        (
            json!({"tools": [{"type": "mcp_toolset", "mcp_server_name": "a"}]}),
            "no entry of `mcp_servers`",
        ),
    ] {
        refused(update(&agent, change), ErrorKind::InvalidRequest, part);
    }
    for version in [2_i64, 4, i64::MAX] {
        let error = update(&agent, json!({"version": version})).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert_eq!(error.should_retry, Some(false));
    }
    let full: serde_json::Map<String, Value> =
        (0..17).map(|n| (n.to_string(), json!("v"))).collect();
    refused(
        update(&agent, json!({"metadata": full})),
        ErrorKind::InvalidRequest,
        "at most 16 pairs",
    );
    let archived = Agent {
        archived_at: Some(Timestamp::from_micros(1)),
        ..agent
    };
    refused(
        update(&archived, json!({})),
        ErrorKind::InvalidRequest,
        "is archived",
    );
}

#[test]
fn settings_of_tools() {
    let agent = agent(json!({"tools": [
        {"type": "agent_toolset_20260401", "default_config": {"enabled": false},
         "configs": [{"name": "web_fetch", "enabled": true}]},
        {"type": "custom", "name": "c", "description": "d", "input_schema": {}},
    ]}));
    let spec = &agent.config.spec;
    assert!(!spec.needs_sandbox());
    assert!(spec.builtin(BuiltinTool::WebFetch).enabled);
    assert!(!spec.builtin(BuiltinTool::Bash).enabled);
    assert!(!spec.mcp("s", "t").enabled);
    assert_eq!(spec.custom_tool("c").unwrap().description, "d");
    assert!(spec.custom_tool("d").is_none());
    let bare = self::agent(json!({}));
    assert!(!bare.config.spec.builtin(BuiltinTool::Bash).enabled);
    let full = self::agent(json!({"tools": [{"type": "agent_toolset_20260401"}]}));
    assert!(full.config.spec.needs_sandbox());
}
