use std::{collections::BTreeSet, sync::Arc};

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::PgPool;
use zeroize::Zeroizing;

use super::*;
use crate::{KeyWrap, LocalKey, SealError, Sealer};

fn key(byte: u8) -> Arc<dyn KeyWrap> {
    Arc::new(LocalKey::new(Zeroizing::new([byte; 32])))
}

fn id(byte: u8) -> String {
    key(byte).id().to_owned()
}

/// A server with these keys, the first of which it would seal with.
fn server(pool: &PgPool, bytes: &[u8]) -> Store {
    let sealer = Sealer::new(key(bytes[0]));
    for byte in &bytes[1..] {
        sealer.add(key(*byte));
    }
    Store::from_pool(pool.clone()).with_sealer(sealer)
}

async fn secret(store: &Store, name: &str) -> Result<String, StoreError> {
    let made = store
        .deployment_secret(name, || (String::new(), SecretString::from(name)))
        .await?;
    Ok(made.1.expose_secret().to_owned())
}

fn missing(result: Result<(), StoreError>) -> String {
    match result {
        Err(StoreError::Seal(SealError::OtherKey { wanted, .. })) => wanted,
        other => panic!("{other:?}"),
    }
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_rotation_may_stop_anywhere_and_be_run_again(pool: PgPool) {
    let old = server(&pool, &[1]);
    old.master_key_check().await.unwrap();
    let names: Vec<String> = (0..10).map(|n| format!("secret {n}")).collect();
    for name in &names {
        secret(&old, name).await.unwrap();
    }
    // A key that is first in the configuration does not seal by that alone.
    let both = server(&pool, &[2, 1]);
    both.master_key_check().await.unwrap();
    assert_eq!(both.sealer().unwrap().sealing_id(), id(1));
    assert!(!both.master_key_retire(&id(1)).await.unwrap());

    both.master_key_switch(&id(2)).await.unwrap();
    assert_eq!(both.master_key_rewrap(&id(1), &id(2), 4).await.unwrap(), 4);
    // Stopped half-way: whoever has both keys goes on, whoever has one of them does not start.
    for name in &names {
        assert_eq!(secret(&both, name).await.unwrap(), *name);
    }
    let only = |byte| server(&pool, &[byte]);
    assert_eq!(missing(only(1).master_key_check().await), id(2));
    assert_eq!(missing(only(2).master_key_check().await), id(1));
    assert!(!both.master_key_retire(&id(1)).await.unwrap());

    // From the beginning, by another process.
    let again = server(&pool, &[2, 1]);
    again.master_key_check().await.unwrap();
    assert_eq!(again.sealer().unwrap().sealing_id(), id(2));
    again.master_key_switch(&id(2)).await.unwrap();
    while again.master_key_rewrap(&id(1), &id(2), 4).await.unwrap() > 0 {}
    assert!(again.master_key_retire(&id(1)).await.unwrap());
    assert!(again.master_key_retire(&id(1)).await.unwrap());

    let new = only(2);
    new.master_key_check().await.unwrap();
    for name in &names {
        assert_eq!(secret(&new, name).await.unwrap(), *name);
    }
    assert_eq!(missing(only(1).master_key_check().await), id(2));
    // The one that never heard of it cannot hide anything behind a key that may be gone.
    assert!(secret(&old, "late").await.is_err());
    assert_eq!(secret(&new, "late").await.unwrap(), "late");

    // And back again.
    let back = server(&pool, &[1, 2]);
    back.master_key_check().await.unwrap();
    back.master_key_switch(&id(1)).await.unwrap();
    while back.master_key_rewrap(&id(2), &id(1), 100).await.unwrap() > 0 {}
    assert!(back.master_key_retire(&id(2)).await.unwrap());
    assert_eq!(secret(&only(1), "late").await.unwrap(), "late");
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn heartbeats_tell_the_keys_and_bring_the_one_that_seals(pool: PgPool) {
    let operator = server(&pool, &[1, 2]);
    operator.master_key_check().await.unwrap();
    let (one, ours) = (server(&pool, &[1]), ServerId::new());
    let alive = async || {
        let mut alive = operator
            .servers_alive(Duration::from_secs(60))
            .await
            .unwrap();
        let server = alive.pop().unwrap();
        assert_eq!((alive.len(), server.server), (0, ours));
        (server.keys, server.sealing.unwrap())
    };
    one.server_heartbeat(ours, "none").await.unwrap();
    assert_eq!(alive().await, (vec![id(1)], id(1)));
    one.sealer().unwrap().add(key(2));
    one.server_heartbeat(ours, "none").await.unwrap();
    assert_eq!(alive().await, (vec![id(1), id(2)], id(1)));
    operator.master_key_switch(&id(2)).await.unwrap();
    one.server_heartbeat(ours, "none").await.unwrap();
    assert_eq!(alive().await.1, id(1), "told with the next one");
    assert_eq!(one.sealer().unwrap().sealing_id(), id(2));
    one.server_heartbeat(ours, "none").await.unwrap();
    assert_eq!(alive().await.1, id(2));
    let stranger = server(&pool, &[3]);
    let beat = stranger.server_heartbeat(ServerId::new(), "none").await;
    assert_eq!(missing(beat), id(2));
}

/// Whoever adds a table with sealed values finds out here what else that takes.
#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn every_sealed_table_is_on_the_list(pool: PgPool) {
    let columns = sqlx::query!(
        r#"
        SELECT c.table_name AS "table!", c.column_name AS "column!",
               EXISTS (SELECT FROM information_schema.triggers t
                       WHERE t.event_object_table = c.table_name
                         AND t.trigger_name = 'refuse_retired_master_key') AS "trigger!"
        FROM information_schema.columns c
        WHERE c.table_schema = 'public' AND c.column_name LIKE '%master\_key'
        "#
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let found: BTreeSet<_> = columns
        .iter()
        .map(|column| (column.table.as_str(), column.column.as_str()))
        .collect();
    let listed: BTreeSet<_> = PLACES
        .iter()
        .map(|place| (place.table, place.master_key))
        .collect();
    assert_eq!(found, listed);
    for column in &columns {
        assert!(column.trigger, "{}", column.table);
    }
}
