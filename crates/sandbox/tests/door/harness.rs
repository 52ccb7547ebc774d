//! A container with a server in charge of it, and servers for its programs to connect to.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use selfsame_sandbox::{
    Backend, Call, DockerBackend, DockerOptions, DoorState, Handle, Key, Limits, Outgoing, Sandbox,
    Spec,
};
use selfsame_types::SandboxId;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use uuid::Uuid;

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The static hands: `./dev hands` builds them and `./dev` names them.
fn hands() -> PathBuf {
    if let Some(path) = std::env::var_os("SELFSAME_HANDS") {
        return path.into();
    }
    let path = format!(
        "{}/../../target/{}-unknown-linux-gnu/hands/selfsame-hands",
        env!("CARGO_MANIFEST_DIR"),
        std::env::consts::ARCH
    );
    assert!(
        std::fs::exists(&path).unwrap(),
        "build the hands first: ./dev hands"
    );
    path.into()
}

fn image() -> String {
    std::env::var_os("SELFSAME_SANDBOX_IMAGE").map_or_else(
        || "selfsame-sandbox:latest".to_owned(),
        |name| name.into_string().unwrap(),
    )
}

/// One container and the server in charge of it.
#[derive(Clone)]
pub(crate) struct Inside {
    pub(crate) backend: Arc<DockerBackend>,
    pub(crate) handle: Handle,
    pub(crate) sandbox: Sandbox,
}

pub(crate) const KEY: Key = Key([7; 32]);

/// Runs `test` with a container of its own, which is removed afterwards, also when it fails.
pub(crate) async fn inside<F: Future<Output = ()> + Send + 'static>(
    test: impl FnOnce(Inside) -> F + Send + 'static,
) {
    let backend = DockerBackend::connect(DockerOptions {
        host: None,
        deployment: format!("test-{}", Uuid::now_v7().simple()),
        hands: hands(),
        runtime: None,
        pull: false,
        limits: Limits::default(),
        low_water_bytes: 0,
        start_concurrency: 4,
    })
    .await
    .unwrap();
    let backend = Arc::new(backend);
    let used = Arc::clone(&backend);
    let outcome = tokio::spawn(timeout(PATIENCE, async move {
        let spec = Spec::new(SandboxId::new(), image());
        let handle = used.create(&spec).await.unwrap();
        let sandbox = Sandbox::attach(&*used, &handle, &KEY, 1).await.unwrap();
        let door = sandbox.door().await.unwrap();
        assert_eq!(door, DoorState::Redirect);
        let inside = Inside {
            backend: used,
            handle,
            sandbox,
        };
        test(inside).await;
    }))
    .await;
    for left in backend.list().await.unwrap() {
        backend.remove(&left.handle).await.unwrap();
    }
    match outcome {
        Ok(outcome) => outcome.expect("the test took too long"),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

impl Inside {
    pub(crate) async fn run(&self, tool: &str, input: serde_json::Value) -> String {
        self.run_in(Uuid::nil(), tool, input).await
    }

    pub(crate) async fn run_in(&self, shell: Uuid, tool: &str, input: serde_json::Value) -> String {
        let id = Uuid::now_v7();
        let call = Call {
            id,
            shell,
            tool: tool.to_owned(),
            input,
            spill_name: id.to_string(),
        };
        let result = self.sandbox.call(&call).await.unwrap();
        self.sandbox.ack(id).await.unwrap();
        let text = result.joined_text();
        assert!(!result.is_error, "{text}");
        text.trim_end().to_owned()
    }

    pub(crate) async fn bash(&self, command: &str) -> String {
        self.run("bash", json!({ "command": command })).await
    }

    /// In a new shell, with the environment that shells have by now.
    pub(crate) async fn fresh(&self, command: &str) -> String {
        let input = json!({ "command": command });
        self.run_in(Uuid::now_v7(), "bash", input).await
    }

    /// Runs a script after the prelude below, in a shell of its own.
    pub(crate) async fn python(&self, script: &str) -> String {
        let shell = Uuid::now_v7();
        let path = format!("/tmp/{shell}.py");
        let script = format!("{PRELUDE}\n{script}");
        self.run("write", json!({"file_path": path, "content": script}))
            .await;
        let command = format!("python3 {path}");
        self.run_in(shell, "bash", json!({ "command": command }))
            .await
    }

    /// Median and largest time of small calls, as many as are over when `other` is.
    pub(crate) async fn calls_beside(
        &self,
        other: impl Future<Output = ()>,
    ) -> (Duration, Duration, usize) {
        let mut times = Vec::new();
        let mut other = std::pin::pin!(other);
        loop {
            let start = Instant::now();
            tokio::select! {
                biased;
                () = &mut other => break,
                // Does nothing, and needs a process of nobody.
                _ = self.bash("true") => times.push(start.elapsed()),
            }
        }
        times.sort();
        assert!(!times.is_empty(), "not a single call meanwhile");
        (times[times.len() / 2], times[times.len() - 1], times.len())
    }
}

/// `t` prints what a function returns or raises, and whether it was late.
pub(crate) const PRELUDE: &str = "
import errno, os, socket, struct, sys, time
def t(name, function):
    start = time.time()
    try:
        result = function()
    except OSError as error:
        result = errno.errorcode.get(error.errno, repr(error))
    took = time.time() - start
    print(name, result, *(['LATE'] if took > 2 else []), flush=True)
def dial(host, port=80, send=b''):
    s = socket.create_connection((host, port), 60)
    s.sendall(send)
    return s
def ask(host, port=80, send=b''):
    with dial(host, port, send) as s:
        s.shutdown(socket.SHUT_WR)
        parts = []
        while part := s.recv(65536):
            parts.append(part)
        return b''.join(parts)
";

/// What came to the door, in its order.
pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

/// Serves connections as a server would: by dialling. Hosts that `dial` does not know are refused.
pub(crate) fn serve(
    mut outgoing: mpsc::Receiver<Outgoing>,
    dial: impl Fn(&str) -> Option<SocketAddr> + Send + 'static,
) -> Seen {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Some(wanted) = outgoing.recv().await {
            let place = format!("{}:{}", wanted.host, wanted.port);
            noted.lock().unwrap().push(place);
            let Some(address) = dial(&wanted.host) else {
                wanted.refuse("not on the list").await;
                continue;
            };
            tokio::spawn(async move {
                let mut upstream = TcpStream::connect(address).await.unwrap();
                let mut carried = wanted.accept().await;
                if copy_bidirectional(&mut carried, &mut upstream)
                    .await
                    .is_err()
                {
                    // Whichever side is left must not take it for an end.
                    let _ = upstream.set_zero_linger();
                }
            });
        }
    });
    seen
}

/// A server that handles each connection with `handle`.
pub(crate) async fn server<F: Future<Output = ()> + Send + 'static>(
    handle: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handle(stream));
        }
    });
    address
}

/// Reads to the end, *then* answers with what it read.
pub(crate) async fn echo() -> SocketAddr {
    server(async |mut stream: TcpStream| {
        let mut read = Vec::new();
        if stream.read_to_end(&mut read).await.is_ok() {
            let _ = stream.write_all(&read).await;
        }
    })
    .await
}

static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// Sends as many zeros as the first line asks for.
pub(crate) async fn bulk() -> SocketAddr {
    server(async |stream: TcpStream| {
        let mut stream = tokio::io::BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let mut left: usize = line.trim().parse().unwrap();
        while left > 0 {
            let part = &ZEROS[..left.min(ZEROS.len())];
            if stream.write_all(part).await.is_err() {
                return;
            }
            left -= part.len();
            // Hundreds of these share a thread with the server that is measured.
            tokio::task::yield_now().await;
        }
        let _ = stream.shutdown().await;
    })
    .await
}
