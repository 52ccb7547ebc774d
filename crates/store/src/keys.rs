//! Workspaces, credentials, the deployment's own row, and the audit trail of what touches them.
//!
//! A credential is stored as the SHA-256 of its token: the token itself is known to its holder alone.

use std::fmt;

use selfsame_types::{KeyId, OrganizationId, Timestamp, WorkspaceId};
use sha2::{Digest as _, Sha256};
use sqlx::{PgExecutor, PgTransaction};
use uuid::Uuid;

use crate::{Store, StoreError, time};

/// What a credential may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everything, and the management of keys.
    Admin,
    /// Everything but the management of keys.
    Standard,
    /// GET alone.
    ReadOnly,
}

impl Scope {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Standard => "standard",
            Self::ReadOnly => "read_only",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Admin, Self::Standard, Self::ReadOnly]
            .into_iter()
            .find(|scope| scope.as_str() == text)
    }
}

/// What a credential is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// The API.
    Api,
    /// A worker that polls one environment.
    Environment,
    /// One piece of work, handed to a worker.
    Work,
}

impl KeyKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Environment => "environment",
            Self::Work => "work",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Api, Self::Environment, Self::Work]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// The SHA-256 of a token: what the database and caches may hold of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// A credential as far as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub id: KeyId,
    pub workspace: WorkspaceId,
    pub kind: KeyKind,
    pub scope: Scope,
    pub name: String,
    /// The first characters of the token.
    pub hint: String,
    pub created_at: Timestamp,
    /// To the minute.
    pub last_used_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// A credential to be stored. The caller made the token and shows it once.
#[derive(Debug, Clone)]
pub struct NewKey {
    pub workspace: WorkspaceId,
    pub kind: KeyKind,
    pub scope: Scope,
    pub name: String,
    pub hint: String,
    pub hash: TokenHash,
    pub expires_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    pub id: WorkspaceId,
    pub name: String,
    pub created_at: Timestamp,
}

/// What is the same for every server on this database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    pub id: Uuid,
    pub organization: OrganizationId,
}

/// Who does something that is worth an audit row.
#[derive(Debug, Clone, Default)]
pub struct Actor {
    /// `None` is the operator at the command line, or the server itself.
    pub key: Option<KeyId>,
    pub request: Option<String>,
}

/// One line of the audit trail.
#[derive(Debug, Clone)]
pub struct Audit<'a> {
    pub workspace: Option<WorkspaceId>,
    pub actor: &'a Actor,
    /// `key.create`, `session.delete`, ...
    pub action: &'static str,
    /// The id of what it was done to.
    pub target: String,
    pub detail: serde_json::Value,
}

struct KeyRow {
    id: Uuid,
    workspace_id: Uuid,
    kind: String,
    scope: String,
    name: String,
    hint: String,
    created_at: jiff_sqlx::Timestamp,
    last_used_at: Option<jiff_sqlx::Timestamp>,
    expires_at: Option<jiff_sqlx::Timestamp>,
    revoked_at: Option<jiff_sqlx::Timestamp>,
}

impl TryFrom<KeyRow> for Key {
    type Error = StoreError;

    fn try_from(row: KeyRow) -> Result<Self, StoreError> {
        let id = KeyId(row.id);
        let corrupt = |column, value: &str| StoreError::Corrupt {
            table: "api_keys",
            column,
            row: id.to_string(),
            source: format!("unknown value `{value}`").into(),
        };
        Ok(Self {
            id,
            workspace: WorkspaceId(row.workspace_id),
            kind: KeyKind::parse(&row.kind).ok_or_else(|| corrupt("kind", &row.kind))?,
            scope: Scope::parse(&row.scope).ok_or_else(|| corrupt("scope", &row.scope))?,
            name: row.name,
            hint: row.hint,
            created_at: time(row.created_at),
            last_used_at: row.last_used_at.map(time),
            expires_at: row.expires_at.map(time),
            revoked_at: row.revoked_at.map(time),
        })
    }
}

impl Store {
    /// Writes an audit row outside any other transaction.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn audit(&self, entry: Audit<'_>) -> Result<(), StoreError> {
        audit(&self.pool, entry).await
    }

    /// The deployment's row, if this database was ever used.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn deployment_get(&self) -> Result<Option<Deployment>, StoreError> {
        let row = sqlx::query!("SELECT id, organization_id FROM deployment")
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|row| Deployment {
            id: row.id,
            organization: OrganizationId(row.organization_id),
        }))
    }

    /// Makes an empty database usable: the deployment's row, a first workspace named `default`, and
    /// `first_key` as an admin key of it (its `workspace` is ignored). Of several servers that start
    /// at once, exactly one does it; the others get `None` and read what it wrote.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn deployment_create(
        &self,
        deployment: &Deployment,
        first_key: NewKey,
    ) -> Result<Option<Workspace>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let inserted = sqlx::query!(
            "INSERT INTO deployment (id, organization_id)
             VALUES ($1, $2)
             ON CONFLICT DO NOTHING",
            deployment.id,
            deployment.organization.0,
        )
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() == 0 {
            return Ok(None);
        }
        let actor = Actor::default();
        let workspace = workspace_insert(&mut tx, "default", &actor).await?;
        let first_key = NewKey {
            workspace: workspace.id,
            ..first_key
        };
        key_insert(&mut tx, first_key, &actor).await?;
        tx.commit().await?;
        Ok(Some(workspace))
    }

    /// # Errors
    /// When the database fails.
    pub async fn workspace_create(
        &self,
        name: &str,
        actor: &Actor,
    ) -> Result<Workspace, StoreError> {
        let mut tx = self.pool.begin().await?;
        let workspace = workspace_insert(&mut tx, name, actor).await?;
        tx.commit().await?;
        Ok(workspace)
    }

    /// All workspaces, oldest first: the first one is the default.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn workspace_list(&self) -> Result<Vec<Workspace>, StoreError> {
        let rows =
            sqlx::query!("SELECT id, name, created_at FROM workspaces ORDER BY created_at, id")
                .fetch_all(&self.pool)
                .await?;
        Ok(rows
            .into_iter()
            .map(|row| Workspace {
                id: WorkspaceId(row.id),
                name: row.name,
                created_at: time(row.created_at),
            })
            .collect())
    }

    /// Stores a credential. `None` when the same token is stored already.
    ///
    /// # Errors
    /// When the database fails, or the workspace does not exist
    /// (constraint `api_keys_workspace_id_fkey`).
    pub async fn key_create(&self, key: NewKey, actor: &Actor) -> Result<Option<Key>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let key = key_insert(&mut tx, key, actor).await?;
        tx.commit().await?;
        Ok(key)
    }

    /// The usable credential with this token: neither revoked nor expired. Notes its use, at most
    /// once a minute.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn key_authenticate(&self, hash: TokenHash) -> Result<Option<Key>, StoreError> {
        let row = sqlx::query!(
            r#"
            SELECT id, workspace_id, kind, scope, name, hint, created_at,
                   last_used_at AS "last_used_at: jiff_sqlx::Timestamp",
                   expires_at AS "expires_at: jiff_sqlx::Timestamp",
                   revoked_at AS "revoked_at: jiff_sqlx::Timestamp",
                   coalesce(last_used_at < clock_timestamp() - interval '1 minute', true)
                       AS "stale!"
            FROM api_keys
            WHERE hash = $1
              AND revoked_at IS NULL
              AND (expires_at IS NULL OR expires_at > clock_timestamp())
            "#,
            &hash.0[..],
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        if row.stale {
            sqlx::query!(
                "UPDATE api_keys SET last_used_at = clock_timestamp() WHERE id = $1",
                row.id
            )
            .execute(&self.pool)
            .await?;
        }
        Key::try_from(KeyRow {
            id: row.id,
            workspace_id: row.workspace_id,
            kind: row.kind,
            scope: row.scope,
            name: row.name,
            hint: row.hint,
            created_at: row.created_at,
            last_used_at: row.last_used_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
        })
        .map(Some)
    }

    /// Credentials of one workspace or of all, oldest first, revoked ones included.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn key_list(&self, workspace: Option<WorkspaceId>) -> Result<Vec<Key>, StoreError> {
        let rows = sqlx::query_as!(
            KeyRow,
            r#"
            SELECT id, workspace_id, kind, scope, name, hint, created_at,
                   last_used_at AS "last_used_at: jiff_sqlx::Timestamp",
                   expires_at AS "expires_at: jiff_sqlx::Timestamp",
                   revoked_at AS "revoked_at: jiff_sqlx::Timestamp"
            FROM api_keys
            WHERE workspace_id = $1 OR $1 IS NULL
            ORDER BY created_at, id
            "#,
            workspace.map(|id| id.0) as Option<Uuid>,
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(Key::try_from).collect()
    }

    /// Makes a credential useless from now on. `false` when there is no such live credential.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn key_revoke(&self, id: KeyId, actor: &Actor) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let row = sqlx::query!(
            "UPDATE api_keys SET revoked_at = clock_timestamp()
             WHERE id = $1 AND revoked_at IS NULL
             RETURNING workspace_id",
            id.0
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(false) };
        audit(
            &mut *tx,
            Audit {
                workspace: Some(WorkspaceId(row.workspace_id)),
                actor,
                action: "key.revoke",
                target: id.to_string(),
                detail: serde_json::json!({}),
            },
        )
        .await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// Writes an audit row, in the transaction of what it reports.
pub(crate) async fn audit(
    executor: impl PgExecutor<'_>,
    entry: Audit<'_>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO audit (workspace_id, actor_key, request_id, action, target, detail)
         VALUES ($1, $2, $3, $4, $5, $6)",
        entry.workspace.map(|id| id.0) as Option<Uuid>,
        entry.actor.key.map(|id| id.0) as Option<Uuid>,
        entry.actor.request.as_deref(),
        entry.action,
        entry.target,
        entry.detail,
    )
    .execute(executor)
    .await?;
    Ok(())
}

async fn workspace_insert(
    tx: &mut PgTransaction<'_>,
    name: &str,
    actor: &Actor,
) -> Result<Workspace, StoreError> {
    let id = WorkspaceId::new();
    let created_at = sqlx::query_scalar!(
        "INSERT INTO workspaces (id, name) VALUES ($1, $2) RETURNING created_at",
        id.0,
        name
    )
    .fetch_one(&mut **tx)
    .await?;
    audit(
        &mut **tx,
        Audit {
            workspace: Some(id),
            actor,
            action: "workspace.create",
            target: id.to_string(),
            detail: serde_json::json!({ "name": name }),
        },
    )
    .await?;
    Ok(Workspace {
        id,
        name: name.to_owned(),
        created_at: time(created_at),
    })
}

async fn key_insert(
    tx: &mut PgTransaction<'_>,
    key: NewKey,
    actor: &Actor,
) -> Result<Option<Key>, StoreError> {
    let row = sqlx::query_as!(
        KeyRow,
        r#"
        INSERT INTO api_keys (id, workspace_id, kind, scope, name, hint, hash, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (hash) DO NOTHING
        RETURNING id, workspace_id, kind, scope, name, hint, created_at,
                  last_used_at AS "last_used_at: jiff_sqlx::Timestamp",
                  expires_at AS "expires_at: jiff_sqlx::Timestamp",
                  revoked_at AS "revoked_at: jiff_sqlx::Timestamp"
        "#,
        KeyId::new().0,
        key.workspace.0,
        key.kind.as_str(),
        key.scope.as_str(),
        key.name,
        key.hint,
        &key.hash.0[..],
        key.expires_at
            .map(|at| jiff_sqlx::Timestamp::from(at.inner()))
            as Option<jiff_sqlx::Timestamp>,
    )
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let stored = Key::try_from(row)?;
    audit(
        &mut **tx,
        Audit {
            workspace: Some(stored.workspace),
            actor,
            action: "key.create",
            target: stored.id.to_string(),
            detail: serde_json::json!({
                "name": stored.name,
                "kind": stored.kind.as_str(),
                "scope": stored.scope.as_str(),
                "hint": stored.hint,
            }),
        },
    )
    .await?;
    Ok(Some(stored))
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;

    fn new_key(workspace: WorkspaceId, token: &str) -> NewKey {
        NewKey {
            workspace,
            kind: KeyKind::Api,
            scope: Scope::Standard,
            name: "test".to_owned(),
            hint: "sk-".to_owned(),
            hash: TokenHash::of(token),
            expires_at: None,
        }
    }

    fn deployment() -> Deployment {
        Deployment {
            id: Uuid::now_v7(),
            organization: OrganizationId::new(),
        }
    }

    #[sqlx::test(migrator = "crate::MIGRATOR")]
    async fn only_the_first_of_two_servers_makes_the_deployment(pool: PgPool) {
        let store = Store::from_pool(pool);
        assert_eq!(store.deployment_get().await.unwrap(), None);
        let nowhere = WorkspaceId::new();
        let (a, b) = (deployment(), deployment());
        let (first, second) = tokio::join!(
            store.deployment_create(&a, new_key(nowhere, "a")),
            store.deployment_create(&b, new_key(nowhere, "b")),
        );
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(first.is_some() ^ second.is_some());
        let winner = if first.is_some() { &a } else { &b };
        assert_eq!(store.deployment_get().await.unwrap().as_ref(), Some(winner));
        assert_eq!(store.workspace_list().await.unwrap().len(), 1);
        assert_eq!(store.key_list(None).await.unwrap().len(), 1);
    }

    #[sqlx::test(migrator = "crate::MIGRATOR")]
    async fn a_key_works_until_it_is_revoked_or_expires(pool: PgPool) {
        let store = Store::from_pool(pool);
        let operator = Actor::default();
        let workspace = store.workspace_create("w", &operator).await.unwrap();
        let key = store
            .key_create(new_key(workspace.id, "secret"), &operator)
            .await
            .unwrap()
            .unwrap();
        let again = store
            .key_create(new_key(workspace.id, "secret"), &operator)
            .await
            .unwrap();
        assert_eq!(again, None);

        let hash = TokenHash::of("secret");
        let found = store.key_authenticate(hash).await.unwrap().unwrap();
        assert_eq!((found.id, found.last_used_at), (key.id, None));
        let found = store.key_authenticate(hash).await.unwrap().unwrap();
        assert!(found.last_used_at.is_some());
        let wrong = store.key_authenticate(TokenHash::of("other")).await;
        assert_eq!(wrong.unwrap(), None);

        assert!(store.key_revoke(key.id, &operator).await.unwrap());
        assert!(!store.key_revoke(key.id, &operator).await.unwrap());
        assert_eq!(store.key_authenticate(hash).await.unwrap(), None);

        let expired = NewKey {
            expires_at: Some(Timestamp::from_micros(0)),
            ..new_key(workspace.id, "old")
        };
        store.key_create(expired, &operator).await.unwrap();
        let old = store.key_authenticate(TokenHash::of("old")).await;
        assert_eq!(old.unwrap(), None);

        let other = store.workspace_create("other", &operator).await.unwrap();
        assert!(store.key_list(Some(other.id)).await.unwrap().is_empty());
        let actions = sqlx::query_scalar!("SELECT action FROM audit ORDER BY id")
            .fetch_all(&store.pool)
            .await
            .unwrap();
        assert_eq!(
            actions,
            [
                "workspace.create",
                "key.create",
                "key.revoke",
                "key.create",
                "workspace.create"
            ]
        );
    }

    #[sqlx::test(migrator = "crate::MIGRATOR")]
    async fn a_key_of_no_workspace_is_told_by_its_constraint(pool: PgPool) {
        let store = Store::from_pool(pool);
        let error = store
            .key_create(new_key(WorkspaceId::new(), "x"), &Actor::default())
            .await
            .unwrap_err();
        assert_eq!(error.constraint(), Some("api_keys_workspace_id_fkey"));
    }
}
