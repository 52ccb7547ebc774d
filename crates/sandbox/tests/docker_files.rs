//! Files, commands of the server's own and images, over the Docker backend with the real hands.

mod support;

use std::time::{Duration, Instant};

use bollard::Docker;
use selfsame_sandbox::{
    Backend, DockerBackend, Handle, Key, Limits, Put, Run, Sandbox, SandboxError, Spec,
};
use selfsame_types::SandboxId;
use support::{bash, deployment, image};
use tokio::io::{AsyncReadExt, repeat};
use uuid::Uuid;

const KEY: Key = Key([7; 32]);

async fn started(backend: &DockerBackend, spec: &Spec) -> (Handle, Sandbox) {
    let handle = backend.create(spec).await.unwrap();
    let sandbox = Sandbox::attach(backend, &handle, &KEY, 1).await.unwrap();
    (handle, sandbox)
}

fn spec() -> Spec {
    Spec::new(SandboxId::new(), image())
}

async fn put(sandbox: &Sandbox, path: &str, mode: u32, content: &[u8]) -> Result<(), SandboxError> {
    let file = Put {
        path: path.to_owned(),
        mode,
        size: content.len() as u64,
    };
    sandbox.put(&file, content).await
}

async fn get(sandbox: &Sandbox, path: &str) -> Result<Vec<u8>, String> {
    let got = sandbox.get(path, 1 << 30).await;
    let mut content = Vec::new();
    got.map_err(|error| error.to_string())?
        .read_to_end(&mut content)
        .await
        .map_err(|error| error.to_string())?;
    Ok(content)
}

fn command(argv: &[&str]) -> Run {
    Run {
        id: Uuid::now_v7(),
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: Vec::new(),
        cwd: None,
        timeout: Duration::from_secs(20),
        output_limit: 4096,
    }
}

#[tokio::test]
async fn files_in_a_container() {
    deployment(Limits::default(), |backend| async move {
        let (_, sandbox) = started(&backend, &spec()).await;
        put(&sandbox, "/mnt/session/uploads/a/data.csv", 0o444, b"1,2\n").await.unwrap();
        let facts = "stat -c '%a %u:%g %s' /mnt/session/uploads/a/data.csv; stat -c %a /mnt/session/uploads/a";
        assert_eq!(bash(&sandbox, facts).await, "444 0:0 4\n755");
        assert!(sandbox.link("/data.csv", "/mnt/session/uploads/a/data.csv").await.unwrap());
        assert!(!sandbox.link("/etc/passwd", "/x").await.unwrap());
        assert_eq!(bash(&sandbox, "cat /data.csv").await, "1,2");

        // What another user inside may do changes nothing, nor does a link in the way.
        bash(&sandbox, "mkdir /tmp/o; chmod 2777 /tmp/o; chgrp 99 /tmp/o; ln -s /etc /workspace/etc").await;
        put(&sandbox, "/tmp/o/x", 0o600, b"x").await.unwrap();
        assert_eq!(bash(&sandbox, "stat -c '%a %u:%g' /tmp/o/x").await, "600 0:0");
        for path in ["/workspace/etc/passwd", "/workspace/../etc/passwd", "/dev/zero", "/proc"] {
            get(&sandbox, path).await.unwrap_err();
        }
        let error = put(&sandbox, "/workspace/etc/cron.d/x", 0o644, b"x").await.unwrap_err();
        assert!(matches!(error, SandboxError::Failed(_)), "{error:?}");
        let error = put(&sandbox, "/selfsame/hands", 0o644, b"x").await.unwrap_err();
        assert_eq!(error.to_string(), "/selfsame/hands: read-only file system");
        bash(&sandbox, "mkfifo /tmp/fifo").await;
        assert_eq!(get(&sandbox, "/tmp/fifo").await.unwrap_err(), "/tmp/fifo: not a regular file");

        assert_eq!(sandbox.outputs().await.unwrap(), 0);
        bash(&sandbox, "mkdir /mnt/session/outputs/d; seq 5 > /mnt/session/outputs/d/five").await;
        assert_ne!(sandbox.outputs().await.unwrap(), 0);
        let found = sandbox.walk("/mnt/session/outputs", 10).await.unwrap();
        assert_eq!((found[0].path.as_str(), found[0].size), ("d/five", 10));
        assert_eq!(get(&sandbox, "/mnt/session/outputs/d/five").await.unwrap(), b"1\n2\n3\n4\n5\n");
        sandbox.remove("/data.csv").await.unwrap();
        assert_eq!(bash(&sandbox, "ls /data.csv 2>/dev/null || echo gone").await, "gone");
    })
    .await;
}

#[tokio::test]
async fn commands_of_the_server_in_a_container() {
    deployment(Limits::default(), |backend| async move {
        let (_, sandbox) = started(&backend, &spec()).await;
        let init = Run {
            cwd: Some("/workspace".into()),
            ..command(&["git", "init", "-q", "repo"])
        };
        let ran = sandbox.run(&init).await.unwrap();
        assert_eq!((ran.code, ran.output.as_str()), (Some(0), ""));
        let status = Run {
            cwd: Some("/workspace/repo".into()),
            ..command(&["git", "status", "--short"])
        };
        put(&sandbox, "/workspace/repo/a", 0o644, b"")
            .await
            .unwrap();
        assert_eq!(sandbox.run(&status).await.unwrap().output, "?? a\n");
        let slow = Run {
            timeout: Duration::from_millis(200),
            ..command(&["sleep", "1000"])
        };
        let ran = sandbox.run(&slow).await.unwrap();
        assert_eq!((ran.code, ran.timed_out), (None, true));
        assert_eq!(bash(&sandbox, "pgrep -c sleep || true").await, "0");
        // The outcome of the whole container, not of this command, if memory is what it lacks.
        let ran = sandbox
            .run(&command(&["sh", "-c", "exit 42"]))
            .await
            .unwrap();
        assert_eq!(ran.code, Some(42));
    })
    .await;
}

/// The figures of one large transfer each way, through a daemon.
#[tokio::test]
async fn large_files_stream() {
    const SIZE: u64 = 200 << 20;
    deployment(Limits::default(), |backend| async move {
        let (_, sandbox) = started(&backend, &spec()).await;
        let resident = "awk '/^VmRSS/ {print $2}' /proc/1/status";
        put(&sandbox, "/workspace/warm", 0o644, &vec![1; 8 << 20])
            .await
            .unwrap();
        let before: u64 = bash(&sandbox, resident).await.parse().unwrap();
        let file = Put {
            path: "/workspace/large".into(),
            mode: 0o644,
            size: SIZE,
        };
        let began = Instant::now();
        sandbox.put(&file, repeat(42).take(SIZE)).await.unwrap();
        let put = began.elapsed();
        let sum =
            "head -c 209715200 /dev/zero | tr '\\0' '*' | cmp - /workspace/large && echo same";
        assert_eq!(bash(&sandbox, sum).await, "same");
        let began = Instant::now();
        let mut got = sandbox.get("/workspace/large", SIZE).await.unwrap();
        let length = tokio::io::copy(&mut got, &mut tokio::io::sink())
            .await
            .unwrap();
        assert_eq!(length, SIZE);
        let after: u64 = bash(&sandbox, resident).await.parse().unwrap();
        println!(
            "200 MB through Docker: put {put:?}, get {:?}; hands {before} -> {after} KiB",
            began.elapsed()
        );
        assert!(
            after < before + 4096,
            "the hands grew from {before} to {after} KiB"
        );
    })
    .await;
}

#[tokio::test]
async fn an_image_of_a_sandbox_is_the_image_of_others() {
    deployment(Limits::default(), |backend| async move {
        let name = format!("selfsame-test-image:{}", Uuid::now_v7().simple());
        let mut first = spec();
        first.env = vec![("FIRST".into(), "1".into())];
        let (handle, sandbox) = started(&backend, &first).await;
        bash(&sandbox, "echo kept > /opt/made; chmod 4755 /opt/made; echo x > /mnt/session/outputs/x; sleep 1000 & echo").await;
        assert!(!backend.has_image(&name).await.unwrap());
        let labels = [("dev.selfsame.packages".to_owned(), "hash".to_owned())];
        backend.commit(&handle, &name, &labels).await.unwrap();
        // The sandbox goes on.
        assert_eq!(bash(&sandbox, "echo here").await, "here");
        assert!(backend.has_image(&name).await.unwrap());
        // Again, under the same name: the one before is no more.
        let docker = Docker::connect_with_defaults().unwrap();
        let replaced = docker.inspect_image(&name).await.unwrap().id.unwrap();
        backend.commit(&handle, &name, &labels).await.unwrap();
        docker.inspect_image(&replaced).await.unwrap_err();

        let config = docker.inspect_image(&name).await.unwrap().config.unwrap();
        assert_eq!(config.entrypoint, Some(vec!["/bin/bash".to_owned()]));
        assert_eq!(config.cmd, None);
        let labels = config.labels.unwrap();
        assert_eq!(labels["dev.selfsame.packages"], "hash");
        assert_eq!(labels["dev.selfsame.sandbox"], "");
        assert!(labels["dev.selfsame.deployment"].starts_with("test-"));

        let second = Spec::new(SandboxId::new(), name.clone());
        let (other, sandbox) = started(&backend, &second).await;
        let facts = "cat /opt/made; stat -c %a /opt/made; id -u; pwd; cat /proc/1/cmdline | tr '\\0' ' '; pgrep -c sleep";
        assert_eq!(bash(&sandbox, &format!("{facts} || true")).await, "kept\n4755\n0\n/workspace\n/selfsame/hands serve 0");
        // Its own hands, on their volume, are all there is.
        assert_eq!(bash(&sandbox, "ls /selfsame | grep -cv '^hands$\\|^partial-' || true").await, "0");
        let mut listed: Vec<_> = backend.list().await.unwrap().into_iter().map(|one| one.id).collect();
        listed.sort();
        let mut made = vec![first.id, second.id];
        made.sort();
        assert_eq!(listed, made);

        // In use it stays; afterwards it goes, and going twice is fine.
        backend.remove_image(&name).await.unwrap_err();
        backend.remove(&other).await.unwrap();
        backend.remove_image(&name).await.unwrap();
        backend.remove_image(&name).await.unwrap();
        assert!(!backend.has_image(&name).await.unwrap());
        backend.commit(&handle, "no-tag", &[]).await.unwrap_err();
        backend.remove(&handle).await.unwrap();
        assert!(matches!(backend.commit(&handle, &name, &[]).await, Err(SandboxError::Gone)));
    })
    .await;
}
