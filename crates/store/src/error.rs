//! Faults of the database, told apart by what can be done about them.
//!
//! A lookup that finds nothing answers `None`; a rule that a client broke is an
//! [`ApiError`](selfsame_types::ApiError) at the call site. What is left is a [`StoreError`]: ours.

/// The database failed us, or says something impossible.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The driver or the server failed. The outcome of a commit may be unknown.
    #[error("database error")]
    Database(#[from] sqlx::Error),
    /// A migration is missing, altered or failed.
    #[error("database schema")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row that this program wrote cannot be read back.
    #[error("undecodable {table}.{column} in row {row}")]
    Corrupt {
        table: &'static str,
        column: &'static str,
        row: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another server holds the session now, or it is gone: this writer must stop.
    #[error("the lease on this session is lost")]
    LeaseLost,
    /// A secret does not open.
    #[error("a sealed value")]
    Seal(#[from] crate::SealError),
}

impl StoreError {
    /// For `map_err` at the place where a stored JSON text is read.
    pub fn corrupt(
        table: &'static str,
        column: &'static str,
        row: impl std::fmt::Display,
    ) -> impl FnOnce(serde_json::Error) -> Self {
        let row = row.to_string();
        move |source| Self::Corrupt {
            table,
            column,
            row,
            source: Box::new(source),
        }
    }

    /// The name of the violated constraint, if that is what happened.
    #[must_use]
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error.constraint(),
            _ => None,
        }
    }

    /// Whether the same work may succeed a moment later: a lost connection, a full pool, a restart.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => {
                // 40: rollback (deadlock, serialization); 53: resources; 57: operator; 08: connection.
                error.code().is_some_and(|code| {
                    ["40", "53", "57", "08"].contains(&&code[..2.min(code.len())])
                })
            }
            Self::Database(error) => matches!(
                error,
                sqlx::Error::Io(_)
                    | sqlx::Error::PoolTimedOut
                    | sqlx::Error::PoolClosed
                    | sqlx::Error::Protocol(_)
                    | sqlx::Error::WorkerCrashed
            ),
            Self::Migrate(_) | Self::Corrupt { .. } | Self::LeaseLost | Self::Seal(_) => false,
        }
    }
}
