//! Tools of MCP servers: an agent's servers are connected to when a turn begins, their tools offered to the
//! model, and its calls passed on. The connector runs here and not in the sandbox, which sees no credential.
//!
//! ```text
//! runner ── toolset() ──▶ Sessions ─▶ Server (one per session and address, kept while it is driven)
//!        └─ call() ────▶    │            └─ Connection (rmcp) ─▶ Http or SseTransport ─▶ guarded client
//!                           └─ circuit.rs: who has cost time lately                  └─ vaults: bearer
//! ```
//!
//! A server is a stranger. Its addresses are judged when they are dialled, what it sends is counted
//! (`meter.rs`), each tool is judged before a model hears of it (`tools.rs`), results are made into content
//! that this server vouches for (`content.rs`), and all of it has time limits. What it does wrong is a
//! `session.error` once a turn, or an error result; no turn ends because of it.

mod circuit;
mod connection;
mod content;
mod error;
mod http;
mod meter;
mod sse;
mod tools;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use selfsame_net::{Limits, NetError, Policy, guarded_client_with, reqwest::Client};
use selfsame_types::{
    SessionId,
    agent::{AgentSpec, McpServer},
};
use serde_json::{Value, json, value::to_raw_value};
use tokio::time::Instant;
use url::Url;

pub(crate) use error::Fault;
pub(crate) use tools::Toolset;

use crate::{
    Inner,
    machine::{About, CallResult, ErrorType, Trouble},
    spill::{self, MAX_CHARS},
    web::Caller,
};
use circuit::Circuits;
use connection::Connection;
use content::Shown;
use error::Unanswered;
use http::Http;
use meter::Memory;
use tools::Described;

/// How MCP servers are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpConfig {
    /// For connecting and for a list of tools, together.
    pub connect_timeout: Duration,
    /// For a call, whatever its server does meanwhile.
    pub call_timeout: Duration,
    /// Of one answer.
    pub max_response_bytes: usize,
    /// Of answers that are being received, over all sessions.
    pub memory_bytes: usize,
}

impl Default for McpConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            call_timeout: Duration::from_secs(300),
            max_response_bytes: 16 << 20,
            memory_bytes: 256 << 20,
        }
    }
}

/// The MCP servers of the sessions that this server drives.
#[derive(Debug)]
pub struct Mcp {
    client: Client,
    config: McpConfig,
    memory: Memory,
    circuits: Circuits,
    sessions: Mutex<HashMap<SessionId, Arc<Servers>>>,
}

/// Of one session, by address: threads whose agents name the same server share it.
#[derive(Debug, Default)]
struct Servers {
    by_url: Mutex<HashMap<String, Arc<Server>>>,
    uses: AtomicU64,
}

#[derive(Debug)]
struct Server {
    http: Http,
    /// Held while it is being made, so that it is made once.
    connection: tokio::sync::Mutex<Option<Arc<Connection>>>,
}

/// What became of a call.
#[derive(Debug)]
pub(crate) struct Called {
    pub result: CallResult,
    /// The server failed, and not only this call.
    pub fault: Option<Fault>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mcp {
    /// # Errors
    /// When the client cannot be built.
    pub fn new(config: McpConfig, policy: &Policy) -> Result<Self, NetError> {
        let client = guarded_client_with(
            policy,
            &Limits {
                connect: config.connect_timeout.min(Duration::from_secs(10)),
                // Streams live long. Each exchange has its limit where it is made.
                total: None,
                // A tool may think for as long as a call may take.
                idle: config.call_timeout + Duration::from_secs(30),
                redirects: 0,
            },
        )?;
        Ok(Self {
            client,
            memory: Memory::new(config.memory_bytes),
            config,
            circuits: Circuits::default(),
            sessions: Mutex::default(),
        })
    }

    fn servers(&self, session: SessionId) -> Arc<Servers> {
        let servers = Arc::clone(lock(&self.sessions).entry(session).or_default());
        servers.uses.fetch_add(1, Ordering::Relaxed);
        servers
    }

    fn server(&self, inner: &Inner, session: SessionId, url: &str) -> Result<Arc<Server>, Fault> {
        let parsed: Url = url
            .parse()
            .map_err(|_| Fault::connection("its address is not a URL"))?;
        let servers = self.servers(session);
        let mut by_url = lock(&servers.by_url);
        let server = by_url.entry(url.to_owned()).or_insert_with(|| {
            Arc::new(Server {
                http: Http::new(
                    self.client.clone(),
                    inner.vaults.clone(),
                    session,
                    parsed,
                    self.config.max_response_bytes,
                    self.memory.clone(),
                ),
                connection: tokio::sync::Mutex::default(),
            })
        });
        Ok(Arc::clone(server))
    }

    /// The tools that an agent's servers have now, asked beside each other; and what is wrong with those
    /// that could not be asked.
    pub(crate) async fn toolset(
        &self,
        inner: &Inner,
        session: SessionId,
        agent: &AgentSpec,
    ) -> (Toolset, Vec<Trouble>) {
        let asked = agent.mcp_servers.iter().map(|server| async {
            let listed = self.offer(inner, session, &server.url).await;
            (server.name.clone(), listed)
        });
        let mut troubles = Vec::new();
        let mut servers = Vec::new();
        for (name, listed) in join_all(asked).await {
            match listed {
                Ok(tools) => servers.push((name, tools)),
                Err(fault) => {
                    tracing::info!(%session, outcome = fault.outcome(), "a turn goes on without an MCP server");
                    troubles.push(fault.trouble(&name));
                }
            }
        }
        let toolset = Toolset::new(agent, servers);
        troubles.extend(toolset.left_out.iter().map(|(server, count)| Trouble {
            error_type: ErrorType::McpConnectionFailedError,
            message: format!(
                "The MCP server `{server}` has more tools than can be offered: {count} are left out. \
                 Disable what is not needed in the `configs` of its `mcp_toolset`."
            ),
            about: About::McpServer(server.clone()),
        }));
        (toolset, troubles)
    }

    async fn offer(
        &self,
        inner: &Inner,
        session: SessionId,
        url: &str,
    ) -> Result<Vec<Described>, Fault> {
        let server = self.server(inner, session, url)?;
        let (began, limit) = (Instant::now(), self.config.connect_timeout);
        let listed = tokio::time::timeout(limit, async {
            let (connection, kept) = self.connection(inner, &server, url).await?;
            match connection.tools().await {
                // It stood since an earlier turn, and its server may have forgotten it.
                Err(_) if kept => {
                    server.forget(&connection).await;
                    let (connection, _) = self.connection(inner, &server, url).await?;
                    connection.tools().await
                }
                listed => listed,
            }
        });
        let listed = listed.await.unwrap_or_else(|_| Err(error::late(limit)));
        self.circuits
            .note(url, began, Instant::now(), listed.as_ref().map(|_| ()));
        let outcome = listed.as_ref().map_or_else(Fault::outcome, |_| "connected");
        metrics::counter!("selfsame_mcp_connects_total", "outcome" => outcome).increment(1);
        metrics::histogram!("selfsame_mcp_connect_seconds").record(began.elapsed().as_secs_f64());
        if listed.is_err() {
            server.connection.lock().await.take();
        }
        listed
    }

    /// The connection that stands (`true`), or a new one.
    async fn connection(
        &self,
        inner: &Inner,
        server: &Server,
        url: &str,
    ) -> Result<(Arc<Connection>, bool), Fault> {
        let mut held = server.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok((Arc::clone(connection), true));
        }
        self.circuits.check(url, Instant::now())?;
        let connection = Arc::new(Connection::open(&server.http, &inner.tasks).await?);
        *held = Some(Arc::clone(&connection));
        Ok((connection, false))
    }

    /// A server of the agent has said that its tools are others now.
    pub(crate) fn has_changed(&self, session: SessionId, agent: &AgentSpec) -> bool {
        let Some(servers) = lock(&self.sessions).get(&session).cloned() else {
            return false;
        };
        let by_url = lock(&servers.by_url);
        agent
            .mcp_servers
            .iter()
            .filter_map(|server| by_url.get(&server.url))
            // One that is being made has nothing to say yet.
            .filter_map(|server| server.connection.try_lock().ok())
            .any(|held| {
                held.as_ref()
                    .is_some_and(|connection| connection.has_changed())
            })
    }

    /// Calls a tool. Whatever happens, there is a result.
    pub(crate) async fn call(
        &self,
        inner: &Inner,
        caller: Caller,
        server: &McpServer,
        tool: &str,
        input: Value,
        has_sandbox: bool,
    ) -> Called {
        let began = Instant::now();
        let (outcome, result, fault) = match self.make(inner, caller, server, tool, input).await {
            Ok(shown) => {
                let outcome = if shown.is_error { "error" } else { "answered" };
                (
                    outcome,
                    shorten(inner, caller, has_sandbox, shown).await,
                    None,
                )
            }
            Err(Uncalled::Refused(reason)) => ("refused", failure(&reason), None),
            Err(Uncalled::Late(reason)) => ("timeout", failure(&reason), None),
            Err(Uncalled::Fault(fault)) => {
                let text = format!(
                    "The MCP server `{}` cannot be used: {fault}. If the call had reached it, whether it \
                     took effect is unknown.",
                    server.name
                );
                (fault.outcome(), failure(&text), Some(fault))
            }
        };
        metrics::counter!("selfsame_mcp_calls_total", "outcome" => outcome).increment(1);
        metrics::histogram!("selfsame_mcp_call_seconds").record(began.elapsed().as_secs_f64());
        Called { result, fault }
    }

    async fn make(
        &self,
        inner: &Inner,
        caller: Caller,
        server: &McpServer,
        tool: &str,
        input: Value,
    ) -> Result<Shown, Uncalled> {
        let Value::Object(arguments) = input else {
            return Err(Uncalled::Refused(
                "The input of a tool is an object.".to_owned(),
            ));
        };
        let url = &server.url;
        let place = self.server(inner, caller.session, url)?;
        let (began, limit) = (Instant::now(), self.config.connect_timeout);
        let connected = tokio::time::timeout(limit, self.connection(inner, &place, url)).await;
        let connected = connected.unwrap_or_else(|_| Err(error::late(limit)));
        self.circuits
            .note(url, began, Instant::now(), connected.as_ref().map(|_| ()));
        let (connection, _) = connected?;
        let limit = self.config.call_timeout;
        match tokio::time::timeout(limit, connection.call(tool, arguments)).await {
            Ok(Ok(answer)) => content::show(answer).ok_or_else(|| {
                Uncalled::Refused(format!(
                    "What the MCP server `{}` answered is not the result of a call.",
                    server.name
                ))
            }),
            Ok(Err(Unanswered::Refused(reason))) => Err(Uncalled::Refused(format!(
                "The MCP server `{}` refuses this call: {reason}",
                server.name
            ))),
            Ok(Err(Unanswered::Fault(fault))) => Err(Uncalled::Fault(fault)),
            Err(_) => Err(Uncalled::Late(format!(
                "The MCP server `{}` did not answer within {} seconds and was told to stop. Whether the \
                 call took effect is unknown: check before you repeat it.",
                server.name,
                limit.as_secs()
            ))),
        }
    }

    /// Grows with each use of a session's servers; `None` when it has none.
    pub(crate) fn last_use(&self, session: SessionId) -> Option<u64> {
        let sessions = lock(&self.sessions);
        Some(sessions.get(&session)?.uses.load(Ordering::Relaxed))
    }

    /// Closes a session's connections.
    pub(crate) fn release(&self, inner: &Inner, session: SessionId) {
        let Some(servers) = lock(&self.sessions).remove(&session) else {
            return;
        };
        let servers: Vec<_> = lock(&servers.by_url)
            .drain()
            .map(|(_, server)| server)
            .collect();
        inner.tasks.spawn(async move {
            let closing = servers.into_iter().map(|server| async move {
                let connection = server.connection.lock().await.take();
                // Whoever still uses it closes it by letting go.
                if let Some(connection) = connection.and_then(Arc::into_inner) {
                    connection.close().await;
                }
            });
            join_all(closing).await;
        });
    }
}

impl Server {
    async fn forget(&self, connection: &Arc<Connection>) {
        let mut held = self.connection.lock().await;
        if held
            .as_ref()
            .is_some_and(|held| Arc::ptr_eq(held, connection))
        {
            *held = None;
        }
    }
}

/// Why a call has no result of its own.
enum Uncalled {
    Refused(String),
    Late(String),
    Fault(Fault),
}

impl From<Fault> for Uncalled {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Texts that are too long together become one, whose whole is kept in the sandbox.
async fn shorten(inner: &Inner, caller: Caller, has_sandbox: bool, shown: Shown) -> CallResult {
    let Shown {
        mut blocks,
        is_error,
    } = shown;
    if content::characters(&blocks) > MAX_CHARS {
        let texts: Vec<&str> = blocks.iter().filter_map(content::text_of).collect();
        let text = spill::shorten(inner, caller, has_sandbox, texts.join("\n\n")).await;
        blocks.retain(|block| content::text_of(block).is_none());
        blocks.insert(0, json!({"type": "text", "text": text}));
    }
    CallResult {
        content: to_raw_value(&blocks).expect("blocks serialize"),
        is_error,
        searches: 0,
    }
}

/// What a call gets that was not made, or whose end nobody saw.
pub(crate) fn failure(text: &str) -> CallResult {
    CallResult {
        content: to_raw_value(&[json!({"type": "text", "text": text})]).expect("blocks serialize"),
        is_error: true,
        searches: 0,
    }
}
