//! A server without a socket, for tests of handlers.
//!
//! ```ignore
//! #[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
//! async fn an_agent_is_created(pool: PgPool) {
//!     let app = TestApp::new(pool).await;
//!     let response = app.post("/v1/agents", json!({"name": "a", "model": "m"})).await;
//!     assert_eq!(response.status, 200, "{response}");
//!     assert_eq!(response.body["name"], "a");
//! }
//! ```

use std::{fmt, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode},
};
use http_body_util::BodyExt as _;
use selfsame_engine::{
    Engine, Parts,
    door::{Authority, Door},
};
use selfsame_model::{ModelError, Provider, Request as ModelRequest, ResponseStream};
use selfsame_sandbox::{Backend, Duplex, Handle, Listed, SandboxError, Spec, Status};
use selfsame_store::{Actor, Blobs, LocalKey, Scope, Sealer, Store};
use selfsame_types::{KeyId, WorkspaceId};
use serde_json::Value;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use zeroize::Zeroizing;

use crate::{
    app::{App, key_for, new_deployment, new_token},
    assembly,
    config::Config,
    middleware::BETA,
    router::{assemble, router},
};

/// The application, and a client with a key of it. `Clone` is another client of the same server.
#[derive(Debug, Clone)]
pub struct TestApp {
    pub app: Arc<App>,
    router: Router,
    /// The token this client sends, if any.
    pub token: Option<String>,
    pub workspace: WorkspaceId,
}

/// A whole response. Its `Display` is for assertion messages.
#[derive(Debug, Clone)]
pub struct TestResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// `Null` when the body is not JSON.
    pub body: Value,
    pub text: String,
}

impl fmt::Display for TestResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.text)
    }
}

impl TestResponse {
    /// `error.type` and `error.message`; empty for a success.
    #[must_use]
    pub fn error(&self) -> (&str, &str) {
        let field = |name| self.body["error"][name].as_str().unwrap_or("");
        (field("type"), field("message"))
    }

    /// A header's text; empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }
}

impl TestApp {
    /// A server with default configuration on an empty database, and an admin client. Its engine takes
    /// what clients do to sessions and drives none of them: it has neither a model nor sandboxes.
    pub async fn new(pool: PgPool) -> Self {
        Self::with_config(pool, |_| {}).await
    }

    pub async fn with_config(pool: PgPool, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        change(&mut config);
        let key = LocalKey::new(Zeroizing::new([7; 32]));
        let store = Store::from_pool(pool)
            .with_sealer(Sealer::new(Arc::new(key)))
            .with_blobs(Blobs::memory())
            .with_file_limits(assembly::file_limits(&config));
        let models = assembly::models(&config.model);
        let settings = assembly::engine_config(&config);
        let (certificate, key) = Authority::make().unwrap();
        let authority = Authority::new(certificate, &key).unwrap();
        let door = Door::new(assembly::door_config(&config).unwrap(), authority).unwrap();
        let engine = Engine::new(
            store.clone(),
            Parts {
                provider: Arc::new(NoModel),
                models,
                backend: Arc::new(NoSandboxes),
                door,
                web: assembly::web(&config).unwrap(),
                mcp: assembly::mcp(&config).unwrap(),
                webhooks: assembly::webhooks(&config).unwrap(),
                vaults: assembly::vaults(&config).unwrap(),
            },
            settings,
        );
        let deployment = new_deployment();
        let token = new_token();
        let first_key = key_for(&token, WorkspaceId::new(), Scope::Admin, "first");
        let workspace = store
            .deployment_create(&deployment, first_key)
            .await
            .unwrap()
            .expect("the database is empty");
        let app = App::new(config, store, engine, deployment, CancellationToken::new());
        Self {
            router: router(app.clone()),
            app,
            token: Some(token),
            workspace: workspace.id,
        }
    }

    /// The same client of another server.
    #[must_use]
    pub fn with_app(&self, app: Arc<App>) -> Self {
        Self {
            router: router(app.clone()),
            app,
            ..self.clone()
        }
    }

    /// The same server with these routes as its whole API.
    #[must_use]
    pub fn with_routes(&self, api: Router<Arc<App>>) -> Self {
        Self {
            router: assemble(self.app.clone(), api),
            ..self.clone()
        }
    }

    /// A client with another key of the same workspace.
    pub async fn with_scope(&self, scope: Scope) -> Self {
        self.client(self.workspace, scope).await.0
    }

    /// A client of another, new workspace.
    pub async fn other_workspace(&self) -> Self {
        let operator = Actor::default();
        let workspace = self.app.store.workspace_create("other", &operator);
        let workspace = workspace.await.unwrap();
        self.client(workspace.id, Scope::Standard).await.0
    }

    /// A client with a new key, and that key's id.
    pub async fn client(&self, workspace: WorkspaceId, scope: Scope) -> (Self, KeyId) {
        let token = new_token();
        let key = key_for(&token, workspace, scope, "test");
        let key = self.app.store.key_create(key, &Actor::default()).await;
        let client = Self {
            token: Some(token),
            workspace,
            ..self.clone()
        };
        (client, key.unwrap().expect("tokens are unique").id)
    }

    /// A client that sends this token, or none.
    #[must_use]
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self {
            token: token.map(str::to_owned),
            ..self.clone()
        }
    }

    pub async fn get(&self, path: &str) -> TestResponse {
        self.send(Method::GET, path, Body::empty()).await
    }

    pub async fn delete(&self, path: &str) -> TestResponse {
        self.send(Method::DELETE, path, Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> TestResponse {
        self.send(Method::POST, path, body.to_string()).await
    }

    /// A POST without a body, as for `archive`.
    pub async fn post_empty(&self, path: &str) -> TestResponse {
        self.send(Method::POST, path, Body::empty()).await
    }

    /// Sends with this client's key and the beta header.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Body>) -> TestResponse {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .header("anthropic-beta", BETA);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.raw(request.body(body.into()).unwrap()).await
    }

    /// Sends exactly this, and reads the response to its end.
    pub async fn raw(&self, request: Request<Body>) -> TestResponse {
        let (head, body) = self.open(request).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        TestResponse {
            status: head.status,
            headers: head.headers,
            body: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }

    /// Sends exactly this, and leaves the body to be read: for streams.
    pub async fn open(&self, request: Request<Body>) -> axum::response::Response {
        self.router.clone().oneshot(request).await.unwrap()
    }
}

/// The model of a server that drives nothing.
#[derive(Debug)]
struct NoModel;

#[async_trait::async_trait]
impl Provider for NoModel {
    async fn stream(&self, _: ModelRequest) -> Result<ResponseStream, ModelError> {
        Err(ModelError::permanent("this server has no model"))
    }
}

/// The sandboxes of a server that drives nothing.
#[derive(Debug)]
struct NoSandboxes;

#[async_trait::async_trait]
impl Backend for NoSandboxes {
    fn name(&self) -> &'static str {
        "none"
    }

    async fn create(&self, _: &Spec) -> Result<Handle, SandboxError> {
        Err(SandboxError::Gone)
    }

    async fn start(&self, _: &Handle) -> Result<(), SandboxError> {
        Err(SandboxError::Gone)
    }

    async fn stop(&self, _: &Handle) -> Result<(), SandboxError> {
        Err(SandboxError::Gone)
    }

    async fn remove(&self, _: &Handle) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn status(&self, _: &Handle) -> Result<Status, SandboxError> {
        Ok(Status::Gone)
    }

    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        Ok(Vec::new())
    }

    async fn connect(&self, _: &Handle) -> Result<Box<dyn Duplex>, SandboxError> {
        Err(SandboxError::Gone)
    }
}
