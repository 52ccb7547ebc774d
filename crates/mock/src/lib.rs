#![doc = include_str!("../README.md")]

mod control;
mod demo;
mod fill;
mod gate;
pub mod messages;
pub mod oauth;
mod play;
mod request;
mod rule;
mod script;
mod usage;
mod validate;
mod wire;

pub use rule::{Answer, Broken, Chunks, Cut, Drip, Failure, Refusal, Rule, Step, Stop, Tool, When};
pub use script::{Logged, Script};

use axum::serve::ListenerExt;
use tokio::{net::TcpListener, task::JoinHandle};

/// Serves the mock on `listener` until the future is dropped.
///
/// # Errors
/// Never at present; connections that fail are dropped.
pub async fn serve(listener: TcpListener, script: Script) -> std::io::Result<()> {
    // Small events must not wait for the acknowledgement of the ones before.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });
    axum::serve(listener, messages::router(script)).await
}

/// Serves the mock on a free port of 127.0.0.1 until the returned value is dropped.
///
/// # Errors
/// When no port can be had.
pub async fn spawn(script: Script) -> std::io::Result<Running> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let task = tokio::spawn(async move {
        let _ = serve(listener, script).await;
    });
    Ok(Running { url, task })
}

/// A mock that serves; dropping it ends that.
#[derive(Debug)]
pub struct Running {
    url: String,
    task: JoinHandle<()>,
}

impl Running {
    /// The base URL for a client, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}
