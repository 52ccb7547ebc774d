//! Hints between servers over `NOTIFY`.

use selfsame_types::Timestamp;
use sqlx::postgres::PgListener;

use crate::{Store, StoreError, time};

const CHANNEL: &str = "selfsame";

/// A connection that hears what other servers say.
#[derive(Debug)]
pub struct Listener {
    inner: PgListener,
}

impl Listener {
    /// The next payload.
    ///
    /// # Errors
    /// When the connection broke: what was said meanwhile is lost, so look for yourself.
    pub async fn next(&mut self) -> Result<String, StoreError> {
        match self.inner.try_recv().await? {
            Some(notification) => Ok(notification.payload().to_owned()),
            None => Err(sqlx::Error::WorkerCrashed.into()),
        }
    }
}

impl Store {
    /// Begins to listen.
    ///
    /// # Errors
    /// Database faults.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        let mut inner = PgListener::connect_with(&self.pool).await?;
        inner.listen(CHANNEL).await?;
        Ok(Listener { inner })
    }

    /// Says something to every listener. At most 8000 bytes.
    ///
    /// # Errors
    /// Database faults.
    pub async fn notify(&self, payload: &str) -> Result<(), StoreError> {
        sqlx::query!("SELECT pg_notify($1, $2)", CHANNEL, payload)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The database's clock.
    ///
    /// # Errors
    /// Database faults.
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        let now =
            sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!: jiff_sqlx::Timestamp""#)
                .fetch_one(&self.pool)
                .await?;
        Ok(time(now))
    }
}
