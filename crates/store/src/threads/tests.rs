use selfsame_types::{
    AgentId, EnvironmentId, WorkspaceId, agent::CreateAgent, environment::CreateEnvironment,
    multiagent::Members,
};
use serde_json::json;
use sqlx::PgPool;

use super::*;
use crate::{Actor, FirstState, NewSession};

async fn session(store: &Store) -> (SessionId, ThreadId) {
    let workspace = store.workspace_create("w", &Actor::default()).await;
    let ws: WorkspaceId = workspace.unwrap().id;
    let agent: CreateAgent = serde_json::from_value(json!({"name": "a", "model": "m"})).unwrap();
    let id = AgentId::new();
    let config = agent.resolve(id, &Members::default()).unwrap();
    store.agent_create(ws, id, config).await.unwrap();
    let name = EnvironmentId::new().to_string();
    let environment: CreateEnvironment = serde_json::from_value(json!({"name": name})).unwrap();
    let environment = environment.resolve().unwrap();
    let environment = store.environment_create(ws, environment).await.unwrap();
    let new = NewSession {
        id: SessionId::new(),
        workspace: ws,
        agent_id: id,
        agent_version: 1,
        environment_id: environment.id,
        agent: "{}".to_owned(),
        environment: "{}".to_owned(),
        title: None,
        metadata: "{}".to_owned(),
        created_by: None,
        request_id: None,
        created_at: Timestamp::from_micros(1),
        thread: ThreadId::new(),
        thread_agent: "{}".to_owned(),
        equipped: false,
        resources: Vec::new(),
        skills: Vec::new(),
        vault_ids: Vec::new(),
    };
    let first = FirstState {
        events: Vec::new(),
        status: "idle",
        thread_status: "idle",
        machine: "{}".to_owned(),
        view: "{}".to_owned(),
        thread_view: "{}".to_owned(),
        queued: Vec::new(),
        wake_at: None,
        owner: None,
    };
    let (session, thread) = (new.id, new.thread);
    store.session_create(new, first).await.unwrap().unwrap();
    (session, thread)
}

/// Adds children at the positions of `range`, each hundredth of them running.
async fn children(
    store: &Store,
    session: SessionId,
    primary: ThreadId,
    range: std::ops::Range<i32>,
) {
    for position in range {
        let status = if position % 100 == 0 {
            "running"
        } else {
            "terminated"
        };
        sqlx::query(
            "INSERT INTO session_threads (id, session_id, parent_thread_id, position, agent, status, \
             view, created_at, updated_at) VALUES ($1, $2, $3, $4, '{}', $5, '{}', now(), now())",
        )
        .bind(ThreadId::new().0)
        .bind(session.0)
        .bind(primary.0)
        .bind(position)
        .bind(status)
        .execute(&store.pool)
        .await
        .unwrap();
    }
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn threads_are_listed_by_creation_whatever_they_do(pool: PgPool) {
    let store = Store::from_pool(pool);
    let (session, primary) = session(&store).await;
    children(&store, session, primary, 1..301).await;
    let positions = |records: &[ThreadRecord]| -> Vec<i32> {
        records.iter().map(|record| record.position).collect()
    };
    let (all, more) = store.thread_list(session, None, &[], 1000).await.unwrap();
    assert_eq!(positions(&all), (0..301).collect::<Vec<_>>());
    assert!(!more);
    assert_eq!((all[0].id, all[0].parent), (primary, None));
    assert_eq!(all[1].parent, Some(primary));
    let one = store.thread_get(session, all[7].id).await.unwrap().unwrap();
    assert_eq!(one.position, 7);
    assert!(
        store
            .thread_get(SessionId::new(), all[7].id)
            .await
            .unwrap()
            .is_none()
    );

    // Page by page, with and without a filter.
    for (statuses, expected) in [
        (vec![], (0..301).collect::<Vec<_>>()),
        (vec!["running"], vec![100, 200, 300]),
        (vec!["idle", "running"], vec![0, 100, 200, 300]),
        (vec!["running", "running"], vec![100, 200, 300]),
        (vec!["rescheduling"], vec![]),
    ] {
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let (page, more) = store
                .thread_list(session, after, &statuses, 2)
                .await
                .unwrap();
            assert!(page.len() == 2 || !more);
            found.extend(positions(&page));
            after = page.last().map(|record| record.position);
            if !more {
                break;
            }
        }
        assert_eq!(found, expected, "{statuses:?}");
    }
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn the_rare_ones_among_many_are_found_by_an_index(pool: PgPool) {
    let store = Store::from_pool(pool);
    let (session, primary) = session(&store).await;
    children(&store, session, primary, 1..1001).await;
    sqlx::query("ANALYZE session_threads")
        .execute(&store.pool)
        .await
        .unwrap();
    let plan: Vec<String> = sqlx::query_scalar(
        "EXPLAIN SELECT * FROM session_threads WHERE session_id = $1 AND status = 'running' \
         AND position > -1 ORDER BY position LIMIT 3",
    )
    .bind(session.0)
    .fetch_all(&store.pool)
    .await
    .unwrap();
    let plan = plan.join("\n");
    assert!(plan.contains("session_threads_status_idx"), "{plan}");
    assert!(!plan.contains("Sort"), "{plan}");
}
