use std::{path::Path, time::Duration};

use futures_util::stream;
use selfsame_types::{Timestamp, WorkspaceId, file::BINARY};
use sqlx::PgPool;
use uuid::Uuid;

use super::*;
use crate::{Actor, Inserted, NewFile, files::NewKind};

mod s3;

/// Every file below a directory.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

fn local(directory: &Path) -> Blobs {
    Blobs::local(directory.to_owned(), Uuid::from_u128(1)).unwrap()
}

/// Pieces of uneven size, `total` bytes together.
fn pieces(total: usize) -> Vec<io::Result<Bytes>> {
    let whole: Vec<u8> = (0..total).map(|n| (n % 251) as u8).collect();
    whole
        .chunks(70_001)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect()
}

async fn put(blobs: &Blobs, content: &'static [u8]) -> Blob {
    let content = stream::iter([Ok(Bytes::from_static(content))]);
    blobs.put(content, 1000).await.unwrap()
}

#[tokio::test]
async fn contents_of_every_size_come_back() {
    let directory = tempfile::tempdir().unwrap();
    for blobs in [local(directory.path()), Blobs::memory()] {
        let part = 1024 * 1024;
        for size in [0, 1, part - 1, part, part + 1, 2 * part, 3 * part + 5] {
            let source = pieces(size);
            let whole: Vec<u8> = source
                .iter()
                .flat_map(|p| p.as_ref().unwrap())
                .copied()
                .collect();
            let blob = blobs.put(stream::iter(source), size as u64).await.unwrap();
            assert_eq!(blob.size, size as u64);
            assert_eq!(blob.sha256, <[u8; 32]>::from(Sha256::digest(&whole)));
            assert_eq!(blobs.read(blob.id, size).await.unwrap(), whole);
            if size > 0 {
                let error = blobs.read(blob.id, size - 1).await.unwrap_err();
                assert!(matches!(error, BlobError::TooLarge(_)), "{error}");
            }
            blobs.delete(blob.id).await.unwrap();
            blobs.delete(blob.id).await.unwrap();
            let gone = blobs.get(blob.id).await.err();
            assert!(matches!(gone, Some(BlobError::Missing)), "{gone:?}");
        }
    }
    assert_eq!(files(directory.path()), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_not_written_to_its_end_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = local(directory.path());
    let size = 3 * 1024 * 1024;
    let limit = size as u64 - 1;
    let error = blobs.put(stream::iter(pieces(size)), limit).await;
    assert!(matches!(error, Err(BlobError::TooLarge(known)) if known == limit));

    let mut broken = pieces(size);
    broken.push(Err(io::Error::other("the client is gone")));
    let error = blobs.put(stream::iter(broken), u64::MAX).await.unwrap_err();
    assert!(matches!(error, BlobError::Read(_)), "{error}");
    assert_eq!(files(directory.path()), Vec::<String>::new());

    // A caller that gives up while there is more to come.
    let endless = stream::iter(pieces(size)).chain(stream::pending());
    let giving_up = tokio::time::timeout(Duration::from_millis(200), blobs.put(endless, u64::MAX));
    let begun = async {
        while files(directory.path()).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let (outcome, ()) = tokio::join!(giving_up, begun);
    assert!(outcome.is_err());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !files(directory.path()).is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "something stays");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn without_a_place_everything_fails() {
    let none = Blobs::none();
    let error = none.put(stream::iter(pieces(1)), 1).await.unwrap_err();
    assert!(matches!(error, BlobError::NoPlace));
    assert!(none.get(BlobId::new()).await.is_err());
}

async fn store(pool: PgPool, blobs: &Blobs) -> (Store, WorkspaceId) {
    let store = Store::from_pool(pool).with_blobs(blobs.clone());
    let workspace = store.workspace_create("w", &Actor::default()).await;
    (store, workspace.unwrap().id)
}

async fn upload(store: &Store, workspace: WorkspaceId, blob: Blob) {
    let inserted = store
        .file_insert(NewFile {
            workspace,
            kind: NewKind::Upload { expires_in: None },
            filename: "f".to_owned(),
            mime_type: BINARY.to_owned(),
            blob,
        })
        .await
        .unwrap();
    assert!(matches!(inserted, Inserted::New(_)), "{inserted:?}");
}

async fn insert_row(store: &Store, blob: &Blob) {
    let mut connection = store.pool.acquire().await.unwrap();
    insert(&mut connection, blob).await.unwrap();
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn the_sweep_takes_what_nothing_refers_to(pool: PgPool) {
    let blobs = Blobs::memory();
    let (store, workspace) = store(pool.clone(), &blobs).await;
    let (used, unused, held) = (
        put(&blobs, b"used").await,
        put(&blobs, b"unused").await,
        put(&blobs, b"held").await,
    );
    upload(&store, workspace, used).await;
    insert_row(&store, &unused).await;
    insert_row(&store, &held).await;
    // A table the sweep has never heard of.
    sqlx::raw_sql("CREATE TABLE others (content uuid REFERENCES blobs)")
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("INSERT INTO others VALUES ($1)")
        .bind(held.id.0)
        .execute(&pool)
        .await
        .unwrap();

    assert_eq!(store.blob_sweep(GRACE).await.unwrap(), 0);
    assert_eq!(store.blob_sweep(Duration::ZERO).await.unwrap(), 1);
    assert!(blobs.get(unused.id).await.is_err());
    assert!(blobs.get(used.id).await.is_ok());
    assert!(blobs.get(held.id).await.is_ok());
    assert_eq!(store.blob_sweep(Duration::ZERO).await.unwrap(), 0);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn the_sweep_leaves_what_somebody_is_about_to_refer_to(pool: PgPool) {
    let blobs = Blobs::memory();
    let (store, workspace) = store(pool.clone(), &blobs).await;
    let blob = put(&blobs, b"wanted").await;
    insert_row(&store, &blob).await;
    let mut tx = pool.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO files (id, workspace_id, kind, filename, mime_type, size_bytes, blob_id,
            downloadable, created_at)
         VALUES ($1, $2, 'upload', 'f', 't', 6, $3, false, clock_timestamp())",
    )
    .bind(Uuid::now_v7())
    .bind(workspace.0)
    .bind(blob.id.0)
    .execute(&mut *tx)
    .await
    .unwrap();
    // The reference cannot be seen yet, but its lock can.
    assert_eq!(store.blob_sweep(Duration::ZERO).await.unwrap(), 0);
    tx.commit().await.unwrap();
    assert_eq!(store.blob_sweep(Duration::ZERO).await.unwrap(), 0);
    assert!(blobs.get(blob.id).await.is_ok());
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn what_is_given_up_can_be_referred_to_no_more(pool: PgPool) {
    let blobs = Blobs::memory();
    let (store, workspace) = store(pool.clone(), &blobs).await;
    let blob = put(&blobs, b"late").await;
    insert_row(&store, &blob).await;
    assert_eq!(store.blob_sweep(Duration::ZERO).await.unwrap(), 1);
    let error = sqlx::query(
        "INSERT INTO files (id, workspace_id, kind, filename, mime_type, size_bytes, blob_id,
            downloadable, created_at)
         VALUES ($1, $2, 'upload', 'f', 't', 6, $3, false, clock_timestamp())",
    )
    .bind(Uuid::now_v7())
    .bind(workspace.0)
    .bind(blob.id.0)
    .execute(&pool)
    .await
    .unwrap_err();
    assert!(error.to_string().contains("files_blob_id_fkey"), "{error}");
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn strays_are_adopted_and_then_swept(pool: PgPool) {
    let directory = tempfile::tempdir().unwrap();
    let blobs = local(directory.path());
    let (store, workspace) = store(pool, &blobs).await;
    let (stray, slow) = (put(&blobs, b"stray").await, put(&blobs, b"slow").await);
    // Another deployment's, and something that is none of ours.
    let foreign = Blobs::local(directory.path().to_owned(), Uuid::from_u128(2)).unwrap();
    let others = put(&foreign, b"others").await;
    let root = directory.path().join(Uuid::from_u128(1).to_string());
    std::fs::write(root.join("README"), "not a content").unwrap();

    // Too young, as far as the default is concerned.
    assert_eq!(store.blob_find_strays(Duration::ZERO).await.unwrap(), 0);
    assert_eq!(store.blob_adopt(Timestamp::LATEST).await.unwrap(), 2);
    assert_eq!(store.blob_adopt(Timestamp::LATEST).await.unwrap(), 0);
    // The transaction of an upload that the search has overtaken.
    upload(&store, workspace, slow).await;

    assert_eq!(store.blob_sweep(GRACE).await.unwrap(), 0);
    assert_eq!(store.blob_sweep(Duration::ZERO).await.unwrap(), 1);
    assert!(blobs.get(stray.id).await.is_err());
    assert_eq!(blobs.read(slow.id, 10).await.unwrap(), "slow");
    assert_eq!(foreign.read(others.id, 10).await.unwrap(), "others");
    assert!(root.join("README").exists());
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn one_server_at_a_time_looks_for_strays(pool: PgPool) {
    let blobs = Blobs::memory();
    let (store, _) = store(pool, &blobs).await;
    let begin = async |every| store.chore_begin("test", every).await.unwrap();
    let day = Duration::from_hours(24);
    assert!(begin(day).await.is_some());
    assert!(begin(day).await.is_none());
    assert!(begin(Duration::ZERO).await.is_some());
}

#[tokio::test]
async fn unfinished_files_of_the_day_stay() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = local(directory.path());
    let shard = directory
        .path()
        .join(Uuid::from_u128(1).to_string())
        .join("ab");
    std::fs::create_dir(&shard).unwrap();
    let (old, new) = (shard.join("x#1"), shard.join("y#1"));
    std::fs::write(&new, "under way").unwrap();
    let file = std::fs::File::create(&old).unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_hours(25);
    file.set_modified(long_ago).unwrap();
    assert_eq!(blobs.place().unwrap().remove_unfinished().await.unwrap(), 1);
    assert!(new.exists() && !old.exists());
}
