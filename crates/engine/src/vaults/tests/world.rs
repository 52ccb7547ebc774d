//! A database, a scripted OAuth server, and as many servers' worth of [`Vaults`] as a test likes.

use std::{sync::Arc, time::Duration};

use secrecy::ExposeSecret as _;
use selfsame_mock::{
    Running, Script,
    oauth::{Standing, Terms},
};
use selfsame_store::{
    Actor, FirstState, LocalKey, NewSession, OpenCredential, Sealer, Store, StoreError,
};
use selfsame_types::{
    AgentId, ApiError, EnvironmentId, ServerId, SessionId, ThreadId, Timestamp, VaultId,
    WorkspaceId,
    agent::CreateAgent,
    environment::CreateEnvironment,
    multiagent::Members,
    vault::{CreateCredential, CreateVault, Credential, UpdateCredential},
};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio_util::task::TaskTracker;
use url::Url;
use zeroize::Zeroizing;

use crate::{
    notifier::Notifier,
    testing::loopback,
    vaults::{Bearer, Vaults, VaultsConfig},
};

pub struct World {
    pub store: Store,
    pub workspace: WorkspaceId,
    pub actor: Actor,
    pub script: Script,
    pub mock: Running,
    options: (PgPoolOptions, PgConnectOptions),
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Api(ApiError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn store(options: &(PgPoolOptions, PgConnectOptions)) -> Store {
    let (pool, connect) = options.clone();
    let sealer = Sealer::new(Arc::new(LocalKey::new(Zeroizing::new([1; 32]))));
    Store::from_pool(pool.max_connections(4).connect_lazy_with(connect)).with_sealer(sealer)
}

impl World {
    pub async fn new(pool: PgPoolOptions, connect: PgConnectOptions) -> Self {
        let options = (pool, connect);
        let store = store(&options);
        let actor = Actor::default();
        let workspace = store.workspace_create("w", &actor).await;
        let script = Script::new();
        Self {
            workspace: workspace.unwrap().id,
            store,
            actor,
            mock: selfsame_mock::spawn(script.clone()).await.unwrap(),
            script,
            options,
        }
    }

    /// Another server's, with a pool of its own.
    pub fn vaults(&self, cache: Duration) -> Vaults {
        let store = store(&self.options);
        Vaults::new(
            store.clone(),
            Notifier::new(store, ServerId::new()),
            TaskTracker::new(),
            VaultsConfig::new(&loopback(), cache).unwrap(),
        )
    }

    pub fn grant(&self, terms: Value) -> Standing {
        let terms: Terms = serde_json::from_value(terms).unwrap();
        self.script.oauth().grant(terms)
    }

    pub fn standing(&self, grant: &Standing) -> Standing {
        self.script.oauth().standing(&grant.name).unwrap()
    }

    pub fn url(&self, path: &str) -> Url {
        format!("{}{path}", self.mock.url()).parse().unwrap()
    }

    pub async fn vault(&self) -> VaultId {
        let body: CreateVault = serde_json::from_value(json!({"display_name": "v"})).unwrap();
        let spec = body.resolve().unwrap();
        let vault = self.store.vault_create(self.workspace, spec, &self.actor);
        vault.await.unwrap().id
    }

    /// A credential as `mcp_oauth` for a grant; what `more` has takes the place of the usual.
    pub async fn oauth(&self, vault: VaultId, grant: &Standing, more: Value) -> Credential {
        let mut auth = json!({
            "type": "mcp_oauth",
            "mcp_server_url": self.url(&grant.mcp_server).as_str(),
            "access_token": grant.access_token,
            "expires_at": "2001-01-01T00:00:00Z",
            "refresh": {
                "client_id": "client",
                "refresh_token": grant.refresh_token,
                "token_endpoint": self.url(&grant.token_endpoint).as_str(),
                "token_endpoint_auth": {"type": "none"},
            },
        });
        for (key, value) in more.as_object().unwrap() {
            auth[key] = value.clone();
        }
        self.add(vault, auth).await
    }

    pub async fn add(&self, vault: VaultId, auth: Value) -> Credential {
        let body: CreateCredential = serde_json::from_value(json!({"auth": auth})).unwrap();
        let long_ago = Timestamp::from_micros(0);
        let created = self
            .store
            .credential_create(self.workspace, vault, &self.actor, |_, _, _| {
                body.resolve(long_ago).map_err(Refused::Api)
            })
            .await;
        created.unwrap().unwrap()
    }

    pub async fn update(&self, credential: &Credential, auth: Value) {
        let body: UpdateCredential = serde_json::from_value(json!({"auth": auth})).unwrap();
        let (vault, id) = (credential.vault_id, credential.id);
        self.store
            .credential_update(self.workspace, vault, id, &self.actor, |stored, now| {
                body.change(stored, now).map_err(Refused::Api)
            })
            .await
            .unwrap()
            .unwrap();
    }

    pub async fn archive(&self, credential: &Credential) {
        let (vault, id) = (credential.vault_id, credential.id);
        let archived = self
            .store
            .credential_archive(self.workspace, vault, id, &self.actor);
        archived.await.unwrap().unwrap();
    }

    pub async fn open(&self, credential: &Credential) -> OpenCredential {
        let found = self
            .store
            .credential_open(self.workspace, credential.vault_id, credential.id);
        found.await.unwrap().unwrap()
    }

    pub async fn session(&self, vault_ids: Vec<VaultId>) -> SessionId {
        let agent = json!({"name": "a", "model": "m"});
        let agent: CreateAgent = serde_json::from_value(agent).unwrap();
        let id = AgentId::new();
        let config = agent.resolve(id, &Members::default()).unwrap();
        let agent = self.store.agent_create(self.workspace, id, config).await;
        let name = EnvironmentId::new().to_string();
        let environment: CreateEnvironment = serde_json::from_value(json!({"name": name})).unwrap();
        let environment = environment.resolve().unwrap();
        let environment = self
            .store
            .environment_create(self.workspace, environment)
            .await;
        let new = NewSession {
            id: SessionId::new(),
            workspace: self.workspace,
            agent_id: agent.unwrap().id,
            agent_version: 1,
            environment_id: environment.unwrap().id,
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

pub fn token(bearer: &Option<Bearer>) -> Option<&str> {
    bearer.as_ref().map(|bearer| bearer.token.expose_secret())
}
