use sqlx::PgPool;

use super::*;
use crate::Actor;

const TTL: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_secs(3600);

async fn setup(pool: PgPool) -> (Store, ImageKey) {
    let store = Store::from_pool(pool);
    let workspace = store.workspace_create("w", &Actor::default()).await;
    let key = ImageKey {
        workspace: workspace.unwrap().id,
        backend: "here".to_owned(),
        image: "selfsame-env:1".to_owned(),
    };
    (store, key)
}

async fn claim(store: &Store, key: &ImageKey, ttl: Duration) -> (SandboxId, ImageState) {
    let sandbox = SandboxId::new();
    let state = store.image_claim(key, ServerId::new(), sandbox, ttl).await;
    (sandbox, state.unwrap())
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn one_builds_and_all_use(pool: PgPool) {
    let (store, key) = setup(pool).await;
    assert!(!store.image_use(&key).await.unwrap());
    let (first, state) = claim(&store, &key, TTL).await;
    assert_eq!(state, ImageState::Claimed);
    let (second, state) = claim(&store, &key, TTL).await;
    assert_eq!(state, ImageState::Busy);
    assert!(!store.image_use(&key).await.unwrap());
    assert!(store.image_heartbeat(&key, first).await.unwrap());
    assert!(!store.image_heartbeat(&key, second).await.unwrap());
    assert!(!store.image_ready(&key, second).await.unwrap());
    assert!(store.image_ready(&key, first).await.unwrap());
    assert_eq!(claim(&store, &key, TTL).await.1, ImageState::Ready);
    assert!(store.image_use(&key).await.unwrap());
    // The same name in another workspace or on another backend is another image.
    let elsewhere = ImageKey {
        backend: "there".to_owned(),
        ..key.clone()
    };
    assert!(!store.image_use(&elsewhere).await.unwrap());
    let other = store.workspace_create("x", &Actor::default()).await;
    let foreign = ImageKey {
        workspace: other.unwrap().id,
        ..key.clone()
    };
    assert!(!store.image_use(&foreign).await.unwrap());
    // Gone from the disk: built again.
    store.image_missing(&key).await.unwrap();
    assert_eq!(claim(&store, &key, TTL).await.1, ImageState::Claimed);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_builder_that_died_is_taken_over_and_can_do_no_more(pool: PgPool) {
    let (store, key) = setup(pool).await;
    let (dead, _) = claim(&store, &key, TTL).await;
    let known = store.sandbox_ids("here").await.unwrap();
    assert_eq!(known, [dead], "nobody may remove a builder's sandbox");
    let (heir, state) = claim(&store, &key, Duration::ZERO).await;
    assert_eq!(state, ImageState::Claimed);
    assert_eq!(store.sandbox_ids("here").await.unwrap(), [heir]);
    assert!(!store.image_heartbeat(&key, dead).await.unwrap());
    assert!(!store.image_ready(&key, dead).await.unwrap());
    let pause = Duration::from_secs(1);
    let failed = store.image_failed(&key, dead, "late", pause, NEVER).await;
    assert!(!failed.unwrap());
    store.image_forget(&key, dead).await.unwrap();
    assert!(store.image_ready(&key, heir).await.unwrap());
    assert!(store.sandbox_ids("here").await.unwrap().is_empty());
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_failure_is_the_answer_for_a_while(pool: PgPool) {
    let (store, key) = setup(pool.clone()).await;
    let waits = async || {
        sqlx::query_scalar!(
            r#"SELECT extract(epoch FROM retry_at - clock_timestamp())::float8 AS "s!"
               FROM environment_images"#
        )
        .fetch_one(&pool)
        .await
        .unwrap()
    };
    let (pause, longest) = (Duration::from_secs(100), Duration::from_secs(300));
    for expected in [100.0, 200.0, 300.0, 300.0] {
        let (sandbox, state) = claim(&store, &key, TTL).await;
        assert_eq!(state, ImageState::Claimed);
        let failed = store.image_failed(&key, sandbox, "no such package", pause, longest);
        assert!(failed.await.unwrap());
        let wait = waits().await;
        assert!((expected - 20.0..=expected).contains(&wait), "{wait}");
        let error = "no such package".to_owned();
        let again = claim(&store, &key, Duration::ZERO).await.1;
        assert_eq!(again, ImageState::Failed { error });
        sqlx::query!("UPDATE environment_images SET retry_at = clock_timestamp()")
            .execute(&pool)
            .await
            .unwrap();
    }
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn what_nobody_wants_is_claimed_for_removal(pool: PgPool) {
    let (store, key) = setup(pool).await;
    let (sandbox, _) = claim(&store, &key, TTL).await;
    let unused = async |retention, ttl| {
        let remover = SandboxId::new();
        let claimed =
            store.image_claim_unused("here", retention, ServerId::new(), remover, ttl, 10);
        (remover, claimed.await.unwrap())
    };
    assert!(
        unused(Duration::ZERO, TTL).await.1.is_empty(),
        "it is built"
    );
    assert!(store.image_ready(&key, sandbox).await.unwrap());
    assert!(unused(NEVER, TTL).await.1.is_empty(), "just used");
    // A sandbox is made of it.
    let sandbox = crate::SandboxRecord {
        id: SandboxId::new(),
        session: None,
        backend: key.backend.clone(),
        image: key.image.clone(),
        status: "stopped".to_owned(),
        handle: None,
        hands_key: vec![0; 32],
        boot_id: None,
    };
    store
        .sandbox_insert(&sandbox, ServerId::new())
        .await
        .unwrap();
    assert!(unused(Duration::ZERO, TTL).await.1.is_empty());
    store.sandbox_delete(sandbox.id).await.unwrap();
    let (remover, claimed) = unused(Duration::ZERO, TTL).await;
    assert_eq!(claimed, std::slice::from_ref(&key));
    // Whoever wants it now waits for the end of it, and then builds anew.
    assert_eq!(claim(&store, &key, TTL).await.1, ImageState::Busy);
    store.image_forget(&key, remover).await.unwrap();
    assert_eq!(claim(&store, &key, TTL).await.1, ImageState::Claimed);
}
