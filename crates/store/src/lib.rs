//! Postgres: every SQL statement of Selfsame, and nothing else.
//!
//! One module per table family, each an `impl Store` block with methods named after it
//! (`agent_create`, `session_get`). Every tenant query takes the workspace: another workspace's id
//! finds nothing. A lookup answers `Option`; a violated constraint is told by its name.

mod agents;
mod blobs;
mod content;
mod environments;
mod error;
mod events;
mod files;
mod images;
mod keys;
mod leases;
mod log;
mod notify;
mod resources;
mod sandboxes;
mod seal;
mod session_create;
mod sessions;
mod skills;
mod threads;
mod vaults;
mod webhooks;

pub use agents::AgentFilter;
pub use blobs::{Blob, BlobError, Blobs, GRACE, PlaceError, S3, SweepError};
pub use content::{ContentKind, Pinned};
pub use environments::{Deletion, ENVIRONMENT_NAME_KEY, EnvironmentFilter};
pub use error::StoreError;
pub use events::{EventCursor, EventPage, EventQuery, Moved};
pub use files::{
    FileKind, FileLimits, FileQuery, FileRecord, FileStart, Inserted, NewFile, NewKind, Output,
};
pub use images::{ImageKey, ImageState};
pub use keys::{Actor, Audit, Deployment, Key, KeyKind, NewKey, Scope, TokenHash, Workspace};
pub use leases::Claimed;
pub use log::{
    AppendError, Appended, Change, Cold, End, Guard, Head, LeaseChange, ModelRequest, NewThread,
    Row, ThreadChange,
};
pub use notify::Listener;
pub use resources::{
    AddError, Equipment, NewResource, NewResourceKind, OutputRecord, ResourceKind, ResourceRecord,
};
pub use sandboxes::SandboxRecord;
pub use seal::{KeyUse, KeyWrap, LocalKey, SealError, Sealed, Sealer, ServerKeys};
pub use session_create::{Created, FirstState, NewSession, SESSION_SKILL_BLOB_KEY, SessionParts};
pub use sessions::{CreatedKey, Position, SessionQuery, SessionRecord};
pub use skills::{
    NewSkillVersion, Registered, RegisteredSkill, ResolvedSkill, SkillArchive, SkillFilter,
    SkillMount, SkillRefusal,
};
pub use threads::ThreadRecord;
pub use vaults::{
    CREDENTIAL_KEY, CredentialRefresh, OpenCredential, RefreshState, RefreshedTokens, VaultFilter,
};
pub use webhooks::{
    ClaimLimits, ClaimedDelivery, DeliveryFilter, DeliveryResult, ENDPOINT_LIMIT, EndpointPage,
    EndpointStart, NewSecret, Outcome, WebhookBacklog, WebhookOwner, WebhookRefusal, WebhookTarget,
};

use std::sync::Arc;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

/// The schema, compiled in. One static, so that tests are quick to rebuild.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations");

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    sealer: Option<Sealer>,
    blobs: Blobs,
    file_limits: FileLimits,
    webhooks: Arc<webhooks::Shared>,
}

impl Store {
    /// Connects with at most `connections` connections and brings the schema up to date.
    ///
    /// # Errors
    /// When the database cannot be reached or its schema is not one of ours.
    pub async fn connect(url: &str, connections: u32) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url.parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            // A broken connection shows at its first statement, which the callers survive; asking
            // before every use would cost a round trip each.
            .test_before_acquire(false)
            .connect_with(options.application_name("selfsame"))
            .await?;
        MIGRATOR.run(&pool).await?;
        Ok(Self::from_pool(pool))
    }

    /// A pool that is already migrated.
    #[must_use]
    pub fn from_pool(pool: PgPool) -> Self {
        Self {
            pool,
            sealer: None,
            blobs: Blobs::none(),
            file_limits: FileLimits::default(),
            webhooks: Arc::default(),
        }
    }

    /// Answers when the database does.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query_scalar!("SELECT 1 AS one")
            .fetch_one(&self.pool)
            .await?;
        Ok(())
    }
}

/// A column value as an API time.
pub(crate) fn time(at: jiff_sqlx::Timestamp) -> selfsame_types::Timestamp {
    selfsame_types::Timestamp::new(at.to_jiff())
}
