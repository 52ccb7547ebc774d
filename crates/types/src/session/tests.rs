use serde_json::{Value, json};

use super::*;
use crate::{AgentId, ApiError, ErrorKind, agent::Agent, agent::CreateAgent, multiagent::Members};

fn agent(change: Value) -> Agent {
    let mut body =
        json!({"name": "Coder", "model": {"id": "m", "effort": "low", "inference_geo": "us"}});
    let object = body.as_object_mut().unwrap();
    object.extend(change.as_object().unwrap().clone());
    let config = serde_json::from_value::<CreateAgent>(body)
        .unwrap()
        .resolve(AgentId(uuid::Uuid::from_u128(1)), &Members::default())
        .unwrap();
    let at = Timestamp::from_micros(0);
    Agent::new(AgentId(uuid::Uuid::from_u128(1)), 3, config, at, at, None)
}

fn agent_id() -> String {
    AgentId(uuid::Uuid::from_u128(1)).to_string()
}

fn environment_id() -> String {
    EnvironmentId(uuid::Uuid::from_u128(2)).to_string()
}

fn create(change: Value) -> Result<NewSession, ApiError> {
    let mut body = json!({"agent": agent_id(), "environment_id": environment_id()});
    let object = body.as_object_mut().unwrap();
    object.extend(change.as_object().unwrap().clone());
    serde_json::from_value::<CreateSession>(body)
        .map_err(|error| ApiError::invalid(error.to_string()))?
        .check()
}

/// A session's agent with these overrides of `agent`.
fn with_overrides(
    agent: &Agent,
    overrides: Value,
) -> Result<crate::agent::AgentSnapshot, ApiError> {
    let mut form = json!({"type": "agent_with_overrides", "id": agent_id()});
    let object = form.as_object_mut().unwrap();
    object.extend(overrides.as_object().unwrap().clone());
    resolve_agent(
        agent,
        create(json!({"agent": form}))?.overrides,
        &Members::default(),
    )
}

#[track_caller]
fn refused<T: std::fmt::Debug>(
    result: Result<T, ApiError>,
    kind: ErrorKind,
    part: &str,
) -> ApiError {
    let error = result.expect_err(part);
    assert_eq!(error.kind, kind, "{}", error.message);
    assert!(error.message.contains(part), "{part}\n{}", error.message);
    error
}

#[test]
fn the_whole_shape() {
    let view = SessionView::default();
    let at = Timestamp::from_micros(0);
    let session = Session {
        r#type: SessionType,
        id: SessionId(uuid::Uuid::from_u128(3)),
        status: SessionStatus::Idle,
        agent: agent(json!({})).snapshot(&Members::default()).unwrap(),
        environment_id: EnvironmentId(uuid::Uuid::from_u128(2)),
        title: None,
        metadata: Metadata::default(),
        resources: vec![],
        vault_ids: vec![],
        outcome_evaluations: vec![],
        stats: view.stats(at, at),
        usage: view.usage(at),
        budget: None,
        deployment_id: None,
        created_at: at,
        updated_at: at,
        archived_at: None,
    };
    insta::assert_json_snapshot!(session, @r#"
    {
      "type": "session",
      "id": "sesn_011111111111111111111114",
      "status": "idle",
      "agent": {
        "type": "agent",
        "id": "agent_011111111111111111111112",
        "version": 3,
        "name": "Coder",
        "description": null,
        "model": {
          "id": "m",
          "effort": {
            "type": "low"
          },
          "inference_geo": "us",
          "speed": "standard"
        },
        "system": null,
        "tools": [],
        "mcp_servers": [],
        "skills": [],
        "execution_identity": {
          "type": "service_account"
        },
        "multiagent": null
      },
      "environment_id": "env_011111111111111111111113",
      "title": null,
      "metadata": {},
      "resources": [],
      "vault_ids": [],
      "outcome_evaluations": [],
      "stats": {
        "active_seconds": 0.0,
        "duration_seconds": 0.0
      },
      "usage": {
        "input_tokens": 0,
        "output_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {
          "ephemeral_5m_input_tokens": 0,
          "ephemeral_1h_input_tokens": 0
        },
        "active_seconds": 0.0,
        "list_cost": null,
        "server_tool_use": {
          "web_search_requests": 0,
          "web_fetch_requests": 0
        }
      },
      "budget": null,
      "deployment_id": null,
      "created_at": "1970-01-01T00:00:00.000000Z",
      "updated_at": "1970-01-01T00:00:00.000000Z",
      "archived_at": null
    }
    "#);
}

#[test]
fn the_forms_of_an_agent() {
    for (form, version) in [
        (json!(agent_id()), None),
        (json!({"type": "agent", "id": agent_id()}), None),
        (
            json!({"type": "agent", "id": agent_id(), "version": 2}),
            Some(2),
        ),
        (
            json!({"type": "agent_with_overrides", "id": agent_id(), "version": 2}),
            Some(2),
        ),
    ] {
        let session = create(json!({"agent": form})).unwrap();
        assert_eq!(session.agent_id.to_string(), agent_id());
        assert_eq!(session.agent_version, version);
        assert_eq!(session.overrides, AgentOverrides::default());
    }
    for (form, kind, part) in [
        (
            json!(null),
            ErrorKind::InvalidRequest,
            "must be an object with a `type`",
        ),
        (
            json!({"id": agent_id()}),
            ErrorKind::InvalidRequest,
            "missing field `type`",
        ),
        (
            json!({"type": "agent", "id": agent_id(), "version": 0}),
            ErrorKind::InvalidRequest,
            "agent.version: must be 1",
        ),
        (
            json!({"type": "agent", "id": agent_id(), "system": "s"}),
            ErrorKind::InvalidRequest,
            "unknown field `system`",
        ),
        (
            json!({"type": "agent_with_overrides", "id": agent_id(), "name": "n"}),
            ErrorKind::InvalidRequest,
            "unknown field `name`",
        ),
        (
            json!(""),
            ErrorKind::InvalidRequest,
            "agent.id: must have 1 to 128",
        ),
        (
            json!("agent_x"),
            ErrorKind::NotFound,
            "Agent `agent_x` was not found",
        ),
    ] {
        refused(create(json!({"agent": form})), kind, part);
    }
}

#[test]
fn what_a_session_may_be_created_with() {
    for nothing in [
        json!({}),
        json!({"title": null, "metadata": {}, "resources": [], "vault_ids": [], "initial_events": []}),
    ] {
        assert_eq!(create(nothing).unwrap(), create(json!({})).unwrap());
    }
    let budget = |amount: &str, currency: &str| json!({"budget": {"type": "limit", "max_list_cost": {"amount": amount, "currency": currency}}});
    let invalid = ErrorKind::InvalidRequest;
    let vault = crate::VaultId::new();
    for (change, kind, part) in [
        (
            json!({"environment_id": "env_x"}),
            ErrorKind::NotFound,
            "Environment `env_x` was not found",
        ),
        (
            json!({"environment_id": ""}),
            invalid,
            "environment_id: must have 1 to 128",
        ),
        (
            json!({"title": "t".repeat(501)}),
            invalid,
            "title: must have 0 to 500",
        ),
        (json!({"title": "\u{0}"}), invalid, "U+0000"),
        (json!({"metadata": {"": "v"}}), invalid, "metadata: key ``"),
        (json!({"status": "idle"}), invalid, "unknown field `status`"),
        (
            json!({"initial_events": [{"type": "user.interrupt"}]}),
            invalid,
            "Invalid user.interrupt event at initial_events[0]",
        ),
        (
            json!({"vault_ids": ["vlt_1"]}),
            invalid,
            "vault_ids[0]: vault `vlt_1` was not found",
        ),
        (
            json!({"vault_ids": [vault, vault]}),
            invalid,
            "is listed twice",
        ),
        (
            json!({"resources": [{"type": "file", "file_id": ""}]}),
            invalid,
            "resources[0].file_id",
        ),
        (
            json!({"resources": [{"type": "memory_store", "memory_store_id": "memstore_1", "access": "read_only"}]}),
            ErrorKind::NotImplemented,
            "resources[0]: this server does not offer memory stores yet",
        ),
        (
            json!({"resources": [{"type": "disk"}]}),
            invalid,
            "`disk` is not known here",
        ),
        (budget("0", "USD"), invalid, "budget.max_list_cost.amount"),
        (budget("01", "USD"), invalid, "budget.max_list_cost.amount"),
        (budget("1.5", "USD"), invalid, "budget.max_list_cost.amount"),
        (budget("", "USD"), invalid, "budget.max_list_cost.amount"),
        (
            budget("100", "EUR"),
            invalid,
            "budget.max_list_cost.currency",
        ),
    ] {
        refused(create(change), kind, part);
    }
    let error = refused(
        create(budget("2500", "USD")),
        invalid,
        "model_not_budgetable",
    );
    assert_eq!(error.code, Some("model_not_budgetable"));
    let vaults: Vec<String> = (0..51).map(|n| format!("vlt_{n}")).collect();
    refused(
        create(json!({"vault_ids": vaults})),
        invalid,
        "vault_ids: must have at most 50",
    );
    let other = crate::VaultId::new();
    let session = create(json!({"vault_ids": [other, vault]})).unwrap();
    assert_eq!(session.vault_ids, [other, vault]);
    let session = create(json!({
        "title": "t", "initial_events": [{"type": "user.message", "content": [{"type": "text", "text": "x"}]}],
    }));
    assert_eq!(session.unwrap().initial_events.len(), 1);
}

#[test]
fn overrides_inherit_clear_and_replace() {
    let agent = agent(json!({
        "system": "s", "description": "d",
        "tools": [{"type": "agent_toolset_20260401"}],
    }));
    assert_eq!(
        with_overrides(&agent, json!({})).unwrap(),
        agent.snapshot(&Members::default()).unwrap()
    );
    let cleared = with_overrides(
        &agent,
        json!({"system": null, "tools": null, "mcp_servers": [], "skills": null}),
    )
    .unwrap();
    assert_eq!(cleared.spec.system, None);
    assert_eq!(cleared.spec.tools, []);
    assert_eq!(cleared.spec.description.as_deref(), Some("d"));
    assert_eq!((cleared.id, cleared.version), (agent.id, 3));
    let replaced = with_overrides(
        &agent,
        json!({"model": {"id": "m", "effort": "max"}, "system": "t",
            "tools": [{"type": "custom", "name": "c", "description": "d", "input_schema": {}}]}),
    )
    .unwrap();
    // The effort of neither, and no region: the model as a whole is another one.
    assert_eq!(
        serde_json::to_value(&replaced.spec.model).unwrap(),
        json!({"id": "m", "effort": {"type": "high"}, "inference_geo": null, "speed": "standard"})
    );
    assert_eq!(replaced.spec.system.as_deref(), Some("t"));
    assert_eq!(replaced.spec.tools.len(), 1);
}

#[test]
fn overrides_are_checked_like_an_agent() {
    let agent = agent(json!({}));
    let invalid = ErrorKind::InvalidRequest;
    let error = refused(
        with_overrides(&agent, json!({"model": null})),
        invalid,
        "agent_model_required",
    );
    assert_eq!(error.code, Some("agent_model_required"));
    for (overrides, kind, part) in [
        (
            json!({"tools": [{"type": "agent_toolset_20260401"}, {"type": "agent_toolset_20260401"}]}),
            invalid,
            "agent.tools[1]: a second",
        ),
        (
            json!({"tools": [{"type": "mcp_toolset", "mcp_server_name": "a"}]}),
            invalid,
            "agent.tools[0].mcp_server_name",
        ),
        (
            json!({"skills": [{"type": "anthropic", "skill_id": "xlsx"}]}),
            invalid,
            "agent.skills: need",
        ),
        (
            json!({"system": "s".repeat(100_001)}),
            invalid,
            "agent.system: must have",
        ),
        (json!({"model": ""}), invalid, "agent.model.id"),
    ] {
        refused(with_overrides(&agent, overrides), kind, part);
    }
    let archived = Agent {
        archived_at: Some(Timestamp::from_micros(1)),
        ..agent
    };
    refused(with_overrides(&archived, json!({})), invalid, "is archived");
}

#[test]
fn an_update_keeps_clears_and_replaces() {
    let current = SessionFields {
        title: Some("t".to_owned()),
        metadata: serde_json::from_value(json!({"a": "1", "b": "2"})).unwrap(),
        agent: agent(json!({"tools": [{"type": "agent_toolset_20260401"}]}))
            .snapshot(&Members::default())
            .unwrap(),
    };
    let update = |change: Value| {
        serde_json::from_value::<UpdateSession>(change)
            .map_err(|error| ApiError::invalid(error.to_string()))?
            .apply(&current)
    };
    for unchanged in [
        json!({}),
        json!({"title": "t", "metadata": null, "budget": null, "agent": {}}),
        json!({"metadata": {"a": "1", "c": null}}),
        json!({"agent": {"tools": [{"type": "agent_toolset_20260401"}], "mcp_servers": []}}),
    ] {
        assert_eq!(update(unchanged).unwrap(), current);
    }
    let changed = update(json!({
        "title": null, "metadata": {"a": null, "b": ""}, "agent": {"tools": []},
    }))
    .unwrap();
    assert_eq!(changed.title, None);
    assert_eq!(
        serde_json::to_value(&changed.metadata).unwrap(),
        json!({"b": ""})
    );
    assert_eq!(changed.agent.spec.tools, []);
    assert_eq!(changed.agent.version, 3);
    let invalid = ErrorKind::InvalidRequest;
    for (change, part) in [
        (json!({"title": ""}), "title: must have 1 to 500"),
        (json!({"agent": null}), "agent: cannot be null"),
        (json!({"agent": {"model": "m"}}), "unknown field `model`"),
        (
            json!({"agent": {"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}}),
            "agent.tools[0]",
        ),
        (json!({"vault_ids": []}), "not yet supported"),
        (json!({"vault_ids": ["vlt_1"]}), "not yet supported"),
        (json!({"environment_id": "x"}), "unknown field"),
    ] {
        refused(update(change), invalid, part);
    }
    let budget =
        json!({"budget": {"type": "limit", "max_list_cost": {"amount": "1", "currency": "USD"}}});
    let error = refused(update(budget), invalid, "budget_create_only");
    assert_eq!(error.code, Some("budget_create_only"));
    let names: UpdateSession = serde_json::from_value(json!({"agent": {}})).unwrap();
    assert!(names.names_agent() && !UpdateSession::default().names_agent());
}

#[test]
fn the_list_query() {
    let query = ListSessions {
        agent_version: Some(1),
        ..ListSessions::default()
    };
    refused(
        query.validate(),
        ErrorKind::InvalidRequest,
        "agent_version: needs `agent_id`",
    );
    let query = ListSessions {
        agent_id: Some(AgentId::new()),
        agent_version: Some(0),
        ..ListSessions::default()
    };
    refused(
        query.validate(),
        ErrorKind::InvalidRequest,
        "must be 1 or greater",
    );
    let params = <ListSessions as utoipa::IntoParams>::into_params(|| None);
    let names: Vec<String> = params.into_iter().map(|param| param.name).collect();
    insta::assert_compact_debug_snapshot!(names, @r#"["agent_id", "agent_version", "created_at[gt]", "created_at[gte]", "created_at[lt]", "created_at[lte]", "deployment_id", "memory_store_id", "statuses[]", "include_archived", "order", "limit", "page"]"#);
}

#[test]
fn statuses_read_back() {
    for status in SessionStatus::ALL {
        assert_eq!(SessionStatus::parse(status.as_str()), Some(status));
        assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
    }
    assert_eq!(SessionStatus::parse("IDLE"), None);
}
