//! What is no longer believed, and which identities get nothing more.

use postern_config::id::SpiffeId;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Change, Store, StoreError, parsed};

/// What one revocation bites on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    /// One certificate.
    Serial {
        /// Its issuer's subject key identifier, hex.
        issuer_key_id: String,
        /// Hex, without leading zero bytes.
        serial: String,
    },
    /// Every certificate of an identity that starts before a moment.
    Identity {
        /// Whose.
        id: SpiffeId,
        /// Seconds since 1970.
        issued_before: i64,
    },
    /// A CA's key, on every member of a path.
    Key {
        /// SHA-256 of its SubjectPublicKeyInfo, hex.
        spki: String,
    },
}

/// One revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Its name, a ULID.
    pub id: String,
    /// What it bites on.
    pub what: Revoked,
    /// A reason of RFC 5280 §5.3.1, such as `keyCompromise`.
    pub reason: String,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// Who asked for it.
    pub created_by: String,
    /// When the last certificate that it could refuse has ended, milliseconds since 1970.
    pub ends_at: i64,
}

/// An identity that got certificates, as whoever issues to it has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// No certificate of it may start before this, milliseconds since 1970.
    pub revoked_before: i64,
    /// Nothing is issued to it.
    pub is_banned: bool,
}

/// A certificate that is refused before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedCertificate {
    /// Hex, without leading zero bytes.
    pub serial: String,
    /// A reason of RFC 5280 §5.3.1.
    pub reason: String,
    /// Milliseconds since 1970.
    pub at: i64,
}

/// What is known of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Never issued, or forgotten since it ended.
    Unknown,
    /// Issued, and not taken back.
    Good,
    /// Taken back.
    Revoked(RevokedCertificate),
}

impl Store {
    /// The certificates of an issuing CA (its key identifier, hex) that were taken back and would else be valid at `now`; each
    /// once, with the first revocation that bites on it.
    pub async fn revoked_certificates(
        &self,
        issuer_key_id: &str,
        now: i64,
    ) -> Result<Vec<RevokedCertificate>, StoreError> {
        let rows = sqlx::query(
            "SELECT r.serial AS serial, r.reason AS reason, r.created_at AS created_at FROM revocations r \
             WHERE r.kind = 'serial' AND r.issuer_key_id = $1 AND r.ends_at > $2 \
             UNION ALL SELECT c.serial, r.reason, r.created_at FROM revocations r \
             JOIN lineages l ON l.spiffe_id = r.spiffe_id JOIN certificates c ON c.lineage = l.id \
             WHERE r.kind = 'identity' AND c.issuer_key_id = $3 AND c.not_before < r.issued_before * 1000 AND c.not_after > $4 \
             ORDER BY created_at, serial",
        )
        .bind(issuer_key_id)
        .bind(now)
        .bind(issuer_key_id)
        .bind(now)
        .fetch_all(&self.read)
        .await?;
        let mut seen = std::collections::HashSet::new();
        let all = rows.iter().map(revoked_certificate).collect::<Result<Vec<_>, _>>()?;
        Ok(all.into_iter().filter(|r| seen.insert(r.serial.clone())).collect())
    }

    /// What is known of the certificate with this serial (hex) of an issuing CA (its key identifier, hex).
    pub async fn standing(&self, issuer_key_id: &str, serial: &str) -> Result<Standing, StoreError> {
        let row = sqlx::query(
            "SELECT c.serial AS serial, r.reason AS reason, r.created_at AS created_at FROM certificates c \
             JOIN lineages l ON l.id = c.lineage LEFT JOIN revocations r \
             ON (r.kind = 'serial' AND r.issuer_key_id = c.issuer_key_id AND r.serial = c.serial) \
             OR (r.kind = 'identity' AND r.spiffe_id = l.spiffe_id AND c.not_before < r.issued_before * 1000) \
             WHERE c.serial = $1 AND c.issuer_key_id = $2 ORDER BY r.created_at LIMIT 1",
        )
        .bind(serial)
        .bind(issuer_key_id)
        .fetch_optional(&self.read)
        .await?;
        let Some(row) = row else { return Ok(Standing::Unknown) };
        match row.try_get::<Option<String>, _>("reason")? {
            None => Ok(Standing::Good),
            Some(_) => revoked_certificate(&row).map(Standing::Revoked),
        }
    }

    /// Revocations that still bite at `now`, oldest first.
    pub async fn revocations(&self, now: i64) -> Result<Vec<Revocation>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, kind, issuer_key_id, serial, spiffe_id, issued_before, spki, reason, created_at, created_by, ends_at \
             FROM revocations WHERE ends_at > $1 ORDER BY created_at, id",
        )
        .bind(now)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(revocation).collect()
    }

    /// Identities that nothing is issued to.
    pub async fn banned(&self) -> Result<Vec<SpiffeId>, StoreError> {
        let rows = sqlx::query("SELECT spiffe_id FROM subjects WHERE banned = 1 ORDER BY spiffe_id")
            .fetch_all(&self.read)
            .await?;
        rows.iter().map(|row| parsed(row, "spiffe_id", "SPIFFE ID")).collect()
    }
}

impl Change {
    /// Locks an identity for this change and says what holds for it. Whoever issues calls this first: a revocation then comes
    /// wholly before or wholly after.
    pub async fn subject(&mut self, id: &SpiffeId, now: i64) -> Result<Subject, StoreError> {
        let row = sqlx::query(
            "INSERT INTO subjects (spiffe_id, last_issued) VALUES ($1, $2) \
             ON CONFLICT (spiffe_id) DO UPDATE SET last_issued = excluded.last_issued RETURNING revoked_before, banned",
        )
        .bind(id.as_str())
        .bind(now)
        .fetch_one(&mut *self.tx)
        .await?;
        Ok(Subject {
            revoked_before: row.try_get("revoked_before")?,
            is_banned: row.try_get::<i64, _>("banned")? != 0,
        })
    }

    /// Sets what holds for an identity; call [`Change::subject`] before.
    pub async fn set_subject(&mut self, id: &SpiffeId, subject: Subject) -> Result<(), StoreError> {
        sqlx::query("UPDATE subjects SET revoked_before = $2, banned = $3 WHERE spiffe_id = $1")
            .bind(id.as_str())
            .bind(subject.revoked_before)
            .bind(i64::from(subject.is_banned))
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Records a revocation.
    pub async fn add_revocation(&mut self, revocation: &Revocation) -> Result<(), StoreError> {
        let (kind, issuer_key_id, serial, id, issued_before, spki) = match &revocation.what {
            Revoked::Serial { issuer_key_id, serial } => ("serial", &**issuer_key_id, &**serial, "", 0, ""),
            Revoked::Identity { id, issued_before } => ("identity", "", "", id.as_str(), *issued_before, ""),
            Revoked::Key { spki } => ("key", "", "", "", 0, &**spki),
        };
        sqlx::query(
            "INSERT INTO revocations (id, kind, issuer_key_id, serial, spiffe_id, issued_before, spki, reason, created_at, \
             created_by, ends_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(revocation.id.as_str())
        .bind(kind)
        .bind(issuer_key_id)
        .bind(serial)
        .bind(id)
        .bind(issued_before)
        .bind(spki)
        .bind(revocation.reason.as_str())
        .bind(revocation.created_at)
        .bind(revocation.created_by.as_str())
        .bind(revocation.ends_at)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Drops revocations that bite on nothing any more, and says how many.
    pub async fn sweep_revocations(&mut self, now: i64) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM revocations WHERE ends_at <= $1")
            .bind(now)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected())
    }

    /// Ends every lineage of an identity that has not ended yet: none of them is renewed any more. Says their names.
    pub async fn end_lineages(
        &mut self,
        id: &SpiffeId,
        why: &str,
        now: i64,
    ) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query(
            "UPDATE lineages SET ended_at = $2, ended_why = $3 WHERE spiffe_id = $1 AND ended_at IS NULL RETURNING id",
        )
        .bind(id.as_str())
        .bind(now)
        .bind(why)
        .fetch_all(&mut *self.tx)
        .await?;
        rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
    }

    /// Ends one lineage.
    pub async fn end_lineage(&mut self, lineage: &str, why: &str, now: i64) -> Result<(), StoreError> {
        sqlx::query("UPDATE lineages SET ended_at = $2, ended_why = $3 WHERE id = $1 AND ended_at IS NULL")
            .bind(lineage)
            .bind(now)
            .bind(why)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Ends the unused tokens of an identity, and says how many there were.
    pub async fn end_tokens(&mut self, id: &SpiffeId, now: i64) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "UPDATE tokens SET expires_at = $2 WHERE spiffe_id = $1 AND redeemed_at IS NULL AND expires_at > $3",
        )
        .bind(id.as_str())
        .bind(now)
        .bind(now)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected())
    }

    /// How many certificates of an identity are valid at `now`, and when the last of them ends.
    pub async fn valid_certificates(&mut self, id: &SpiffeId, now: i64) -> Result<(u64, i64), StoreError> {
        let row = sqlx::query(
            "SELECT COUNT(*), COALESCE(MAX(c.not_after), 0) FROM certificates c JOIN lineages l ON l.id = c.lineage \
             WHERE l.spiffe_id = $1 AND c.not_after > $2",
        )
        .bind(id.as_str())
        .bind(now)
        .fetch_one(&mut *self.tx)
        .await?;
        Ok((super::number(&row, 0)?, row.try_get(1)?))
    }
}

fn revoked_certificate(row: &AnyRow) -> Result<RevokedCertificate, StoreError> {
    Ok(RevokedCertificate {
        serial: row.try_get("serial")?,
        reason: row.try_get("reason")?,
        at: row.try_get("created_at")?,
    })
}

fn revocation(row: &AnyRow) -> Result<Revocation, StoreError> {
    let kind: String = row.try_get("kind")?;
    let what = match kind.as_str() {
        "serial" => {
            Revoked::Serial { issuer_key_id: row.try_get("issuer_key_id")?, serial: row.try_get("serial")? }
        }
        "identity" => Revoked::Identity {
            id: parsed(row, "spiffe_id", "SPIFFE ID")?,
            issued_before: row.try_get("issued_before")?,
        },
        "key" => Revoked::Key { spki: row.try_get("spki")? },
        _ => return Err(StoreError::Unreadable { what: "kind of revocation", value: kind }),
    };
    Ok(Revocation {
        id: row.try_get("id")?,
        what,
        reason: row.try_get("reason")?,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
        ends_at: row.try_get("ends_at")?,
    })
}
