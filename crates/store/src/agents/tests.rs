use selfsame_types::{
    ApiError,
    agent::{CreateAgent, UpdateAgent},
};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::*;
use crate::Actor;

fn config(body: Value) -> AgentConfig {
    serde_json::from_value::<CreateAgent>(body)
        .unwrap()
        .resolve(AgentId::new(), &Members::default())
        .unwrap()
}

fn named(name: &str) -> AgentConfig {
    config(json!({"name": name, "model": "m"}))
}

async fn workspace(store: &Store) -> WorkspaceId {
    let workspace = store.workspace_create("w", &Actor::default()).await;
    workspace.unwrap().id
}

/// What an update answers: the client's error or the database's.
#[derive(Debug)]
enum Refused {
    Api(ApiError),
    Store(StoreError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

async fn update(
    store: &Store,
    workspace: WorkspaceId,
    id: AgentId,
    body: Value,
) -> Result<Option<Agent>, ApiError> {
    let body: UpdateAgent = serde_json::from_value(body).unwrap();
    let updated = store.agent_update(
        workspace,
        id,
        |agent| body.references(agent),
        |agent, members| body.change(agent, members).map_err(Refused::Api),
    );
    updated.await.map_err(|error| match error {
        Refused::Api(error) => error,
        Refused::Store(error) => panic!("{error:?}"),
    })
}

fn filter() -> AgentFilter {
    AgentFilter {
        include_archived: false,
        created_from: None,
        created_until: None,
        after: Position::NEWEST,
        limit: 10,
    }
}

fn names(agents: &[Agent]) -> Vec<&str> {
    agents
        .iter()
        .map(|agent| agent.config.spec.name.as_str())
        .collect()
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn what_is_created_is_read_back(pool: PgPool) {
    let store = Store::from_pool(pool);
    let workspace = workspace(&store).await;
    let config = config(json!({
        "name": "a", "model": {"id": "m", "effort": "low"}, "system": "s", "metadata": {"k": "v"},
        "tools": [
            {"type": "agent_toolset_20260401", "configs": [{"name": "bash", "enabled": false}]},
            {"type": "custom", "name": "t", "description": "d",
             "input_schema": {"type": "object", "z": 1, "a": {"y": 2.5, "b": null}}},
        ],
    }));
    let created = store
        .agent_create(workspace, AgentId::new(), config.clone())
        .await
        .unwrap();
    assert_eq!(created.config, config);
    assert_eq!(created.created_at, created.updated_at);
    for version in [None, Some(1)] {
        let read = store.agent_get(workspace, created.id, version).await;
        let read = read.unwrap().unwrap();
        assert_eq!(read, created);
        // The key order of schemas is part of what a model sees.
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            serde_json::to_string(&created).unwrap()
        );
    }
    for version in [2, i64::from(i32::MAX) + 1] {
        let read = store.agent_get(workspace, created.id, Some(version)).await;
        assert_eq!(read.unwrap(), None);
    }
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn another_workspace_finds_nothing(pool: PgPool) {
    let store = Store::from_pool(pool);
    let (ours, theirs) = (workspace(&store).await, workspace(&store).await);
    let agent = store
        .agent_create(ours, AgentId::new(), named("a"))
        .await
        .unwrap();
    assert_eq!(store.agent_get(theirs, agent.id, None).await.unwrap(), None);
    let updated = update(&store, theirs, agent.id, json!({"name": "b"})).await;
    assert_eq!(updated, Ok(None));
    assert_eq!(store.agent_archive(theirs, agent.id).await.unwrap(), None);
    assert_eq!(
        store
            .agent_versions(theirs, agent.id, None, 10)
            .await
            .unwrap(),
        None
    );
    assert_eq!(store.agent_list(theirs, &filter()).await.unwrap(), []);
    let untouched = store.agent_get(ours, agent.id, None).await.unwrap();
    assert_eq!(untouched, Some(agent));
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn versions_are_kept(pool: PgPool) {
    let store = Store::from_pool(pool);
    let workspace = workspace(&store).await;
    let first = store
        .agent_create(workspace, AgentId::new(), named("a"))
        .await
        .unwrap();
    let body = json!({"version": 1, "system": "s"});
    let second = update(&store, workspace, first.id, body.clone())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((second.version, second.created_at), (2, first.created_at));
    assert!(second.updated_at > first.updated_at);

    // The same once more is a conflict, and no version without a change.
    let conflict = update(&store, workspace, first.id, body).await.unwrap_err();
    assert_eq!(conflict.kind.status(), 409);
    assert_eq!(conflict.should_retry, Some(false));
    let same = update(&store, workspace, first.id, json!({"system": "s"})).await;
    assert_eq!(same.unwrap().unwrap(), second);

    let third = update(&store, workspace, first.id, json!({"metadata": {"k": "v"}})).await;
    let third = third.unwrap().unwrap();
    assert_eq!(third.version, 3);

    let versions = store.agent_versions(workspace, first.id, None, 10).await;
    let versions = versions.unwrap().unwrap();
    assert_eq!(versions, [third.clone(), second.clone(), first.clone()]);
    let rest = store.agent_versions(workspace, first.id, Some(3), 1).await;
    assert_eq!(rest.unwrap().unwrap(), [second]);
    let none = store.agent_versions(workspace, first.id, Some(1), 1).await;
    assert_eq!(none.unwrap().unwrap(), []);
    let old = store.agent_get(workspace, first.id, Some(1)).await;
    assert_eq!(old.unwrap().unwrap(), first);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn of_concurrent_updates_from_one_version_one_wins(pool: PgPool) {
    let store = Store::from_pool(pool);
    let workspace = workspace(&store).await;
    let agent = store
        .agent_create(workspace, AgentId::new(), named("a"))
        .await
        .unwrap();
    let attempts = (0..8).map(|n| {
        let body = json!({"version": 1, "system": format!("s{n}")});
        update(&store, workspace, agent.id, body)
    });
    let outcomes = futures_util::future::join_all(attempts).await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(won, 1);
    for refused in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!(refused.kind.status(), 409);
    }
    let latest = store.agent_get(workspace, agent.id, None).await;
    assert_eq!(latest.unwrap().unwrap().version, 2);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn archiving_is_for_good(pool: PgPool) {
    let store = Store::from_pool(pool);
    let workspace = workspace(&store).await;
    let agent = store
        .agent_create(workspace, AgentId::new(), named("a"))
        .await
        .unwrap();
    let archived = store.agent_archive(workspace, agent.id).await;
    let archived = archived.unwrap().unwrap();
    assert_eq!(archived.version, 1);
    assert_eq!(archived.archived_at, Some(archived.updated_at));
    let again = store.agent_archive(workspace, agent.id).await;
    assert_eq!(again.unwrap().unwrap(), archived);
    let refused = update(&store, workspace, agent.id, json!({"name": "b"})).await;
    assert!(refused.unwrap_err().message.contains("archived"));
    assert_eq!(store.agent_list(workspace, &filter()).await.unwrap(), []);
    let all = AgentFilter {
        include_archived: true,
        ..filter()
    };
    assert_eq!(store.agent_list(workspace, &all).await.unwrap(), [archived]);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn lists_are_walked_without_gap_or_repeat(pool: PgPool) {
    let store = Store::from_pool(pool);
    let workspace = workspace(&store).await;
    let mut created = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        created.push(
            store
                .agent_create(workspace, AgentId::new(), named(name))
                .await
                .unwrap(),
        );
    }
    // A list shows the latest version, in the place of the agent.
    update(&store, workspace, created[0].id, json!({"name": "A"}))
        .await
        .unwrap();
    let mut seen = Vec::new();
    let mut after = Position::NEWEST;
    loop {
        let page = AgentFilter {
            after,
            limit: 2,
            ..filter()
        };
        let rows = store.agent_list(workspace, &page).await.unwrap();
        let Some(last) = rows.last() else { break };
        after = Position {
            created_at: last.created_at,
            id: last.id.0,
        };
        seen.extend(rows);
    }
    assert_eq!(names(&seen), ["e", "d", "c", "b", "A"]);

    let between = AgentFilter {
        created_from: Some(created[1].created_at),
        created_until: Some(created[3].created_at),
        ..filter()
    };
    let rows = store.agent_list(workspace, &between).await.unwrap();
    assert_eq!(names(&rows), ["d", "c", "b"]);
    let ancient = AgentFilter {
        created_from: Some(Timestamp::from_micros(i64::MIN)),
        created_until: Some(Timestamp::from_micros(i64::MIN)),
        ..filter()
    };
    assert_eq!(store.agent_list(workspace, &ancient).await.unwrap(), []);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_row_that_cannot_be_read_names_itself(pool: PgPool) {
    let store = Store::from_pool(pool.clone());
    let workspace = workspace(&store).await;
    let agent = store
        .agent_create(workspace, AgentId::new(), named("a"))
        .await
        .unwrap();
    sqlx::query("UPDATE agent_versions SET config = '{}'")
        .execute(&pool)
        .await
        .unwrap();
    let error = store
        .agent_get(workspace, agent.id, None)
        .await
        .unwrap_err();
    let expected = format!(
        "undecodable agent_versions.config in row {} version 1",
        agent.id
    );
    assert_eq!(error.to_string(), expected);
}
