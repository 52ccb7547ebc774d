use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::{
    ApiError, ErrorKind, Timestamp,
    agent::{Agent, AgentConfig, AgentSnapshot, CreateAgent, UpdateAgent},
    session::{AgentOverrides, resolve_agent},
};

fn id(n: u128) -> AgentId {
    AgentId(Uuid::from_u128(n))
}

/// The agent whose configurations these tests are about.
fn own() -> AgentId {
    id(1)
}

fn saved(id: AgentId, version: i32, config: AgentConfig, archived: bool) -> Agent {
    let at = Timestamp::from_micros(0);
    Agent::new(id, version, config, at, at, archived.then_some(at))
}

fn body(change: Value) -> Value {
    let mut body = json!({"name": "Lead", "model": "m"});
    let object = body.as_object_mut().unwrap();
    object.extend(change.as_object().unwrap().clone());
    body
}

fn create(change: Value) -> Result<AgentConfig, ApiError> {
    serde_json::from_value::<CreateAgent>(body(change))
        .map_err(|error| ApiError::invalid(error.to_string()))?
        .resolve(own(), &workspace())
}

/// A workspace: agents 2 and 3 are plain, 4 is archived, 5 directs others, 6 runs in the US, 7 has the
/// advisor's name. 2 is at version 5.
fn workspace() -> Members {
    let plain = |change| {
        serde_json::from_value::<CreateAgent>(body(change))
            .unwrap()
            .resolve(id(99), &Members::default())
            .unwrap()
    };
    let agents = [
        saved(id(2), 5, plain(json!({"name": "two"})), false),
        saved(id(2), 4, plain(json!({"name": "two"})), false),
        saved(
            id(3),
            1,
            plain(json!({"name": "three", "system": "s"})),
            false,
        ),
        saved(id(4), 1, plain(json!({})), true),
        saved(
            id(5),
            1,
            plain(json!({"multiagent": {"type": "coordinator", "agents": [{"type": "self"}]}})),
            false,
        ),
        saved(
            id(6),
            1,
            plain(json!({"model": {"id": "m", "inference_geo": "us"}})),
            false,
        ),
        saved(id(7), 1, plain(json!({"name": ADVISOR})), false),
    ];
    let mut found = Vec::new();
    for agent in agents {
        let version = Some(i64::from(agent.version));
        if agent.version != 4 {
            let version = None;
            found.push((
                Reference {
                    id: agent.id,
                    version,
                },
                agent.clone(),
            ));
        }
        found.push((
            Reference {
                id: agent.id,
                version,
            },
            agent,
        ));
    }
    Members::new(found)
}

/// The saved form, as JSON.
fn resolved(multiagent: Value) -> Result<Value, ApiError> {
    let config = create(json!({"multiagent": multiagent}))?;
    Ok(serde_json::to_value(config.multiagent).unwrap())
}

fn reference(id: AgentId, version: i32) -> Value {
    json!({"type": "agent", "id": id, "version": version})
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>, part: &str) {
    let error = result.expect_err(part);
    assert_eq!(error.kind, ErrorKind::InvalidRequest, "{}", error.message);
    assert!(error.message.contains(part), "{part}\n{}", error.message);
}

#[test]
fn a_roster_is_pinned_and_the_advisor_comes_last() {
    let saved = resolved(json!({"type": "coordinator", "agents": [
        {"type": "advisor", "model": "wise"},
        id(2),
        {"type": "self"},
        {"type": "agent", "id": id(3), "version": null},
    ]}))
    .unwrap();
    assert_eq!(
        saved,
        json!({"type": "coordinator", "agents": [
            reference(id(2), 5),
            reference(own(), 1),
            reference(id(3), 1),
            {"type": "advisor", "model": "wise"},
        ]})
    );
    let pinned = json!({"type": "coordinator", "agents": [
        {"type": "agent", "id": id(2), "version": 4},
    ]});
    assert_eq!(resolved(pinned.clone()).unwrap(), pinned);
    let read: Multiagent = serde_json::from_value(saved.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), saved);
    assert_eq!(read.advisor(), Some("wise"));
    assert_eq!(read.agents().count(), 3);
}

#[test]
fn rosters_that_are_refused() {
    let many: Vec<Value> = (100..121).map(|n| json!(id(n))).collect();
    for (agents, part) in [
        (json!([]), "multiagent.agents: must have at least 1"),
        (
            json!(many),
            "multiagent.agents: must have at most 20 entries, has 21",
        ),
        (json!(["agent_1"]), "agents[0]: there is no agent `agent_1`"),
        (json!([id(8)]), "there is no agent"),
        (json!([""]), "agents[0].id: must have 1 to 128"),
        (
            json!([{"type": "agent", "id": id(2), "version": 9}]),
            "at version 9 in this workspace",
        ),
        (
            json!([{"type": "agent", "id": id(2), "version": 0}]),
            "agents[0].version: must be 1 or greater",
        ),
        (json!([id(4)]), "is archived"),
        (json!([id(2), id(5)]), "agents[1]: agent `agent_0111"),
        (json!([id(5)]), "cannot direct further agents"),
        (json!([id(2), id(2)]), "agents[1]: agent"),
        (
            json!([id(2), {"type": "agent", "id": id(2), "version": 4}]),
            "is listed already",
        ),
        (
            json!([{"type": "self"}, {"type": "self"}]),
            "the agent itself is listed already",
        ),
        (
            json!([{"type": "self"}, own()]),
            "the agent itself is listed already",
        ),
        (
            json!([{"type": "advisor", "model": "a"}, {"type": "advisor", "model": "b"}]),
            "at most one",
        ),
        (
            json!([{"type": "advisor", "model": ""}]),
            "agents[0].model: must have",
        ),
        (json!([{"type": "advisor"}]), "missing field `model`"),
        (
            json!([{"type": "advisor", "model": "m", "version": 1}]),
            "unknown field `version`",
        ),
        (json!([{"type": "self", "id": id(1)}]), "unknown field `id`"),
        (
            json!([{"type": "friend"}]),
            "expected `agent`, `self`, `advisor`",
        ),
        (json!([3]), "must be an object with a `type`"),
        (
            json!([id(7), {"type": "advisor", "model": "m"}]),
            "a member is named `anthropic.advisor`",
        ),
        (json!([id(6)]), "the agent has none, its member `Lead` `us`"),
    ] {
        refused(
            resolved(json!({"type": "coordinator", "agents": agents})),
            part,
        );
    }
    refused(
        create(
            json!({"name": ADVISOR, "multiagent": {"type": "coordinator", "agents": [
            {"type": "self"}, {"type": "advisor", "model": "m"}]}}),
        ),
        "a member is named `anthropic.advisor`",
    );
    // Without an advisor the name is nobody's.
    resolved(json!({"type": "coordinator", "agents": [id(7)]})).unwrap();
    let us = json!({"id": "m", "inference_geo": "us"});
    let roster = |member| json!({"type": "coordinator", "agents": [member]});
    create(json!({"model": us.clone(), "multiagent": roster(json!(id(6)))})).unwrap();
    refused(
        create(json!({"model": us, "multiagent": roster(json!(id(2)))})),
        "model.inference_geo: must be the same",
    );
    let tool = |name: &str| json!([{"type": "custom", "name": name, "description": "d", "input_schema": {}}]);
    for name in COORDINATION_TOOLS {
        refused(
            create(json!({"tools": tool(name), "multiagent": roster(json!(id(2)))})),
            "give the custom tool another name",
        );
        create(json!({"tools": tool(name)})).unwrap();
    }
}

#[test]
fn settings_have_defaults() {
    let everything = json!({
        "type": "multiagent_20261001",
        "advisor": {"type": "disabled"},
        "subagents": {
            "type": "enabled", "inline_agents": {"type": "enabled"}, "predefined_agents": [],
        },
        "workflows": {
            "type": "enabled", "inline_agents": {"type": "enabled"}, "predefined_agents": [],
        },
    });
    for form in [
        json!({"type": "multiagent_20261001"}),
        json!({"type": "multiagent_20261001", "advisor": null, "subagents": null, "workflows": null}),
        json!({"type": "multiagent_20261001", "subagents": {"type": "enabled"}}),
        json!({"type": "multiagent_20261001",
            "subagents": {"type": "enabled", "inline_agents": null, "predefined_agents": null}}),
        everything.clone(),
    ] {
        assert_eq!(resolved(form).unwrap(), everything);
    }
    let chosen = resolved(json!({
        "type": "multiagent_20261001",
        "advisor": {"type": "enabled", "model": "wise"},
        "subagents": {"type": "enabled", "inline_agents": {"type": "disabled"},
            "predefined_agents": [id(2), {"type": "self"}]},
        "workflows": {"type": "disabled"},
    }))
    .unwrap();
    assert_eq!(
        chosen,
        json!({
            "type": "multiagent_20261001",
            "advisor": {"type": "enabled", "model": "wise"},
            "subagents": {"type": "enabled", "inline_agents": {"type": "disabled"},
                "predefined_agents": [reference(id(2), 5), reference(own(), 1)]},
            "workflows": {"type": "disabled"},
        })
    );
    let read: Multiagent = serde_json::from_value(chosen.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), chosen);
}

#[test]
fn settings_that_are_refused() {
    let subagents = |value: Value| json!({"type": "multiagent_20261001", "subagents": value});
    let many: Vec<Value> = (100..121).map(|n| json!(id(n))).collect();
    for (settings, part) in [
        (
            subagents(json!({"type": "enabled", "inline_agents": {"type": "disabled"}})),
            "multiagent.subagents: with `inline_agents` disabled",
        ),
        (
            json!({"type": "multiagent_20261001", "workflows":
                {"type": "enabled", "inline_agents": {"type": "disabled"}, "predefined_agents": []}}),
            "multiagent.workflows: with `inline_agents` disabled",
        ),
        (
            subagents(json!({"type": "enabled", "predefined_agents": many})),
            "multiagent.subagents.predefined_agents: must have at most 20",
        ),
        (
            subagents(json!({"type": "enabled", "predefined_agents": [id(3), id(3)]})),
            "predefined_agents[1]: agent",
        ),
        (
            subagents(
                json!({"type": "enabled", "predefined_agents": [{"type": "advisor", "model": "m"}]}),
            ),
            "expected `agent`, `self`",
        ),
        (
            subagents(json!({"type": "enabled", "predefined_agents": [id(4)]})),
            "is archived",
        ),
        (
            subagents(json!({"predefined_agents": []})),
            "missing field `type`",
        ),
        (
            subagents(json!({"type": "disabled", "inline_agents": null})),
            "unknown field",
        ),
        (
            subagents(json!({"type": "on"})),
            "expected `enabled`, `disabled`",
        ),
        (
            json!({"type": "multiagent_20261001", "advisor": {"type": "enabled"}}),
            "missing field `model`",
        ),
        (
            json!({"type": "multiagent_20261001", "advisor": {"type": "disabled", "model": "m"}}),
            "unknown field `model`",
        ),
        (
            json!({"type": "multiagent_20261001", "agents": []}),
            "unknown field `agents`",
        ),
        (
            json!({"type": "multiagent_20261001", "workflows":
                {"type": "enabled", "predefined_agents": [id(6)]}}),
            "model.inference_geo",
        ),
    ] {
        refused(resolved(settings), part);
    }
}

fn update(agent: &Agent, change: Value) -> Result<AgentConfig, ApiError> {
    let update = serde_json::from_value::<UpdateAgent>(change)
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    update.change(agent, &workspace())
}

#[test]
fn an_update_merges_settings_level_by_level() {
    let stored = create(json!({"multiagent": {
        "type": "multiagent_20261001",
        "advisor": {"type": "enabled", "model": "wise"},
        "subagents": {"type": "enabled", "inline_agents": {"type": "disabled"}, "predefined_agents": [id(2)]},
        "workflows": {"type": "disabled"},
    }}))
    .unwrap();
    let agent = saved(own(), 3, stored, false);
    let merged = |change: Value| {
        let config = update(&agent, json!({"multiagent": change}))?;
        Ok::<_, ApiError>(serde_json::to_value(config.multiagent).unwrap())
    };
    let with = |member: &str, value: Value| {
        let mut expected = serde_json::to_value(&agent.config.multiagent).unwrap();
        expected[member] = value;
        expected
    };
    let settings = |member: &str, value: Value| {
        let mut change = json!({"type": "multiagent_20261001"});
        change[member] = value;
        change
    };
    let enabled =
        json!({"type": "enabled", "inline_agents": {"type": "enabled"}, "predefined_agents": []});
    for (member, value, expected) in [
        // Null is the default, which enables workflows.
        ("workflows", json!(null), enabled.clone()),
        ("workflows", json!({"type": "enabled"}), enabled.clone()),
        (
            "workflows",
            json!({"type": "disabled"}),
            json!({"type": "disabled"}),
        ),
        ("advisor", json!(null), json!({"type": "disabled"})),
        (
            "advisor",
            json!({"type": "enabled", "model": "wiser"}),
            json!({"type": "enabled", "model": "wiser"}),
        ),
        ("subagents", json!(null), enabled.clone()),
        (
            "subagents",
            json!({"type": "enabled"}),
            json!({"type": "enabled", "inline_agents": {"type": "disabled"},
                "predefined_agents": [reference(id(2), 5)]}),
        ),
        (
            "subagents",
            json!({"type": "enabled", "inline_agents": {"type": "enabled"}}),
            json!({"type": "enabled", "inline_agents": {"type": "enabled"},
                "predefined_agents": [reference(id(2), 5)]}),
        ),
        (
            "subagents",
            json!({"type": "enabled", "inline_agents": null, "predefined_agents": null}),
            enabled,
        ),
        (
            "subagents",
            json!({"type": "enabled", "predefined_agents": [{"type": "self"}, id(3)]}),
            json!({"type": "enabled", "inline_agents": {"type": "disabled"},
                "predefined_agents": [reference(own(), 3), reference(id(3), 1)]}),
        ),
    ] {
        assert_eq!(
            merged(settings(member, value.clone())).unwrap(),
            with(member, expected),
            "{member}: {value}"
        );
    }
    assert_eq!(
        update(
            &agent,
            json!({"multiagent": {"type": "multiagent_20261001"}})
        )
        .unwrap(),
        agent.config
    );
    // What is sent is fine, what comes of it is not.
    refused(
        merged(settings(
            "subagents",
            json!({"type": "enabled", "predefined_agents": []}),
        )),
        "with `inline_agents` disabled",
    );
    refused(
        merged(settings("advisor", json!({"type": "enabled"}))),
        "missing field `model`",
    );
    // The other type replaces everything, and so does the way back.
    let roster = json!({"type": "coordinator", "agents": [id(3)]});
    let config = update(&agent, json!({"multiagent": roster})).unwrap();
    let agent = saved(own(), 4, config, false);
    let config = update(
        &agent,
        json!({"multiagent": {"type": "multiagent_20261001"}}),
    )
    .unwrap();
    let fresh = create(json!({"multiagent": {"type": "multiagent_20261001"}})).unwrap();
    assert_eq!(config.multiagent, fresh.multiagent);
    assert_eq!(
        update(&agent, json!({"multiagent": null}))
            .unwrap()
            .multiagent,
        None
    );
}

#[test]
fn an_update_holds_members_that_stay_to_the_rules() {
    let config = create(json!({"multiagent": {"type": "coordinator", "agents": [
        {"type": "self"}, {"type": "agent", "id": id(2), "version": 4}, {"type": "advisor", "model": "m"}]}}))
    .unwrap();
    let mut agent = saved(own(), 3, config, false);
    agent.config.multiagent.as_mut().unwrap().pin_self(own(), 3);
    assert_eq!(update(&agent, json!({})).unwrap(), agent.config);
    // Its own answer, sent back.
    let answer = serde_json::to_value(&agent.config.multiagent).unwrap();
    assert_eq!(
        update(&agent, json!({"multiagent": answer})).unwrap(),
        agent.config
    );
    // A member's pin stays where it is, unless the roster is sent again.
    let renamed = update(&agent, json!({"name": "New"})).unwrap();
    assert_eq!(renamed.multiagent, agent.config.multiagent);
    refused(
        update(
            &agent,
            json!({"model": {"id": "m", "inference_geo": "global"}}),
        ),
        "the agent has `global`, its member `two` none",
    );
    refused(
        update(&agent, json!({"name": ADVISOR})),
        "a member is named",
    );
    let references = serde_json::from_value::<UpdateAgent>(json!({"multiagent":
        {"type": "coordinator", "agents": [id(3), own(), {"type": "advisor", "model": "m"}]}}))
    .unwrap()
    .references(&agent);
    let reference = |id, version| Reference { id, version };
    assert_eq!(
        references,
        [reference(id(3), None), reference(id(2), Some(4))]
    );
}

fn session(multiagent: Value, overrides: AgentOverrides) -> Result<AgentSnapshot, ApiError> {
    let config = create(json!({"system": "base", "multiagent": multiagent})).unwrap();
    resolve_agent(&saved(own(), 1, config, false), overrides, &workspace())
}

#[test]
fn a_session_has_whole_definitions() {
    let roster = json!({"type": "coordinator", "agents": [
        {"type": "advisor", "model": "wise"}, {"type": "self"}, id(3)]});
    let snapshot = session(roster.clone(), AgentOverrides::default()).unwrap();
    let shown = serde_json::to_value(&snapshot.multiagent).unwrap();
    assert_eq!(shown["type"], "coordinator");
    let names: Vec<_> = (0..3).map(|n| shown["agents"][n]["name"].clone()).collect();
    assert_eq!(names, [json!("Lead"), json!("three"), Value::Null]);
    assert_eq!(
        shown["agents"][2],
        json!({"type": "advisor", "model": "wise"})
    );
    assert_eq!(shown["agents"][1]["system"], "s");
    assert!(shown["agents"][0].get("multiagent").is_none());
    assert_eq!(shown["agents"][0]["id"], json!(own()));
    let read: SessionMultiagent = serde_json::from_value(shown).unwrap();
    assert_eq!(Some(&read), snapshot.multiagent.as_ref());
    assert_eq!(read.advisor(), Some("wise"));
    assert_eq!((read.subagents().len(), read.inline_agents()), (2, false));
    assert_eq!(snapshot.specs().len(), 2);

    // Overrides are the coordinator's and its copies'.
    let overrides = AgentOverrides {
        system: crate::Patch::Value("changed".to_owned()),
        ..AgentOverrides::default()
    };
    let mut changed = session(roster.clone(), overrides).unwrap();
    let systems: Vec<_> = changed
        .specs_mut()
        .iter()
        .map(|spec| spec.system.clone())
        .collect();
    assert_eq!(
        systems,
        [
            Some("changed".into()),
            Some("changed".into()),
            Some("s".into())
        ]
    );
    let overrides = AgentOverrides {
        model: crate::Patch::Value(
            serde_json::from_value(json!({"id": "m", "inference_geo": "us"})).unwrap(),
        ),
        ..AgentOverrides::default()
    };
    refused(
        session(roster, overrides),
        "agent.model.inference_geo: must be the same",
    );

    let settings = json!({"type": "multiagent_20261001", "advisor": {"type": "enabled", "model": "wise"},
        "subagents": {"type": "enabled", "predefined_agents": [id(2)]},
        "workflows": {"type": "enabled", "predefined_agents": [id(3)]}});
    let snapshot = session(settings, AgentOverrides::default()).unwrap();
    let shown = serde_json::to_value(&snapshot.multiagent).unwrap();
    assert_eq!(shown["subagents"]["predefined_agents"][0]["name"], "two");
    assert_eq!(shown["workflows"]["predefined_agents"][0]["name"], "three");
    let read: SessionMultiagent = serde_json::from_value(shown).unwrap();
    assert_eq!(Some(&read), snapshot.multiagent.as_ref());
    assert_eq!((read.subagents().len(), read.agents().len()), (1, 2));
    assert!(read.inline_agents());
    assert_eq!(read.advisor(), Some("wise"));
}

#[test]
fn a_member_that_cannot_be_found_is_said() {
    let config = create(json!({"multiagent": {"type": "coordinator", "agents": [id(3)]}})).unwrap();
    let agent = saved(own(), 1, config, false);
    refused(
        resolve_agent(&agent, AgentOverrides::default(), &Members::default()),
        "cannot be found at version 1",
    );
}
