//! Skills and their versions: a workspace's own, and those that the operator has registered for all.
//!
//! A registered skill has a short name and no workspace. Workspaces read it like their own and cannot
//! change it; `registered.rs` is for the operator alone. `session.rs` settles what sessions get.

mod registered;
mod session;

use selfsame_types::{
    BlobId, Position, SkillId, SkillVersionId, WorkspaceId,
    skill::{SkillKey, SkillRecord, SkillSource, SkillVersionRecord, VersionKey, VersionRef},
};
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

pub use registered::{Registered, RegisteredSkill};
pub(crate) use session::keep;
pub use session::{ResolvedSkill, SkillMount};

use crate::{Actor, Audit, Blob, Store, StoreError, agents::column, blobs, keys::audit, time};

/// A version to be stored; its archive is in the blobs already.
#[derive(Debug, Clone)]
pub struct NewSkillVersion {
    pub name: String,
    pub description: String,
    pub blob: Blob,
}

/// Which skills a list shows.
#[derive(Debug, Clone)]
pub struct SkillFilter {
    pub source: Option<SkillSource>,
    /// Skills without a version, too.
    pub empty: bool,
    /// Only what comes after this in descending order; [`Position::NEWEST`] for the first page.
    pub after: Position,
    /// Most rows.
    pub limit: usize,
}

/// The archive of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SkillArchive {
    pub blob: BlobId,
    pub size: u64,
}

/// Why a skill cannot be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkillRefusal {
    NotFound,
    /// It belongs to the operator.
    ReadOnly,
    /// The uploaded version has another name than the skill, which is this.
    OtherName(String),
    /// There are versions, or it would be the last one that goes.
    Versions,
}

struct SkillRow {
    id: Uuid,
    short_name: Option<String>,
    name: String,
    display_name: String,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
    latest_id: Option<Uuid>,
    latest_number: Option<i64>,
}

fn key(id: Uuid, short_name: Option<String>) -> SkillKey {
    short_name.map_or(SkillKey::Id(SkillId(id)), SkillKey::Short)
}

impl From<SkillRow> for SkillRecord {
    fn from(row: SkillRow) -> Self {
        Self {
            key: key(row.id, row.short_name),
            name: row.name,
            display_name: row.display_name,
            latest: row.latest_id.zip(row.latest_number).map(version_ref),
            created_at: time(row.created_at),
            updated_at: time(row.updated_at),
        }
    }
}

fn version_ref((id, number): (Uuid, i64)) -> VersionRef {
    VersionRef {
        id: SkillVersionId(id),
        number,
    }
}

struct VersionRow {
    id: Uuid,
    number: i64,
    skill_id: Uuid,
    short_name: Option<String>,
    name: String,
    description: String,
    created_at: jiff_sqlx::Timestamp,
}

impl From<VersionRow> for SkillVersionRecord {
    fn from(row: VersionRow) -> Self {
        Self {
            version: version_ref((row.id, row.number)),
            skill: key(row.skill_id, row.short_name),
            name: row.name,
            description: row.description,
            created_at: time(row.created_at),
        }
    }
}

/// A key as two columns.
fn columns(key: &SkillKey) -> (Option<Uuid>, Option<&str>) {
    match key {
        SkillKey::Id(id) => (Some(id.0), None),
        SkillKey::Short(name) => (None, Some(name)),
    }
}

/// A version's key as two columns; both null for the latest.
fn version_columns(key: VersionKey) -> (Option<Uuid>, Option<i64>) {
    match key {
        VersionKey::Latest => (None, None),
        VersionKey::Id(id) => (Some(id.0), None),
        VersionKey::Number(number) => (None, Some(number)),
    }
}

/// One skill that this workspace sees.
async fn record(
    executor: impl PgExecutor<'_>,
    workspace: WorkspaceId,
    key: &SkillKey,
) -> Result<Option<SkillRecord>, StoreError> {
    let (id, short_name) = columns(key);
    let row = sqlx::query_as!(
        SkillRow,
        r#"
        SELECT s.id, s.short_name, s.name, s.display_name, s.created_at, s.updated_at,
               v.id AS "latest_id?", v.number AS "latest_number?"
        FROM skills s
        LEFT JOIN LATERAL (
            SELECT id, number FROM skill_versions WHERE skill_id = s.id
            ORDER BY number DESC LIMIT 1
        ) v ON true
        WHERE (s.workspace_id = $1 AND s.id = $2) OR s.short_name = $3
        "#,
        workspace.0,
        id,
        short_name,
    )
    .fetch_optional(executor)
    .await?;
    Ok(row.map(Into::into))
}

fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// A workspace's skill, locked for a change.
struct Locked {
    id: Uuid,
    name: String,
}

/// Adds a version to a skill that nobody else can change meanwhile. Number and time are `None` where the
/// clock decides.
async fn insert_version(
    connection: &mut PgConnection,
    skill: Uuid,
    new: &NewSkillVersion,
    number: Option<i64>,
    at: Option<jiff_sqlx::Timestamp>,
) -> Result<SkillVersionRecord, StoreError> {
    blobs::insert(&mut *connection, &new.blob).await?;
    let row = sqlx::query_as!(
        VersionRow,
        r#"
        WITH now AS MATERIALIZED (SELECT COALESCE($6, clock_timestamp()) AS at),
        version AS (
            INSERT INTO skill_versions (id, skill_id, number, description, blob_id, created_at)
            SELECT $1, $2,
                   -- Two uploads in one microsecond, or a clock that was set back, must not collide.
                   COALESCE($3, GREATEST(
                       (EXTRACT(EPOCH FROM at) * 1000000)::bigint,
                       (SELECT max(number) + 1 FROM skill_versions WHERE skill_id = $2)
                   )),
                   $4, $5, at
            FROM now
            RETURNING id, number, description, created_at
        )
        UPDATE skills s SET updated_at = v.created_at FROM version v WHERE s.id = $2
        RETURNING v.id AS "id!", v.number AS "number!", s.id AS skill_id, s.short_name, s.name,
                  v.description AS "description!",
                  v.created_at AS "created_at!: jiff_sqlx::Timestamp"
        "#,
        SkillVersionId::new().0,
        skill,
        number,
        new.description,
        new.blob.id.0,
        at as _,
    )
    .fetch_one(connection)
    .await?;
    Ok(row.into())
}

impl Store {
    /// Saves a new skill with its first version.
    pub async fn skill_create(
        &self,
        workspace: WorkspaceId,
        display_name: Option<String>,
        new: &NewSkillVersion,
    ) -> Result<SkillRecord, StoreError> {
        let id = SkillId::new();
        let mut tx = self.pool.begin().await?;
        let at = sqlx::query_scalar!(
            r#"
            WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at)
            INSERT INTO skills (id, workspace_id, name, display_name, created_at, updated_at)
            SELECT $1, $2, $3, $4, at, at FROM now
            RETURNING created_at
            "#,
            id.0,
            workspace.0,
            new.name,
            display_name.as_ref().unwrap_or(&new.name),
        )
        .fetch_one(&mut *tx)
        .await?;
        let first = insert_version(&mut tx, id.0, new, None, Some(at)).await?;
        tx.commit().await?;
        Ok(SkillRecord {
            key: SkillKey::Id(id),
            name: new.name.clone(),
            display_name: display_name.unwrap_or_else(|| new.name.clone()),
            latest: Some(first.version),
            created_at: time(at),
            updated_at: time(at),
        })
    }

    /// A skill that this workspace sees.
    pub async fn skill_get(
        &self,
        workspace: WorkspaceId,
        key: &SkillKey,
    ) -> Result<Option<SkillRecord>, StoreError> {
        record(&self.pool, workspace, key).await
    }

    /// Newest first, each with its id for a cursor.
    pub async fn skill_list(
        &self,
        workspace: WorkspaceId,
        filter: &SkillFilter,
    ) -> Result<Vec<(Uuid, SkillRecord)>, StoreError> {
        let rows = sqlx::query_as!(
            SkillRow,
            r#"
            SELECT s.id, s.short_name, s.name, s.display_name, s.created_at, s.updated_at,
                   v.id AS "latest_id?", v.number AS "latest_number?"
            FROM skills s
            LEFT JOIN LATERAL (
                SELECT id, number FROM skill_versions WHERE skill_id = s.id
                ORDER BY number DESC LIMIT 1
            ) v ON true
            WHERE (s.workspace_id = $1 OR s.workspace_id IS NULL)
                AND ($2::boolean IS NULL OR (s.workspace_id IS NOT NULL) = $2)
                AND ($3 OR v.id IS NOT NULL)
                AND (s.created_at, s.id) < ($4, $5)
            ORDER BY s.created_at DESC, s.id DESC
            LIMIT $6
            "#,
            workspace.0,
            filter.source.map(|source| source == SkillSource::Custom),
            filter.empty,
            column(filter.after.created_at) as _,
            filter.after.id,
            limit(filter.limit),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| (row.id, row.into())).collect())
    }

    /// Deletes a skill: with all its versions, or, unless `all`, only when it has none.
    pub async fn skill_delete(
        &self,
        workspace: WorkspaceId,
        key: &SkillKey,
        all: bool,
        actor: &Actor,
    ) -> Result<Result<(), SkillRefusal>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let skill = match lock(&mut tx, workspace, key).await? {
            Ok(skill) => skill,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let deleted = sqlx::query!(
            r#"
            DELETE FROM skills s
            WHERE id = $1 AND ($2 OR NOT EXISTS (
                SELECT FROM skill_versions WHERE skill_id = s.id
            ))
            "#,
            skill.id,
            all,
        )
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if deleted == 0 {
            return Ok(Err(SkillRefusal::Versions));
        }
        audit(
            &mut *tx,
            Audit {
                workspace: Some(workspace),
                actor,
                action: "skill.delete",
                target: key.to_string(),
                detail: serde_json::json!({"name": skill.name}),
            },
        )
        .await?;
        tx.commit().await?;
        Ok(Ok(()))
    }

    /// Adds a version to a skill of the same name.
    pub async fn skill_version_create(
        &self,
        workspace: WorkspaceId,
        key: &SkillKey,
        new: &NewSkillVersion,
    ) -> Result<Result<SkillVersionRecord, SkillRefusal>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let skill = match lock(&mut tx, workspace, key).await? {
            Ok(skill) => skill,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if skill.name != new.name {
            return Ok(Err(SkillRefusal::OtherName(skill.name)));
        }
        let made = insert_version(&mut tx, skill.id, new, None, None).await?;
        tx.commit().await?;
        Ok(Ok(made))
    }

    /// A version of a skill that this workspace sees, and where its archive is.
    pub async fn skill_version_get(
        &self,
        workspace: WorkspaceId,
        key: &SkillKey,
        version: VersionKey,
    ) -> Result<Option<(SkillVersionRecord, SkillArchive)>, StoreError> {
        let (id, short_name) = columns(key);
        let (version_id, number) = version_columns(version);
        let row = sqlx::query!(
            r#"
            SELECT v.id, v.number, s.id AS skill_id, s.short_name, s.name, v.description,
                   v.created_at, v.blob_id, b.size
            FROM skills s
            JOIN skill_versions v ON v.skill_id = s.id
            JOIN blobs b ON b.id = v.blob_id
            WHERE ((s.workspace_id = $1 AND s.id = $2) OR s.short_name = $3)
                AND ($4::uuid IS NULL OR v.id = $4)
                AND ($5::bigint IS NULL OR v.number = $5)
            ORDER BY v.number DESC
            LIMIT 1
            "#,
            workspace.0,
            id,
            short_name,
            version_id,
            number,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| {
            let archive = SkillArchive {
                blob: BlobId(row.blob_id),
                size: u64::try_from(row.size).unwrap_or(0),
            };
            let version = VersionRow {
                id: row.id,
                number: row.number,
                skill_id: row.skill_id,
                short_name: row.short_name,
                name: row.name,
                description: row.description,
                created_at: row.created_at,
            };
            (version.into(), archive)
        }))
    }

    /// Versions below the number `below`, newest first; `None`: this workspace sees no such skill.
    pub async fn skill_version_list(
        &self,
        workspace: WorkspaceId,
        key: &SkillKey,
        below: Option<i64>,
        rows: usize,
    ) -> Result<Option<Vec<SkillVersionRecord>>, StoreError> {
        let (id, short_name) = columns(key);
        let versions: Vec<SkillVersionRecord> = sqlx::query_as!(
            VersionRow,
            r#"
            SELECT v.id, v.number, s.id AS skill_id, s.short_name, s.name, v.description,
                   v.created_at
            FROM skills s
            JOIN skill_versions v ON v.skill_id = s.id
            WHERE ((s.workspace_id = $1 AND s.id = $2) OR s.short_name = $3) AND v.number < $4
            ORDER BY v.number DESC
            LIMIT $5
            "#,
            workspace.0,
            id,
            short_name,
            below.unwrap_or(i64::MAX),
            limit(rows),
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(Into::into)
        .collect();
        if versions.is_empty() && self.skill_get(workspace, key).await?.is_none() {
            return Ok(None);
        }
        Ok(Some(versions))
    }

    /// Deletes one version; with `keep_one`, not the last one.
    pub async fn skill_version_delete(
        &self,
        workspace: WorkspaceId,
        key: &SkillKey,
        version: VersionKey,
        keep_one: bool,
        actor: &Actor,
    ) -> Result<Result<VersionRef, SkillRefusal>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let skill = match lock(&mut tx, workspace, key).await? {
            Ok(skill) => skill,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let (version_id, number) = version_columns(version);
        let found = sqlx::query!(
            r#"
            SELECT id, number,
                   (SELECT count(*) FROM skill_versions WHERE skill_id = $1) AS "count!"
            FROM skill_versions
            WHERE skill_id = $1 AND ($2::uuid IS NULL OR id = $2)
                AND ($3::bigint IS NULL OR number = $3)
            ORDER BY number DESC
            LIMIT 1
            "#,
            skill.id,
            version_id,
            number,
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(found) = found else {
            return Ok(Err(SkillRefusal::NotFound));
        };
        if keep_one && found.count == 1 {
            return Ok(Err(SkillRefusal::Versions));
        }
        sqlx::query!(
            r#"
            WITH gone AS (DELETE FROM skill_versions WHERE id = $1 RETURNING skill_id)
            UPDATE skills SET updated_at = clock_timestamp() FROM gone WHERE id = skill_id
            "#,
            found.id,
        )
        .execute(&mut *tx)
        .await?;
        audit(
            &mut *tx,
            Audit {
                workspace: Some(workspace),
                actor,
                action: "skill_version.delete",
                target: key.to_string(),
                detail: serde_json::json!({"version": found.number.to_string()}),
            },
        )
        .await?;
        tx.commit().await?;
        Ok(Ok(version_ref((found.id, found.number))))
    }
}

/// Locks a skill of this workspace against every other change.
async fn lock(
    connection: &mut PgConnection,
    workspace: WorkspaceId,
    key: &SkillKey,
) -> Result<Result<Locked, SkillRefusal>, StoreError> {
    let SkillKey::Id(id) = key else {
        let found = record(connection, workspace, key).await?;
        return Ok(Err(
            found.map_or(SkillRefusal::NotFound, |_| SkillRefusal::ReadOnly)
        ));
    };
    let found = sqlx::query_as!(
        Locked,
        "SELECT id, name FROM skills WHERE workspace_id = $1 AND id = $2 FOR UPDATE",
        workspace.0,
        id.0,
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.ok_or(SkillRefusal::NotFound))
}

#[cfg(test)]
mod tests;
