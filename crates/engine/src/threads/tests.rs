use selfsame_model::Models;
use selfsame_types::{
    AgentId, ThreadId, Timestamp,
    agent::{Agent, AgentSnapshot, CreateAgent},
    environment::{CreateEnvironment, EnvironmentConfig},
    multiagent::{ADVISOR, Members, Reference},
    thread::ThreadDefinition,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    machine::{Coordination, Verdict},
    mcp::Toolset,
    prompt::Spec,
    transcript::Transcript,
};

fn agent(id: u128, change: Value, members: &Members) -> Agent {
    let mut body = json!({"name": "Lead", "model": "m"});
    let object = body.as_object_mut().unwrap();
    object.extend(change.as_object().unwrap().clone());
    let id = AgentId(uuid::Uuid::from_u128(id));
    let create: CreateAgent = serde_json::from_value(body).unwrap();
    let config = create.resolve(id, members).unwrap();
    let at = Timestamp::from_micros(0);
    Agent::new(id, 1, config, at, at, None)
}

/// A coordinator of these settings with agents 2 and 3, which are both named `Worker`, and 4, `Tester`.
fn coordinator(multiagent: impl FnOnce(&[AgentId]) -> Value) -> AgentSnapshot {
    let none = Members::default();
    let workers = [
        agent(2, json!({"name": "Worker", "description": "Works."}), &none),
        agent(3, json!({"name": "Worker", "system": "Work hard."}), &none),
        agent(
            4,
            json!({"name": "Tester", "tools": [{"type": "agent_toolset_20260401"}]}),
            &none,
        ),
    ];
    let ids: Vec<_> = workers.iter().map(|worker| worker.id).collect();
    let members = Members::new(workers.into_iter().flat_map(|worker| {
        let id = worker.id;
        [None, Some(1)].map(|version| (Reference { id, version }, worker.clone()))
    }));
    let settings = json!({"system": "Lead well.", "multiagent": multiagent(&ids)});
    agent(1, settings, &members).snapshot(&members).unwrap()
}

fn roster(agents: &[AgentId]) -> Value {
    json!({"type": "coordinator", "agents": [
        agents[0], agents[1], agents[2], {"type": "self"}, {"type": "advisor", "model": "wise"}]})
}

fn call(roster: &Roster, name: &str, input: Value) -> Option<Coordination> {
    roster.judge(name, &Ok(to_raw_value(&input).unwrap()))
}

fn definition(what: Option<Coordination>) -> (String, ThreadDefinition, Value) {
    match what {
        Some(
            Coordination::Spawn {
                agent_name,
                agent,
                content,
                ..
            }
            | Coordination::Consult {
                agent_name,
                agent,
                content,
                ..
            },
        ) => (
            agent_name,
            serde_json::from_str(&agent).unwrap(),
            serde_json::from_str(content.get()).unwrap(),
        ),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(what: Option<Coordination>, part: &str) {
    match what {
        Some(Coordination::Refused { reason }) => {
            assert!(reason.contains(part), "{part}\n{reason}");
        }
        other => panic!("{part}: {other:?}"),
    }
}

#[test]
fn an_agent_is_started_by_name_or_id() {
    let lead = coordinator(roster);
    let roster = Roster::of(&lead).unwrap();
    let (name, agent, content) = definition(call(
        &roster,
        "create_agent",
        json!({"agent_name": "Tester", "message": "Test it."}),
    ));
    assert_eq!((name.as_str(), agent.name()), ("Tester", "Tester"));
    assert_eq!(content, json!([{"type": "text", "text": "Test it."}]));
    let second = lead.multiagent.as_ref().unwrap().subagents()[1].id;
    let (_, agent, _) = definition(call(
        &roster,
        "create_agent",
        json!({"agent_id": second, "message": "m"}),
    ));
    assert_eq!(agent.spec().unwrap().system.as_deref(), Some("Work hard."));
    // A copy of its own.
    let (name, agent, _) = definition(call(
        &roster,
        "create_agent",
        json!({"agent_name": "Lead", "message": "m"}),
    ));
    assert_eq!(name, "Lead");
    assert_eq!(agent.spec().unwrap().system.as_deref(), Some("Lead well."));

    for (input, part) in [
        (json!({"message": "m"}), "does not say which agent"),
        (
            json!({"agent_name": "Worker", "message": "m"}),
            "several agents are named `Worker`; say which one by `agent_id`: agent_01",
        ),
        (
            json!({"agent_name": "Nobody", "message": "m"}),
            "there is no agent named `Nobody`; there are: `Worker`, `Worker`, `Tester`, `Lead`",
        ),
        (
            json!({"agent_id": "x", "message": "m"}),
            "no agent with the id `x` to start; there are: agent_01",
        ),
        (
            json!({"agent_id": second, "agent_name": "Tester", "message": "m"}),
            "is named `Worker`",
        ),
        (
            json!({"agent_name": "Tester", "message": "m", "inline_agent": {"name": "n"}}),
            "more than one agent",
        ),
        (
            json!({"message": "m", "inline_agent": {"name": "n"}}),
            "agents cannot be defined here",
        ),
        (
            json!({"agent_name": "Tester", "message": "  "}),
            "`message` is empty",
        ),
        (json!({"agent_name": "Tester"}), "missing field `message`"),
        (
            json!({"agent_name": "Tester", "message": "m", "model": "x"}),
            "unknown field `model`",
        ),
        (json!([]), "its input is wrong"),
    ] {
        refused(call(&roster, "create_agent", input), part);
    }
    let broken = roster.judge("create_agent", &Err("{".to_owned()));
    refused(
        broken,
        "This `create_agent` call was not carried out: its input is not",
    );
}

#[test]
fn messages_and_questions() {
    let lead = coordinator(roster);
    let roster = Roster::of(&lead).unwrap();
    let id = ThreadId::new();
    let sent = call(
        &roster,
        "send_to_agent",
        json!({"session_thread_id": id, "message": "More."}),
    );
    assert!(matches!(sent, Some(Coordination::Send { thread, .. }) if thread == id));
    refused(
        call(
            &roster,
            "send_to_agent",
            json!({"session_thread_id": "Tester", "message": "m"}),
        ),
        "`Tester` is not the id of a thread",
    );
    let asked = call(&roster, "consult_advisor", json!({"question": "Why?"}));
    let (name, advisor, content) = definition(asked);
    assert_eq!((name.as_str(), advisor.name()), (ADVISOR, ADVISOR));
    assert_eq!(
        serde_json::to_value(&advisor).unwrap(),
        json!({"type": "advisor", "model": "wise"})
    );
    assert_eq!(content[0]["text"], "Why?");
    refused(
        call(&roster, "consult_advisor", json!({"question": ""})),
        "`question` is empty",
    );
    let Some(Coordination::List { agents }) = call(&roster, "list_agents", json!({})) else {
        panic!("a list");
    };
    let agents: Value = serde_json::from_str(agents.get()).unwrap();
    assert_eq!(agents.as_array().unwrap().len(), 4);
    assert_eq!(agents[0]["description"], "Works.");
    assert!(call(&roster, "bash", json!({})).is_none());
}

#[test]
fn agents_can_be_defined_where_the_settings_say_so() {
    let lead = coordinator(|_| json!({"type": "multiagent_20261001"}));
    let roster = Roster::of(&lead).unwrap();
    assert!(roster.briefing().contains("`inline_agent`"));
    let long = "n".repeat(300);
    let inline = json!({"name": long, "description": long, "system": "Be brief."});
    let (name, agent, _) = definition(call(
        &roster,
        "create_agent",
        json!({"inline_agent": inline, "message": "m"}),
    ));
    assert_eq!(name, "n".repeat(64));
    let shown = serde_json::to_value(&agent).unwrap();
    assert_eq!(shown["type"], "inline");
    assert_eq!(shown["description"], "n".repeat(256));
    assert_eq!(shown["system"], "Be brief.");
    assert!(shown.get("id").is_none() && shown.get("multiagent").is_none());
    let (name, _, _) = definition(call(
        &roster,
        "create_agent",
        json!({"inline_agent": {}, "message": "m"}),
    ));
    assert_eq!(name, "inline");
    refused(
        call(
            &roster,
            "create_agent",
            json!({"inline_agent": {"name": ADVISOR}, "message": "m"}),
        ),
        "is a reserved name",
    );
    assert!(call(&roster, "consult_advisor", json!({"question": "q"})).is_none());

    let nobody = json!({"type": "multiagent_20261001", "subagents": {"type": "disabled"}});
    assert!(Roster::of(&coordinator(|_| nobody)).is_none());
    let advised = coordinator(
        |_| json!({"type": "coordinator", "agents": [{"type": "advisor", "model": "wise"}]}),
    );
    let roster = Roster::of(&advised).unwrap();
    assert_eq!(roster.tools().len(), 1);
    assert!(call(&roster, "create_agent", json!({"message": "m"})).is_none());
    assert!(!roster.briefing().contains("create_agent"));
}

fn spec(agent: &AgentSnapshot) -> Spec {
    Spec::new(agent.clone(), &environment(), &Models::default())
}

fn environment() -> EnvironmentConfig {
    let create: CreateEnvironment = serde_json::from_value(json!({"name": "e"})).unwrap();
    create.resolve().unwrap().config
}

fn shown(spec: &Spec) -> (Vec<String>, Vec<String>) {
    let request = spec.request(&Transcript::default(), None, &Toolset::default());
    let read = |list: &[Box<RawValue>], key: &str| -> Vec<String> {
        list.iter()
            .map(|value| {
                let value: Value = serde_json::from_str(value.get()).unwrap();
                value[key].as_str().unwrap().to_owned()
            })
            .collect()
    };
    (read(&request.system, "text"), read(&request.tools, "name"))
}

#[test]
fn each_thread_is_asked_as_what_it_is() {
    let lead = coordinator(roster);
    let primary = spec(&lead);
    let (system, tools) = shown(&primary);
    assert_eq!(
        tools,
        [
            "list_agents",
            "create_agent",
            "send_to_agent",
            "consult_advisor"
        ]
    );
    assert!(system[0].contains("`Tester` (agent_01") && system[0].contains("share one sandbox"));
    assert_eq!(system[1], "Lead well.");

    let roster = Roster::of(&lead).unwrap();
    let start = |input: Value| match call(&roster, "create_agent", input) {
        Some(Coordination::Spawn { agent, .. }) => primary.thread(&agent, &Models::default()),
        other => panic!("{other:?}"),
    };
    let tester = start(json!({"agent_name": "Tester", "message": "m"})).unwrap();
    let (system, tools) = shown(&tester);
    assert!(tools.contains(&"bash".to_owned()) && !tools.contains(&"create_agent".to_owned()));
    assert!(system[0].contains("Linux sandbox") && system[1].contains("coordinator"));
    assert!(system[1].contains("Other threads work in the same sandbox"));
    assert_eq!(tester.web_rules().len(), 2);

    // A copy of the coordinator cannot go deeper, and is told so.
    let copy = start(json!({"agent_name": "Lead", "message": "m"})).unwrap();
    let (system, tools) = shown(&copy);
    assert!(tools.is_empty());
    assert_eq!(system[1], "Lead well.");
    let input = || Ok(to_raw_value(&json!({"agent_name": "Tester", "message": "m"})).unwrap());
    let judged = copy.judge(
        &Toolset::default(),
        "id".to_owned(),
        "create_agent".to_owned(),
        input(),
    );
    assert!(matches!(judged.verdict, Verdict::Refused { reason } if reason == TOO_DEEP));
    let judged = primary.judge(
        &Toolset::default(),
        "id".to_owned(),
        "create_agent".to_owned(),
        input(),
    );
    assert!(matches!(
        judged.verdict,
        Verdict::Hidden(Coordination::Spawn { .. })
    ));

    let advisor = json!({"type": "advisor", "model": "wise"}).to_string();
    let advisor = primary.thread(&advisor, &Models::default()).unwrap();
    assert_eq!(advisor.model(), "wise");
    assert!(!advisor.is_equipped());
    assert_eq!(shown(&advisor), (vec![ADVISING.to_owned()], Vec::new()));
}
