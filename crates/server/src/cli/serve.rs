//! `selfsame serve`

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use secrecy::ExposeSecret as _;
use selfsame_store::Deployment;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    database::{Database, make_data_dir},
};
use crate::{
    app::App, assembly, bootstrap::FirstKey, config::Config, listen, metrics, router::router,
};

/// How often buckets of keys that are not used any more are forgotten.
const SHRINK_LIMITS: Duration = Duration::from_secs(60);

/// Runs until the first signal, drains, and answers when everything is at rest. A second signal
/// ends the process at once; what it leaves is what a crash would leave.
pub(super) async fn serve(context: Context) -> anyhow::Result<()> {
    let signals = Signals::new()?;
    let shutdown = CancellationToken::new();
    tokio::spawn(signals.watch(shutdown.clone()));
    metrics::install();
    crate::open_files::raise();
    make_data_dir(&context.config.data_dir)?;
    // Before the database: a port that is taken is the commonest mistake, and nothing is started yet.
    let address = context.config.server.listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let database = Database::open(&context).await?;
    let served = serve_with(&database, context.config, listener, shutdown).await;
    database.close().await;
    served
}

async fn serve_with(
    database: &Database,
    config: Config,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let store = crate::master_key::unlock(&config, database.store.clone()).await?;
    let fixed = config.auth.key.as_ref();
    let (deployment, first_key) =
        crate::bootstrap::bootstrap(&store, &config.data_dir, fixed).await?;
    let store = store
        .with_blobs(assembly::blobs(&config, &deployment)?)
        .with_file_limits(assembly::file_limits(&config));
    let address = listener.local_addr()?;
    let engine = assembly::engine(&config, store.clone(), &deployment).await?;
    engine.start().await.context("cannot start the engine")?;
    greet(address, first_key.as_ref());
    let drain = Duration::from_secs(config.server.drain_seconds);
    let following = tokio::spawn(crate::master_key::follow(config.clone(), store.clone()));
    let app = App::new(config, store, engine.clone(), deployment, shutdown.clone());
    announce(address, &app.deployment);

    let upkeep = tokio::spawn(metrics::upkeep());
    let shrinking = app.clone();
    let shrink = tokio::spawn(async move {
        let Some(limits) = &shrinking.limits else {
            return;
        };
        let mut every = tokio::time::interval(SHRINK_LIMITS);
        loop {
            every.tick().await;
            limits.shrink();
        }
    });
    let draining = async {
        shutdown.cancelled().await;
        engine.drain().await;
    };
    tokio::join!(
        listen::serve(listener, router(app), shutdown.clone(), drain),
        draining,
    );
    upkeep.abort();
    following.abort();
    shrink.abort();
    tracing::info!("stopped");
    Ok(())
}

fn announce(address: SocketAddr, deployment: &Deployment) {
    tracing::info!(
        %address,
        deployment.id = %deployment.id,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
}

/// What a person at a terminal wants to know.
fn greet(address: SocketAddr, first_key: Option<&FirstKey>) {
    println!("Selfsame is at http://{address} (documentation: http://{address}/docs)");
    let Some(first) = first_key else { return };
    println!(
        "\nThis is the first start. Your admin key, shown this once and kept in {}:\n\n    {}\n\n\
         Use it with any official SDK:\n\n    \
         export ANTHROPIC_BASE_URL=http://{address}\n    \
         export ANTHROPIC_API_KEY={}\n",
        first.file.display(),
        first.token.expose_secret(),
        first.token.expose_secret(),
    );
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    async fn watch(mut self, shutdown: CancellationToken) {
        self.next().await;
        tracing::info!("draining; a second signal stops at once");
        shutdown.cancel();
        self.next().await;
        tracing::warn!("stopped at once");
        std::process::exit(130);
    }
}
