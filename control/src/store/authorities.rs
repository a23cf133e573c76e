//! Certificates of the trust domain's own keys, and requests for such: the keys themselves never come here.

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Change, Store, StoreError};

/// What an authority signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Issuing CAs.
    Root,
    /// Workloads.
    Issuing,
}

/// Where an authority is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// In every bundle, signs nothing yet.
    Prepared,
    /// Signs.
    Active,
    /// In every bundle, signs nothing more.
    Retired,
    /// Its key is known to others: out of every bundle, and revoked by its key.
    Tainted,
    /// Out of every bundle.
    Pruned,
}

/// One certificate of the trust domain's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Subject key identifier, hex.
    pub key_id: String,
    /// What it signs.
    pub kind: Kind,
    /// Where it is in its life.
    pub state: State,
    /// The replica whose issuing CA it is; empty for a root.
    pub replica: String,
    /// Key id of the root that signed it; its own for a root.
    pub issuer: String,
    /// Its common name.
    pub name: String,
    /// DER.
    pub der: Vec<u8>,
    /// A root as signed by the root before it, DER; empty if there is none.
    pub cross_der: Vec<u8>,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// A replica's request for an issuing CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuingRequest {
    /// Who asks.
    pub replica: String,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
    /// SHA-256 of its public key, hex.
    pub spki: String,
    /// Signature over `csr` by the replica's issuing key of before; empty if there is none.
    pub proof: Vec<u8>,
    /// Key id of the CA whose key made `proof`.
    pub proved_by: String,
    /// The key (hex of its SHA-256) that an operator approved for this replica; empty if none.
    pub approved: String,
    /// Milliseconds since 1970.
    pub asked_at: i64,
    /// Key id of the root that shall sign; empty for the active one.
    pub root: String,
}

impl Kind {
    /// The word in the store and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Issuing => "issuing",
        }
    }
}

impl State {
    /// The word in the store and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Tainted => "tainted",
            Self::Pruned => "pruned",
        }
    }

    /// Whether bundles hold a root in this state.
    pub fn is_trusted(self) -> bool {
        matches!(self, Self::Prepared | Self::Active | Self::Retired)
    }
}

const ALL: &str = "SELECT key_id, kind, state, replica, issuer, name, der, cross_der, not_before, not_after FROM authorities \
     WHERE state <> 'pruned' ORDER BY not_before, key_id";
const REQUESTS: &str = "SELECT replica, csr, spki, proof, proved_by, approved, asked_at, root FROM issuing_requests ORDER BY asked_at, replica";

impl Store {
    /// All authorities that are not pruned, oldest first.
    pub async fn authorities(&self) -> Result<Vec<Authority>, StoreError> {
        let rows = sqlx::query(ALL).fetch_all(&self.read).await?;
        rows.iter().map(authority).collect()
    }

    /// Requests for issuing CAs that wait, oldest first.
    pub async fn issuing_requests(&self) -> Result<Vec<IssuingRequest>, StoreError> {
        let rows = sqlx::query(REQUESTS).fetch_all(&self.read).await?;
        rows.iter().map(request).collect()
    }
}

impl Change {
    /// All authorities that are not pruned, as this change sees them.
    pub async fn authorities(&mut self) -> Result<Vec<Authority>, StoreError> {
        let rows = sqlx::query(ALL).fetch_all(&mut *self.tx).await?;
        rows.iter().map(authority).collect()
    }

    /// Whether this authority is on record, pruned or not.
    pub async fn knows_authority(&mut self, key_id: &str) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT COUNT(*) FROM authorities WHERE key_id = $1")
            .bind(key_id)
            .fetch_one(&mut *self.tx)
            .await?;
        Ok(super::number(&row, 0)? > 0)
    }

    /// Records an authority, or what has become of it.
    pub async fn put_authority(&mut self, authority: &Authority, now: i64) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO authorities (key_id, kind, state, replica, issuer, name, der, cross_der, not_before, not_after, changed_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (key_id) DO UPDATE SET \
             state = excluded.state, cross_der = excluded.cross_der, changed_at = excluded.changed_at",
        )
        .bind(authority.key_id.as_str())
        .bind(authority.kind.as_str())
        .bind(authority.state.as_str())
        .bind(authority.replica.as_str())
        .bind(authority.issuer.as_str())
        .bind(authority.name.as_str())
        .bind(authority.der.clone())
        .bind(authority.cross_der.clone())
        .bind(authority.not_before)
        .bind(authority.not_after)
        .bind(now)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Asks for an issuing CA; an earlier request of the same replica is replaced. An approval of the same key stays.
    pub async fn put_issuing_request(&mut self, request: &IssuingRequest) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO issuing_requests (replica, csr, spki, proof, proved_by, approved, asked_at, root) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (replica) DO UPDATE SET csr = excluded.csr, spki = excluded.spki, \
             proof = excluded.proof, proved_by = excluded.proved_by, asked_at = excluded.asked_at, root = excluded.root",
        )
        .bind(request.replica.as_str())
        .bind(request.csr.clone())
        .bind(request.spki.as_str())
        .bind(request.proof.clone())
        .bind(request.proved_by.as_str())
        .bind(request.approved.as_str())
        .bind(request.asked_at)
        .bind(request.root.as_str())
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Approves the key of the waiting request whose fingerprint this is, and says whose it was.
    pub async fn approve_issuing(&mut self, spki: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("UPDATE issuing_requests SET approved = $2 WHERE spki = $1 RETURNING replica")
            .bind(spki)
            .bind(spki)
            .fetch_optional(&mut *self.tx)
            .await?;
        Ok(row.map(|row| row.try_get("replica")).transpose()?)
    }

    /// Forgets a request: it was answered.
    pub async fn remove_issuing_request(&mut self, replica: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM issuing_requests WHERE replica = $1")
            .bind(replica)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}

fn authority(row: &AnyRow) -> Result<Authority, StoreError> {
    let unreadable = |what, value| StoreError::Unreadable { what, value };
    let kind: String = row.try_get("kind")?;
    let state: String = row.try_get("state")?;
    let kinds = [Kind::Root, Kind::Issuing];
    let states = [State::Prepared, State::Active, State::Retired, State::Tainted, State::Pruned];
    Ok(Authority {
        key_id: row.try_get("key_id")?,
        kind: kinds.into_iter().find(|k| k.as_str() == kind).ok_or_else(|| unreadable("authority", kind))?,
        state: states
            .into_iter()
            .find(|s| s.as_str() == state)
            .ok_or_else(|| unreadable("authority", state))?,
        replica: row.try_get("replica")?,
        issuer: row.try_get("issuer")?,
        name: row.try_get("name")?,
        der: row.try_get("der")?,
        cross_der: row.try_get("cross_der")?,
        not_before: row.try_get("not_before")?,
        not_after: row.try_get("not_after")?,
    })
}

fn request(row: &AnyRow) -> Result<IssuingRequest, StoreError> {
    Ok(IssuingRequest {
        replica: row.try_get("replica")?,
        csr: row.try_get("csr")?,
        spki: row.try_get("spki")?,
        proof: row.try_get("proof")?,
        proved_by: row.try_get("proved_by")?,
        approved: row.try_get("approved")?,
        asked_at: row.try_get("asked_at")?,
        root: row.try_get("root")?,
    })
}
