//! What proxies are told and what they answer: services, announced endpoints, acknowledgements.

use postern_config::id::SpiffeId;
use postern_config::service::Service;
use sqlx::Row as _;

use super::{Change, Store, StoreError, json, parsed};

/// An endpoint that a proxy announced for a service of its own identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The service's name.
    pub service: String,
    /// `ip:port`.
    pub address: String,
}

/// What a proxy last said about the generations pushed to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Its lineage.
    pub lineage: String,
    /// What it calls itself.
    pub instance: String,
    /// Its software version.
    pub version: String,
    /// The generation it answered.
    pub generation: u64,
    /// Empty: in force. Otherwise why it kept its last good state.
    pub error: String,
    /// When it said so.
    pub last_seen: i64,
    /// When it answered this generation first, milliseconds since 1970.
    pub acked_at: i64,
    /// The replica that holds its stream; empty if none does.
    pub replica: String,
}

impl Store {
    /// All services as applied, by name.
    pub async fn services(&self) -> Result<Vec<Service>, StoreError> {
        let rows = sqlx::query("SELECT name, identity, endpoints FROM services ORDER BY name")
            .fetch_all(&self.read)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Service {
                    name: row.try_get("name")?,
                    identity: parsed(row, "identity", "SPIFFE ID")?,
                    endpoints: json(row, "endpoints", "list of endpoints")?,
                })
            })
            .collect()
    }

    /// Announced endpoints whose lineage still has the service's identity. A lease that has ended counts until it is
    /// swept: the sweep is the one change that proxies hear of.
    pub async fn announced(&self) -> Result<Vec<Announced>, StoreError> {
        let rows = sqlx::query(
            "SELECT DISTINCT a.service, a.address FROM announcements a \
             JOIN lineages l ON l.id = a.lineage \
             JOIN services s ON s.name = a.service AND s.identity = l.spiffe_id \
             ORDER BY a.service, a.address",
        )
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|r| Ok(Announced { service: r.try_get("service")?, address: r.try_get("address")? }))
            .collect()
    }

    /// When the first lease of an announcement ends.
    pub async fn first_lease_end(&self) -> Result<Option<i64>, StoreError> {
        let row = sqlx::query("SELECT MIN(expires_at) FROM announcements").fetch_one(&self.read).await?;
        Ok(row.try_get(0)?)
    }
}

impl Change {
    /// Creates or replaces a service.
    pub async fn put_service(&mut self, service: &Service) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO services (name, identity, endpoints) VALUES ($1, $2, $3) \
             ON CONFLICT (name) DO UPDATE SET identity = excluded.identity, endpoints = excluded.endpoints",
        )
        .bind(service.name.as_str())
        .bind(service.identity.as_str())
        .bind(serde_json::json!(service.endpoints).to_string())
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Removes a service and says whether it was there.
    pub async fn remove_service(&mut self, name: &str) -> Result<bool, StoreError> {
        let done =
            sqlx::query("DELETE FROM services WHERE name = $1").bind(name).execute(&mut *self.tx).await?;
        Ok(done.rows_affected() == 1)
    }

    /// A service's identity and whether its endpoints are fixed.
    pub async fn service(&mut self, name: &str) -> Result<Option<(SpiffeId, bool)>, StoreError> {
        let row = sqlx::query("SELECT identity, endpoints FROM services WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *self.tx)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let fixed: Vec<String> = json(&row, "endpoints", "list of endpoints")?;
        Ok(Some((parsed(&row, "identity", "SPIFFE ID")?, !fixed.is_empty())))
    }

    /// A lineage's announcements with an open lease or one that can be taken up again.
    pub async fn announcements_of(&mut self, lineage: &str) -> Result<Vec<Announced>, StoreError> {
        let rows = sqlx::query(
            "SELECT service, address FROM announcements WHERE lineage = $1 ORDER BY service, address",
        )
        .bind(lineage)
        .fetch_all(&mut *self.tx)
        .await?;
        rows.iter()
            .map(|r| Ok(Announced { service: r.try_get("service")?, address: r.try_get("address")? }))
            .collect()
    }

    /// Replaces a lineage's announcements; they hold until [`Change::release_announcements`].
    pub async fn replace_announcements(
        &mut self,
        lineage: &str,
        all: &[Announced],
    ) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM announcements WHERE lineage = $1")
            .bind(lineage)
            .execute(&mut *self.tx)
            .await?;
        for one in all {
            sqlx::query("INSERT INTO announcements (service, address, lineage) VALUES ($1, $2, $3)")
                .bind(one.service.as_str())
                .bind(one.address.as_str())
                .bind(lineage)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }

    /// Lets a lineage's announcements end at `at`, because its stream is gone.
    pub async fn release_announcements(&mut self, lineage: &str, at: i64) -> Result<(), StoreError> {
        sqlx::query("UPDATE announcements SET expires_at = $2 WHERE lineage = $1 AND expires_at IS NULL")
            .bind(lineage)
            .bind(at)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Lets the open announcements end at `at` whose proxies were connected to this replica, or to none: it has just started.
    pub async fn release_announcements_of(&mut self, replica: &str, at: i64) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE announcements SET expires_at = $2 WHERE expires_at IS NULL \
             AND NOT EXISTS (SELECT 1 FROM proxies p WHERE p.lineage = announcements.lineage AND p.replica <> '' AND p.replica <> $1)",
        )
        .bind(replica)
        .bind(at)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Drops announcements whose lease ended, and says how many.
    pub async fn sweep_announcements(&mut self, now: i64) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM announcements WHERE expires_at <= $1")
            .bind(now)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected())
    }

    /// Notes that the stream of this proxy is gone from this replica, and says whether it was there still.
    pub async fn disconnect(&mut self, said: &Acknowledgement) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE proxies SET replica = '', generation = $3, error = $4, last_seen = $5, acked_at = $6 \
             WHERE lineage = $1 AND replica = $2",
        )
        .bind(said.lineage.as_str())
        .bind(said.replica.as_str())
        .bind(said.generation as i64)
        .bind(said.error.as_str())
        .bind(said.last_seen)
        .bind(said.acked_at)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Records what a proxy said last.
    pub async fn put_acknowledgement(&mut self, ack: &Acknowledgement) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO proxies (lineage, instance, version, generation, error, last_seen, acked_at, replica) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (lineage) DO UPDATE SET instance = excluded.instance, \
             version = excluded.version, generation = excluded.generation, error = excluded.error, \
             last_seen = excluded.last_seen, acked_at = excluded.acked_at, replica = excluded.replica",
        )
        .bind(ack.lineage.as_str())
        .bind(ack.instance.as_str())
        .bind(ack.version.as_str())
        .bind(ack.generation as i64)
        .bind(ack.error.as_str())
        .bind(ack.last_seen)
        .bind(ack.acked_at)
        .bind(ack.replica.as_str())
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }
}
