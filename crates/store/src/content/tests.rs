use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use sqlx::PgPool;

use super::*;
use crate::{
    Actor,
    files::tests::{session, store, upload, workspace},
};

use ContentKind::{Document, Image};

async fn blob(store: &Store, content: &'static str) -> Blob {
    let content = stream::iter([Ok(Bytes::from_static(content.as_bytes()))]);
    store.blobs().put(content, 1000).await.unwrap()
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_files_content_stays_when_the_file_goes(pool: PgPool) {
    let store = store(&pool).await;
    let home = workspace(&store).await;
    let (mine, other) = (session(&pool, home).await, workspace(&store).await);
    let file = upload(&store, home, "text").await;
    let id = file.file.id;
    let pin = async |workspace, session, file| {
        let pinned = store.content_pin_file(workspace, session, Document, file, "text/plain");
        pinned.await.unwrap()
    };
    assert!(pin(home, mine, id).await);
    assert!(pin(home, mine, id).await, "again is fine");
    assert!(!pin(other, mine, id).await);
    assert!(!pin(home, SessionId::new(), id).await);
    assert!(!pin(home, mine, FileId::new()).await);
    let foreign = upload(&store, other, "foreign").await;
    assert!(!pin(home, mine, foreign.file.id).await);

    assert!(
        store
            .file_delete(home, id, &Actor::default())
            .await
            .unwrap()
    );
    store.blob_sweep(Duration::ZERO).await.unwrap();
    let found = store.content_of(mine).await.unwrap();
    let [
        Pinned {
            kind,
            source,
            content: Ok((blob, media_type)),
        },
    ] = found.as_slice()
    else {
        panic!("{found:?}");
    };
    assert_eq!(
        (*kind, source, media_type.as_str()),
        (Document, &id.to_string(), "text/plain")
    );
    assert_eq!(store.blobs().read(*blob, 10).await.unwrap(), "text");
    assert!(
        !pin(home, session(&pool, home).await, id).await,
        "it is gone for others"
    );
    assert!(store.content_file(mine, id).await.unwrap().is_none());
    let (at, record) = store
        .content_file(session(&pool, other).await, foreign.file.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((at, record.file.id), (other, foreign.file.id));
    assert!(
        store
            .content_file(mine, foreign.file.id)
            .await
            .unwrap()
            .is_none()
    );

    // With the session goes what it kept.
    sqlx::query("DELETE FROM sessions WHERE id = $1")
        .bind(mine.0)
        .execute(&pool)
        .await
        .unwrap();
    assert!(store.blob_sweep(Duration::ZERO).await.unwrap() > 0);
    assert!(store.blobs().read(*blob, 10).await.is_err());
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn what_was_found_first_stays(pool: PgPool) {
    let store = store(&pool).await;
    let home = workspace(&store).await;
    let session = session(&pool, home).await;
    let (first, second) = (blob(&store, "one").await, blob(&store, "two").await);
    let url = "https://example.com/";
    let pin = async |kind, content| {
        store
            .content_pin(session, kind, url, content)
            .await
            .unwrap()
    };
    assert!(pin(Image, Ok((&first, "image/png"))).await);
    assert!(!pin(Image, Ok((&second, "image/png"))).await);
    assert!(!pin(Image, Err("too late")).await);
    assert!(pin(Document, Err("not a document")).await);
    assert!(!pin(Document, Ok((&second, "application/pdf"))).await);
    let mut found = store.content_of(session).await.unwrap();
    found.sort_by_key(|pinned| pinned.kind.as_str());
    let contents: Vec<_> = found.into_iter().map(|pinned| pinned.content).collect();
    assert_eq!(
        contents,
        [
            Err("not a document".to_owned()),
            Ok((first.id, "image/png".to_owned()))
        ]
    );
}
