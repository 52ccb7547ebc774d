use std::sync::atomic::{AtomicUsize, Ordering};

use selfsame_store::Actor;
use selfsame_types::environment::Packages;
use sqlx::PgPool;
use tokio::sync::Notify;

use super::*;

/// Builds nothing, and counts how often it is asked to.
#[derive(Debug, Default)]
struct Fake {
    base: Mutex<String>,
    builds: AtomicUsize,
    there: Mutex<Vec<String>>,
    /// Says how the next builds end; nothing is a success.
    errors: Mutex<Vec<BuildError>>,
    begun: Notify,
    /// A build ends when told to, if there is one to wait for.
    gate: Option<Semaphore>,
}

#[async_trait]
impl Builder for Fake {
    fn backend(&self) -> &'static str {
        "fake"
    }
    async fn base(&self) -> Result<String, SandboxError> {
        Ok(self.base.lock().unwrap().clone())
    }
    async fn has(&self, image: &str) -> Result<bool, SandboxError> {
        Ok(self.there.lock().unwrap().iter().any(|one| one == image))
    }
    async fn build(&self, order: &Order) -> Result<(), BuildError> {
        self.builds.fetch_add(1, Ordering::SeqCst);
        self.begun.notify_one();
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        if let Some(error) = self.errors.lock().unwrap().pop() {
            return Err(error);
        }
        self.there.lock().unwrap().push(order.image.clone());
        Ok(())
    }
    async fn remove(&self, image: &str) -> Result<(), SandboxError> {
        self.there.lock().unwrap().retain(|one| one != image);
        Ok(())
    }
}

struct World {
    store: Store,
    workspace: WorkspaceId,
    config: CloudConfig,
    fake: Arc<Fake>,
}

impl World {
    async fn new(pool: PgPool, fake: Fake) -> Self {
        let store = Store::from_pool(pool);
        let workspace = store.workspace_create("w", &Actor::default()).await;
        Self {
            workspace: workspace.unwrap().id,
            store,
            config: CloudConfig {
                packages: Packages {
                    pip: vec!["x".to_owned()],
                    ..Packages::default()
                },
                ..CloudConfig::default()
            },
            fake: Arc::new(fake),
        }
    }

    /// One more server.
    fn server(&self) -> Arc<Images> {
        let builder: Arc<dyn Builder> = self.fake.clone();
        Images::new(
            builder,
            self.store.clone(),
            ServerId::new(),
            ImagesConfig {
                timeout: Duration::from_secs(60),
                concurrency: 1,
                retention: Duration::ZERO,
                builder_ttl: Duration::from_secs(30),
            },
            TaskTracker::new(),
            CancellationToken::new(),
        )
    }

    async fn image(&self, server: &Images) -> Result<String, ImageError> {
        let wanted = Wanted {
            workspace: self.workspace,
            environment: EnvironmentId::new(),
            session: SessionId::new(),
            config: &self.config,
        };
        server.image(&wanted).await
    }

    fn builds(&self) -> usize {
        self.fake.builds.load(Ordering::SeqCst)
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn many_sessions_on_several_servers_wait_for_one_build(pool: PgPool) {
    let fake = Fake {
        gate: Some(Semaphore::new(0)),
        ..Fake::default()
    };
    let world = World::new(pool, fake).await;
    let servers = [world.server(), world.server()];
    let sessions = (0..10).map(|n| world.image(&servers[n % 2]));
    let open = async {
        world.fake.begun.notified().await;
        // Enough for ten: that only one begins is what is tested.
        world.fake.gate.as_ref().unwrap().add_permits(10);
    };
    let (images, ()) = tokio::join!(futures_util::future::join_all(sessions), open);
    let images: Vec<String> = images.into_iter().map(|i| i.unwrap()).collect();
    assert!(images[0].starts_with(selfsame_sandbox::OWN_IMAGES));
    assert!(images.iter().all(|image| *image == images[0]));
    assert_eq!(world.builds(), 1);
    // From now on it is there.
    assert_eq!(world.image(&servers[1]).await.unwrap(), images[0]);
    assert_eq!(world.builds(), 1);
    // On another base it is another image.
    *world.fake.base.lock().unwrap() = "newer".to_owned();
    assert_ne!(world.image(&servers[1]).await.unwrap(), images[0]);
    assert_eq!(world.builds(), 2);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_failed_installation_is_told_and_remembered_and_a_broken_one_is_not(pool: PgPool) {
    let world = World::new(pool, Fake::default()).await;
    let server = world.server();
    *world.fake.errors.lock().unwrap() = vec![
        BuildError::Failed("no such package".to_owned()),
        BuildError::Sandbox(SandboxError::Lost),
    ];
    let broken = world.image(&server).await.unwrap_err();
    assert!(matches!(broken, ImageError::Sandbox(_)), "{broken}");
    for _ in 0..3 {
        let failed = world.image(&server).await.unwrap_err();
        assert!(matches!(failed, ImageError::Failed(text) if text == "no such package"));
    }
    assert_eq!(world.builds(), 2);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn names_that_are_no_packages_never_reach_a_sandbox(pool: PgPool) {
    let mut world = World::new(pool, Fake::default()).await;
    world.config.packages.pip = vec!["--pre".to_owned()];
    let refused = world.image(&world.server()).await.unwrap_err();
    assert!(matches!(refused, ImageError::Failed(text) if text.contains("--pre")));
    assert_eq!(world.builds(), 0);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn what_is_there_is_not_built_and_what_is_unused_goes(pool: PgPool) {
    let world = World::new(pool, Fake::default()).await;
    let server = world.server();
    let image = world.image(&server).await.unwrap();
    // The row is lost, as if the builder had died between its commit and saying so.
    let wanted = Wanted {
        workspace: world.workspace,
        environment: EnvironmentId::new(),
        session: SessionId::new(),
        config: &world.config,
    };
    server.missing(&wanted).await.unwrap();
    assert_eq!(world.image(&server).await.unwrap(), image);
    assert_eq!(world.builds(), 1);
    assert_eq!(server.reap().await.unwrap(), 1);
    assert!(world.fake.there.lock().unwrap().is_empty());
    assert_eq!(server.reap().await.unwrap(), 0);
    assert_eq!(world.image(&server).await.unwrap(), image);
    assert_eq!(world.builds(), 2);
}
