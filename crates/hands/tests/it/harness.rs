use std::{path::PathBuf, sync::Arc, time::Duration};

use rustix::process::Signal;
use selfsame_hands::procs::Prey;
use selfsame_sandbox::{
    Backend, Call, CallResult, Handle, Key, ProcessBackend, Sandbox, SandboxError, Spec,
};
use selfsame_types::SandboxId;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One sandbox of plain processes, and a session with it.
pub(crate) struct Bench {
    pub(crate) backend: Arc<ProcessBackend>,
    pub(crate) handle: Handle,
    pub(crate) key: Key,
    pub(crate) sandbox: Sandbox,
    pub(crate) shell: Uuid,
    _base: TempDir,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::with_env(&[]).await
    }

    pub(crate) async fn with_env(env: &[(&str, &str)]) -> Self {
        Self::with(env, 0).await
    }

    /// On a machine that keeps so many bytes for itself.
    pub(crate) async fn with_low_water(bytes: u64) -> Self {
        Self::with(&[], bytes).await
    }

    async fn with(env: &[(&str, &str)], low_water: u64) -> Self {
        let base = TempDir::new().unwrap();
        let hands = env!("CARGO_BIN_EXE_selfsame-hands");
        let backend = Arc::new(
            ProcessBackend::new(hands, base.path())
                .unwrap()
                .low_water(low_water),
        );
        let mut spec = Spec::new(SandboxId::new(), "");
        spec.env = env
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        let handle = backend.create(&spec).await.unwrap();
        let key = Key::generate().unwrap();
        let sandbox = Sandbox::attach(&*backend, &handle, &key, 1).await.unwrap();
        Self {
            backend,
            handle,
            key,
            sandbox,
            shell: Uuid::now_v7(),
            _base: base,
        }
    }

    pub(crate) async fn attach(&self, epoch: u64) -> Result<Sandbox, SandboxError> {
        Sandbox::attach(&*self.backend, &self.handle, &self.key, epoch).await
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.backend.directory(&self.handle).unwrap()
    }

    /// A path below the directory that commands start in.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.place("/workspace").join(relative)
    }

    /// What a path of the sandbox is here.
    pub(crate) fn place(&self, path: &str) -> PathBuf {
        self.directory()
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    pub(crate) fn put(&self, relative: &str, content: impl AsRef<[u8]>) {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn make(&self, tool: &str, input: Value) -> Call {
        let id = Uuid::now_v7();
        Call {
            id,
            shell: self.shell,
            tool: tool.into(),
            input,
            spill_name: format!("sevt_{}", id.simple()),
        }
    }

    pub(crate) async fn run(&self, tool: &str, input: Value) -> CallResult {
        let call = self.make(tool, input);
        tokio::time::timeout(PATIENCE, self.sandbox.call(&call))
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn bash(&self, command: &str) -> CallResult {
        self.run("bash", json!({ "command": command })).await
    }

    /// The output of a command that must succeed.
    pub(crate) async fn ok(&self, command: &str) -> String {
        success(self.bash(command).await)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let marker = format!("HANDS_SANDBOX={}", self.directory().display());
        Prey {
            group: None,
            marker: Some(marker),
        }
        .signal(Signal::KILL);
    }
}

#[track_caller]
pub(crate) fn success(result: CallResult) -> String {
    assert!(!result.is_error, "{result:?}");
    result.joined_text()
}

#[track_caller]
pub(crate) fn failure(result: CallResult) -> String {
    assert!(result.is_error, "{result:?}");
    result.joined_text()
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "never happened: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
