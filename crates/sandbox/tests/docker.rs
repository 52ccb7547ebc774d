//! [`DockerBackend`] on a real daemon. Without one these tests fail: nothing is skipped.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use bollard::{Docker, query_parameters::RemoveVolumeOptions};
use selfsame_sandbox::{
    Backend, DockerBackend, DockerOptions, Handle, Limits, SandboxError, Spec, Status,
};
use selfsame_types::SandboxId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, UnixStream},
    time::timeout,
};
use uuid::Uuid;

const SOCKET: &str = "/var/run/docker.sock";
const PATIENCE: Duration = Duration::from_secs(60);

/// The default image, as `./dev image` names it.
fn image() -> String {
    std::env::var_os("SELFSAME_SANDBOX_IMAGE").map_or_else(
        || "selfsame-sandbox:latest".to_owned(),
        |name| name.into_string().unwrap(),
    )
}

/// The stand-in, compiled once per process.
fn stand_in() -> &'static [u8] {
    static BINARY: OnceLock<Vec<u8>> = OnceLock::new();
    BINARY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/stand_in.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let status = Command::new(rustc)
            .args([
                "--edition=2024",
                "-Ctarget-feature=+crt-static",
                "-Copt-level=1",
            ])
            .args(["-Cstrip=symbols", "--target", &host_target(), "-o"])
            .arg(dir.path().join("stand-in"))
            .arg(source)
            .status()
            .unwrap();
        assert!(
            status.success(),
            "the stand-in for the hands does not compile"
        );
        std::fs::read(dir.path().join("stand-in")).unwrap()
    })
}

fn host_target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// A deployment of its own: hands of its own (so that a fresh volume is filled) and containers
/// that nobody else lists. Everything is removed afterwards, also when the test fails.
async fn deployment(test: impl AsyncFnOnce(DockerOptions) + 'static) {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("test-{}", Uuid::now_v7().simple());
    let hands = dir.path().join("hands");
    // What follows the program in its file changes the hash and nothing else.
    std::fs::write(&hands, [stand_in(), name.as_bytes()].concat()).unwrap();
    let options = DockerOptions {
        host: None,
        deployment: name.clone(),
        hands: hands.clone(),
        runtime: None,
        pull: false,
        limits: Limits {
            memory_bytes: Some(256 << 20),
            ..Limits::default()
        },
        low_water_bytes: 0,
        start_concurrency: 4,
    };
    let local = tokio::task::LocalSet::new();
    let given = options.clone();
    let outcome = local
        .run_until(async move {
            tokio::task::spawn_local(async move { timeout(PATIENCE, test(given)).await }).await
        })
        .await;
    let backend = DockerBackend::connect(options).await.unwrap();
    for left in backend.list().await.unwrap() {
        backend.remove(&left.handle).await.unwrap();
    }
    let _ = remove_volume(&hands).await;
    match outcome {
        Ok(result) => result.expect("the test took too long"),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

async fn remove_volume(hands: &Path) -> Result<(), bollard::errors::Error> {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(std::fs::read(hands).unwrap());
    let hex: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
    Docker::connect_with_defaults()
        .unwrap()
        .remove_volume(
            &format!("selfsame-hands-{hex}"),
            None::<RemoveVolumeOptions>,
        )
        .await
}

fn spec() -> Spec {
    Spec::new(SandboxId::new(), image())
}

/// Standard output of a shell script run inside.
async fn run(backend: &DockerBackend, handle: &Handle, script: &str) -> String {
    let mut stream = backend.connect(handle).await.unwrap();
    stream
        .write_all(format!("{script}\nexit\n").as_bytes())
        .await
        .unwrap();
    let mut output = String::new();
    stream.read_to_string(&mut output).await.unwrap();
    output.trim_end().to_owned()
}

#[tokio::test]
async fn files_outlive_a_stop_and_nothing_outlives_a_removal() {
    deployment(async |options| {
        let backend = DockerBackend::connect(options).await.unwrap();
        backend.ensure_image(&image()).await.unwrap();
        assert!(backend.name().starts_with("docker:"));
        let spec = spec();
        let handle = backend.create(&spec).await.unwrap();
        assert_eq!(backend.status(&handle).await.unwrap(), Status::Running);
        run(&backend, &handle, "echo kept > file").await;

        backend.stop(&handle).await.unwrap();
        backend.stop(&handle).await.unwrap();
        assert_eq!(backend.status(&handle).await.unwrap(), Status::Stopped);
        let refused = backend.connect(&handle).await.unwrap_err();
        assert!(matches!(refused, SandboxError::Stopped), "{refused:?}");

        backend.start(&handle).await.unwrap();
        backend.start(&handle).await.unwrap();
        assert_eq!(run(&backend, &handle, "cat /workspace/file").await, "kept");

        let listed = backend.list().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((&listed[0].handle, listed[0].id), (&handle, spec.id));

        backend.remove(&handle).await.unwrap();
        backend.remove(&handle).await.unwrap();
        assert_eq!(backend.status(&handle).await.unwrap(), Status::Gone);
        assert_eq!(backend.list().await.unwrap(), []);
        for outcome in [
            backend.start(&handle).await,
            backend.stop(&handle).await,
            backend.connect(&handle).await.map(drop),
        ] {
            assert!(matches!(outcome, Err(SandboxError::Gone)), "{outcome:?}");
        }
    })
    .await;
}

/// Forks until it may not, and prints how often it could.
const FORKS: &str = "
import os, signal
children = []
try:
    while len(children) < 200:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except OSError:
    pass
for child in children:
    os.kill(child, signal.SIGKILL)
print(len(children))
";

#[tokio::test]
async fn the_container_is_hardened_as_seen_from_inside() {
    deployment(async |options| {
        let backend = DockerBackend::connect(options).await.unwrap();
        let mut spec = spec();
        spec.disk_bytes = Some(1 << 20);
        spec.pids = Some(64);
        spec.env = vec![("GREETING".to_owned(), "a = b".to_owned())];
        let handle = backend.create(&spec).await.unwrap();
        let inside = async |script: &str| run(&backend, &handle, script).await;

        // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETFCAP, and no way to more; also
        // NET_ADMIN NET_BIND_SERVICE SETPCAP, which the hands give up but the stand-in does not.
        let status = inside("grep -E '^(Cap(Eff|Bnd)|NoNewPrivs|Seccomp):' /proc/1/status").await;
        let facts: Vec<_> = status.split_whitespace().collect();
        assert_eq!(
            facts,
            [
                "CapEff:",
                "00000000800015fb",
                "CapBnd:",
                "00000000800015fb",
                "NoNewPrivs:",
                "1",
                "Seccomp:",
                "2"
            ]
        );
        assert_eq!(inside("ls /sys/class/net").await, "lo");
        assert_eq!(inside("cat /proc/net/route | wc -l").await, "1");
        assert_eq!(
            inside("id -u; pwd; hostname").await,
            "0\n/workspace\nsandbox"
        );
        assert_eq!(inside("echo $GREETING").await, "a = b");
        assert_eq!(inside("ulimit -c").await, "0");
        assert_eq!(
            inside("touch /selfsame/x 2>/dev/null || echo refused").await,
            "refused"
        );
        assert_eq!(
            inside("ls /var/run/docker.sock 2>/dev/null || echo none").await,
            "none"
        );
        assert_eq!(
            inside("mount -t tmpfs none /mnt 2>/dev/null || echo refused").await,
            "refused"
        );
        assert_eq!(
            inside("mknod /tmp/disk b 8 0 2>/dev/null || echo refused").await,
            "refused"
        );
        // More than the limit in one file.
        let script =
            "trap '' XFSZ; head -c 2000000 /dev/zero > /tmp/big 2>/dev/null; stat -c %s /tmp/big";
        assert_eq!(inside(script).await, "1048576");
        // More processes than the limit.
        let children = inside(&format!("python3 -c '{FORKS}'")).await;
        assert!(
            (1..64).contains(&children.parse().unwrap_or(0)),
            "{children}"
        );
    })
    .await;
}

#[tokio::test]
async fn what_package_managers_do_works() {
    deployment(async |options| {
        let backend = DockerBackend::connect(options).await.unwrap();
        let handle = backend.create(&spec()).await.unwrap();
        let script = "useradd --create-home bob && touch /home/bob/x && chown bob:bob /home/bob/x \
                      && chmod u+s /home/bob/x && su bob -c 'id -un; stat -c %A:%U ~/x'";
        assert_eq!(run(&backend, &handle, script).await, "bob\n-rwSr--r--:bob");
        let script = "python3 -m venv --without-pip /tmp/venv && /tmp/venv/bin/python -c 'print(1)' \
                      && npm --version >/dev/null && git init -q /workspace/r && rg --version | head -c 7";
        assert_eq!(run(&backend, &handle, script).await, "1\nripgrep");
    })
    .await;
}

#[tokio::test]
async fn standard_error_stays_out_of_the_stream() {
    deployment(async |options| {
        let backend = DockerBackend::connect(options).await.unwrap();
        let handle = backend.create(&spec()).await.unwrap();
        let script = "echo noise >&2; head -c 300000 /dev/zero | tr '\\0' x; echo noise >&2";
        let output = run(&backend, &handle, script).await;
        assert_eq!(output.len(), 300_000);
        assert!(output.bytes().all(|byte| byte == b'x'));
    })
    .await;
}

#[tokio::test]
async fn a_missing_image_is_named_with_what_to_do() {
    deployment(async |options| {
        let backend = DockerBackend::connect(options).await.unwrap();
        let spec = Spec::new(SandboxId::new(), "selfsame-no-such-image:1");
        let error = backend.create(&spec).await.unwrap_err();
        assert!(matches!(error, SandboxError::NoImage(_)), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("selfsame-no-such-image:1") && text.contains("docker build"),
            "{text}"
        );
        let error = backend.ensure_image(&spec.image).await.unwrap_err();
        assert!(matches!(error, SandboxError::NoImage(_)), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn failures_leave_nothing_behind() {
    deployment(async |options| {
        let backend = DockerBackend::connect(options).await.unwrap();
        let mut spec = spec();
        // Less than a container can have.
        spec.memory_bytes = Some(4096);
        backend.create(&spec).await.unwrap_err();
        assert_eq!(backend.list().await.unwrap(), []);
        // A second sandbox of the same id is refused and does not harm the first.
        spec.memory_bytes = None;
        let handle = backend.create(&spec).await.unwrap();
        backend.create(&spec).await.unwrap_err();
        assert_eq!(run(&backend, &handle, "echo here").await, "here");
    })
    .await;
}

#[tokio::test]
async fn servers_share_one_volume_and_refill_a_pruned_one() {
    deployment(async |options| {
        let hands: PathBuf = options.hands.clone();
        let first = DockerBackend::connect(options.clone()).await.unwrap();
        let second = DockerBackend::connect(options).await.unwrap();
        let (one, two, three, four) = (spec(), spec(), spec(), spec());
        let (a, b, c) = tokio::join!(
            first.create(&one),
            first.create(&two),
            second.create(&three)
        );
        let handles = [a.unwrap(), b.unwrap(), c.unwrap()];
        for handle in &handles {
            assert_eq!(run(&second, handle, "echo here").await, "here");
        }
        assert_eq!(first.list().await.unwrap().len(), 3);
        for handle in &handles {
            second.remove(handle).await.unwrap();
        }
        remove_volume(&hands).await.unwrap();
        let handle = first.create(&four).await.unwrap();
        assert_eq!(run(&first, &handle, "echo again").await, "again");
        // Also the container that could not start for want of its hands is gone.
        assert_eq!(first.list().await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_daemon_behind_tcp_works_the_same() {
    deployment(async |mut options| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        options.host = Some(format!("tcp://{}", listener.local_addr().unwrap()));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut daemon = UnixStream::connect(SOCKET).await.unwrap();
                    let _ = copy_bidirectional(&mut client, &mut daemon).await;
                });
            }
        });
        let backend = DockerBackend::connect(options).await.unwrap();
        let handle = backend.create(&spec()).await.unwrap();
        assert_eq!(run(&backend, &handle, "echo far").await, "far");
    })
    .await;
}

#[tokio::test]
async fn an_absent_daemon_or_runtime_is_a_clear_error() {
    deployment(async |options| {
        let absent = DockerOptions {
            host: Some("tcp://127.0.0.1:1".to_owned()),
            ..options.clone()
        };
        let error = DockerBackend::connect(absent).await.unwrap_err();
        assert!(
            error.to_string().contains("reach the Docker daemon"),
            "{error}"
        );
        let foreign = DockerOptions {
            runtime: Some("no-such-runtime".to_owned()),
            ..options
        };
        let error = DockerBackend::connect(foreign).await.unwrap_err();
        let SandboxError::Backend { source, .. } = error else {
            panic!("{error:?}");
        };
        assert!(source.to_string().contains("no-such-runtime"), "{source}");
    })
    .await;
}
