//! What a session has in its sandbox: files, repositories, memory stores, as requests name them.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{FileResourceType, GithubRepositoryType, MemoryStoreType};
use crate::{ApiError, FileId, ResourceId, check, wire};

/// Where files are, read-only.
pub const UPLOADS: &str = "/mnt/session/uploads";
/// The working directory, where repositories are.
pub const WORKSPACE: &str = "/workspace";
/// Below the working directory: the agent's skills.
pub const SKILLS: &str = "/workspace/skills";
/// Most files of one session.
pub const MAX_FILES: usize = 500;
const MAX_REPOSITORIES: usize = 20;
const MAX_PATH: usize = 4096;
/// Longest name that Linux file systems take.
const MAX_NAME: usize = 255;

wire::literals! {
    BranchType = "branch";
    CommitType = "commit";
    DeletedResourceType = "session_resource_deleted";
}

/// Something to mount into the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("file" = "#/components/schemas/FileResourceParams"),
    ("github_repository" = "#/components/schemas/GithubRepositoryParams"),
    ("memory_store" = "#/components/schemas/MemoryStoreParams"),
)))]
pub enum ResourceParams {
    File(FileResourceParams),
    GithubRepository(GithubRepositoryParams),
    MemoryStore(MemoryStoreParams),
}

wire::tagged_union! { ResourceParams:
    "file" => File,
    "github_repository" => GithubRepository,
    "memory_store" => MemoryStore,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileResourceParams {
    #[schema(inline)]
    pub r#type: FileResourceType,
    #[schema(min_length = 1, max_length = 128)]
    pub file_id: String,
    #[schema(min_length = 1, max_length = 4096)]
    pub mount_path: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GithubRepositoryParams {
    #[schema(inline)]
    pub r#type: GithubRepositoryType,
    #[schema(max_length = 2048)]
    pub url: String,
    /// Write-only.
    #[schema(min_length = 1, max_length = 4096)]
    pub authorization_token: Option<String>,
    #[schema(min_length = 1, max_length = 4096)]
    pub mount_path: Option<String>,
    pub checkout: Option<GithubCheckout>,
}

// The token must not reach a log by way of a debug print.
impl std::fmt::Debug for GithubRepositoryParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GithubRepositoryParams")
            .field("url", &self.url)
            .field("mount_path", &self.mount_path)
            .field("checkout", &self.checkout)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("branch" = "#/components/schemas/BranchCheckout"),
    ("commit" = "#/components/schemas/CommitCheckout"),
)))]
pub enum GithubCheckout {
    Branch(BranchCheckout),
    Commit(CommitCheckout),
}

wire::tagged_union! { GithubCheckout:
    "branch" => Branch,
    "commit" => Commit,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BranchCheckout {
    #[schema(inline)]
    pub r#type: BranchType,
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommitCheckout {
    #[schema(inline)]
    pub r#type: CommitType,
    #[schema(min_length = 7, max_length = 64)]
    pub sha: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryAccess {
    ReadWrite,
    ReadOnly,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryStoreParams {
    #[schema(inline)]
    pub r#type: MemoryStoreType,
    pub memory_store_id: String,
    pub access: Option<MemoryAccess>,
    #[schema(max_length = 4096)]
    pub instructions: Option<String>,
}

/// A resource that a session is to have, checked as far as the request alone allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewResource {
    File(NewFile),
    Repository(NewRepository),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    /// The uploaded one.
    pub file_id: FileId,
    /// Absolute.
    pub mount_path: String,
    /// The path as it was given, when that is another one.
    pub alias_path: Option<String>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct NewRepository {
    pub url: String,
    pub host: String,
    pub owner: String,
    pub name: String,
    /// Secret.
    pub token: Option<String>,
    /// Absolute.
    pub mount_path: String,
    pub checkout: Option<GithubCheckout>,
}

// The token must not reach a log by way of a debug print.
impl std::fmt::Debug for NewRepository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewRepository")
            .field("url", &self.url)
            .field("mount_path", &self.mount_path)
            .field("checkout", &self.checkout)
            .finish_non_exhaustive()
    }
}

/// Checks the resources of a new session, each for itself and against the others.
pub fn check_resources(resources: Vec<ResourceParams>) -> Result<Vec<NewResource>, ApiError> {
    check::count(
        "resources",
        resources.len(),
        0..=MAX_FILES + MAX_REPOSITORIES,
    )?;
    let mut checked = Vec::<NewResource>::with_capacity(resources.len());
    let (mut files, mut repositories) = (0, 0);
    for (index, resource) in resources.into_iter().enumerate() {
        let at = format!("resources[{index}]");
        let resource = match resource {
            ResourceParams::File(file) => {
                files += 1;
                NewResource::File(file.check(&at)?)
            }
            ResourceParams::GithubRepository(repository) => {
                repositories += 1;
                NewResource::Repository(repository.check(&at)?)
            }
            ResourceParams::MemoryStore(store) => {
                check::text(
                    format_args!("{at}.memory_store_id"),
                    &store.memory_store_id,
                    1..=128,
                )?;
                return Err(ApiError::not_implemented(format!(
                    "{at}: this server does not offer memory stores yet; leave it out"
                )));
            }
        };
        if let Some(other) = checked.iter().position(|other| other.collides(&resource)) {
            return Err(ApiError::invalid(format!(
                "{at}.mount_path: `{}` is taken by resources[{other}], or one lies inside the other; \
                 choose another path",
                check::excerpt(resource.mount_path())
            )));
        }
        checked.push(resource);
    }
    check::count("resources of type `file`", files, 0..=MAX_FILES)?;
    check::count(
        "resources of type `github_repository`",
        repositories,
        0..=MAX_REPOSITORIES,
    )?;
    Ok(checked)
}

impl NewResource {
    #[must_use]
    pub fn mount_path(&self) -> &str {
        match self {
            Self::File(file) => &file.mount_path,
            Self::Repository(repository) => &repository.mount_path,
        }
    }

    /// Two cannot be in one place, and neither can one be inside the other: a file is no directory, and a
    /// repository is cloned whole.
    fn collides(&self, other: &Self) -> bool {
        let (one, two) = (self.mount_path(), other.mount_path());
        let inside = |path: &str, directory: &str| {
            path.strip_prefix(directory)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        one == two || inside(one, two) || inside(two, one)
    }
}

impl FileResourceParams {
    /// Checks what needs nothing but the request.
    pub fn check(self, at: &str) -> Result<NewFile, ApiError> {
        check::text(format_args!("{at}.file_id"), &self.file_id, 1..=128)?;
        let file_id = self
            .file_id
            .parse()
            .map_err(|_| no_file(at, &self.file_id))?;
        let (mount_path, alias_path) = match &self.mount_path {
            None => (format!("{UPLOADS}/{}", self.file_id), None),
            Some(path) => file_path(&format!("{at}.mount_path"), path)?,
        };
        Ok(NewFile {
            file_id,
            mount_path,
            alias_path,
        })
    }
}

/// A reference in a body to a file that is not there.
#[must_use]
pub fn no_file(at: &str, id: &str) -> ApiError {
    ApiError::invalid(format!(
        "{at}.file_id: there is no file `{}` in this workspace",
        check::excerpt(id)
    ))
}

/// Real place and alias of a file. All real ones are below the uploads directory; a path elsewhere
/// becomes a link to there.
fn file_path(at: &str, path: &str) -> Result<(String, Option<String>), ApiError> {
    let names = names(at, path)?;
    if path.ends_with('/') {
        return Err(ApiError::invalid(format!(
            "{at}: must name a file, not a directory"
        )));
    }
    let below = match names.as_slice() {
        ["mnt", "session", "uploads", rest @ ..] | ["uploads", rest @ ..]
            if path.starts_with('/') =>
        {
            rest
        }
        all => all,
    };
    if below.is_empty() {
        return Err(ApiError::invalid(format!(
            "{at}: must name a file below {UPLOADS}"
        )));
    }
    let mount = format!("{UPLOADS}/{}", below.join("/"));
    let alias = (path.starts_with('/') && below.len() == names.len())
        .then(|| format!("/{}", names.join("/")));
    Ok((mount, alias))
}

/// The names in a path, none of which leads anywhere but down.
fn names<'a>(at: &str, path: &'a str) -> Result<Vec<&'a str>, ApiError> {
    check::text(at, path, 1..=MAX_PATH)?;
    if path.chars().any(char::is_control) {
        return Err(ApiError::invalid(format!(
            "{at}: must not contain control characters"
        )));
    }
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| matches!(*name, "." | "..")) {
        return Err(ApiError::invalid(format!(
            "{at}: must not contain `.` or `..`; write the path out"
        )));
    }
    if names.iter().any(|name| name.len() > MAX_NAME) {
        return Err(ApiError::invalid(format!(
            "{at}: no part of a path may be longer than {MAX_NAME} bytes"
        )));
    }
    Ok(names)
}

impl GithubRepositoryParams {
    /// Checks what needs nothing but the request. Whether the host is one that this server clones from
    /// is the server's to say.
    pub fn check(self, at: &str) -> Result<NewRepository, ApiError> {
        check::text(format_args!("{at}.url"), &self.url, 1..=2048)?;
        let (host, owner, name) = repository(&self.url).ok_or_else(|| {
            ApiError::invalid(format!(
                "{at}.url: must be exactly https://github.com/<owner>/<repository>, without user, port, \
                 query and `.git`; a token belongs into `authorization_token`"
            ))
        })?;
        if let Some(token) = &self.authorization_token {
            check_token(&format!("{at}.authorization_token"), token)?;
        }
        if let Some(checkout) = &self.checkout {
            checkout.check(&format!("{at}.checkout"))?;
        }
        let mount_path = match &self.mount_path {
            None => format!("{WORKSPACE}/{name}"),
            Some(path) => repository_path(&format!("{at}.mount_path"), path)?,
        };
        if mount_path == SKILLS || mount_path.starts_with("/workspace/skills/") {
            return Err(ApiError::invalid(format!(
                "{at}.mount_path: {SKILLS} is where the agent's skills are; choose another path"
            )));
        }
        Ok(NewRepository {
            host: host.to_ascii_lowercase(),
            owner: owner.to_owned(),
            name: name.to_owned(),
            token: self.authorization_token,
            mount_path,
            checkout: self.checkout,
            url: self.url,
        })
    }
}

/// A token as it can stand in a header.
pub fn check_token(at: &str, token: &str) -> Result<(), ApiError> {
    check::text(at, token, 1..=4096)?;
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "{at}: must consist of visible ASCII characters without spaces"
    )))
}

/// Host, owner and name of a repository's URL, in the one form there is.
#[must_use]
pub fn repository(url: &str) -> Option<(&str, &str, &str)> {
    let plain = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !text.is_empty()
            && !matches!(text, "." | "..")
            && !text.starts_with('-')
    };
    let mut parts = url.strip_prefix("https://")?.split('/');
    let (host, owner, name) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = parts.next().is_none()
        && [host, owner, name].into_iter().all(plain)
        && host.len() <= 253
        && !name.to_ascii_lowercase().ends_with(".git");
    whole.then_some((host, owner, name))
}

fn repository_path(at: &str, path: &str) -> Result<String, ApiError> {
    let names = names(at, path)?;
    let below = match names.as_slice() {
        ["workspace", rest @ ..] if path.starts_with('/') => rest,
        all if !path.starts_with('/') => all,
        _ => &[],
    };
    if below.is_empty() {
        return Err(ApiError::invalid(format!(
            "{at}: must be a directory below {WORKSPACE}"
        )));
    }
    Ok(format!("{WORKSPACE}/{}", below.join("/")))
}

impl GithubCheckout {
    fn check(&self, at: &str) -> Result<(), ApiError> {
        match self {
            Self::Branch(branch) => {
                check::text(format_args!("{at}.name"), &branch.name, 1..=255)?;
                if is_reference(&branch.name) {
                    return Ok(());
                }
                Err(ApiError::invalid(format!(
                    "{at}.name: `{}` cannot be the name of a branch",
                    check::excerpt(&branch.name)
                )))
            }
            Self::Commit(commit) => {
                let hex = commit.sha.bytes().all(|byte| byte.is_ascii_hexdigit());
                if hex && (7..=64).contains(&commit.sha.len()) {
                    return Ok(());
                }
                Err(ApiError::invalid(format!(
                    "{at}.sha: must be 7 to 64 hexadecimal digits of a commit"
                )))
            }
        }
    }
}

/// What `git check-ref-format --branch` lets through, `@{-1}` apart.
fn is_reference(name: &str) -> bool {
    let bad = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    !name.starts_with('-')
        && name != "@"
        && !name.contains("..")
        && !name.contains("@{")
        && !name.ends_with('.')
        && !name.chars().any(bad)
        && name
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
}

/// The body of `POST /v1/sessions/{session_id}/resources`: only files can be added.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct AddResource(pub ResourceParams);

impl AddResource {
    pub fn check(self) -> Result<NewFile, ApiError> {
        match self.0 {
            ResourceParams::File(file) => {
                let file = file.check("").map_err(|error| ApiError {
                    message: error.message.trim_start_matches('.').to_owned().into(),
                    ..error
                })?;
                Ok(file)
            }
            ResourceParams::GithubRepository(_) | ResourceParams::MemoryStore(_) => {
                Err(ApiError::invalid(
                    "type: only `file` resources can be added to a session; name others when you create it",
                ))
            }
        }
    }
}

/// The body of `POST /v1/sessions/{session_id}/resources/{resource_id}`.
#[derive(Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateResource {
    /// Write-only.
    #[schema(min_length = 1, max_length = 4096)]
    pub authorization_token: String,
}

impl std::fmt::Debug for UpdateResource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UpdateResource")
    }
}

/// The query of `GET /v1/sessions/{session_id}/resources`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListResources {
    /// Everything when it is left out.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<i64>,
    /// A `next_page` of an earlier answer.
    pub page: Option<String>,
}

/// The answer to a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedResource {
    pub id: ResourceId,
    #[schema(inline)]
    pub r#type: DeletedResourceType,
}

#[cfg(test)]
mod tests;
