//! Skills that the operator registers for every workspace, under short names such as `xlsx`.

use selfsame_types::{SkillId, skill::SkillKey, skill::VersionRef};

use super::{NewSkillVersion, insert_version};
use crate::{Actor, Audit, Store, StoreError, keys::audit, time};

/// What became of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    Done(VersionRef),
    /// The latest version has this content already.
    Unchanged(VersionRef),
    /// There is a version of that date with other content.
    Taken(i64),
    /// The skill is registered under this other name.
    OtherName(String),
}

/// A registered skill and its versions, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredSkill {
    pub key: SkillKey,
    pub name: String,
    pub description: String,
    pub versions: Vec<i64>,
    pub updated_at: selfsame_types::Timestamp,
}

impl Store {
    /// Registers a version; its number is a date as in 20251013, today's when `None`.
    ///
    /// # Errors
    /// Database faults.
    pub async fn skill_register(
        &self,
        short_name: &str,
        new: &NewSkillVersion,
        number: Option<i64>,
        actor: &Actor,
    ) -> Result<Registered, StoreError> {
        let mut tx = self.pool.begin().await?;
        let skill = sqlx::query!(
            r#"
            INSERT INTO skills (id, short_name, name, display_name, created_at, updated_at)
            SELECT $1, $2, $3, $3, at, at FROM (SELECT clock_timestamp() AS at) now
            -- An update that changes nothing locks the row, whether it is new or not.
            ON CONFLICT (short_name) WHERE short_name IS NOT NULL
                DO UPDATE SET short_name = excluded.short_name
            RETURNING id, name, to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD')::bigint
                AS "today!"
            "#,
            SkillId::new().0,
            short_name,
            new.name,
        )
        .fetch_one(&mut *tx)
        .await?;
        if skill.name != new.name {
            return Ok(Registered::OtherName(skill.name));
        }
        let number = number.unwrap_or(skill.today);
        let existing = sqlx::query!(
            r#"
            SELECT v.id, v.number, b.sha256
            FROM skill_versions v JOIN blobs b ON b.id = v.blob_id
            WHERE v.skill_id = $1
            ORDER BY v.number = $2 DESC, v.number DESC
            LIMIT 1
            "#,
            skill.id,
            number,
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(existing) = existing {
            if existing.sha256 == new.blob.sha256 {
                return Ok(Registered::Unchanged(super::version_ref((
                    existing.id,
                    existing.number,
                ))));
            }
            if existing.number == number {
                return Ok(Registered::Taken(number));
            }
        }
        let made = insert_version(&mut tx, skill.id, new, Some(number), None).await?;
        audit(
            &mut *tx,
            Audit {
                workspace: None,
                actor,
                action: "skill.register",
                target: short_name.to_owned(),
                detail: serde_json::json!({"version": number.to_string()}),
            },
        )
        .await?;
        tx.commit().await?;
        Ok(Registered::Done(made.version))
    }

    /// What is registered, by short name.
    ///
    /// # Errors
    /// Database faults.
    pub async fn skill_registered(&self) -> Result<Vec<RegisteredSkill>, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT s.short_name AS "short_name!", s.name, s.updated_at,
                   array_agg(v.number ORDER BY v.number DESC) AS "versions!",
                   (array_agg(v.description ORDER BY v.number DESC))[1] AS "description!"
            FROM skills s JOIN skill_versions v ON v.skill_id = s.id
            WHERE s.short_name IS NOT NULL
            GROUP BY s.id
            ORDER BY s.short_name
            "#,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| RegisteredSkill {
                key: SkillKey::Short(row.short_name),
                name: row.name,
                description: row.description,
                versions: row.versions,
                updated_at: time(row.updated_at),
            })
            .collect())
    }

    /// Removes a version of a registered skill, or all of it. Sessions keep what they have. Answers how
    /// many versions went.
    ///
    /// # Errors
    /// Database faults.
    pub async fn skill_unregister(
        &self,
        short_name: &str,
        number: Option<i64>,
        actor: &Actor,
    ) -> Result<u64, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Locked in a statement of its own: the next ones see what the holder before us saved.
        sqlx::query!(
            "SELECT id FROM skills WHERE short_name = $1 FOR UPDATE",
            short_name
        )
        .fetch_optional(&mut *tx)
        .await?;
        let gone = sqlx::query!(
            r#"
            DELETE FROM skill_versions v USING skills s
            WHERE v.skill_id = s.id AND s.short_name = $1
                AND ($2::bigint IS NULL OR v.number = $2)
            "#,
            short_name,
            number,
        )
        .execute(&mut *tx)
        .await?
        .rows_affected();
        sqlx::query!(
            r#"
            DELETE FROM skills s
            WHERE short_name = $1 AND NOT EXISTS (
                SELECT FROM skill_versions WHERE skill_id = s.id
            )
            "#,
            short_name,
        )
        .execute(&mut *tx)
        .await?;
        if gone > 0 {
            audit(
                &mut *tx,
                Audit {
                    workspace: None,
                    actor,
                    action: "skill.unregister",
                    target: short_name.to_owned(),
                    detail: serde_json::json!({"version": number.map(|number| number.to_string())}),
                },
            )
            .await?;
        }
        tx.commit().await?;
        Ok(gone)
    }
}
