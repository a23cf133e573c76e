//! Lineages and their certificates: one enrollment, one chain of serials, of which the newest used one counts.

use std::collections::BTreeMap;

use postern_config::id::SpiffeId;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Change, Store, StoreError, json, parsed};

/// One enrollment and what has become of it.
#[derive(Debug, Clone)]
pub struct Lineage {
    /// Its name, a ULID.
    pub id: String,
    /// Whose certificates it holds.
    pub spiffe_id: SpiffeId,
    /// Labels that policy selectors see.
    pub labels: BTreeMap<String, String>,
    /// The environment of the credential that began it; empty for none.
    pub environment: String,
    /// What the proxy calls itself; never trusted.
    pub instance: String,
    /// Upper bound for each certificate, milliseconds.
    pub max_ttl_ms: Option<i64>,
    /// The serial in use.
    pub current_serial: String,
    /// A serial that was issued and has not been used yet.
    pub next_serial: Option<String>,
    /// When it was ended before its time, milliseconds since 1970; it is never renewed again.
    pub ended_at: Option<i64>,
}

/// One certificate as issued.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Lower-case hex.
    pub serial: String,
    /// The lineage it belongs to.
    pub lineage: String,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub spki_hash: Vec<u8>,
    /// DER.
    pub leaf: Vec<u8>,
    /// The issuing CA's certificate, DER.
    pub issuer: Vec<u8>,
    /// The issuing CA's subject key identifier, hex.
    pub issuer_key_id: String,
    /// Milliseconds since 1970.
    pub not_before: i64,
    /// Milliseconds since 1970.
    pub not_after: i64,
}

/// A lineage whose newest certificate is still valid, with what its proxy last said.
#[derive(Debug, Clone)]
pub struct LiveLineage {
    /// The lineage.
    pub lineage: Lineage,
    /// End of its newest certificate.
    pub not_after: i64,
    /// When it was last heard of.
    pub last_seen: i64,
    /// The generation that its proxy acknowledged last; 0 for none.
    pub generation: u64,
    /// When it did so, milliseconds since 1970.
    pub acked_at: i64,
    /// Why its proxy refused a generation; empty if it did not.
    pub error: String,
    /// The replica that holds its stream; empty if none does.
    pub replica: String,
}

const CERTIFICATE_OF_KEY: &str = "SELECT serial, lineage, spki_hash, leaf, issuer, issuer_key_id, not_before, not_after \
     FROM certificates WHERE lineage = $1 AND spki_hash = $2";

impl Store {
    /// Lineages with a valid certificate at `now`, by identity.
    pub async fn live_lineages(&self, now: i64) -> Result<Vec<LiveLineage>, StoreError> {
        let rows = sqlx::query(
            "SELECT l.id, l.spiffe_id, l.labels, l.instance, l.max_ttl_ms, l.current_serial, l.next_serial, l.ended_at, l.environment, l.last_seen, \
                    (SELECT MAX(c.not_after) FROM certificates c WHERE c.lineage = l.id) AS not_after, \
                    COALESCE(p.generation, 0) AS generation, COALESCE(p.error, '') AS error, \
                    COALESCE(p.last_seen, 0) AS proxy_seen, COALESCE(p.replica, '') AS replica, \
                    COALESCE(p.acked_at, 0) AS acked_at \
             FROM lineages l LEFT JOIN proxies p ON p.lineage = l.id \
             WHERE EXISTS (SELECT 1 FROM certificates c WHERE c.lineage = l.id AND c.not_after > $1) \
             ORDER BY l.spiffe_id, l.id",
        )
        .bind(now)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(LiveLineage {
                    lineage: lineage(row)?,
                    not_after: row.try_get("not_after")?,
                    last_seen: row.try_get::<i64, _>("last_seen")?.max(row.try_get("proxy_seen")?),
                    generation: row.try_get::<i64, _>("generation")?.max(0) as u64,
                    acked_at: row.try_get("acked_at")?,
                    error: row.try_get("error")?,
                    replica: row.try_get("replica")?,
                })
            })
            .collect()
    }
}

impl Change {
    /// Begins a lineage whose first certificate has this serial.
    pub async fn add_lineage(&mut self, lineage: &Lineage, now: i64) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO lineages (id, spiffe_id, labels, instance, max_ttl_ms, current_serial, created_at, last_seen, environment) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(lineage.id.as_str())
        .bind(lineage.spiffe_id.as_str())
        .bind(serde_json::json!(lineage.labels).to_string())
        .bind(lineage.instance.as_str())
        .bind(lineage.max_ttl_ms)
        .bind(lineage.current_serial.as_str())
        .bind(now)
        .bind(now)
        .bind(lineage.environment.as_str())
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Records a certificate.
    pub async fn add_certificate(&mut self, certificate: &Certificate) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO certificates (serial, lineage, spki_hash, leaf, issuer, issuer_key_id, not_before, not_after) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(certificate.serial.as_str())
        .bind(certificate.lineage.as_str())
        .bind(certificate.spki_hash.clone())
        .bind(certificate.leaf.clone())
        .bind(certificate.issuer.clone())
        .bind(certificate.issuer_key_id.as_str())
        .bind(certificate.not_before)
        .bind(certificate.not_after)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// The lineage that issued `serial` belongs to, locked for this change.
    pub async fn lineage_of(&mut self, serial: &str) -> Result<Option<Lineage>, StoreError> {
        let row = sqlx::query(
            "UPDATE lineages SET last_seen = last_seen WHERE id = (SELECT lineage FROM certificates WHERE serial = $1) \
             RETURNING id, spiffe_id, labels, instance, max_ttl_ms, current_serial, next_serial, ended_at, environment",
        )
        .bind(serial)
        .fetch_optional(&mut *self.tx)
        .await?;
        row.as_ref().map(lineage).transpose()
    }

    /// The certificate with this serial, and the lineage that it belongs to.
    pub async fn certificate(&mut self, serial: &str) -> Result<Option<Certificate>, StoreError> {
        let row = sqlx::query(
            "SELECT serial, lineage, spki_hash, leaf, issuer, issuer_key_id, not_before, not_after FROM certificates \
             WHERE serial = $1",
        )
        .bind(serial)
        .fetch_optional(&mut *self.tx)
        .await?;
        row.as_ref().map(certificate).transpose()
    }

    /// The certificate of this lineage for this key.
    pub async fn certificate_of_key(
        &mut self,
        lineage: &str,
        spki: &[u8],
    ) -> Result<Option<Certificate>, StoreError> {
        let row = sqlx::query(CERTIFICATE_OF_KEY)
            .bind(lineage)
            .bind(spki.to_vec())
            .fetch_optional(&mut *self.tx)
            .await?;
        row.as_ref().map(certificate).transpose()
    }

    /// Sets the serials of a lineage and notes that it was heard of.
    pub async fn set_serials(
        &mut self,
        lineage: &str,
        current: &str,
        next: Option<&str>,
        now: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE lineages SET current_serial = $2, next_serial = $3, last_seen = $4 WHERE id = $1",
        )
        .bind(lineage)
        .bind(current)
        .bind(next.map(str::to_owned))
        .bind(now)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Forgets certificates that ended before `before`; nobody can use them any more.
    pub async fn forget_certificates(&mut self, before: i64) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM certificates WHERE not_after < $1")
            .bind(before)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected())
    }
}

fn lineage(row: &AnyRow) -> Result<Lineage, StoreError> {
    Ok(Lineage {
        id: row.try_get("id")?,
        spiffe_id: parsed(row, "spiffe_id", "SPIFFE ID")?,
        labels: json(row, "labels", "set of labels")?,
        instance: row.try_get("instance")?,
        max_ttl_ms: row.try_get("max_ttl_ms")?,
        current_serial: row.try_get("current_serial")?,
        next_serial: row.try_get("next_serial")?,
        ended_at: row.try_get("ended_at")?,
        environment: row.try_get("environment")?,
    })
}

fn certificate(row: &AnyRow) -> Result<Certificate, StoreError> {
    Ok(Certificate {
        serial: row.try_get("serial")?,
        lineage: row.try_get("lineage")?,
        spki_hash: row.try_get("spki_hash")?,
        leaf: row.try_get("leaf")?,
        issuer: row.try_get("issuer")?,
        issuer_key_id: row.try_get("issuer_key_id")?,
        not_before: row.try_get("not_before")?,
        not_after: row.try_get("not_after")?,
    })
}
