//! Sessions: what a request may say and what the API shows.

mod params;
mod resources;
mod usage;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use params::{
    AgentOverrides, AgentParams, AgentWithOverridesParams, AgentWithOverridesType, Budget,
    BudgetType, CreateSession, ListSessions, Money, NewSession, SessionAgentUpdate, SessionFields,
    UpdateSession, no_vault, resolve_agent,
};
pub use resources::{
    AddResource, BranchCheckout, CommitCheckout, DeletedResource, DeletedResourceType,
    FileResourceParams, GithubCheckout, GithubRepositoryParams, ListResources, MAX_FILES,
    MemoryAccess, MemoryStoreParams, NewFile, NewRepository, NewResource, ResourceParams, SKILLS,
    UPLOADS, UpdateResource, WORKSPACE, check_resources, check_token, no_file, repository,
};
pub use usage::{
    CacheCreation, OutcomeEvaluation, OutcomeEvaluationType, OutcomeResult, RunningTime,
    ServerToolUse, SessionStats, SessionUsage, SessionView, TokenTotals,
};

use crate::{
    EnvironmentId, FileId, MemoryStoreId, Metadata, ResourceId, SessionId, Timestamp, VaultId,
    agent::AgentSnapshot, wire,
};

wire::literals! {
    SessionType = "session";
    SessionDeletedType = "session_deleted";
    FileResourceType = "file";
    GithubRepositoryType = "github_repository";
    MemoryStoreType = "memory_store";
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum SessionStatus {
    Idle,
    Running,
    Rescheduling,
    Terminated,
}

impl SessionStatus {
    pub const ALL: [Self; 4] = [
        Self::Idle,
        Self::Running,
        Self::Rescheduling,
        Self::Terminated,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Rescheduling => "rescheduling",
            Self::Terminated => "terminated",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// A session, as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Session {
    #[schema(inline)]
    pub r#type: SessionType,
    pub id: SessionId,
    pub status: SessionStatus,
    pub agent: AgentSnapshot,
    pub environment_id: EnvironmentId,
    #[schema(required)]
    pub title: Option<String>,
    pub metadata: Metadata,
    pub resources: Vec<SessionResource>,
    pub vault_ids: Vec<VaultId>,
    pub outcome_evaluations: Vec<OutcomeEvaluation>,
    pub stats: SessionStats,
    pub usage: SessionUsage,
    #[schema(required)]
    pub budget: Option<Budget>,
    #[schema(required)]
    pub deployment_id: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    #[schema(required)]
    pub archived_at: Option<Timestamp>,
}

/// The answer to a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedSession {
    pub id: SessionId,
    #[schema(inline)]
    pub r#type: SessionDeletedType,
}

/// Something mounted into the session's sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("file" = "#/components/schemas/FileResource"),
    ("github_repository" = "#/components/schemas/GithubRepositoryResource"),
    ("memory_store" = "#/components/schemas/MemoryStoreResource"),
)))]
pub enum SessionResource {
    File(FileResource),
    GithubRepository(GithubRepositoryResource),
    MemoryStore(MemoryStoreResource),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FileResource {
    #[schema(inline)]
    pub r#type: FileResourceType,
    pub id: ResourceId,
    /// The session's own copy, not the file that was named at creation.
    pub file_id: FileId,
    /// Absolute.
    pub mount_path: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GithubRepositoryResource {
    #[schema(inline)]
    pub r#type: GithubRepositoryType,
    pub id: ResourceId,
    pub url: String,
    /// Absolute.
    pub mount_path: String,
    #[schema(required)]
    pub checkout: Option<GithubCheckout>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryStoreResource {
    #[schema(inline)]
    pub r#type: MemoryStoreType,
    pub memory_store_id: MemoryStoreId,
    #[schema(required)]
    pub access: Option<String>,
    #[schema(required)]
    pub instructions: Option<String>,
    #[schema(required)]
    pub name: Option<String>,
    #[schema(required)]
    pub description: Option<String>,
    #[schema(required)]
    pub mount_path: Option<String>,
}

#[cfg(test)]
mod tests;
