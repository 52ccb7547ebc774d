//! Servers whose sandboxes are real containers, and what is left of them.

use std::{collections::BTreeMap, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::world::{Server, World, variable};

/// The image of sandboxes, as `./dev` made it.
pub fn image() -> String {
    variable("SELFSAME__SANDBOX__IMAGE").unwrap_or_else(|| "selfsame-sandbox:latest".into())
}

/// Runs `docker` with arguments to its end and returns what it printed.
pub async fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .context("docker")?;
    ensure!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A deployment's containers and images. They go with it.
pub struct Deployment {
    label: String,
}

impl Deployment {
    /// Whatever `server` and all others on its database make.
    pub fn of(server: &Server) -> Result<Self> {
        let log = server.whole_log();
        let (_, rest) = log
            .split_once("deployment.id=")
            .context("a deployment's id in the log")?;
        let id: String = rest
            .chars()
            .take_while(|c| c.is_ascii_hexdigit() || *c == '-')
            .collect();
        Ok(Self {
            label: format!("label=dev.selfsame.deployment={id}"),
        })
    }

    /// Names of the images it has made.
    pub async fn images(&self) -> Result<Vec<String>> {
        let format = "{{.Repository}}:{{.Tag}}";
        let list = docker(&["images", "--filter", &self.label, "--format", format]).await?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    /// Ids of its containers, running or not.
    pub async fn containers(&self) -> Result<Vec<String>> {
        let list = docker(&["ps", "-aq", "--no-trunc", "--filter", &self.label]).await?;
        Ok(list.lines().map(str::to_owned).collect())
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        // First those that were made of the images.
        for (list, remove) in [("ps", ["rm", "-fv"]), ("images", ["rmi", "-f"])] {
            let all = if list == "ps" { "-aq" } else { "-q" };
            let found = std::process::Command::new("docker")
                .args([list, all, "--filter", &self.label])
                .output();
            let found = found.map(|output| output.stdout).unwrap_or_default();
            let found = String::from_utf8_lossy(&found);
            let ids: Vec<&str> = found.lines().collect();
            if !ids.is_empty() {
                let _ = std::process::Command::new("docker")
                    .args(remove)
                    .args(ids)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
            }
        }
    }
}

/// Starts a server with sandboxes in Docker. What it makes is gone when the second value is.
pub async fn server(world: &World, settings: &[(&str, &str)]) -> Result<(Server, Deployment)> {
    // Containers and installations keep a machine busy: a lease must not run out for that alone.
    let mut all = vec![
        ("SELFSAME__SANDBOX__BACKEND", "docker"),
        ("SELFSAME__LEASE__TTL_SECONDS", "5"),
    ];
    all.extend(settings);
    let server = world.server_with(&all).await?;
    let deployment = Deployment::of(&server)?;
    Ok((server, deployment))
}

/// A container on the host's own network, for a program that a test wants to be real.
pub struct Helper {
    name: String,
}

impl Helper {
    /// Runs `script` in `image`.
    pub async fn start(
        image: &str,
        script: &str,
        environment: &BTreeMap<&str, String>,
    ) -> Result<Self> {
        let name = format!("selfsame-test-{}", uuid::Uuid::now_v7().simple());
        let variables: Vec<String> = environment
            .iter()
            .map(|(name, value)| format!("--env={name}={value}"))
            .collect();
        let mut arguments = vec![
            "run",
            "-d",
            "--rm",
            "--init",
            "--network=host",
            "--entrypoint=/bin/bash",
            "--name",
            &name,
        ];
        arguments.extend(variables.iter().map(String::as_str));
        arguments.extend([image, "-euc", script]);
        docker(&arguments).await?;
        Ok(Self { name })
    }

    pub async fn log(&self) -> String {
        docker(&["logs", &self.name]).await.unwrap_or_default()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker")
            .args(["rm", "-f", &self.name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Where the tests' own files are.
pub fn fixtures() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures"))
}
