use selfsame_types::{
    AgentId, ApiError, SessionId,
    environment::{CreateEnvironment, UpdateEnvironment},
};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::*;

fn spec(body: Value) -> EnvironmentSpec {
    serde_json::from_value::<CreateEnvironment>(body)
        .unwrap()
        .resolve()
        .unwrap()
}

fn named(name: &str) -> EnvironmentSpec {
    spec(json!({"name": name}))
}

async fn workspace(store: &Store) -> WorkspaceId {
    let workspace = store.workspace_create("w", &Actor::default()).await;
    workspace.unwrap().id
}

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
    id: EnvironmentId,
    body: Value,
) -> Result<Option<Environment>, Refused> {
    let body: UpdateEnvironment = serde_json::from_value(body).unwrap();
    store
        .environment_update(workspace, id, |environment| {
            body.change(environment).map_err(Refused::Api)
        })
        .await
}

fn filter() -> EnvironmentFilter {
    EnvironmentFilter {
        include_archived: false,
        after: Position::NEWEST,
        limit: 10,
    }
}

fn is_name_taken(error: &StoreError) -> bool {
    error.constraint() == Some(ENVIRONMENT_NAME_KEY)
}

/// A session on this environment; only its existence matters here.
async fn insert_session(pool: &PgPool, workspace: WorkspaceId, environment: EnvironmentId) -> Uuid {
    let (session, agent) = (SessionId::new().0, AgentId::new().0);
    sqlx::query("INSERT INTO agents (id, workspace_id, current_version) VALUES ($1, $2, 1)")
        .bind(agent)
        .bind(workspace.0)
        .execute(pool)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO sessions (id, workspace_id, agent_id, agent_version, environment_id, agent,
            environment, metadata, created_at)
         VALUES ($1, $2, $3, 1, $4, '{}', '{}', '{}', clock_timestamp())",
    )
    .bind(session)
    .bind(workspace.0)
    .bind(agent)
    .bind(environment.0)
    .execute(pool)
    .await
    .unwrap();
    session
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn what_is_created_is_read_back(pool: PgPool) {
    let store = Store::from_pool(pool);
    let workspace = workspace(&store).await;
    let created = store
        .environment_create(
            workspace,
            spec(json!({
                "name": "py", "description": "", "metadata": {"k": "v"},
                "config": {"type": "cloud", "packages": {"pip": ["pandas"]}},
            })),
        )
        .await
        .unwrap();
    assert_eq!(created.description.as_deref(), Some(""));
    let read = store.environment_get(workspace, created.id).await;
    assert_eq!(read.unwrap().unwrap(), created);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn another_workspace_finds_nothing(pool: PgPool) {
    let store = Store::from_pool(pool);
    let (ours, theirs) = (workspace(&store).await, workspace(&store).await);
    let created = store.environment_create(ours, named("a")).await.unwrap();
    let id = created.id;
    assert_eq!(store.environment_get(theirs, id).await.unwrap(), None);
    let updated = update(&store, theirs, id, json!({"name": "b"})).await;
    assert_eq!(updated.unwrap(), None);
    assert_eq!(store.environment_archive(theirs, id).await.unwrap(), None);
    let deleted = store
        .environment_delete(theirs, id, &Actor::default())
        .await;
    assert_eq!(deleted.unwrap(), Deletion::NotFound);
    assert_eq!(store.environment_list(theirs, &filter()).await.unwrap(), []);
    // Names are per workspace.
    store.environment_create(theirs, named("a")).await.unwrap();
    let untouched = store.environment_get(ours, id).await.unwrap();
    assert_eq!(untouched, Some(created));
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn live_names_are_unique(pool: PgPool) {
    let store = Store::from_pool(pool);
    let workspace = workspace(&store).await;
    let first = store.environment_create(workspace, named("a")).await;
    let first = first.unwrap();
    let twin = store.environment_create(workspace, named("a")).await;
    assert!(is_name_taken(&twin.unwrap_err()));
    let second = store.environment_create(workspace, named("b")).await;
    let second = second.unwrap();
    match update(&store, workspace, second.id, json!({"name": "a"})).await {
        Err(Refused::Store(error)) => assert!(is_name_taken(&error)),
        other => panic!("{other:?}"),
    }
    store
        .environment_archive(workspace, first.id)
        .await
        .unwrap();
    let renamed = update(&store, workspace, second.id, json!({"name": "a"})).await;
    let renamed = renamed.unwrap().unwrap();
    assert_eq!(renamed.name, "a");
    assert!(renamed.updated_at > second.updated_at);
    let deleted = store
        .environment_delete(workspace, second.id, &Actor::default())
        .await;
    assert_eq!(deleted.unwrap(), Deletion::Deleted);
    store
        .environment_create(workspace, named("a"))
        .await
        .unwrap();
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn an_update_without_effect_leaves_no_trace(pool: PgPool) {
    let store = Store::from_pool(pool);
    let workspace = workspace(&store).await;
    let created = store.environment_create(workspace, named("a")).await;
    let created = created.unwrap();
    let body = json!({"name": "a", "config": {"type": "cloud"}, "metadata": {"x": null}});
    let same = update(&store, workspace, created.id, body).await;
    assert_eq!(same.unwrap().unwrap(), created);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn archiving_is_for_good(pool: PgPool) {
    let store = Store::from_pool(pool);
    let workspace = workspace(&store).await;
    let created = store.environment_create(workspace, named("a")).await;
    let id = created.unwrap().id;
    let archived = store.environment_archive(workspace, id).await;
    let archived = archived.unwrap().unwrap();
    assert_eq!(archived.archived_at, Some(archived.updated_at));
    let again = store.environment_archive(workspace, id).await;
    assert_eq!(again.unwrap().unwrap(), archived);
    match update(&store, workspace, id, json!({"name": "b"})).await {
        Err(Refused::Api(error)) => assert_eq!(error.code, Some("environment_archived")),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        store.environment_list(workspace, &filter()).await.unwrap(),
        []
    );
    let all = EnvironmentFilter {
        include_archived: true,
        ..filter()
    };
    assert_eq!(
        store.environment_list(workspace, &all).await.unwrap(),
        [archived]
    );
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn only_sessions_that_exist_keep_an_environment(pool: PgPool) {
    let store = Store::from_pool(pool.clone());
    let workspace = workspace(&store).await;
    let created = store.environment_create(workspace, named("a")).await;
    let id = created.unwrap().id;
    let session = insert_session(&pool, workspace, id).await;
    let actor = Actor::default();
    let refused = store.environment_delete(workspace, id, &actor).await;
    assert_eq!(refused.unwrap(), Deletion::InUse);
    assert!(
        store
            .environment_get(workspace, id)
            .await
            .unwrap()
            .is_some()
    );

    // Deleted by the client, not purged yet.
    sqlx::query("UPDATE sessions SET deleted_at = clock_timestamp() WHERE id = $1")
        .bind(session)
        .execute(&pool)
        .await
        .unwrap();
    let deleted = store.environment_delete(workspace, id, &actor).await;
    assert_eq!(deleted.unwrap(), Deletion::Deleted);
    let audited: i64 =
        sqlx::query_scalar("SELECT count(*) FROM audit WHERE action = 'environment.delete'")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(audited, 1);

    assert_eq!(store.environment_get(workspace, id).await.unwrap(), None);
    let updated = update(&store, workspace, id, json!({"name": "b"})).await;
    assert_eq!(updated.unwrap(), None);
    assert_eq!(
        store.environment_archive(workspace, id).await.unwrap(),
        None
    );
    let again = store.environment_delete(workspace, id, &actor).await;
    assert_eq!(again.unwrap(), Deletion::NotFound);
    let all = EnvironmentFilter {
        include_archived: true,
        ..filter()
    };
    assert_eq!(store.environment_list(workspace, &all).await.unwrap(), []);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn lists_are_walked_without_gap_or_repeat(pool: PgPool) {
    let store = Store::from_pool(pool);
    let workspace = workspace(&store).await;
    for name in ["a", "b", "c", "d", "e"] {
        store
            .environment_create(workspace, named(name))
            .await
            .unwrap();
    }
    let mut seen = Vec::new();
    let mut after = Position::NEWEST;
    loop {
        let page = EnvironmentFilter {
            after,
            limit: 2,
            ..filter()
        };
        let rows = store.environment_list(workspace, &page).await.unwrap();
        let Some(last) = rows.last() else { break };
        after = Position {
            created_at: last.created_at,
            id: last.id.0,
        };
        seen.extend(rows.into_iter().map(|environment| environment.name));
    }
    assert_eq!(seen, ["e", "d", "c", "b", "a"]);
}
