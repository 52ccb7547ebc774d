//! The sections of the configuration. `config.default.toml` says what each key means.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use secrecy::SecretString;
use selfsame_engine::SearchBackend;
use selfsame_net::{HostPattern, Hosts};
use serde::{Deserialize, Deserializer, de::Error as _};
use url::Url;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub data_dir: PathBuf,
    pub server: Server,
    pub database: Database,
    pub auth: Auth,
    pub sandbox: Sandbox,
    pub packages: Packages,
    pub model: Model,
    pub lease: Lease,
    pub net: Net,
    pub repositories: Repositories,
    pub web: Web,
    pub mcp: Mcp,
    pub vaults: Vaults,
    pub webhooks: Webhooks,
    pub files: Files,
    pub secrets: Secrets,
    pub limits: Limits,
    pub log: Log,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub listen: SocketAddr,
    pub require_beta_header: bool,
    pub max_body_bytes: usize,
    pub body_timeout_seconds: u64,
    pub drain_seconds: u64,
    pub stream_replay_window_seconds: u64,
    #[serde(deserialize_with = "positive")]
    pub heartbeat_seconds: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    #[serde(deserialize_with = "empty_is_no_secret")]
    pub url: Option<SecretString>,
    #[serde(deserialize_with = "positive")]
    pub connections: u32,
    #[serde(deserialize_with = "empty_is_none")]
    pub postgres_bin: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    #[serde(deserialize_with = "fixed_key")]
    pub key: Option<SecretString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxBackend {
    Docker,
    Process,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    pub backend: SandboxBackend,
    #[serde(deserialize_with = "empty_is_none")]
    pub docker_host: Option<String>,
    pub image: String,
    pub pull: bool,
    #[serde(deserialize_with = "empty_is_none")]
    pub runtime: Option<String>,
    #[serde(deserialize_with = "empty_is_none")]
    pub hands: Option<PathBuf>,
    #[serde(deserialize_with = "zero_is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(deserialize_with = "no_cpus_is_none")]
    pub cpus: Option<f64>,
    #[serde(deserialize_with = "zero_is_none")]
    pub pids: Option<u32>,
    #[serde(deserialize_with = "zero_is_none")]
    pub disk_bytes: Option<u64>,
    pub low_water_bytes: u64,
    pub warm: u32,
    #[serde(deserialize_with = "positive")]
    pub start_concurrency: u32,
    pub keep_connected_seconds: u64,
    pub idle_stop_seconds: u64,
    pub retention_days: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packages {
    #[serde(deserialize_with = "positive")]
    pub install_timeout_seconds: u64,
    #[serde(deserialize_with = "positive")]
    pub concurrency: u32,
    pub retention_days: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    #[serde(deserialize_with = "url")]
    pub base_url: Url,
    #[serde(deserialize_with = "empty_is_no_secret")]
    pub api_key: Option<SecretString>,
    #[serde(deserialize_with = "empty_is_none")]
    pub proxy: Option<Url>,
    #[serde(deserialize_with = "positive")]
    pub idle_timeout_seconds: u64,
    #[serde(deserialize_with = "positive")]
    pub concurrency: u32,
    #[serde(deserialize_with = "positive")]
    pub attempts: u32,
    pub models: Vec<ModelEntry>,
}

/// One model of the list. Only `id` is required.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    pub id: String,
    pub display_name: Option<String>,
    /// RFC 3339; the epoch when absent.
    pub created_at: Option<selfsame_types::Timestamp>,
    pub max_input_tokens: Option<u64>,
    pub max_tokens: Option<u32>,
    #[serde(default)]
    pub thinking: ThinkingMode,
    pub efforts: Option<Vec<String>>,
    pub fast: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThinkingMode {
    #[default]
    None,
    Budget,
    Adaptive,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    #[serde(deserialize_with = "positive")]
    pub ttl_seconds: u64,
    #[serde(deserialize_with = "positive")]
    pub max_sessions: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    pub allowed_ranges: Vec<IpNet>,
    pub hosts: Vec<NetHost>,
    #[serde(deserialize_with = "hosts")]
    pub package_hosts: Hosts,
    #[serde(deserialize_with = "positive")]
    pub max_connections: u32,
    #[serde(deserialize_with = "empty_is_none")]
    pub extra_ca_file: Option<PathBuf>,
}

/// A name that the server resolves itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetHost {
    pub name: HostName,
    pub address: HostAddress,
}

/// A plain name: no pattern, no address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HostName(pub String);

impl TryFrom<String> for HostName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let pattern: Result<HostPattern, _> = text.parse();
        if pattern.is_err() || text.starts_with("*.") || text.parse::<IpAddr>().is_ok() {
            return Err(format!("`{text}` is not the name of a host"));
        }
        Ok(Self(text))
    }
}

/// An address, and perhaps a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HostAddress {
    pub ip: IpAddr,
    pub port: Option<u16>,
}

impl TryFrom<String> for HostAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Ok(ip) = text.parse() {
            return Ok(Self { ip, port: None });
        }
        match text.parse::<SocketAddr>() {
            Ok(to) if to.port() != 0 => Ok(Self {
                ip: to.ip(),
                port: Some(to.port()),
            }),
            _ => Err(format!(
                "`{text}` is not an address such as \"10.20.0.7\" or \"10.20.0.7:8443\""
            )),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    #[serde(deserialize_with = "positive")]
    pub max_bytes: u64,
    #[serde(deserialize_with = "zero_is_none")]
    pub quota_bytes: Option<u64>,
    pub download_uploads: bool,
    #[serde(deserialize_with = "empty_is_none")]
    pub directory: Option<PathBuf>,
    #[serde(deserialize_with = "empty_is_none")]
    pub bucket: Option<String>,
    #[serde(deserialize_with = "empty_is_none")]
    pub endpoint: Option<String>,
    pub region: String,
    pub access_key_id: String,
    #[serde(deserialize_with = "empty_is_no_secret")]
    pub secret_access_key: Option<SecretString>,
    pub path_style: bool,
    pub allow_http: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repositories {
    pub hosts: Vec<String>,
    pub upstreams: Vec<Upstream>,
}

/// Where the requests for a repository host are sent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    pub host: String,
    #[serde(deserialize_with = "url")]
    pub url: Url,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Web {
    pub search_backend: Search,
    #[serde(deserialize_with = "empty_is_none")]
    pub search_url: Option<Url>,
    #[serde(deserialize_with = "empty_is_no_secret")]
    pub search_key: Option<SecretString>,
    #[serde(deserialize_with = "positive")]
    pub search_results: u32,
    #[serde(deserialize_with = "positive")]
    pub search_timeout_seconds: u64,
    #[serde(deserialize_with = "positive")]
    pub fetch_timeout_seconds: u64,
    #[serde(deserialize_with = "positive")]
    pub fetch_max_bytes: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mcp {
    #[serde(deserialize_with = "positive")]
    pub connect_timeout_seconds: u64,
    #[serde(deserialize_with = "positive")]
    pub call_timeout_seconds: u64,
    #[serde(deserialize_with = "positive")]
    pub max_response_bytes: usize,
    #[serde(deserialize_with = "positive")]
    pub memory_bytes: usize,
}

/// Whom `web_search` asks, if anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Search(pub Option<SearchBackend>);

impl TryFrom<String> for Search {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(Self(Some(match text.as_str() {
            "" => return Ok(Self(None)),
            "searxng" => SearchBackend::Searxng,
            "brave" => SearchBackend::Brave,
            "tavily" => SearchBackend::Tavily,
            _ => {
                return Err(format!(
                    "`{text}` is none of \"searxng\", \"brave\", \"tavily\""
                ));
            }
        })))
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vaults {
    pub cache_seconds: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhooks {
    pub allow_http: bool,
    pub allowed_ranges: Vec<IpNet>,
    #[serde(deserialize_with = "positive")]
    pub attempts: u32,
    pub backoff_min_seconds: u32,
    pub backoff_max_seconds: u32,
    #[serde(deserialize_with = "positive")]
    pub timeout_seconds: u32,
    #[serde(deserialize_with = "positive")]
    pub concurrency: u32,
    #[serde(deserialize_with = "positive")]
    pub concurrency_per_endpoint: u32,
    pub disable_after_seconds: u32,
    #[serde(deserialize_with = "positive")]
    pub disable_after_failures: u32,
    pub secret_overlap_seconds: u32,
    pub retention_days: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    #[serde(deserialize_with = "empty_is_no_secret")]
    pub master_key: Option<SecretString>,
    #[serde(deserialize_with = "empty_is_none")]
    pub master_key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    #[serde(deserialize_with = "zero_is_none")]
    pub create_per_minute: Option<u32>,
    #[serde(deserialize_with = "zero_is_none")]
    pub read_per_minute: Option<u32>,
    #[serde(deserialize_with = "zero_is_none")]
    pub files_per_minute: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(D::Error::custom)
}

fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hosts, D::Error> {
    let list = Vec::<String>::deserialize(deserializer)?;
    Hosts::parse(list).map_err(D::Error::custom)
}

fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(D::Error::custom)
}

fn empty_is_no_secret<'de, D>(deserializer: D) -> Result<Option<SecretString>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    Ok((!text.is_empty()).then(|| SecretString::from(text)))
}

fn fixed_key<'de, D>(deserializer: D) -> Result<Option<SecretString>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    if text.chars().count() < 16 {
        return Err(D::Error::custom("needs at least 16 characters"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(D::Error::custom("only visible ASCII fits into a header"));
    }
    Ok(Some(SecretString::from(text)))
}

fn zero_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default + PartialEq,
{
    let number = T::deserialize(deserializer)?;
    Ok((number != T::default()).then_some(number))
}

fn no_cpus_is_none<'de, D>(deserializer: D) -> Result<Option<f64>, D::Error>
where
    D: Deserializer<'de>,
{
    let number = f64::deserialize(deserializer)?;
    if !number.is_finite() || number < 0.0 {
        return Err(D::Error::custom(
            "must be a number of CPUs, or 0 for no limit",
        ));
    }
    Ok((number > 0.0).then_some(number))
}

fn positive<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default + PartialEq,
{
    let number = T::deserialize(deserializer)?;
    if number == T::default() {
        return Err(D::Error::custom("must be at least 1"));
    }
    Ok(number)
}
