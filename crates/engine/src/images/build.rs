//! Installs packages in a sandbox of their own and makes an image of it.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use async_trait::async_trait;
use selfsame_sandbox::{Backend, Handle, Key, Run, Sandbox, SandboxError};
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use super::{
    BuildError, Builder, Order,
    recipe::{self, Step},
};
use crate::{
    SandboxConfig,
    door::{Access, Door},
    sandboxes::spec,
    workbench::network,
};

/// One command's; the whole installation has a limit of its own, which is the operator's.
const STEP_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// What is kept of a command's output: its end, where the reason is.
const OUTPUT_LIMIT: usize = 16 << 10;
/// What of that is told to the client.
const REASON_LINES: usize = 20;
const REASON_CHARS: usize = 2000;

/// Builds images with the sandboxes of this server's backend.
#[derive(Debug)]
pub(crate) struct SandboxBuilder {
    pub backend: Arc<dyn Backend>,
    pub config: SandboxConfig,
    pub door: Door,
    /// Certificates that programs inside trust besides their image's own, as PEM.
    pub trust: Option<String>,
}

impl SandboxBuilder {
    /// Connects to the sandbox and opens the door to it, as the environment says.
    async fn attach(&self, handle: &Handle, order: &Order) -> Result<Sandbox, SandboxError> {
        // The key is used once: nobody connects to this sandbox a second time.
        let key = Key(rand::random());
        let sandbox = Sandbox::attach(&*self.backend, handle, &key, 0).await?;
        if let Some(limit) = self.config.disk_bytes {
            sandbox.watch_disk(Arc::clone(&self.backend), handle.clone(), limit);
        }
        if let Some(pem) = &self.trust {
            sandbox.trust(pem).await?;
        }
        if let Some(outgoing) = sandbox.outgoing() {
            let access = Access {
                session: order.session,
                // Packages come from no agent's servers.
                network: network(&order.networking, std::iter::empty()),
                repositories: Vec::new(),
                // An image is for many sessions: it has nobody's variables.
                wallet: None,
            };
            let (door, access) = (self.door.clone(), Some(Arc::new(access)));
            // Ends when the connection to the sandbox does.
            tokio::spawn(async move {
                let (_constant, access) = watch::channel(access);
                door.serve(outgoing, access).await;
            });
        }
        Ok(sandbox)
    }
}

#[async_trait]
impl Builder for SandboxBuilder {
    fn backend(&self) -> &str {
        self.backend.name()
    }

    async fn base(&self) -> Result<String, SandboxError> {
        self.backend.image_id(&self.config.image).await
    }

    async fn has(&self, image: &str) -> Result<bool, SandboxError> {
        self.backend.has_image(image).await
    }

    async fn build(&self, order: &Order) -> Result<(), BuildError> {
        let spec = spec(&self.config, order.sandbox, &self.config.image);
        let handle = self.backend.create(&spec).await?;
        let site = Site {
            backend: Arc::clone(&self.backend),
            handle: Some(handle.clone()),
        };
        let sandbox = self.attach(&handle, order).await?;
        install(&sandbox, order).await?;
        let labels = [
            (
                "dev.selfsame.environment".to_owned(),
                order.environment.to_string(),
            ),
            (
                "dev.selfsame.packages".to_owned(),
                order.recipe.count().to_string(),
            ),
        ];
        self.backend.commit(&handle, &order.image, &labels).await?;
        drop(sandbox);
        site.clear().await;
        Ok(())
    }

    async fn remove(&self, image: &str) -> Result<(), SandboxError> {
        self.backend.remove_image(image).await
    }
}

/// The sandbox that is built in. It goes whatever happens; if this server does, the reaper sees to it.
#[derive(Debug)]
struct Site {
    backend: Arc<dyn Backend>,
    handle: Option<Handle>,
}

impl Site {
    async fn clear(mut self) {
        if let Some(handle) = self.handle.take()
            && let Err(error) = self.backend.remove(&handle).await
        {
            tracing::warn!(%error, "cannot remove a sandbox in which packages were installed");
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            let site = Self {
                backend: Arc::clone(&self.backend),
                handle: Some(handle),
            };
            tokio::spawn(site.clear());
        }
    }
}

async fn install(sandbox: &Sandbox, order: &Order) -> Result<(), BuildError> {
    let recipe = &order.recipe;
    if let Some(apt) = recipe.apt() {
        step(sandbox, order, &apt).await?;
    }
    if let Some(probe) = recipe.probe() {
        let there = run(sandbox, probe).await?;
        if let Some(managers) = recipe.missing(&there.output) {
            step(sandbox, order, &managers).await?;
        }
    }
    for others in recipe.others() {
        step(sandbox, order, &others).await?;
    }
    run(sandbox, recipe::clean_up()).await?;
    Ok(())
}

async fn step(sandbox: &Sandbox, order: &Order, step: &Step) -> Result<(), BuildError> {
    let started = Instant::now();
    let ran = run(sandbox, step.argv.clone()).await?;
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(session = %order.session, environment = %order.environment, image = order.image,
        step = step.name, packages = step.packages, code = ran.code, elapsed_ms,
        "a step of an installation");
    if ran.code == Some(0) {
        return Ok(());
    }
    let mut text = format!(
        "The environment's packages could not be installed: {}",
        step.name
    );
    match ran.code {
        Some(code) => write!(text, " ended with status {code}."),
        None => write!(text, " took too long."),
    }
    .expect("a string takes everything");
    let reason = reason(&ran.output);
    if !reason.is_empty() {
        text.push('\n');
        text.push_str(&reason);
    }
    Err(BuildError::Failed(text))
}

async fn run(sandbox: &Sandbox, argv: Vec<String>) -> Result<selfsame_sandbox::Ran, BuildError> {
    let run = Run {
        id: Uuid::now_v7(),
        argv,
        env: recipe::environment(),
        cwd: Some("/".to_owned()),
        timeout: STEP_TIMEOUT,
        output_limit: OUTPUT_LIMIT,
    };
    match sandbox.run(&run).await {
        // The command cannot even be started: that is the image's fault.
        Err(SandboxError::Failed(reason)) => Err(BuildError::Failed(format!(
            "The environment's packages could not be installed: {reason}"
        ))),
        ran => Ok(ran?),
    }
}

/// The last lines of what a program printed, as plain text.
fn reason(output: &str) -> String {
    let plain = plain(output);
    let lines: Vec<&str> = plain
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    let text = lines[lines.len().saturating_sub(REASON_LINES)..].join("\n");
    let cut = text.chars().count().saturating_sub(REASON_CHARS);
    text.chars().skip(cut).collect()
}

/// Without colours and other commands to a terminal. A line that was written over is what it became.
fn plain(output: &str) -> String {
    let mut plain = String::with_capacity(output.len());
    let mut line = 0;
    let mut chars = output.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.next_if_eq(&'[').is_some() {
                    // Up to the letter that ends it.
                    while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {}
                }
                chars.next();
            }
            '\r' if chars.peek() != Some(&'\n') => plain.truncate(line),
            '\n' => {
                plain.push('\n');
                line = plain.len();
            }
            '\t' => plain.push(' '),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_end_as_plain_text() {
        let output =
            "Reading..\r\n10%\r20%\rdone\n\n\u{1b}[1;31mE:\u{1b}[0m Unable to locate\tit\u{7}\n";
        assert_eq!(reason(output), "Reading..\ndone\nE: Unable to locate it");
        let long: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let reason_of_long = reason(&long);
        assert!(reason_of_long.starts_with("line 80\n") && reason_of_long.ends_with("line 99"));
        assert_eq!(reason(&"é".repeat(5000)).chars().count(), REASON_CHARS);
        for cut in ["\u{1b}", "\u{1b}[", "\u{1b}[31", "\r", ""] {
            assert_eq!(reason(cut), "");
        }
    }
}
