use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker, errors::Error as DockerError};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

/// For one answer of the daemon, in seconds. Not for attached streams.
const TIMEOUT: u64 = 120;

/// A client for `host`, or for what the Docker client would take by default. Nothing is sent yet.
pub(super) fn connect(host: Option<&str>) -> Result<Docker, DockerError> {
    let Some(host) = host else {
        return Docker::connect_with_defaults();
    };
    match host.strip_prefix("tcp://") {
        Some(address) => tcp(address),
        None => Docker::connect_with_host(host),
    }
}

/// Plain TCP with Nagle's algorithm off. The library leaves it on, and each small message of an
/// attached stream then waits for the other side's delayed acknowledgement: 44 ms instead of 0.4.
fn tcp(address: &str) -> Result<Docker, DockerError> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    // As the library does it: a connection per request, because a daemon may close idle ones.
    let client = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector);
    Docker::connect_with_custom_transport(
        move |request: BollardRequest| {
            let answer = client.request(request);
            async move { answer.await.map_err(DockerError::from) }
        },
        Some(format!("http://{address}")),
        TIMEOUT,
        API_DEFAULT_VERSION,
    )
}
