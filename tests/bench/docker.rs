//! The Docker daemon, spoken to directly: floors without the cost of the command-line client.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{report::Sample, world};

const DEPLOYMENT: &str = "dev.selfsame.deployment";
const SANDBOX: &str = "dev.selfsame.sandbox";

pub struct Docker {
    http: reqwest::Client,
    url: String,
    image: String,
}

/// What making and using a container costs at least.
pub struct Floors {
    pub start: Sample,
    pub exec: Sample,
    pub all: Sample,
}

impl Docker {
    #[expect(
        clippy::disallowed_methods,
        reason = "a client of the daemon, not of the product"
    )]
    pub fn connect() -> Result<Self> {
        let host = world::variable("SELFSAME__SANDBOX__DOCKER_HOST")
            .or_else(|| world::variable("DOCKER_HOST"))
            .unwrap_or_else(|| "unix:///var/run/docker.sock".into());
        let builder = reqwest::Client::builder().no_proxy();
        let (builder, url) = match host.strip_prefix("unix://") {
            Some(path) => (builder.unix_socket(path), "http://docker".to_owned()),
            None => (builder, host.replacen("tcp://", "http://", 1)),
        };
        let image = world::variable("SELFSAME__SANDBOX__IMAGE")
            .unwrap_or_else(|| "selfsame-sandbox:latest".into());
        Ok(Self {
            http: builder.build()?,
            url,
            image,
        })
    }

    async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.context("the Docker daemon")?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.send(reqwest::Method::POST, path, Some(body)).await
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let path = format!("/containers/{id}?force=true&v=true");
        self.send(reqwest::Method::DELETE, &path, None).await?;
        Ok(())
    }

    async fn exec_true(&self, id: &str) -> Result<()> {
        let exec = json!({"Cmd": ["true"], "AttachStdout": true, "AttachStderr": true});
        let exec = self.post(&format!("/containers/{id}/exec"), exec).await?;
        let id = exec["Id"].as_str().context("an exec")?;
        // Answers when the command has ended.
        self.post(&format!("/exec/{id}/start"), json!({"Detach": false}))
            .await?;
        Ok(())
    }

    /// Plain containers of the sandbox image, one after another.
    pub async fn floors(&self) -> Result<Floors> {
        let (mut start, mut exec, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..8 {
            let begin = Instant::now();
            let container = json!({
                "Image": self.image, "Cmd": ["sleep", "1000"], "NetworkDisabled": true,
                "HostConfig": {"NetworkMode": "none"},
            });
            let container = self.post("/containers/create", container).await?;
            let id = container["Id"].as_str().context("a container")?;
            let measured: Result<()> = async {
                self.post(&format!("/containers/{id}/start"), json!({}))
                    .await?;
                start.push(begin.elapsed());
                for _ in 0..3 {
                    let one = Instant::now();
                    self.exec_true(id).await?;
                    exec.push(one.elapsed());
                    if exec.len() % 3 == 1 {
                        all.push(begin.elapsed());
                    }
                }
                Ok(())
            }
            .await;
            self.remove(id).await?;
            measured?;
        }
        Ok(Floors {
            start: Sample::new(start),
            exec: Sample::new(exec),
            all: Sample::new(all),
        })
    }

    /// Containers of this deployment: id and state.
    pub async fn sandboxes(&self, deployment: &str) -> Result<Vec<(String, String)>> {
        let filters = json!({"label": [format!("{DEPLOYMENT}={deployment}"), SANDBOX]}).to_string();
        let query: String = filters.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/containers/json?all=true&filters={query}");
        let listed = self.send(reqwest::Method::GET, &path, None).await?;
        let listed = listed.as_array().context("a list")?;
        Ok(listed
            .iter()
            .filter_map(|container| {
                let text = |field: &str| container[field].as_str().map(str::to_owned);
                text("Id").zip(text("State"))
            })
            .collect())
    }

    /// Waits until every sandbox has been stopped.
    pub async fn wait_stopped(&self, deployment: &str) -> Result<()> {
        let deadline = Instant::now() + 2 * world::DEADLINE;
        loop {
            let sandboxes = self.sandboxes(deployment).await?;
            if sandboxes.iter().all(|(_, state)| state == "exited") {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "never stopped: {sandboxes:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Removes everything that a deployment has made, its servers being gone.
    pub async fn remove_all(&self, deployment: &str) -> Result<()> {
        let sandboxes = self.sandboxes(deployment).await?;
        let removals = stream::iter(sandboxes)
            .map(|(id, _)| async move { self.remove(&id).await })
            .buffer_unordered(4);
        removals.try_collect::<()>().await
    }
}
