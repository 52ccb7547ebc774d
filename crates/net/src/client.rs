//! The two clients, and reading a body without trusting its length.

use std::{error::Error, net::Ipv6Addr, sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{
    Certificate, Client, ClientBuilder, Proxy, Response,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use tokio_rustls::rustls::{self, pki_types::pem};
use url::Url;

use crate::{
    address,
    policy::{Policy, Refused},
};

const USER_AGENT: &str = concat!("selfsame/", env!("CARGO_PKG_VERSION"));

/// A zone nobody can own (RFC 2606), where requests to refused literal addresses are sent: under
/// the address, so that the resolver can say which it was.
const NOWHERE: &str = ".refused.invalid";

/// A fault of ours or of the other side's, never of the policy: those are [`Refused`].
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("a certificate is not valid PEM")]
    Certificate(#[source] reqwest::Error),
    #[error("a certificate is not valid PEM")]
    Pem(#[source] pem::Error),
    #[error("a file that should hold certificates holds none")]
    NoCertificate,
    #[error("TLS could not be set up")]
    Tls(#[from] rustls::Error),
    #[error("the proxy address is not usable")]
    Proxy(#[source] reqwest::Error),
    #[error("the HTTP client could not be built")]
    Build(#[source] reqwest::Error),
    #[error("the response is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the response could not be read")]
    Read(#[source] reqwest::Error),
}

/// How long, how far.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Until a connection stands, TLS included.
    pub connect: Duration,
    /// The whole exchange, body included; `None` for streams that live long.
    pub total: Option<Duration>,
    /// Between two reads.
    pub idle: Duration,
    /// Redirects followed; 0 returns them as they are.
    pub redirects: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            total: Some(Duration::from_secs(60)),
            idle: Duration::from_secs(30),
            redirects: 5,
        }
    }
}

/// [`guarded_client_with`] the default [`Limits`].
///
/// # Errors
/// When TLS cannot be set up.
pub fn guarded_client(policy: &Policy) -> Result<Client, NetError> {
    guarded_client_with(policy, &Limits::default())
}

/// A client for addresses that users control. However it is used, it connects only to addresses the
/// policy lets through:
///
/// * names: the resolver drops what is refused, and the connection goes to what it returned;
/// * written-out addresses, for which no resolver is asked: caught by a proxy hook, see below;
/// * redirects: each target is checked, and https never becomes http;
/// * proxies of the environment are ignored.
///
/// The error of a refused request has a [`Refused`] in its chain: [`refusal`] finds it.
///
/// # Errors
/// When TLS cannot be set up.
pub fn guarded_client_with(policy: &Policy, limits: &Limits) -> Result<Client, NetError> {
    let shared = Arc::new(policy.clone());
    let max = limits.redirects;

    let on_redirect = shared.clone();
    let redirects = redirect::Policy::custom(move |attempt| {
        // `previous` starts with the original URL.
        if max == 0 {
            return attempt.stop();
        }
        if attempt.previous().len() > max {
            return attempt.error(Refused::TooManyRedirects);
        }
        let from_https = attempt
            .previous()
            .last()
            .is_some_and(|u| u.scheme() == "https");
        if from_https && attempt.url().scheme() != "https" {
            return attempt.error(Refused::Downgrade);
        }
        match on_redirect.check_url(attempt.url()) {
            Ok(()) => attempt.follow(),
            Err(refused) => attempt.error(refused),
        }
    });

    build(policy.extra_ca(), move || {
        let mut builder = guard(builder(limits.connect, limits.idle), shared).redirect(redirects);
        if let Some(total) = limits.total {
            builder = builder.timeout(total);
        }
        builder
    })
}

/// Connects to what the policy lets through, and to nothing else.
fn guard(builder: ClientBuilder, policy: Arc<Policy>) -> ClientBuilder {
    // reqwest asks no resolver for a literal address and has no hook of its own for "may I connect".
    // Its proxy hook, though, sees every URL it is about to connect for: a refused one is sent to a
    // proxy of a name which only our resolver sees, and which it refuses with the reason.
    let on_literal = policy.clone();
    let literals = Proxy::custom(move |url| {
        let ip = on_literal.refused_literal(url)?.to_bits();
        Url::parse(&format!("http://{ip:032x}{NOWHERE}")).ok()
    });
    builder
        .no_proxy()
        .proxy(literals)
        .dns_resolver(Arc::new(GuardedResolver(policy)))
}

/// Whose choice an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    ByUsers,
    ByOperator,
}

/// A client that hands on what others send each other, as it is: no redirects, no decompression, and
/// time for gigabytes in both directions. It is guarded unless the operator chose the addresses.
///
/// # Errors
/// When TLS cannot be set up.
pub fn relay_client(policy: &Policy, chosen: Chosen) -> Result<Client, NetError> {
    // Counts from the request until its answer begins, uploads included. Peers that have vanished are
    // found by keep-alive.
    const SILENCE: Duration = Duration::from_secs(6 * 60 * 60);
    build(policy.extra_ca(), || {
        let builder = builder(Duration::from_secs(10), SILENCE)
            .redirect(redirect::Policy::none())
            .no_gzip();
        match chosen {
            Chosen::ByUsers => guard(builder, Arc::new(policy.clone())),
            Chosen::ByOperator => builder.no_proxy(),
        }
    })
}

/// Settings for [`operator_client`].
#[derive(Debug, Clone)]
pub struct OperatorOptions {
    /// PEM files trusted besides the system's.
    pub extra_ca: Vec<Vec<u8>>,
    /// A proxy for everything, `http://..`, `https://..`. The environment's is not looked at.
    pub proxy: Option<Url>,
    /// Until a connection stands.
    pub connect: Duration,
    /// Between two reads.
    pub idle: Duration,
}

impl Default for OperatorOptions {
    fn default() -> Self {
        Self {
            extra_ca: Vec::new(),
            proxy: None,
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(600),
        }
    }
}

/// A client for addresses that the operator configured, wherever they are. No redirects: the key in
/// the request is meant for one host.
///
/// # Errors
/// For bad certificates or a bad proxy address, and when TLS cannot be set up.
pub fn operator_client(options: &OperatorOptions) -> Result<Client, NetError> {
    let extra_ca = certificates(&options.extra_ca)?;
    let proxy = options
        .proxy
        .clone()
        .map(Proxy::all)
        .transpose()
        .map_err(NetError::Proxy)?;
    build(&extra_ca, || {
        let builder = builder(options.connect, options.idle)
            .redirect(redirect::Policy::none())
            .no_proxy()
            // Model servers are few and asked often: a warm connection saves a TLS handshake a turn.
            .pool_idle_timeout(Duration::from_secs(300));
        match proxy {
            Some(proxy) => builder.proxy(proxy),
            None => builder,
        }
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that builds clients"
)]
fn builder(connect: Duration, idle: Duration) -> ClientBuilder {
    Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(connect)
        .read_timeout(idle)
        .tcp_keepalive(Duration::from_secs(60))
        // A peer that vanished is noticed although HTTP/2 keeps one connection for everything.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(20))
}

fn build(
    extra_ca: &[Certificate],
    make: impl FnOnce() -> ClientBuilder,
) -> Result<Client, NetError> {
    make()
        .tls_certs_merge(extra_ca.iter().cloned())
        .build()
        .map_err(NetError::Build)
}

pub(crate) fn certificates(pems: &[Vec<u8>]) -> Result<Vec<Certificate>, NetError> {
    let mut all = Vec::new();
    for pem in pems {
        let certificates = Certificate::from_pem_bundle(pem).map_err(NetError::Certificate)?;
        if certificates.is_empty() {
            return Err(NetError::NoCertificate);
        }
        all.extend(certificates);
    }
    Ok(all)
}

struct GuardedResolver(Arc<Policy>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.0.clone();
        Box::pin(async move {
            if let Some(ip) = name.as_str().strip_suffix(NOWHERE) {
                let ip = u128::from_str_radix(ip, 16).map_or(Ipv6Addr::LOCALHOST, Ipv6Addr::from);
                let ip = address::effective(ip.into());
                return Err(Box::new(Refused::Address {
                    host: ip.to_string(),
                    reason: address::special(ip).unwrap_or("this server"),
                }) as Box<dyn Error + Send + Sync>);
            }
            match policy.resolve(name.as_str(), 0).await {
                Ok(addrs) => Ok(Box::new(addrs.into_iter()) as Addrs),
                Err(error) => match Refused::inside(&error) {
                    Some(refused) => Err(Box::new(refused.clone()) as _),
                    None => Err(Box::new(error) as _),
                },
            }
        })
    }
}

/// The policy's refusal inside an error of a guarded client, if that is what it was.
#[must_use]
pub fn refusal(error: &reqwest::Error) -> Option<&Refused> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref() {
            return Some(refused);
        }
        next = error.source();
    }
    None
}

/// Reads a body of at most `max` bytes (after decompression), whatever its header claims.
///
/// # Errors
/// [`NetError::TooLarge`] as soon as it is known, [`NetError::Read`] when the body breaks off.
pub async fn read_limited(response: Response, max: usize) -> Result<Bytes, NetError> {
    if response.content_length().is_some_and(|n| n > max as u64) {
        return Err(NetError::TooLarge(max));
    }
    match read_start(response, max).await? {
        (body, true) => Ok(body),
        (_, false) => Err(NetError::TooLarge(max)),
    }
}

/// Reads a body up to `max` bytes (after decompression), and whether that is all of it.
///
/// # Errors
/// [`NetError::Read`] when the body breaks off before.
pub async fn read_start(mut response: Response, max: usize) -> Result<(Bytes, bool), NetError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(NetError::Read)? {
        let room = max - body.len();
        if chunk.len() > room {
            body.extend_from_slice(&chunk[..room]);
            return Ok((body.into(), false));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body.into(), true))
}
