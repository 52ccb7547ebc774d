use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use selfsame_types::{AgentId, EnvironmentId, file::BINARY};
use sqlx::PgPool;

use super::*;
use crate::{Actor, Blobs};

pub(crate) async fn store(pool: &PgPool) -> Store {
    Store::from_pool(pool.clone()).with_blobs(Blobs::memory())
}

pub(crate) async fn workspace(store: &Store) -> WorkspaceId {
    let workspace = store.workspace_create("w", &Actor::default()).await;
    workspace.unwrap().id
}

/// A session; only its existence matters here.
pub(crate) async fn session(pool: &PgPool, workspace: WorkspaceId) -> SessionId {
    let (session, agent, environment) = (SessionId::new(), AgentId::new(), EnvironmentId::new());
    sqlx::query("INSERT INTO agents (id, workspace_id, current_version) VALUES ($1, $2, 1)")
        .bind(agent.0)
        .bind(workspace.0)
        .execute(pool)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO environments (id, workspace_id, name, config, metadata)
         VALUES ($1, $2, $3, '{}', '{}')",
    )
    .bind(environment.0)
    .bind(workspace.0)
    .bind(environment.to_string())
    .execute(pool)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO sessions (id, workspace_id, agent_id, agent_version, environment_id, agent,
            environment, metadata, created_at)
         VALUES ($1, $2, $3, 1, $4, '{}', '{}', '{}', clock_timestamp())",
    )
    .bind(session.0)
    .bind(workspace.0)
    .bind(agent.0)
    .bind(environment.0)
    .execute(pool)
    .await
    .unwrap();
    session
}

async fn insert(
    store: &Store,
    workspace: WorkspaceId,
    kind: NewKind,
    content: &'static str,
) -> Inserted {
    let content = stream::iter([Ok(Bytes::from_static(content.as_bytes()))]);
    let blob = store.blobs().put(content, 1000).await.unwrap();
    let new = NewFile {
        workspace,
        kind,
        filename: "f".to_owned(),
        mime_type: BINARY.to_owned(),
        blob,
    };
    store.file_insert(new).await.unwrap()
}

#[track_caller]
fn made(inserted: Inserted) -> FileRecord {
    match inserted {
        Inserted::New(record) => record,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn upload(
    store: &Store,
    workspace: WorkspaceId,
    content: &'static str,
) -> FileRecord {
    let kind = NewKind::Upload { expires_in: None };
    made(insert(store, workspace, kind, content).await)
}

async fn save(
    store: &Store,
    at: (WorkspaceId, SessionId),
    path: &str,
    content: &'static str,
) -> Inserted {
    let kind = NewKind::Output {
        session: at.1,
        path: path.to_owned(),
    };
    insert(store, at.0, kind, content).await
}

async fn list(store: &Store, workspace: WorkspaceId, query: FileQuery) -> (Vec<FileId>, bool) {
    let (rows, more) = store.file_list(workspace, &query).await.unwrap();
    (rows.iter().map(|row| row.file.id).collect(), more)
}

fn scope(session: SessionId) -> FileQuery {
    FileQuery {
        scope: Some(session),
        limit: 100,
        ..FileQuery::default()
    }
}

async fn content(store: &Store, record: &FileRecord) -> Option<Bytes> {
    let blob = record.blob?;
    store.blobs().read(blob, 1000).await.ok()
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn lists_go_both_ways_and_survive_deletions(pool: PgPool) {
    let store = store(&pool).await;
    let workspace = workspace(&store).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(upload(&store, workspace, "x").await.file.id);
    }
    ids.reverse();
    let page = async |start, limit| {
        let query = FileQuery {
            start,
            limit,
            scope: None,
        };
        list(&store, workspace, query).await
    };
    assert_eq!(page(FileStart::Newest, 5).await, (ids.clone(), false));
    assert_eq!(page(FileStart::Newest, 2).await, (ids[..2].to_vec(), true));
    let after = FileStart::After(ids[1]);
    let before = FileStart::Before(ids[4]);
    assert_eq!(page(after, 2).await, (ids[2..4].to_vec(), true));
    assert_eq!(page(before, 2).await, (ids[2..4].to_vec(), true));
    assert_eq!(page(before, 4).await, (ids[..4].to_vec(), false));

    for id in [ids[1], ids[4]] {
        assert!(
            store
                .file_delete(workspace, id, &Actor::default())
                .await
                .unwrap()
        );
        assert!(
            !store
                .file_delete(workspace, id, &Actor::default())
                .await
                .unwrap()
        );
    }
    assert_eq!(page(after, 9).await, (ids[2..4].to_vec(), false));
    assert_eq!(page(before, 2).await, (ids[2..4].to_vec(), true));
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn another_workspace_sees_and_deletes_nothing(pool: PgPool) {
    let store = store(&pool).await;
    let (mine, other) = (workspace(&store).await, workspace(&store).await);
    let session = session(&pool, mine).await;
    let file = upload(&store, mine, "x").await.file.id;
    let output = made(save(&store, (mine, session), "o", "x").await).file.id;
    for id in [file, output] {
        assert_eq!(store.file_get(other, id).await.unwrap(), None);
        assert!(
            !store
                .file_delete(other, id, &Actor::default())
                .await
                .unwrap()
        );
        assert!(store.file_get(mine, id).await.unwrap().is_some());
    }
    let all = FileQuery {
        limit: 10,
        ..FileQuery::default()
    };
    assert_eq!(list(&store, other, all).await.0, []);
    assert_eq!(list(&store, other, scope(session)).await.0, []);
    assert_eq!(
        store.file_find(other, &[file, output], None).await.unwrap(),
        []
    );
    assert_eq!(store.file_outputs(other, session).await.unwrap(), []);
    let copy = store.file_copy_for_session(other, file, session).await;
    assert_eq!(copy.unwrap(), None);
    let foreign = self::session(&pool, other).await;
    let copy = store.file_copy_for_session(other, file, foreign).await;
    assert_eq!(copy.unwrap(), None);
    assert_eq!(
        save(&store, (other, session), "o", "y").await,
        Inserted::NoSession
    );
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_copy_shares_its_content_and_outlives_its_original(pool: PgPool) {
    let store = store(&pool).await;
    let workspace = workspace(&store).await;
    let session = session(&pool, workspace).await;
    let file = upload(&store, workspace, "shared").await;
    let copy = store
        .file_copy_for_session(workspace, file.file.id, session)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((copy.kind, copy.blob), (FileKind::Input, file.blob));
    assert_ne!(copy.file.id, file.file.id);
    assert_eq!(copy.file.scope.unwrap().id, session);
    assert!(!copy.file.downloadable);
    assert_eq!(
        list(&store, workspace, scope(session)).await.0,
        [copy.file.id]
    );
    let uploads = FileQuery {
        limit: 9,
        ..FileQuery::default()
    };
    assert_eq!(list(&store, workspace, uploads).await.0, [file.file.id]);

    store
        .file_delete(workspace, file.file.id, &Actor::default())
        .await
        .unwrap();
    assert_eq!(store.blob_sweep(Duration::ZERO).await.unwrap(), 0);
    assert_eq!(content(&store, &copy).await.unwrap(), "shared");
    let gone = store
        .file_copy_for_session(workspace, file.file.id, session)
        .await;
    assert_eq!(gone.unwrap(), None);
    store
        .file_delete(workspace, copy.file.id, &Actor::default())
        .await
        .unwrap();
    assert_eq!(store.blob_sweep(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(content(&store, &copy).await, None);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn outputs_are_replaced_when_they_change(pool: PgPool) {
    let store = store(&pool).await;
    let workspace = workspace(&store).await;
    let session = session(&pool, workspace).await;
    let at = (workspace, session);
    let first = made(save(&store, at, "a/report.md", "one").await);
    let beside = made(save(&store, at, "b/report.md", "one").await);
    assert_eq!(
        (first.kind, first.path.as_deref()),
        (FileKind::Output, Some("a/report.md"))
    );
    assert!(first.file.downloadable);
    let same = save(&store, at, "a/report.md", "one").await;
    assert_eq!(same, Inserted::Unchanged(first.clone()));
    let second = made(save(&store, at, "a/report.md", "two").await);
    assert_ne!(second.file.id, first.file.id);
    assert_eq!(
        store.file_get(workspace, first.file.id).await.unwrap(),
        None
    );
    let listed = list(&store, workspace, scope(session)).await.0;
    assert_eq!(listed, [second.file.id, beside.file.id]);
    let outputs = store.file_outputs(workspace, session).await.unwrap();
    let known: Vec<_> = outputs.iter().map(|o| (o.path.as_str(), o.id)).collect();
    assert_eq!(
        known,
        [
            ("a/report.md", second.file.id),
            ("b/report.md", beside.file.id)
        ]
    );
    assert_eq!(Some(outputs[0].blob.id), second.blob);

    sqlx::query("UPDATE sessions SET deleted_at = clock_timestamp() WHERE id = $1")
        .bind(session.0)
        .execute(&pool)
        .await
        .unwrap();
    assert_eq!(save(&store, at, "late", "x").await, Inserted::NoSession);
    // The purge takes what is left with the session.
    while store.session_purge(10, 10).await.unwrap() > 0 {}
    assert_eq!(
        store.file_get(workspace, second.file.id).await.unwrap(),
        None
    );
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn what_has_expired_can_be_read_about_for_a_month(pool: PgPool) {
    let store = store(&pool).await;
    let workspace = workspace(&store).await;
    let session = session(&pool, workspace).await;
    let kind = NewKind::Upload {
        expires_in: Some(Duration::from_hours(1)),
    };
    let file = made(insert(&store, workspace, kind, "short-lived").await);
    let id = file.file.id;
    let expires = file.file.expires_at.unwrap();
    assert!((expires.seconds_since(file.file.created_at) - 3600.0).abs() < 1e-3);
    assert_eq!(store.file_expire().await.unwrap(), 0);

    let age = async |interval: &str| {
        sqlx::query("UPDATE files SET expires_at = clock_timestamp() - $1::interval WHERE id = $2")
            .bind(interval)
            .bind(id.0)
            .execute(&pool)
            .await
            .unwrap();
    };
    // Before anything has swept.
    age("1 second").await;
    let expired = store.file_get(workspace, id).await.unwrap().unwrap();
    assert_eq!(expired.blob, None);
    let copy = store.file_copy_for_session(workspace, id, session).await;
    assert_eq!(copy.unwrap(), None);

    assert_eq!(store.file_expire().await.unwrap(), 1);
    assert_eq!(store.file_expire().await.unwrap(), 0);
    assert_eq!(store.blob_sweep(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(content(&store, &file).await, None);
    age("29 days").await;
    assert_eq!(store.file_expire().await.unwrap(), 0);
    assert!(store.file_get(workspace, id).await.unwrap().is_some());
    age("31 days").await;
    assert_eq!(store.file_expire().await.unwrap(), 1);
    assert_eq!(store.file_get(workspace, id).await.unwrap(), None);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_quota_holds_against_uploads_at_the_same_time(pool: PgPool) {
    let store = store(&pool)
        .await
        .with_file_limits(FileLimits { quota: Some(25) });
    let (mine, other) = (workspace(&store).await, workspace(&store).await);
    let session = session(&pool, mine).await;
    let kind = || NewKind::Upload { expires_in: None };
    let ten = || insert(&store, mine, kind(), "ten bytes.");
    let outcomes = tokio::join!(ten(), ten(), ten(), ten());
    let outcomes = [outcomes.0, outcomes.1, outcomes.2, outcomes.3];
    let refused = outcomes
        .iter()
        .filter(|o| **o == Inserted::OverQuota(25))
        .count();
    assert_eq!(refused, 2, "{outcomes:?}");
    upload(&store, other, "ten bytes.").await;

    // Copies count for nothing, outputs do.
    let kept = outcomes.iter().find_map(|o| match o {
        Inserted::New(record) => Some(record.file.id),
        _ => None,
    });
    let kept = kept.unwrap();
    let copy = store
        .file_copy_for_session(mine, kept, session)
        .await
        .unwrap();
    assert!(copy.is_some());
    made(save(&store, (mine, session), "o", "12345").await);
    assert_eq!(
        save(&store, (mine, session), "p", "1").await,
        Inserted::OverQuota(25)
    );
    // What replaces something takes its place.
    made(save(&store, (mine, session), "o", "54321").await);
    store
        .file_delete(mine, kept, &Actor::default())
        .await
        .unwrap();
    upload(&store, mine, "ten bytes.").await;
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn ids_are_found_in_any_scope(pool: PgPool) {
    let store = store(&pool).await;
    let workspace = workspace(&store).await;
    let session = session(&pool, workspace).await;
    let file = upload(&store, workspace, "x").await.file.id;
    let output = made(save(&store, (workspace, session), "o", "y").await)
        .file
        .id;
    let find = async |scope| {
        let wanted = [file, FileId::new(), output, file];
        let found = store.file_find(workspace, &wanted, scope).await.unwrap();
        found.iter().map(|row| row.file.id).collect::<Vec<_>>()
    };
    assert_eq!(find(None).await, [output, file]);
    assert_eq!(find(Some(session)).await, [output]);
}
