//! Another master key, while servers run.
//!
//! ```text
//! servers      seal with OLD         │ seal with NEW as they hear of it   │
//! rows         OLD                   │ OLD, NEW                           │ NEW
//!        every server has NEW ── switch ── every server seals with NEW ── rewrap ── retire OLD
//! ```
//!
//! Each server tells with its heartbeat which keys it has and which one it seals with. So nothing is sealed with
//! NEW before all can open it, and when OLD is retired nobody seals with it any more. Should somebody do after all,
//! a server that was frozen all the while, then the database refuses what it writes: the retired key can be thrown
//! away without a doubt. Each step can be interrupted, and the whole be run again.

use std::time::Duration;

use selfsame_types::{ServerId, Timestamp};
use sqlx::{AssertSqlSafe, Row as _};

use super::CHECK;
use crate::{Store, StoreError, leases::interval, time};

/// A table with sealed values, and its columns.
struct Place {
    table: &'static str,
    data_key: &'static str,
    master_key: &'static str,
}

/// All there are. Each has a trigger that refuses retired keys, and an index on the name of the key.
const PLACES: [Place; 4] = [
    Place {
        table: "vault_credentials",
        data_key: "data_key",
        master_key: "master_key",
    },
    Place {
        table: "session_resources",
        data_key: "token_data_key",
        master_key: "token_master_key",
    },
    Place {
        table: "webhook_secrets",
        data_key: "data_key",
        master_key: "master_key",
    },
    Place {
        table: "deployment_secrets",
        data_key: "data_key",
        master_key: "master_key",
    },
];

/// How much is sealed with a master key in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    pub master_key: String,
    pub table: &'static str,
    pub rows: i64,
}

/// A server that is alive, and its master keys.
#[derive(Debug, Clone)]
pub struct ServerKeys {
    pub server: ServerId,
    pub started_at: Timestamp,
    pub keys: Vec<String>,
    pub sealing: Option<String>,
}

impl Store {
    /// The master key that seals, once there is one.
    ///
    /// # Errors
    /// Database faults.
    pub async fn master_key_current(&self) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar!(
            "SELECT master_key FROM deployment_secrets WHERE name = $1",
            CHECK,
        )
        .fetch_optional(&self.pool)
        .await?)
    }

    /// All master keys that something is sealed with.
    ///
    /// # Errors
    /// Database faults.
    pub async fn master_keys_used(&self) -> Result<Vec<KeyUse>, StoreError> {
        let mut used = Vec::new();
        for Place {
            table, master_key, ..
        } in &PLACES
        {
            let sql = format!(
                "SELECT {master_key}, count(*) FROM {table} WHERE {master_key} IS NOT NULL GROUP BY 1 ORDER BY 1"
            );
            for row in sqlx::query(AssertSqlSafe(sql))
                .fetch_all(&self.pool)
                .await?
            {
                used.push(KeyUse {
                    master_key: row.try_get(0)?,
                    table,
                    rows: row.try_get(1)?,
                });
            }
        }
        Ok(used)
    }

    /// The servers whose heartbeat is younger than `within`.
    ///
    /// # Errors
    /// Database faults.
    pub async fn servers_alive(&self, within: Duration) -> Result<Vec<ServerKeys>, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT id, started_at, master_keys, sealing_key FROM servers
            WHERE heartbeat_at > clock_timestamp() - $1::interval
            ORDER BY started_at, id
            "#,
            interval(within),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| ServerKeys {
                server: ServerId(row.id),
                started_at: time(row.started_at),
                keys: row.master_keys,
                sealing: row.sealing_key,
            })
            .collect())
    }

    /// Makes `to` the master key that seals. Servers hear of it with their next heartbeat.
    ///
    /// # Errors
    /// Database faults, and a key that is not here.
    pub async fn master_key_switch(&self, to: &str) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!("DELETE FROM retired_master_keys WHERE id = $1", to)
            .execute(&mut *tx)
            .await?;
        let row = sqlx::query!(
            "SELECT data_key, master_key FROM deployment_secrets WHERE name = $1 FOR UPDATE",
            CHECK,
        )
        .fetch_one(&mut *tx)
        .await?;
        if row.master_key != to {
            let sealer = self.sealer()?;
            let data_key = sealer.rewrap(&row.data_key, &row.master_key, to).await?;
            sqlx::query!(
                "UPDATE deployment_secrets SET data_key = $2, master_key = $3 WHERE name = $1",
                CHECK,
                data_key,
                to,
            )
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(self.sealer()?.seal_with(to)?)
    }

    /// Wraps up to `limit` data keys that `from` has wrapped with `to`. Answers how many there were:
    /// 0 when it is done. The secrets themselves are not opened.
    ///
    /// # Errors
    /// Database faults, and keys that are not here.
    pub async fn master_key_rewrap(
        &self,
        from: &str,
        to: &str,
        limit: i64,
    ) -> Result<usize, StoreError> {
        let sealer = self.sealer()?;
        for place in &PLACES {
            let Place {
                table,
                data_key,
                master_key,
            } = place;
            // A row that moved or changed since is simply not matched: it is found again.
            let select = format!(
                "SELECT ctid::text, {data_key} FROM {table} WHERE {master_key} = $1 LIMIT $2"
            );
            let rows = sqlx::query(AssertSqlSafe(select))
                .bind(from)
                .bind(limit)
                .fetch_all(&self.pool)
                .await?;
            if rows.is_empty() {
                continue;
            }
            let (mut at, mut old, mut new) = (Vec::new(), Vec::new(), Vec::new());
            for row in &rows {
                let wrapped: Vec<u8> = row.try_get(1)?;
                new.push(sealer.rewrap(&wrapped, from, to).await?);
                at.push(row.try_get::<String, _>(0)?);
                old.push(wrapped);
            }
            let update = format!(
                "UPDATE {table} AS t SET {data_key} = n.new, {master_key} = $4
                 FROM unnest($1::text[]::tid[], $2::bytea[], $3::bytea[]) AS n (at, old, new)
                 WHERE t.ctid = n.at AND t.{data_key} = n.old"
            );
            sqlx::query(AssertSqlSafe(update))
                .bind(&at)
                .bind(&old)
                .bind(&new)
                .bind(to)
                .execute(&self.pool)
                .await?;
            return Ok(rows.len());
        }
        Ok(0)
    }

    /// Puts a master key out of use for good. `false`: something is sealed with it.
    ///
    /// # Errors
    /// Database faults.
    pub async fn master_key_retire(&self, key: &str) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Who is writing is waited for, who comes later finds the key retired.
        sqlx::query!("SELECT set_config('lock_timeout', '10s', true) AS set")
            .fetch_one(&mut *tx)
            .await?;
        let tables = PLACES.map(|place| place.table).join(", ");
        let lock = format!("LOCK TABLE {tables} IN SHARE ROW EXCLUSIVE MODE");
        sqlx::query(AssertSqlSafe(lock)).execute(&mut *tx).await?;
        for Place {
            table, master_key, ..
        } in &PLACES
        {
            let sql = format!("SELECT EXISTS (SELECT FROM {table} WHERE {master_key} = $1)");
            let used: bool = sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(key)
                .fetch_one(&mut *tx)
                .await?;
            if used {
                return Ok(false);
            }
        }
        sqlx::query!(
            "INSERT INTO retired_master_keys (id) VALUES ($1) ON CONFLICT DO NOTHING",
            key,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
