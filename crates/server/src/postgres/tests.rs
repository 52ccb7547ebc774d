//! A real Postgres, started from what this machine has.

use std::os::unix::fs::PermissionsExt as _;

use selfsame_store::Store;

use super::*;

struct Directory {
    // Declared first: it is the outer one.
    root: tempfile::TempDir,
}

impl Directory {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        // Postgres may run as another user.
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { root }
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }
}

fn options(data_dir: &Path) -> Options<'_> {
    Options {
        data_dir,
        bin: None,
        search_path: OsStr::new("/usr/bin:/usr/local/bin"),
        connections: 4,
    }
}

/// Kills with SIGKILL, as a crash would.
async fn kill(pid: u32) {
    let killed = Command::new("kill").arg("-9").arg(pid.to_string()).status();
    assert!(killed.await.unwrap().success());
}

#[tokio::test]
async fn starts_is_shared_survives_a_crash_and_stops() {
    let directory = Directory::new();
    let data = directory.data();
    let postgres = Postgres::start(options(&data)).await.unwrap();
    let store = Store::connect(postgres.url(), 4).await.unwrap();
    store.ping().await.unwrap();

    // Another server is refused, a command is a guest, and its leaving stops nothing.
    let second = Postgres::start(options(&data)).await;
    assert!(matches!(second, Err(PostgresError::InUse { .. })));
    let guest = Postgres::visit(options(&data)).await.unwrap();
    assert_eq!(guest.url(), postgres.url());
    guest.stop().await;
    store.ping().await.unwrap();

    // Nobody else may enter.
    let place = postgres.cluster.place.clone();
    let mode = std::fs::metadata(&place.sockets)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o077, 0);

    // It comes back after a crash, with everything committed.
    let name = "survives";
    let operator = selfsame_store::Actor::default();
    store.workspace_create(name, &operator).await.unwrap();
    let pid = place.running_pid().unwrap();
    kill(pid).await;
    let back = async {
        while place.running_pid().is_none_or(|now| now == pid) || !place.is_ready(None) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(START_PATIENCE, back).await.unwrap();
    let store = Store::connect(postgres.url(), 4).await.unwrap();
    assert_eq!(store.workspace_list().await.unwrap()[0].name, name);

    // A killed server leaves it running, and the next one takes it over.
    let pid = place.running_pid().unwrap();
    let owned = postgres.owned.unwrap();
    owned.supervisor.abort();
    assert!(owned.supervisor.await.unwrap_err().is_cancelled());
    drop(owned._lock);
    let postgres = Postgres::start(options(&data)).await.unwrap();
    assert_eq!(place.running_pid(), Some(pid));
    store.ping().await.unwrap();

    postgres.stop().await;
    assert_eq!(place.running_pid(), None);

    // A command without a server starts and stops it.
    let visit = Postgres::visit(options(&data)).await.unwrap();
    Store::connect(visit.url(), 1)
        .await
        .unwrap()
        .ping()
        .await
        .unwrap();
    visit.stop().await;
    assert_eq!(place.running_pid(), None);
}

#[tokio::test]
async fn another_major_version_stops_the_start_and_says_how_to_upgrade() {
    let directory = Directory::new();
    let cluster = directory.data().join("postgres");
    std::fs::create_dir_all(&cluster).unwrap();
    std::fs::write(cluster.join("PG_VERSION"), "9\n").unwrap();
    // As root, a cluster is made by somebody else.
    let user = Place::prepare(&directory.data()).unwrap().user;
    if let Some(user) = user {
        std::os::unix::fs::chown(&cluster, Some(user.uid), Some(user.gid)).unwrap();
    }
    let data = directory.data();
    let error = Postgres::start(options(&data)).await.unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("PostgreSQL 9") && message.contains("pg_upgrade"),
        "{message}"
    );
    let without = Options {
        bin: Some(Path::new("/nonexistent")),
        ..options(&data)
    };
    let message = Postgres::start(without).await.unwrap_err().to_string();
    assert!(message.contains("there is: none"), "{message}");
}
