//! The processes that share this store.

use sqlx::Row as _;

use super::{Change, Store, StoreError};

/// One process that serves from this store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its name, a ULID that lies in its data directory.
    pub id: String,
    /// What its join strings carry.
    pub address: String,
    /// Of its program.
    pub version: String,
    /// Milliseconds since 1970.
    pub started_at: i64,
    /// When it said last that it is there.
    pub last_seen: i64,
}

impl Store {
    /// All replicas that ever were, by name.
    pub async fn replicas(&self) -> Result<Vec<Replica>, StoreError> {
        let rows =
            sqlx::query("SELECT id, address, version, started_at, last_seen FROM replicas ORDER BY id")
                .fetch_all(&self.read)
                .await?;
        rows.iter()
            .map(|row| {
                Ok(Replica {
                    id: row.try_get("id")?,
                    address: row.try_get("address")?,
                    version: row.try_get("version")?,
                    started_at: row.try_get("started_at")?,
                    last_seen: row.try_get("last_seen")?,
                })
            })
            .collect()
    }
}

impl Change {
    /// Says that this replica is there.
    pub async fn put_replica(&mut self, replica: &Replica) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO replicas (id, address, version, started_at, last_seen) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (id) DO UPDATE SET address = excluded.address, version = excluded.version, \
             started_at = excluded.started_at, last_seen = excluded.last_seen",
        )
        .bind(replica.id.as_str())
        .bind(replica.address.as_str())
        .bind(replica.version.as_str())
        .bind(replica.started_at)
        .bind(replica.last_seen)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Notes that the streams of this replica are gone: it has just started.
    pub async fn disconnect_all(&mut self, replica: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE proxies SET replica = '' WHERE replica = $1")
            .bind(replica)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
