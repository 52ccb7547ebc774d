use std::{sync::Arc, time::Duration};

use secrecy::ExposeSecret as _;
use selfsame_types::{
    AgentId, ApiError, EnvironmentId, SessionId, ThreadId, Timestamp,
    agent::CreateAgent,
    environment::CreateEnvironment,
    multiagent::Members,
    vault::{
        CreateCredential, Credential, CredentialAuth, UpdateCredential, UpdateVault, server_key,
    },
};
use serde_json::{Value, json};
use sqlx::PgPool;
use zeroize::Zeroizing;

use super::*;
use crate::{FirstState, LocalKey, NewSession, SealError, Sealer};

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

fn sealer(byte: u8) -> Sealer {
    Sealer::new(Arc::new(LocalKey::new(Zeroizing::new([byte; 32]))))
}

struct World {
    store: Store,
    pool: PgPool,
    workspace: WorkspaceId,
    actor: Actor,
}

impl World {
    async fn new(pool: PgPool) -> Self {
        let store = Store::from_pool(pool.clone()).with_sealer(sealer(1));
        let actor = Actor::default();
        let workspace = store.workspace_create("w", &actor).await.unwrap().id;
        Self {
            store,
            pool,
            workspace,
            actor,
        }
    }

    async fn vault(&self, name: &str) -> VaultId {
        let spec = VaultSpec {
            display_name: name.to_owned(),
            metadata: Metadata::default(),
        };
        let vault = self.store.vault_create(self.workspace, spec, &self.actor);
        vault.await.unwrap().id
    }

    async fn add(&self, vault: VaultId, auth: Value) -> Result<Credential, Refused> {
        let body: CreateCredential = serde_json::from_value(json!({"auth": auth})).unwrap();
        let created = self
            .store
            .credential_create(self.workspace, vault, &self.actor, |vault, active, now| {
                vault.check_room(active).map_err(Refused::Api)?;
                body.resolve(now).map_err(Refused::Api)
            })
            .await?;
        Ok(created.expect("the vault is there"))
    }

    async fn update(&self, credential: &Credential, body: Value) -> Credential {
        let body: UpdateCredential = serde_json::from_value(body).unwrap();
        let (vault, id) = (credential.vault_id, credential.id);
        self.store
            .credential_update(self.workspace, vault, id, &self.actor, |stored, now| {
                body.change(stored, now).map_err(Refused::Api)
            })
            .await
            .unwrap()
            .unwrap()
    }

    async fn open(&self, credential: &Credential) -> OpenCredential {
        self.store
            .credential_open(self.workspace, credential.vault_id, credential.id)
            .await
            .unwrap()
            .unwrap()
    }

    async fn session(&self, vault_ids: Vec<VaultId>) -> SessionId {
        let agent: CreateAgent =
            serde_json::from_value(json!({"name": "a", "model": "m"})).unwrap();
        let id = AgentId::new();
        let config = agent.resolve(id, &Members::default()).unwrap();
        let agent = self
            .store
            .agent_create(self.workspace, id, config)
            .await
            .unwrap();
        let name = EnvironmentId::new().to_string();
        let environment: CreateEnvironment = serde_json::from_value(json!({"name": name})).unwrap();
        let environment = self
            .store
            .environment_create(self.workspace, environment.resolve().unwrap())
            .await
            .unwrap();
        let new = NewSession {
            id: SessionId::new(),
            workspace: self.workspace,
            agent_id: agent.id,
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
            vault_ids,
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
        let created = self.store.session_create(new, first).await.unwrap();
        created.unwrap().record.id
    }
}

fn bearer(url: &str, token: &str) -> Value {
    json!({"type": "static_bearer", "mcp_server_url": url, "token": token})
}

fn variable(name: &str, value: &str) -> Value {
    json!({"type": "environment_variable", "secret_name": name, "secret_value": value,
           "networking": {"type": "unrestricted"}})
}

fn oauth(url: &str) -> Value {
    json!({"type": "mcp_oauth", "mcp_server_url": url, "access_token": "access-1",
           "expires_at": "2099-01-01T00:00:00Z",
           "refresh": {"client_id": "c", "refresh_token": "refresh-1", "token_endpoint": "https://auth.example/token",
                       "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "client-1"}}})
}

fn tokens(access: &str, expires_in: Option<u64>, refresh: Option<&str>) -> RefreshedTokens {
    RefreshedTokens {
        access_token: access.into(),
        expires_in: expires_in.map(Duration::from_secs),
        refresh_token: refresh.map(Into::into),
    }
}

fn expires_at(credential: &Credential) -> Option<Timestamp> {
    match &credential.auth {
        CredentialAuth::McpOauth(auth) => auth.expires_at,
        _ => None,
    }
}

fn secret(open: &OpenCredential) -> &str {
    open.secrets.secret.expose_secret()
}

fn refresh_token(open: &OpenCredential) -> &str {
    open.secrets.refresh_token.as_ref().unwrap().expose_secret()
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn secrets_are_sealed_to_their_place(pool: PgPool) {
    let world = World::new(pool).await;
    let vault = world.vault("v").await;
    let one = world
        .add(vault, bearer("https://a.example", "canary-one"))
        .await
        .unwrap();
    let two = world
        .add(vault, bearer("https://b.example", "canary-two"))
        .await
        .unwrap();
    let open = world.open(&one).await;
    assert_eq!(secret(&open), "canary-one");
    assert!(!format!("{open:?}").contains("canary"));
    let rows = sqlx::query_scalar!(
        r#"SELECT row_to_json(c)::text || encode(ciphertext, 'escape') AS "row!" FROM vault_credentials c"#
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| !row.contains("canary")), "{rows:?}");

    // A value that was moved to another row does not open.
    sqlx::query!(
        "UPDATE vault_credentials c SET ciphertext = o.ciphertext, data_key = o.data_key
         FROM vault_credentials o WHERE c.id = $1 AND o.id = $2",
        two.id.0,
        one.id.0,
    )
    .execute(&world.pool)
    .await
    .unwrap();
    let moved = world
        .store
        .credential_open(world.workspace, vault, two.id)
        .await;
    assert!(matches!(moved, Err(StoreError::Seal(SealError::Broken))));
    let stranger = world
        .store
        .credential_open(WorkspaceId::new(), vault, one.id)
        .await
        .unwrap();
    assert!(stranger.is_none());
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn archiving_purges_and_frees(pool: PgPool) {
    let world = World::new(pool).await;
    let vault = world.vault("v").await;
    let url = "https://a.example/mcp";
    let one = world.add(vault, bearer(url, "x")).await.unwrap();
    let twin = world
        .add(vault, bearer("HTTPS://A.example:443/mcp/", "y"))
        .await;
    let Err(Refused::Store(error)) = twin else {
        panic!("{twin:?}")
    };
    assert_eq!(error.constraint(), Some(CREDENTIAL_KEY));

    let archived = world
        .store
        .credential_archive(world.workspace, vault, one.id, &world.actor)
        .await
        .unwrap()
        .unwrap();
    assert!(archived.archived_at.is_some());
    assert_eq!(archived.auth, one.auth);
    let left = sqlx::query_scalar!(
        r#"SELECT num_nonnulls(ciphertext, data_key, master_key) AS "left!" FROM vault_credentials"#
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert_eq!(left, 0);
    let open = world
        .store
        .credential_open(world.workspace, vault, one.id)
        .await;
    assert!(open.unwrap().is_none());
    let two = world.add(vault, bearer(url, "y")).await.unwrap();

    // The vault takes along what is in use, and leaves what was archived before.
    let done = world
        .store
        .vault_archive(world.workspace, vault, &world.actor)
        .await
        .unwrap()
        .unwrap();
    let filter = VaultFilter {
        include_archived: true,
        after: Position::NEWEST,
        limit: 10,
    };
    let list = world
        .store
        .credential_list(world.workspace, vault, &filter)
        .await
        .unwrap();
    assert_eq!(
        list.iter().map(|c| c.id).collect::<Vec<_>>(),
        [two.id, one.id]
    );
    assert!(list[0].archived_at.is_some());
    assert_eq!(list[1], archived);
    let again = world
        .store
        .vault_archive(world.workspace, vault, &world.actor)
        .await;
    assert_eq!(again.unwrap().unwrap(), done);
    let keep: UpdateVault = serde_json::from_value(json!({"display_name": "x"})).unwrap();
    let refused = world
        .store
        .vault_update(world.workspace, vault, &world.actor, |vault| {
            keep.change(vault).map_err(Refused::Api)
        })
        .await;
    let Err(Refused::Api(error)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error.code, Some("vault_archived"));

    assert!(
        world
            .store
            .vault_delete(world.workspace, vault, &world.actor)
            .await
            .unwrap()
    );
    assert!(
        !world
            .store
            .vault_delete(world.workspace, vault, &world.actor)
            .await
            .unwrap()
    );
    let actions =
        sqlx::query_scalar!("SELECT action FROM audit WHERE action LIKE 'vault%' ORDER BY id")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    assert_eq!(
        actions,
        [
            "vault.create",
            "vault_credential.create",
            "vault_credential.archive",
            "vault_credential.create",
            "vault_credential.archive",
            "vault.archive",
            "vault_credential.delete",
            "vault_credential.delete",
            "vault.delete",
        ]
    );
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_rotation_keeps_what_it_does_not_name(pool: PgPool) {
    let world = World::new(pool).await;
    let vault = world.vault("v").await;
    let one = world.add(vault, oauth("https://a.example")).await.unwrap();
    let before = world.open(&one).await;
    let renamed = world.update(&one, json!({"display_name": "n"})).await;
    assert!(renamed.updated_at > one.updated_at);
    assert_eq!(
        world.open(&one).await.generation,
        before.generation,
        "a name is nothing to whoever holds the secrets"
    );
    let rotated = world
        .update(
            &one,
            json!({"auth": {"type": "mcp_oauth", "access_token": "access-2"}}),
        )
        .await;
    assert_eq!(rotated.auth, one.auth);
    let open = world.open(&one).await;
    assert_eq!(
        (secret(&open), refresh_token(&open)),
        ("access-2", "refresh-1")
    );
    assert!(open.generation > before.generation);
    let detail =
        sqlx::query_scalar!(r#"SELECT string_agg(detail::text, '') AS "detail!" FROM audit"#)
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert!(!detail.contains("access-") && !detail.contains("refresh-1"));
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn the_first_vault_with_a_match_wins(pool: PgPool) {
    let world = World::new(pool).await;
    let (a, b, c) = (
        world.vault("a").await,
        world.vault("b").await,
        world.vault("c").await,
    );
    let server = "https://mcp.example/mcp";
    let key = server_key(&"https://MCP.example:443/mcp/".parse().unwrap());
    let in_a = world.add(a, bearer(server, "of a")).await.unwrap();
    world.add(b, bearer(server, "of b")).await.unwrap();
    world.add(a, variable("X", "x of a")).await.unwrap();
    world.add(b, variable("X", "x of b")).await.unwrap();
    world.add(b, variable("Y", "y of b")).await.unwrap();
    let session = world.session(vec![c, a, b]).await;
    let chosen = async |session| {
        let found = world.store.session_server_credential(session, &key).await;
        found.unwrap().map(|open| secret(&open).to_owned())
    };
    let variables = async |session| {
        let found = world.store.session_variables(session).await.unwrap();
        found
            .iter()
            .map(|open| secret(open).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(chosen(session).await.as_deref(), Some("of a"));
    assert_eq!(variables(session).await, ["x of a", "y of b"]);
    let other = world.session(vec![b, a]).await;
    assert_eq!(chosen(other).await.as_deref(), Some("of b"));
    assert_eq!(variables(other).await, ["x of b", "y of b"]);
    assert_eq!(chosen(world.session(vec![]).await).await, None);
    let elsewhere = world
        .store
        .session_server_credential(session, "https://mcp.example")
        .await;
    assert!(elsewhere.unwrap().is_none());

    // What is archived or deleted is passed over; the session goes on.
    let archived = world
        .store
        .credential_archive(world.workspace, a, in_a.id, &world.actor);
    archived.await.unwrap();
    assert_eq!(chosen(session).await.as_deref(), Some("of b"));
    let archived = world.store.vault_archive(world.workspace, a, &world.actor);
    archived.await.unwrap();
    assert_eq!(variables(session).await, ["x of b", "y of b"]);
    let deleted = world.store.vault_delete(world.workspace, b, &world.actor);
    assert!(deleted.await.unwrap());
    assert_eq!(chosen(session).await, None);
    assert!(variables(session).await.is_empty());
    let record = world.store.session_load(session).await.unwrap().unwrap();
    assert_eq!(record.vault_ids, [c, a, b]);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn whoever_waited_sees_the_first_ones_tokens(pool: PgPool) {
    let world = World::new(pool).await;
    let vault = world.vault("v").await;
    let one = world.add(vault, oauth("https://a.example")).await.unwrap();
    let first = world.store.credential_refresh(one.id).await;
    let first = first.unwrap().unwrap();
    assert_eq!(refresh_token(first.credential()), "refresh-1");

    let store = world.store.clone();
    let second = tokio::spawn(async move { store.credential_refresh(one.id).await });
    wait_for_lock(&world.pool).await;
    let given = first
        .succeed(tokens("access-2", Some(3600), Some("refresh-2")))
        .await
        .unwrap();
    let second = second.await.unwrap().unwrap().unwrap();
    let seen = second.credential();
    assert_eq!(
        (secret(seen), refresh_token(seen)),
        ("access-2", "refresh-2")
    );
    assert_eq!(seen.generation, given.generation);
    assert_eq!(
        seen.credential.updated_at, one.updated_at,
        "no client did that"
    );
    let left = expires_at(&seen.credential)
        .unwrap()
        .seconds_since(seen.now);
    assert!((3000.0..=3600.0).contains(&left), "{left}");
    assert!(seen.refresh.refreshed_at.is_some());

    // A client's change waits as well, and is not lost.
    let change = world.update(
        &one,
        json!({"auth": {"type": "mcp_oauth", "refresh": {"refresh_token": "of the client"}}}),
    );
    let (changed, kept) = tokio::join!(change, async {
        wait_for_lock(&world.pool).await;
        second
            .succeed(tokens("access-3", None, None))
            .await
            .unwrap()
    });
    assert_eq!(
        refresh_token(&kept),
        "refresh-2",
        "the old one is still good"
    );
    assert_eq!(expires_at(&kept.credential), None);
    assert!(changed.updated_at > one.updated_at);
    let open = world.open(&one).await;
    assert_eq!(
        (secret(&open), refresh_token(&open)),
        ("access-3", "of the client")
    );
    // What is dropped changes nothing and holds nobody up.
    let dropped = world.store.credential_refresh(one.id).await.unwrap();
    drop(dropped);
    let again = world.store.credential_refresh(one.id).await.unwrap();
    assert_eq!(again.unwrap().credential().generation, open.generation);
}

/// Until somebody waits for a row.
async fn wait_for_lock(pool: &PgPool) {
    loop {
        let waiting = sqlx::query_scalar!(
            r#"SELECT count(*) AS "n!" FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event_type = 'Lock'"#
        )
        .fetch_one(pool)
        .await
        .unwrap();
        if waiting > 0 {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn the_background_takes_what_expires_soon_once(pool: PgPool) {
    let world = World::new(pool).await;
    let vault = world.vault("v").await;
    let soon = Duration::from_secs(600);
    let due = async || world.store.credential_refresh_due(soon).await.unwrap();
    let a = world.add(vault, oauth("https://a.example")).await.unwrap();
    let b = world.add(vault, oauth("https://b.example")).await.unwrap();
    let mut lasting = oauth("https://c.example");
    lasting["refresh"] = Value::Null;
    let lasting = world.add(vault, lasting).await.unwrap();
    let variable = world.add(vault, variable("A", "x")).await.unwrap();
    assert!(due().await.is_none());
    for (credential, seconds) in [(&a, 60), (&b, 30), (&lasting, 1), (&variable, 1)] {
        sqlx::query!(
            "UPDATE vault_credentials SET expires_at = clock_timestamp() + $2 * interval '1 second' WHERE id = $1",
            credential.id.0,
            f64::from(seconds),
        )
        .execute(&world.pool)
        .await
        .unwrap();
    }
    let first = due().await.unwrap();
    assert_eq!(
        first.credential().credential.id,
        b.id,
        "the first to expire"
    );
    let second = due().await.unwrap();
    assert_eq!(second.credential().credential.id, a.id);
    assert!(due().await.is_none(), "both are held");

    // A short life is no reason to go round and round.
    first.succeed(tokens("short", Some(5), None)).await.unwrap();
    second
        .retry_after(Duration::from_secs(60), "503")
        .await
        .unwrap();
    assert!(due().await.is_none());
    let open = world.open(&a).await;
    assert_eq!(open.refresh.failure.as_deref(), Some("503"));
    assert_eq!(open.refresh.failed_at, None);
    sqlx::query!("UPDATE vault_credentials SET refresh_next_at = clock_timestamp()")
        .execute(&world.pool)
        .await
        .unwrap();

    // One episode of failure is told once, and ends when a client changes something.
    let refresh = async || world.store.credential_refresh(b.id).await.unwrap().unwrap();
    let failing = due().await.unwrap();
    assert_eq!(failing.credential().credential.id, b.id);
    assert!(failing.fail("invalid_grant").await.unwrap());
    assert!(!refresh().await.fail("invalid_grant").await.unwrap());
    let open = world.open(&b).await;
    assert!(open.refresh.failed_at.is_some());
    assert_eq!(due().await.unwrap().credential().credential.id, a.id);
    world.update(&b, json!({"display_name": "n"})).await;
    assert!(world.open(&b).await.refresh.failed_at.is_some());
    world
        .update(
            &b,
            json!({"auth": {"type": "mcp_oauth", "refresh": {"refresh_token": "refresh-9"}}}),
        )
        .await;
    assert_eq!(world.open(&b).await.refresh.failed_at, None);
    assert_eq!(due().await.unwrap().credential().credential.id, b.id);
    assert!(refresh().await.fail("invalid_grant").await.unwrap());
    // And when it succeeds after all.
    refresh()
        .await
        .succeed(tokens("good", Some(3600), None))
        .await
        .unwrap();
    let open = world.open(&b).await;
    assert_eq!((open.refresh.failed_at, open.refresh.failure), (None, None));

    world
        .store
        .credential_archive(world.workspace, vault, a.id, &world.actor)
        .await
        .unwrap();
    assert!(due().await.is_none());
    let gone = world.store.credential_refresh(a.id).await.unwrap();
    assert!(gone.is_none());
}
