//! Which versions a session gets, and what it keeps of them.

use selfsame_types::{
    BlobId, SessionId, SkillVersionId, WorkspaceId,
    agent::SkillRef,
    skill::{SkillKey, VersionKey, VersionRef},
};

use sqlx::PgConnection;

use super::{columns, version_columns};
use crate::{Store, StoreError};

/// A skill as a session has it: all that mounting it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkillMount {
    pub version_id: SkillVersionId,
    pub name: String,
    pub description: String,
    /// The archive.
    pub blob_id: BlobId,
}

/// What an agent's reference to a skill means at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedSkill {
    /// The name of the concrete version, for the session's agent to show.
    pub version: String,
    pub mount: SkillMount,
}

/// Writes down what a new session keeps.
pub(crate) async fn keep(
    connection: &mut PgConnection,
    session: SessionId,
    skills: &[SkillMount],
) -> Result<(), sqlx::Error> {
    if skills.is_empty() {
        return Ok(());
    }
    let versions: Vec<_> = skills.iter().map(|skill| skill.version_id.0).collect();
    let names: Vec<_> = skills.iter().map(|skill| skill.name.clone()).collect();
    let descriptions: Vec<_> = skills
        .iter()
        .map(|skill| skill.description.clone())
        .collect();
    let blobs: Vec<_> = skills.iter().map(|skill| skill.blob_id.0).collect();
    sqlx::query!(
        r#"
        INSERT INTO session_skills (session_id, position, version_id, name, description, blob_id)
        SELECT $1, position, version_id, name, description, blob_id
        FROM unnest($2::uuid[], $3::text[], $4::text[], $5::uuid[])
            WITH ORDINALITY AS k (version_id, name, description, blob_id, position)
        "#,
        session.0,
        &versions,
        &names,
        &descriptions,
        &blobs,
    )
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    /// What these references mean at this moment, in their order; `None` for a skill or version that this
    /// workspace does not have, or of another type.
    ///
    /// # Errors
    /// Database faults.
    pub async fn skill_versions_for_session(
        &self,
        workspace: WorkspaceId,
        skills: &[SkillRef],
    ) -> Result<Vec<Option<ResolvedSkill>>, StoreError> {
        let mut resolved = vec![None; skills.len()];
        let mut positions = Vec::new();
        let (mut ids, mut short_names) = (Vec::new(), Vec::new());
        let (mut version_ids, mut numbers) = (Vec::new(), Vec::new());
        for (position, skill) in (0_i32..).zip(skills) {
            let (Ok(key), Ok(version)) = (
                skill.skill_id.parse::<SkillKey>(),
                skill.version.parse::<VersionKey>(),
            ) else {
                continue;
            };
            if key.source() != skill.r#type {
                continue;
            }
            let (id, short_name) = columns(&key);
            let (version_id, number) = version_columns(version);
            positions.push(position);
            ids.push(id);
            short_names.push(short_name.map(str::to_owned));
            version_ids.push(version_id);
            numbers.push(number);
        }
        if positions.is_empty() {
            return Ok(resolved);
        }
        let rows = sqlx::query!(
            r#"
            SELECT w.position AS "position!", v.id, v.number, s.name, v.description, v.blob_id
            FROM unnest($2::integer[], $3::uuid[], $4::text[], $5::uuid[], $6::bigint[])
                AS w (position, skill_id, short_name, version_id, number)
            JOIN skills s
                ON (s.workspace_id = $1 AND s.id = w.skill_id) OR s.short_name = w.short_name
            JOIN LATERAL (
                SELECT id, number, description, blob_id FROM skill_versions
                WHERE skill_id = s.id AND (w.version_id IS NULL OR id = w.version_id)
                    AND (w.number IS NULL OR number = w.number)
                ORDER BY number DESC
                LIMIT 1
            ) v ON true
            "#,
            workspace.0,
            &positions,
            &ids as _,
            &short_names as _,
            &version_ids as _,
            &numbers as _,
        )
        .fetch_all(&self.pool)
        .await?;
        for row in rows {
            let Some((skill, place)) = usize::try_from(row.position)
                .ok()
                .and_then(|at| Some((skills.get(at)?, resolved.get_mut(at)?)))
            else {
                continue;
            };
            let version_id = SkillVersionId(row.id);
            let version = VersionRef {
                id: version_id,
                number: row.number,
            };
            *place = Some(ResolvedSkill {
                version: version.shown(skill.r#type),
                mount: SkillMount {
                    version_id,
                    name: row.name,
                    description: row.description,
                    blob_id: BlobId(row.blob_id),
                },
            });
        }
        Ok(resolved)
    }

    /// The skills that a session was created with, in their order; for the engine, never for a client.
    ///
    /// # Errors
    /// Database faults.
    pub async fn session_skills(&self, session: SessionId) -> Result<Vec<SkillMount>, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT version_id, name, description, blob_id FROM session_skills
            WHERE session_id = $1
            ORDER BY position
            "#,
            session.0,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| SkillMount {
                version_id: SkillVersionId(row.version_id),
                name: row.name,
                description: row.description,
                blob_id: BlobId(row.blob_id),
            })
            .collect())
    }
}
