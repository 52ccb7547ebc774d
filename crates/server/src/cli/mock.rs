//! `selfsame mock`: a scripted model, for trying agents and clients without a key.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::net::TcpListener;

/// Runs until it is stopped. Everything it was told is forgotten then.
pub(super) async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    println!(
        "A scripted Messages API is at http://{address}\n\nUse it as the model of a server:\n\n    \
         SELFSAME__MODEL__BASE_URL=http://{address} ANTHROPIC_API_KEY=any selfsame serve\n\n\
         Tell an agent `!bash echo hello` and it calls that tool; rules are taken at \
         http://{address}/_mock/rules."
    );
    tokio::select! {
        served = selfsame_mock::serve(listener, selfsame_mock::Script::new()) => {
            served.context("the scripted model failed")
        }
        stopped = tokio::signal::ctrl_c() => stopped.context("cannot wait for a signal"),
    }
}
