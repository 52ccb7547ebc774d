//! The engine and what it stands on, put together from the configuration.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use selfsame_engine::{Engine, EngineConfig, SandboxConfig};
use selfsame_model::{
    AnthropicConfig, AnthropicProvider, ModelInfo, Models, Router, ThinkingSupport, retry::Backoff,
};
use selfsame_net::{OperatorOptions, operator_client};
use selfsame_sandbox::{Backend, DockerBackend, DockerOptions, Limits, ProcessBackend};
use selfsame_store::{Deployment, Store};
use selfsame_types::Timestamp;

use crate::config::{Config, Model, SandboxBackend};

/// Sessions driven at once by one server; the others wait for room or for another server.
const MAX_RUNNERS: usize = 10_000;
/// How long a session's sandbox stays connected after a turn.
const KEEP_CONNECTED: Duration = Duration::from_secs(120);
/// The name of the only route there is today, as the ledger shows it.
const ROUTE: &str = "default";

/// Connects to the sandbox backend and builds the engine. Nothing runs yet.
pub async fn engine(
    config: &Config,
    store: Store,
    deployment: &Deployment,
    internal_url: String,
) -> anyhow::Result<Engine> {
    let backend = backend(config, deployment).await?;
    let sandbox = &config.sandbox;
    let engine_config = EngineConfig {
        lease_ttl: Duration::from_secs(config.lease.ttl_seconds),
        max_runners: MAX_RUNNERS,
        drain: Duration::from_secs(config.server.drain_seconds),
        backoff: Backoff {
            max_attempts: config.model.attempts,
            ..Backoff::default()
        },
        route: ROUTE.to_owned(),
        internal_url,
        keep_connected: KEEP_CONNECTED,
        sandbox: SandboxConfig {
            image: sandbox.image.clone(),
            memory_bytes: sandbox.memory_bytes,
            disk_bytes: sandbox.disk_bytes,
            cpus: sandbox.cpus,
            pids: sandbox.pids,
            warm: sandbox.warm,
            start_concurrency: sandbox.start_concurrency as usize,
            idle_stop: Duration::from_secs(sandbox.idle_stop_seconds),
            retention: Duration::from_hours(24 * u64::from(sandbox.retention_days)),
        },
    };
    let provider = Arc::new(Router::single(
        ROUTE,
        Arc::new(provider(&config.model, config)?),
    ));
    Ok(Engine::new(
        store,
        provider,
        models(&config.model),
        backend,
        engine_config,
    ))
}

fn provider(model: &Model, config: &Config) -> anyhow::Result<AnthropicProvider> {
    let extra_ca = match &config.net.extra_ca_file {
        None => Vec::new(),
        Some(file) => vec![
            std::fs::read(file)
                .with_context(|| format!("cannot read net.extra_ca_file {}", file.display()))?,
        ],
    };
    let client = operator_client(&OperatorOptions {
        extra_ca,
        ..OperatorOptions::default()
    })
    .context("cannot build the client for model requests")?;
    let base_url = model
        .base_url
        .parse()
        .with_context(|| format!("model.base_url: `{}` is not a URL", model.base_url))?;
    let upstream = AnthropicConfig {
        idle: Duration::from_secs(model.idle_timeout_seconds),
        ..AnthropicConfig::new(base_url, model.api_key.clone())
    };
    AnthropicProvider::new(upstream, client).context("cannot set up the model provider")
}

/// The operator's list of models, or the ones that official clients know by name.
#[must_use]
pub fn models(model: &Model) -> Models {
    if model.models.is_empty() {
        return Models::default();
    }
    let list = model.models.iter().map(|entry| ModelInfo {
        id: entry.id.clone(),
        display_name: entry
            .display_name
            .clone()
            .unwrap_or_else(|| entry.id.clone()),
        created_at: entry
            .created_at
            .unwrap_or_else(|| Timestamp::from_micros(0)),
        max_input_tokens: entry.max_input_tokens,
        max_tokens: Some(
            entry
                .max_tokens
                .and_then(|tokens| u32::try_from(tokens).ok())
                .unwrap_or(model.max_tokens),
        ),
        thinking: ThinkingSupport::None,
        efforts: None,
        fast: None,
    });
    Models::new(list.collect())
}

async fn backend(config: &Config, deployment: &Deployment) -> anyhow::Result<Arc<dyn Backend>> {
    let sandbox = &config.sandbox;
    let hands = hands(sandbox.hands.as_ref())?;
    match sandbox.backend {
        SandboxBackend::Process => {
            tracing::warn!(
                "sandbox.backend is `process`: tools run as plain processes with this server's \
                 rights and NO isolation; use it for development and tests only"
            );
            let base = std::path::absolute(config.data_dir.join("sandboxes"))?;
            let backend =
                ProcessBackend::new(hands, base).context("cannot set up the process backend")?;
            Ok(Arc::new(backend))
        }
        SandboxBackend::Docker => {
            let options = DockerOptions {
                host: sandbox.docker_host.clone(),
                deployment: deployment.id.to_string(),
                hands,
                runtime: sandbox.runtime.clone(),
                pull: true,
                limits: Limits {
                    memory_bytes: sandbox.memory_bytes,
                    disk_bytes: sandbox.disk_bytes,
                    cpus: sandbox.cpus,
                    pids: sandbox.pids,
                },
                start_concurrency: sandbox.start_concurrency,
            };
            let backend = DockerBackend::connect(options).await.context(
                "cannot use Docker for sandboxes: start the Docker daemon, or point \
                 sandbox.docker_host at one",
            )?;
            backend
                .ensure_image(&sandbox.image)
                .await
                .with_context(|| format!("the sandbox image `{}` is not there", sandbox.image))?;
            Ok(Arc::new(backend))
        }
    }
}

/// The configured program, or the one beside this executable.
fn hands(configured: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = configured {
        return Ok(path.clone());
    }
    let mut path = std::env::current_exe().context("cannot find this executable")?;
    path.set_file_name("selfsame-hands");
    anyhow::ensure!(
        path.is_file(),
        "the program for inside sandboxes is not at {}: set sandbox.hands",
        path.display()
    );
    Ok(path)
}
