//! Join tokens at rest: the secret only as a hash, the redemption as one guarded row.

use std::collections::BTreeMap;

use ipnet::IpNet;
use postern_config::id::SpiffeId;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Change, Store, StoreError, json, parsed};

/// One join token.
#[derive(Debug, Clone)]
pub struct Token {
    /// Public name, a ULID.
    pub id: String,
    /// SHA-256 of the secret.
    pub secret_hash: Vec<u8>,
    /// The one identity that it can become.
    pub spiffe_id: SpiffeId,
    /// Labels that policy selectors see.
    pub labels: BTreeMap<String, String>,
    /// The environment that it is for; empty for none.
    pub environment: String,
    /// Where it may be redeemed from; everywhere if absent.
    pub cidr: Option<IpNet>,
    /// Upper bound for every certificate of its lineage, milliseconds.
    pub max_ttl_ms: Option<i64>,
    /// When it was made.
    pub created_at: i64,
    /// Who made it, such as `uid 0`.
    pub created_by: String,
    /// When it ends unused.
    pub expires_at: i64,
    /// SHA-256 of the key that redeemed it, once it is spent.
    pub redeemed_spki: Option<Vec<u8>>,
    /// The lineage that it began, once it is spent.
    pub lineage: Option<String>,
}

const SELECT: &str = "SELECT id, secret_hash, spiffe_id, labels, cidr, max_ttl_ms, created_at, created_by, expires_at, \
     redeemed_spki, lineage, environment FROM tokens WHERE id = $1";

impl Store {
    /// The token of this name, spent or not.
    pub async fn token(&self, id: &str) -> Result<Option<Token>, StoreError> {
        let row = sqlx::query(SELECT).bind(id).fetch_optional(&self.read).await?;
        row.as_ref().map(token).transpose()
    }
}

impl Change {
    /// Records a new token.
    pub async fn add_token(&mut self, token: &Token) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO tokens (id, secret_hash, spiffe_id, labels, cidr, max_ttl_ms, created_at, created_by, expires_at, environment) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(token.id.as_str())
        .bind(token.secret_hash.clone())
        .bind(token.spiffe_id.as_str())
        .bind(serde_json::json!(token.labels).to_string())
        .bind(token.cidr.map(|c| c.to_string()))
        .bind(token.max_ttl_ms)
        .bind(token.created_at)
        .bind(token.created_by.as_str())
        .bind(token.expires_at)
        .bind(token.environment.as_str())
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Spends the token for the key `spki` and says whether it was there to be spent.
    pub async fn spend_token(
        &mut self,
        id: &str,
        spki: &[u8],
        lineage: &str,
        now: i64,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE tokens SET redeemed_at = $2, redeemed_spki = $3, lineage = $4 \
             WHERE id = $1 AND redeemed_at IS NULL AND expires_at > $5",
        )
        .bind(id)
        .bind(now)
        .bind(spki.to_vec())
        .bind(lineage)
        .bind(now)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The token of this name, as this change sees it.
    pub async fn token(&mut self, id: &str) -> Result<Option<Token>, StoreError> {
        let row = sqlx::query(SELECT).bind(id).fetch_optional(&mut *self.tx).await?;
        row.as_ref().map(token).transpose()
    }

    /// Forgets tokens that ended before `before`, used or not. The audit record keeps what became of them.
    pub async fn forget_tokens(&mut self, before: i64) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM tokens WHERE expires_at < $1")
            .bind(before)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected())
    }
}

fn token(row: &AnyRow) -> Result<Token, StoreError> {
    let cidr: Option<String> = row.try_get("cidr")?;
    let cidr = cidr
        .map(|text| text.parse().map_err(|_| StoreError::Unreadable { what: "CIDR block", value: text }))
        .transpose()?;
    Ok(Token {
        id: row.try_get("id")?,
        secret_hash: row.try_get("secret_hash")?,
        spiffe_id: parsed(row, "spiffe_id", "SPIFFE ID")?,
        labels: json(row, "labels", "set of labels")?,
        environment: row.try_get("environment")?,
        cidr,
        max_ttl_ms: row.try_get("max_ttl_ms")?,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
        expires_at: row.try_get("expires_at")?,
        redeemed_spki: row.try_get("redeemed_spki")?,
        lineage: row.try_get("lineage")?,
    })
}
