//! Repositories: cloned inside the sandbox, by its own `git`, through the door.
//!
//! Nothing of a repository touches the server's disk, and its token never enters the sandbox: `git` is
//! told to reach the repository's host by a proxy that only the door serves, and the door adds the token
//! on the way. `origin` is the plain https URL, so pulling and pushing later work the same way.

use std::{collections::HashSet, time::Duration};

use selfsame_sandbox::{DoorState, Put, Ran, Run, Sandbox, SandboxError};
use selfsame_store::{ResourceKind, ResourceRecord};
use selfsame_types::{
    SessionId,
    session::{GithubCheckout, GithubRepositoryResource, SessionResource},
};
use uuid::Uuid;

use super::{Fit, FitError, Outfit, Workbench, briefing::Findings};
use crate::{
    door::GIT_PROXY,
    machine::{About, ErrorType, Trouble},
    resources,
};

/// The certificate by which `git` knows the door.
const CA_FILE: &str = "/run/selfsame/git-ca.pem";
/// Stands in the list of what is mounted for git's configuration.
const CONFIGURED: Uuid = Uuid::from_u128(2);
const CLONE_TIMEOUT: Duration = Duration::from_mins(10);
const GIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Of git's output, for telling what went wrong.
const OUTPUT: usize = 4096;
/// Repository skills that are looked at.
const MAX_SKILLS: usize = 64;
const MAX_SKILL_BYTES: u64 = 64 << 10;

impl Workbench {
    /// Clones what is missing. A repository that cannot be cloned is a trouble: it is said each time, and
    /// tried again the next time the sandbox is connected.
    pub(super) async fn bring_repositories(
        &self,
        session: SessionId,
        sandbox: &Sandbox,
        wanted: &Outfit,
        mounted: &mut HashSet<Uuid>,
        fit: &mut Fit,
    ) -> Result<(), FitError> {
        let repositories: Vec<_> = repositories(wanted)?;
        if repositories.is_empty() {
            return Ok(());
        }
        let missing = |mounted: &HashSet<Uuid>| {
            repositories
                .iter()
                .any(|(record, _)| !mounted.contains(&record.id.0))
        };
        // Without a door there is no way to clone, and without isolation `git`'s system configuration
        // is the server's own.
        let doorless = missing(mounted) && matches!(sandbox.door().await?, DoorState::None { .. });
        for (record, repository) in &repositories {
            if mounted.contains(&record.id.0) {
                continue;
            }
            if doorless {
                let error = ErrorType::RepositoryCloneError;
                let reason = "sandboxes of this server have no way out";
                fit.troubles.push(trouble(error, repository, reason));
                continue;
            }
            if let Err(trouble) = self.configure(sandbox, repository, mounted).await? {
                fit.troubles.push(trouble);
                continue;
            }
            match clone(sandbox, record, repository).await? {
                Ok(()) => {
                    mounted.insert(record.id.0);
                }
                Err(trouble) => {
                    tracing::info!(%session, url = repository.url, reason = trouble.message,
                        "a repository could not be cloned");
                    fit.troubles.push(trouble);
                }
            }
        }
        // Looked for once, when all are there: the prompt stays the same from then on.
        if wanted.equipment.findings.is_none() && !missing(mounted) {
            let mut findings = Findings::default();
            for (_, repository) in &repositories {
                look(sandbox, &repository.mount_path, &mut findings).await?;
            }
            let findings = crate::change::text(&findings);
            self.store.session_findings(session, &findings).await?;
        }
        Ok(())
    }

    /// Tells git inside to reach the repository's host through the door.
    async fn configure(
        &self,
        sandbox: &Sandbox,
        repository: &GithubRepositoryResource,
        mounted: &mut HashSet<Uuid>,
    ) -> Result<Result<(), Trouble>, FitError> {
        if !mounted.contains(&CONFIGURED) {
            let file = Put {
                path: CA_FILE.to_owned(),
                mode: 0o444,
                size: self.door_ca.len() as u64,
            };
            sandbox.put(&file, self.door_ca.as_bytes()).await?;
            mounted.insert(CONFIGURED);
        }
        let host =
            selfsame_types::session::repository(&repository.url).map_or("", |(host, ..)| host);
        for (key, value) in [("proxy", GIT_PROXY), ("sslCAInfo", CA_FILE)] {
            let name = format!("http.https://{host}/.{key}");
            let reason =
                match git(sandbox, &["config", "--system", &name, value], GIT_TIMEOUT).await {
                    Ok(ran) if ran.code == Some(0) => continue,
                    Ok(ran) => last_lines(&ran),
                    // An image without git: the session goes on.
                    Err(FitError::Sandbox(SandboxError::Failed(reason))) => reason,
                    Err(error) => return Err(error),
                };
            let error = ErrorType::RepositoryCloneError;
            return Ok(Err(trouble(error, repository, &reason)));
        }
        Ok(Ok(()))
    }
}

/// The repositories that a session wants, with their rows.
fn repositories(
    wanted: &Outfit,
) -> Result<Vec<(&ResourceRecord, GithubRepositoryResource)>, FitError> {
    let mut repositories = Vec::new();
    for record in &wanted.equipment.resources {
        if !matches!(record.kind, ResourceKind::Repository { .. }) || record.deleted {
            continue;
        }
        if let SessionResource::GithubRepository(repository) =
            resources::read(record.id, &record.body)?
        {
            repositories.push((record, repository));
        }
    }
    Ok(repositories)
}

/// Clones beside the final place and moves there, so that what is in place is complete.
async fn clone(
    sandbox: &Sandbox,
    record: &ResourceRecord,
    repository: &GithubRepositoryResource,
) -> Result<Result<(), Trouble>, FitError> {
    let place = repository.mount_path.as_str();
    // On the same file system, and out of the way of anything an agent would look at.
    let aside = format!("/workspace/.selfsame-{}", record.id);
    // Moved here before a crash could be noted down: nothing is left to do.
    let inside = ["-C", place, "rev-parse", "--git-dir"];
    let known = git(sandbox, &inside, GIT_TIMEOUT).await?;
    if known.code == Some(0) && known.output.trim() == ".git" {
        return Ok(Ok(()));
    }
    run(sandbox, &["rm", "-rf", "--", &aside], GIT_TIMEOUT).await?;
    let mut arguments = vec!["clone", "--quiet", "--recurse-submodules=no"];
    if let Some(GithubCheckout::Branch(branch)) = &repository.checkout {
        arguments.extend(["--branch", &branch.name]);
    }
    arguments.extend(["--", &repository.url, &aside]);
    let cloned = git(sandbox, &arguments, CLONE_TIMEOUT).await?;
    let mut failure = (cloned.code != Some(0)).then(|| (judge(&cloned), cloned));
    if let (None, Some(GithubCheckout::Commit(commit))) = (&failure, &repository.checkout) {
        let sha = commit.sha.as_str();
        let arguments = ["-C", &aside, "checkout", "--quiet", "--detach", sha];
        let mut ran = git(sandbox, &arguments, GIT_TIMEOUT).await?;
        if ran.code != Some(0) {
            // A commit that no branch leads to any more.
            let fetch = ["-C", &aside, "fetch", "--quiet", "origin", sha];
            if git(sandbox, &fetch, CLONE_TIMEOUT).await?.code == Some(0) {
                ran = git(sandbox, &arguments, GIT_TIMEOUT).await?;
            }
        }
        failure = (ran.code != Some(0)).then_some((ErrorType::RepositoryCheckoutError, ran));
    }
    if failure.is_none() {
        let parent = place.rsplit_once('/').map_or("/", |(parent, _)| parent);
        run(sandbox, &["mkdir", "-p", "--", parent], GIT_TIMEOUT).await?;
        // An empty directory may be there; anything else is not ours to replace.
        let moved = run(sandbox, &["mv", "-T", "--", &aside, place], GIT_TIMEOUT).await?;
        failure = (moved.code != Some(0)).then_some((ErrorType::RepositoryCloneError, moved));
    }
    let Some((error, ran)) = failure else {
        return Ok(Ok(()));
    };
    run(sandbox, &["rm", "-rf", "--", &aside], GIT_TIMEOUT).await?;
    Ok(Err(trouble(error, repository, &last_lines(&ran))))
}

/// What git's words mean in the API's.
fn judge(ran: &Ran) -> ErrorType {
    let says = |text: &str| ran.output.contains(text);
    if says("error: 401") || says("Authentication failed") || says("could not read Username") {
        ErrorType::RepositoryAuthenticationError
    } else if says("error: 403") {
        ErrorType::RepositoryForbiddenError
    } else if says("error: 404") || (says("repository '") && says("' not found")) {
        ErrorType::RepositoryNotFoundError
    } else if says("Remote branch") || says("did not match any") {
        ErrorType::RepositoryCheckoutError
    } else {
        ErrorType::RepositoryCloneError
    }
}

/// Skills that a repository brings along.
async fn look(sandbox: &Sandbox, place: &str, findings: &mut Findings) -> Result<(), FitError> {
    use tokio::io::AsyncReadExt as _;
    let root = format!("{place}/.claude/skills");
    let found = match sandbox.walk(&root, 10_000).await {
        Ok(found) => found,
        // Most repositories have none.
        Err(SandboxError::Failed(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let manifests = found.iter().filter(|found| {
        let mut parts = found.path.split('/');
        (parts.next().is_some(), parts.next(), parts.next()) == (true, Some("SKILL.md"), None)
    });
    for manifest in manifests.take(MAX_SKILLS) {
        let path = format!("{root}/{}", manifest.path);
        let mut text = Vec::new();
        let read = match sandbox.get(&path, MAX_SKILL_BYTES).await {
            Ok(mut content) => content.read_to_end(&mut text).await.is_ok(),
            Err(SandboxError::Failed(_)) => false,
            Err(error) => return Err(error.into()),
        };
        let directory = manifest.path.split('/').next().unwrap_or_default();
        if read {
            findings.add(directory, &path, &text);
        }
    }
    Ok(())
}

async fn git(sandbox: &Sandbox, arguments: &[&str], timeout: Duration) -> Result<Ran, FitError> {
    let mut argv = vec!["git"];
    argv.extend(arguments);
    run(sandbox, &argv, timeout).await
}

async fn run(sandbox: &Sandbox, argv: &[&str], timeout: Duration) -> Result<Ran, FitError> {
    let env = [
        ("LC_ALL", "C"),
        // Nobody is there to type a password.
        ("GIT_TERMINAL_PROMPT", "0"),
        // A slow transfer may be long; one that stands still is over.
        ("GIT_HTTP_LOW_SPEED_LIMIT", "100"),
        ("GIT_HTTP_LOW_SPEED_TIME", "60"),
    ];
    Ok(sandbox
        .run(&Run {
            id: Uuid::now_v7(),
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: env
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .to_vec(),
            cwd: None,
            timeout,
            output_limit: OUTPUT,
        })
        .await?)
}

fn trouble(error_type: ErrorType, repository: &GithubRepositoryResource, reason: &str) -> Trouble {
    Trouble {
        error_type,
        message: format!(
            "The repository {} could not be mounted: {reason}",
            repository.url
        ),
        about: About::Repository(repository.url.clone()),
    }
}

/// The end of what a command said, as one line.
fn last_lines(ran: &Ran) -> String {
    if ran.timed_out {
        return "it took too long".to_owned();
    }
    let lines: Vec<&str> = ran
        .output
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let text = lines[lines.len().saturating_sub(4)..].join("; ");
    match text.char_indices().rev().nth(499) {
        Some((start, _)) => text[start..].to_owned(),
        None if text.is_empty() => "git failed without a word".to_owned(),
        None => text,
    }
}
