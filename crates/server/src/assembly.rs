//! From the configuration to an engine: which model, which sandboxes, how many of everything.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use ipnet::IpNet;
use selfsame_engine::{
    Engine, EngineConfig, FetchLimits, ImagesConfig, Mcp, McpConfig, Parts, SandboxConfig,
    SearchConfig, Web, WebConfig,
    door::{Authority, Door, DoorConfig, RepositoryHost},
    vaults::VaultsConfig,
    webhooks::{UrlRules, WebhookBackoff, Webhooks, WebhooksConfig},
};
use selfsame_model::{
    AnthropicConfig, AnthropicProvider, ModelError, ModelInfo, Models, Provider, Request,
    ResponseStream, ThinkingSupport, retry::Backoff,
};
use selfsame_net::{OperatorOptions, Policy, StaticHost, operator_client};
use selfsame_sandbox::{Backend, DockerBackend, DockerOptions, Limits, ProcessBackend};
use selfsame_store::{Blobs, Deployment, FileLimits, S3, Store};
use selfsame_types::Timestamp;
use tokio::sync::Semaphore;

use crate::config::{Config, Model, Net, SandboxBackend, ThinkingMode};

/// Puts the engine together. It does not run yet.
///
/// # Errors
/// When the sandboxes' backend cannot be used, or the model's client cannot be built.
pub async fn engine(
    config: &Config,
    store: Store,
    deployment: &Deployment,
) -> anyhow::Result<Engine> {
    let provider = provider(config)?;
    let backend = backend(config, deployment).await?;
    let made = Authority::make()?;
    let (certificate, key) = store
        .deployment_secret("door_authority", || made)
        .await
        .context("cannot have the door's certificate authority")?;
    let authority = Authority::new(certificate, &key)?;
    let door = Door::new(door_config(config)?, authority)?;
    let mut engine_config = engine_config(config);
    engine_config.trust = trust(&config.net)?;
    Ok(Engine::new(
        store,
        Parts {
            provider,
            models: models(&config.model),
            backend,
            door,
            web: web(config)?,
            mcp: mcp(config)?,
            webhooks: webhooks(config)?,
            vaults: vaults(config)?,
        },
        engine_config,
    ))
}

/// What sandboxes may reach, as far as it is the same for all.
///
/// # Errors
/// When `net.extra_ca_file` cannot be used.
pub fn door_config(config: &Config) -> anyhow::Result<DoorConfig> {
    let repositories = &config.repositories;
    Ok(DoorConfig {
        policy: policy(&config.net)?,
        package_hosts: config.net.package_hosts.clone(),
        max_connections: crate::open_files::spare(config.net.max_connections as usize),
        repository_hosts: repositories
            .hosts
            .iter()
            .map(|name| RepositoryHost {
                name: name.clone(),
                upstream: repositories
                    .upstreams
                    .iter()
                    .find(|upstream| upstream.host == *name)
                    .map(|upstream| upstream.url.clone()),
            })
            .collect(),
    })
}

/// The certificates that programs in sandboxes trust besides their image's own.
fn trust(net: &Net) -> anyhow::Result<Option<String>> {
    let Some(pem) = extra_ca(net)?.pop() else {
        return Ok(None);
    };
    let pem = String::from_utf8(pem).context("net.extra_ca_file is not PEM")?;
    Ok(Some(pem))
}

/// How the engine behaves.
#[must_use]
pub fn engine_config(config: &Config) -> EngineConfig {
    let (server, sandbox) = (&config.server, &config.sandbox);
    EngineConfig {
        lease_ttl: Duration::from_secs(config.lease.ttl_seconds),
        max_runners: config.lease.max_sessions as usize,
        drain: Duration::from_secs(server.drain_seconds),
        backoff: Backoff {
            max_attempts: config.model.attempts,
            ..Backoff::default()
        },
        route: ROUTE.to_owned(),
        trust: None,
        keep_connected: Duration::from_secs(sandbox.keep_connected_seconds),
        sandbox: SandboxConfig {
            image: sandbox.image.clone(),
            memory_bytes: sandbox.memory_bytes,
            disk_bytes: sandbox.disk_bytes,
            cpus: sandbox.cpus,
            pids: sandbox.pids,
            warm: sandbox.warm,
            start_concurrency: sandbox.start_concurrency as usize,
            maker_ttl: Duration::from_secs(config.lease.ttl_seconds),
            idle_stop: Duration::from_secs(sandbox.idle_stop_seconds),
            retention: days(sandbox.retention_days),
        },
        images: ImagesConfig {
            timeout: Duration::from_secs(config.packages.install_timeout_seconds),
            concurrency: config.packages.concurrency as usize,
            retention: days(config.packages.retention_days),
            // Nothing else depends on how soon somebody dead is replaced here.
            builder_ttl: Duration::from_secs(config.lease.ttl_seconds) * 3,
        },
    }
}

/// Where contents are kept, as configured.
///
/// # Errors
/// When the directory cannot be made, or the settings of the bucket do not fit.
pub fn blobs(config: &Config, deployment: &Deployment) -> anyhow::Result<Blobs> {
    let files = &config.files;
    let Some(bucket) = &files.bucket else {
        let directory = files.directory.clone();
        let directory = directory.unwrap_or_else(|| config.data_dir.join("files"));
        return Blobs::local(directory, deployment.id).context("files.directory");
    };
    let keys = match (files.access_key_id.as_str(), &files.secret_access_key) {
        ("", None) => None,
        (id, Some(secret)) if !id.is_empty() => Some((id.to_owned(), secret.clone())),
        _ => anyhow::bail!("files.access_key_id and files.secret_access_key need each other"),
    };
    let settings = S3 {
        endpoint: files.endpoint.clone(),
        bucket: bucket.clone(),
        region: files.region.clone(),
        keys,
        path_style: files.path_style,
        allow_http: files.allow_http,
    };
    let client = operator_client(&OperatorOptions {
        extra_ca: extra_ca(&config.net)?,
        // A part of an upload is silent until it has arrived.
        idle: Duration::from_secs(300),
        ..OperatorOptions::default()
    })
    .context("cannot make a client for the bucket of files")?;
    Blobs::s3(&settings, client, deployment.id).context("the bucket of files")
}

/// What a workspace may keep.
#[must_use]
pub fn file_limits(config: &Config) -> FileLimits {
    FileLimits {
        quota: config.files.quota_bytes,
    }
}

fn days(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 24 * 60 * 60)
}

/// There is one upstream so far.
const ROUTE: &str = "default";

/// The configured list, or the built-in one.
#[must_use]
pub fn models(config: &Model) -> Models {
    if config.models.is_empty() {
        return Models::default();
    }
    let list = config.models.iter().map(|entry| ModelInfo {
        id: entry.id.clone(),
        display_name: entry
            .display_name
            .clone()
            .unwrap_or_else(|| entry.id.clone()),
        created_at: entry
            .created_at
            .unwrap_or_else(|| Timestamp::from_micros(0)),
        max_input_tokens: entry.max_input_tokens,
        max_tokens: entry.max_tokens,
        thinking: match entry.thinking {
            ThinkingMode::None => ThinkingSupport::None,
            ThinkingMode::Budget => ThinkingSupport::Budget,
            ThinkingMode::Adaptive => ThinkingSupport::Adaptive,
        },
        efforts: entry.efforts.clone(),
        fast: entry.fast,
    });
    Models::new(list.collect())
}

/// What requests on users' behalf, and programs in sandboxes, may reach.
///
/// # Errors
/// When `net.extra_ca_file` cannot be used.
pub fn policy(net: &Net) -> anyhow::Result<Policy> {
    policy_with(net, &[])
}

/// The same with more private ranges.
fn policy_with(net: &Net, ranges: &[IpNet]) -> anyhow::Result<Policy> {
    let hosts = net.hosts.iter().map(|host| StaticHost {
        name: host.name.0.clone(),
        address: host.address.ip,
        port: host.address.port,
    });
    let allowed = [net.allowed_ranges.as_slice(), ranges].concat();
    let policy = Policy::new(allowed, &extra_ca(net)?)
        .context("net.extra_ca_file")?
        .with_hosts(hosts.collect());
    Ok(policy)
}

/// What speaks to agents' MCP servers.
///
/// # Errors
/// When its client cannot be built.
pub fn mcp(config: &Config) -> anyhow::Result<Mcp> {
    let mcp = &config.mcp;
    let settings = McpConfig {
        connect_timeout: Duration::from_secs(mcp.connect_timeout_seconds),
        call_timeout: Duration::from_secs(mcp.call_timeout_seconds),
        max_response_bytes: mcp.max_response_bytes,
        memory_bytes: mcp.memory_bytes,
    };
    Mcp::new(settings, &policy(&config.net)?).context("the MCP connector")
}

/// Fetches and searches.
///
/// # Errors
/// When the search backend lacks what it needs, or a client cannot be built.
pub fn web(config: &Config) -> anyhow::Result<Web> {
    let web = &config.web;
    let search = match web.search_backend.0 {
        None => None,
        Some(backend) => {
            let url = match (&web.search_url, backend.usual_address()) {
                (Some(url), _) => url.clone(),
                (None, Some(usual)) => usual.parse().context("web.search_url")?,
                (None, None) => anyhow::bail!("web.search_url is needed for this search backend"),
            };
            anyhow::ensure!(
                web.search_key.is_some() || !backend.needs_key(),
                "web.search_key is needed for this search backend"
            );
            Some(SearchConfig {
                backend,
                url,
                key: web.search_key.clone(),
                results: web.search_results as usize,
                timeout: Duration::from_secs(web.search_timeout_seconds),
            })
        }
    };
    let settings = WebConfig {
        fetch: FetchLimits {
            timeout: Duration::from_secs(web.fetch_timeout_seconds),
            max_text_bytes: web.fetch_max_bytes,
        },
        search,
    };
    let operator = OperatorOptions {
        extra_ca: extra_ca(&config.net)?,
        ..OperatorOptions::default()
    };
    Web::new(settings, &policy(&config.net)?, &operator).context("the web tools")
}

/// How credentials are handled.
///
/// # Errors
/// When a client cannot be built.
pub fn vaults(config: &Config) -> anyhow::Result<VaultsConfig> {
    let cache = Duration::from_secs(config.vaults.cache_seconds);
    VaultsConfig::new(&policy(&config.net)?, cache).context("vaults")
}

/// Where webhooks may be delivered.
///
/// # Errors
/// When `net.extra_ca_file` cannot be used.
pub fn webhook_rules(config: &Config) -> anyhow::Result<UrlRules> {
    Ok(UrlRules {
        policy: policy_with(&config.net, &config.webhooks.allowed_ranges)?,
        allow_http: config.webhooks.allow_http,
    })
}

/// Deliveries of webhooks.
///
/// # Errors
/// When a client cannot be built.
pub fn webhooks(config: &Config) -> anyhow::Result<Webhooks> {
    let settings = &config.webhooks;
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    Webhooks::new(WebhooksConfig {
        rules: webhook_rules(config)?,
        attempts: settings.attempts,
        backoff: WebhookBackoff {
            shortest: seconds(settings.backoff_min_seconds),
            longest: seconds(settings.backoff_max_seconds),
        },
        timeout: seconds(settings.timeout_seconds),
        concurrency: settings.concurrency as usize,
        concurrency_per_endpoint: settings.concurrency_per_endpoint as usize,
        disable_after: (
            seconds(settings.disable_after_seconds),
            settings.disable_after_failures,
        ),
        secret_overlap: seconds(settings.secret_overlap_seconds),
        retention: days(settings.retention_days),
    })
    .context("webhooks")
}

fn extra_ca(net: &Net) -> anyhow::Result<Vec<Vec<u8>>> {
    let Some(path) = &net.extra_ca_file else {
        return Ok(Vec::new());
    };
    let pem = std::fs::read(path)
        .with_context(|| format!("cannot read net.extra_ca_file {}", path.display()))?;
    Ok(vec![pem])
}

fn provider(config: &Config) -> anyhow::Result<Arc<dyn Provider>> {
    let model = &config.model;
    let idle = Duration::from_secs(model.idle_timeout_seconds);
    let client = operator_client(&OperatorOptions {
        extra_ca: extra_ca(&config.net)?,
        proxy: model.proxy.clone(),
        idle,
        ..OperatorOptions::default()
    })
    .context("cannot make a client for the model")?;
    let mut upstream = AnthropicConfig::new(model.base_url.clone(), model.api_key.clone());
    upstream.idle = idle;
    let provider = AnthropicProvider::new(upstream, client)
        .map_err(|error| anyhow::anyhow!("model: {}", error.message))?;
    if model.api_key.is_none() {
        tracing::warn!("there is no key for the model: set ANTHROPIC_API_KEY or model.api_key");
    }
    Ok(Arc::new(Bounded {
        inner: provider,
        permits: Arc::new(Semaphore::new(model.concurrency as usize)),
    }))
}

/// A provider that takes so many requests at a time; further ones wait their turn.
#[derive(Debug)]
struct Bounded<P> {
    inner: P,
    permits: Arc<Semaphore>,
}

#[async_trait]
impl<P: Provider> Provider for Bounded<P> {
    async fn stream(&self, request: Request) -> Result<ResponseStream, ModelError> {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.map_err(|_| ModelError::connection("the server is stopping"))?;
        let stream = self.inner.stream(request).await?;
        // Given back when the stream is dropped, at its end or before.
        Ok(stream
            .inspect(move |_| {
                let _held = &permit;
            })
            .boxed())
    }
}

async fn backend(config: &Config, deployment: &Deployment) -> anyhow::Result<Arc<dyn Backend>> {
    let sandbox = &config.sandbox;
    let hands = match &sandbox.hands {
        Some(path) => path.clone(),
        None => beside_this_program()?,
    };
    match sandbox.backend {
        SandboxBackend::Docker => {
            let options = DockerOptions {
                host: sandbox.docker_host.clone(),
                deployment: deployment.id.to_string(),
                hands,
                runtime: sandbox.runtime.clone(),
                pull: sandbox.pull,
                limits: Limits {
                    memory_bytes: sandbox.memory_bytes,
                    disk_bytes: sandbox.disk_bytes,
                    cpus: sandbox.cpus,
                    pids: sandbox.pids,
                },
                low_water_bytes: sandbox.low_water_bytes,
                start_concurrency: sandbox.start_concurrency,
            };
            let backend = DockerBackend::connect(options).await.context(
                "sandboxes need Docker (see the section [sandbox] of the configuration)",
            )?;
            let backend = Arc::new(backend);
            let (settled, image) = (Arc::clone(&backend), sandbox.image.clone());
            tokio::spawn(async move { settled.settle(&image).await });
            Ok(backend)
        }
        SandboxBackend::Process => {
            tracing::warn!(
                "agents' commands run as plain processes of this machine, without isolation"
            );
            let base = config.data_dir.join("sandboxes");
            let backend = ProcessBackend::new(hands, base)
                .context("sandboxes")?
                .low_water(sandbox.low_water_bytes);
            Ok(Arc::new(backend))
        }
    }
}

fn beside_this_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(program.with_file_name("selfsame-hands"))
}

#[cfg(test)]
mod tests {
    use selfsame_model::{Delta, StopReason, Usage};

    use super::*;

    /// Answers with one delta and never ends.
    #[derive(Debug)]
    struct Endless;

    #[async_trait]
    impl Provider for Endless {
        async fn stream(&self, _: Request) -> Result<ResponseStream, ModelError> {
            let first = futures_util::stream::iter([Ok(Delta::Done {
                stop_reason: StopReason::EndTurn,
                usage: Usage::default(),
                stop_details: None,
            })]);
            Ok(first.chain(futures_util::stream::pending()).boxed())
        }
    }

    #[tokio::test]
    async fn a_request_waits_until_another_is_done() {
        let provider = Bounded {
            inner: Endless,
            permits: Arc::new(Semaphore::new(1)),
        };
        let request = || Request {
            model: "m".to_owned(),
            max_tokens: 1,
            system: Vec::new(),
            tools: Vec::new(),
            messages: Vec::new(),
            thinking: selfsame_model::Thinking::Off,
            effort: None,
            speed: None,
            tool_choice: None,
        };
        let mut first = provider.stream(request()).await.unwrap();
        assert!(first.next().await.is_some());
        let mut second = std::pin::pin!(provider.stream(request()));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(first);
        assert!(second.await.is_ok());
    }

    #[tokio::test]
    async fn the_network_section_becomes_a_policy() {
        let text = crate::config::DEFAULTS
            .replace("allowed_ranges = []", "allowed_ranges = [\"10.1.0.0/16\"]")
            .replace(
                "\nhosts = []\n# What `allow",
                "\nhosts = [{ name = \"a.test\", address = \"10.1.2.3:8080\" }, \
                 { name = \"b.test\", address = \"10.2.0.1\" }]\n# What `allow",
            );
        let net = toml::from_str::<Config>(&text).unwrap().net;
        let policy = policy(&net).unwrap();
        let found = policy.resolve("a.test", 443).await.unwrap();
        assert_eq!(found, ["10.1.2.3:8080".parse().unwrap()]);
        assert!(policy.resolve("b.test", 80).await.is_err());
        assert!(net.package_hosts.covers("pypi.org") && !net.package_hosts.covers("example.com"));
        for wrong in ["*.a.test", "10.0.0.1", "a:1"] {
            assert!(crate::config::HostName::try_from(wrong.to_owned()).is_err());
        }
        for wrong in ["a.test", "10.0.0.1:0", "10.0.0.1:99999", ""] {
            assert!(crate::config::HostAddress::try_from(wrong.to_owned()).is_err());
        }
    }

    #[test]
    fn contents_are_in_a_directory_unless_a_bucket_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            data_dir: directory.path().to_owned(),
            ..Config::default()
        };
        let deployment = crate::app::new_deployment();
        let kept = |config: &Config| blobs(config, &deployment);
        assert!(format!("{:?}", kept(&config).unwrap()).contains("LocalFileSystem"));
        let made = directory
            .path()
            .join("files")
            .join(deployment.id.to_string());
        assert!(made.is_dir());

        config.files.bucket = Some("selfsame".to_owned());
        config.files.access_key_id = "id".to_owned();
        let error = kept(&config).unwrap_err().to_string();
        assert!(error.contains("need each other"), "{error}");
        config.files.secret_access_key = Some("a secret".to_owned().into());
        let s3 = format!("{:?} {config:?}", kept(&config).unwrap());
        assert!(
            s3.contains("AmazonS3(selfsame)") && !s3.contains("a secret"),
            "{s3}"
        );
        config.files.endpoint = Some("nonsense".to_owned());
        assert!(kept(&config).is_err());
    }

    #[test]
    fn models_come_from_the_configuration_or_are_built_in() {
        let mut config = Config::default();
        assert!(models(&config.model).list().len() > 3);
        config.model = toml::from_str::<Config>(&crate::config::DEFAULTS.replace(
            "models = []",
            "models = [{ id = \"mine\", max_tokens = 5, thinking = \"budget\" }]",
        ))
        .unwrap()
        .model;
        let list = models(&config.model);
        let mine = list.get("mine").unwrap();
        assert_eq!((&*mine.display_name, mine.max_tokens), ("mine", Some(5)));
        assert_eq!(list.list().len(), 1);
    }
}
