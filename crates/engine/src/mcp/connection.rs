//! One connection to one server: the handshake in whichever dialect it speaks, its list of tools, and calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rmcp::{
    ClientHandler, RoleClient,
    model::{
        CallToolRequest, CallToolRequestParams, ClientCapabilities, ClientConfig, ClientRequest,
        Implementation, ListToolsRequest, PaginatedRequestParams, ProtocolVersion, ServerResult,
        SubscriptionFilter,
    },
    service::{
        ClientLifecycleMode, ClientServiceExt as _, NotificationContext, PeerRequestOptions,
        RequestHandle, RunningService,
    },
    transport::{
        common::client_side_sse::ExponentialBackoff,
        streamable_http_client::{
            StreamableHttpClientTransport, StreamableHttpClientTransportConfig,
        },
    },
};
use serde_json::{Map, Value};
use tokio_util::task::TaskTracker;

use super::{
    error::{Fault, Unanswered, Unconnected},
    http::Http,
    sse::SseTransport,
    tools::{self, Described},
};

/// Pages of a list that are read, entries, and bytes of what is kept of them.
const MAX_PAGES: usize = 64;
const MAX_ENTRIES: usize = 2000;
const MAX_LIST: usize = 4 << 20;

pub(super) struct Connection {
    service: RunningService<RoleClient, Handler>,
    changed: Arc<AtomicBool>,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Answers a server's own requests (with "no") and hears that its tools have changed.
struct Handler {
    changed: Arc<AtomicBool>,
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let own = Implementation::new("selfsame", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), own)
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.changed.store(true, Ordering::Relaxed);
    }
}

/// How servers are spoken to. The newest comes first; each of the others is for servers that know nothing
/// of the ones before.
#[derive(Debug, Clone, Copy)]
enum Dialect {
    /// Streamable HTTP, `server/discover` or else `initialize`.
    Discover,
    /// The same for servers that are confused by a request they do not know.
    Initialize,
    /// HTTP and SSE, as of 2024-11-05.
    Sse,
}

impl Connection {
    /// Connects. The caller sets the time limit.
    pub(super) async fn open(http: &Http, tasks: &TaskTracker) -> Result<Self, Fault> {
        let mut first = None;
        for dialect in [Dialect::Discover, Dialect::Initialize, Dialect::Sse] {
            match Self::dial(http, dialect, tasks).await {
                Ok(connection) => {
                    connection.subscribe();
                    return Ok(connection);
                }
                Err(error) if error.is_dialect() => first = first.or(Some(error)),
                // What is wrong now is wrong in every dialect, unless an earlier one came further.
                Err(error) => return Err(error.fault()),
            }
        }
        Err(first.map_or_else(
            || Fault::connection("it cannot be connected to"),
            Unconnected::fault,
        ))
    }

    async fn dial(http: &Http, dialect: Dialect, tasks: &TaskTracker) -> Result<Self, Unconnected> {
        let changed = Arc::new(AtomicBool::new(false));
        let handler = Handler {
            changed: Arc::clone(&changed),
        };
        let lifecycle = match dialect {
            Dialect::Discover => ClientLifecycleMode::Auto {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
            },
            Dialect::Initialize | Dialect::Sse => ClientLifecycleMode::Initialize,
        };
        let service = if let Dialect::Sse = dialect {
            let transport = SseTransport::open(http.clone())
                .await
                .map_err(|error| Unconnected::http(&error))?;
            handler.serve_with_lifecycle(transport, lifecycle).await
        } else {
            let mut retry = ExponentialBackoff::default();
            retry.max_times = Some(5);
            retry.max_delay = Some(Duration::from_secs(30));
            let mut config = StreamableHttpClientTransportConfig::with_uri(http.url().as_str());
            config.retry_config = Arc::new(retry);
            let transport = StreamableHttpClientTransport::with_client(http.clone(), config);
            handler.serve_with_lifecycle(transport, lifecycle).await
        };
        Ok(Self {
            service: service.map_err(|error| Unconnected::of(&error))?,
            changed,
            tasks: tasks.clone(),
        })
    }

    /// Asks a server of the newer protocol to say when its tools change; older ones do by themselves.
    fn subscribe(&self) {
        let Some(info) = self.service.peer_info() else {
            return;
        };
        let tells = info
            .capabilities
            .tools
            .as_ref()
            .is_some_and(|t| t.list_changed == Some(true));
        if !tells || info.protocol_version.has_initialize() {
            return;
        }
        let (peer, changed) = (self.service.peer().clone(), Arc::clone(&self.changed));
        // Ends with the connection, at the latest.
        self.tasks.spawn(async move {
            let filter = SubscriptionFilter::builder().tools_list_changed().build();
            if let Ok(mut subscription) = peer.listen(filter).await {
                while let Ok(Some(_)) = subscription.next().await {
                    changed.store(true, Ordering::Relaxed);
                }
            }
        });
    }

    pub(super) fn is_closed(&self) -> bool {
        self.service.is_closed() || self.service.is_transport_closed()
    }

    /// The server has said that its tools are others now.
    pub(super) fn has_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    /// The tools, in the server's order, each name once. What is unfit for a model is left out, and so is
    /// what is beyond every measure.
    pub(super) async fn tools(&self) -> Result<Vec<Described>, Fault> {
        // Before the question: what changes during the answer is asked for again.
        self.changed.store(false, Ordering::Relaxed);
        let mut all: Vec<Described> = Vec::new();
        let (mut entries, mut bytes, mut unfit) = (0, 0, 0);
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let (page, next) = self.page(cursor.clone()).await?;
            for entry in page {
                entries += 1;
                let known = |tool: &Described| all.iter().any(|other| other.name == tool.name);
                match tools::read(&entry).filter(|tool| !known(tool)) {
                    Some(tool) => {
                        bytes += tool.description.len()
                            + Value::Object(tool.schema.clone()).to_string().len();
                        all.push(tool);
                    }
                    None => unfit += 1,
                }
                if entries >= MAX_ENTRIES || bytes >= MAX_LIST {
                    tracing::debug!("an MCP server's list of tools is cut off");
                    return Ok(all);
                }
            }
            if next.is_none() || next == cursor {
                break;
            }
            cursor = next;
        }
        if unfit > 0 {
            tracing::debug!(
                unfit,
                "an MCP server has tools that cannot be offered to a model"
            );
        }
        Ok(all)
    }

    async fn page(&self, cursor: Option<String>) -> Result<(Vec<Value>, Option<String>), Fault> {
        let params = PaginatedRequestParams::default().with_cursor(cursor.clone());
        let request = ListToolsRequest {
            params: cursor.is_some().then_some(params),
            ..ListToolsRequest::default()
        };
        let listed = self.request(ClientRequest::ListToolsRequest(request)).await;
        match listed {
            Ok(ServerResult::ListToolsResult(listed)) => {
                let entries = listed.tools.iter().map(serde_json::to_value);
                Ok((entries.filter_map(Result::ok).collect(), listed.next_cursor))
            }
            // One of its tools is not what the protocol says; the others may be.
            Ok(ServerResult::CustomResult(listed)) if listed.0["tools"].is_array() => {
                let mut listed = listed.0;
                let next = listed["nextCursor"].as_str().map(str::to_owned);
                match listed["tools"].take() {
                    Value::Array(entries) => Ok((entries, next)),
                    _ => Ok((Vec::new(), next)),
                }
            }
            Ok(_) => Err(Fault::connection("its list of tools is none")),
            Err(Unanswered::Refused(reason)) => Err(Fault::connection(format!(
                "it does not list its tools: {reason}"
            ))),
            Err(Unanswered::Fault(fault)) => Err(fault),
        }
    }

    /// Calls a tool. When this is dropped before its end, the server is told that nobody waits any more.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<ServerResult, Unanswered> {
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        self.request(ClientRequest::CallToolRequest(CallToolRequest::new(params)))
            .await
    }

    async fn request(&self, request: ClientRequest) -> Result<ServerResult, Unanswered> {
        let options = PeerRequestOptions::no_options();
        let handle = self
            .service
            .send_cancellable_request(request, options)
            .await?;
        let mut pending = Pending {
            handle: Some(handle),
            tasks: &self.tasks,
        };
        let answer = match &mut pending.handle {
            Some(handle) => (&mut handle.rx).await,
            None => return Err(Unanswered::Fault(Fault::connection("it was not asked"))),
        };
        pending.handle = None;
        match answer {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Unanswered::Fault(Fault::connection(
                "the connection to it was closed",
            ))),
        }
    }

    /// Says goodbye, within a short time.
    pub(super) async fn close(mut self) {
        let _ = self
            .service
            .close_with_timeout(Duration::from_secs(3))
            .await;
    }
}

/// A request whose answer is waited for.
struct Pending<'a> {
    handle: Option<RequestHandle<RoleClient>>,
    tasks: &'a TaskTracker,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.tasks.spawn(async move {
                let _ = handle
                    .cancel(Some("nobody waits for it any more".to_owned()))
                    .await;
            });
        }
    }
}
