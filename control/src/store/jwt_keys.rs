//! Public keys for JWT-SVIDs, of all replicas.

use postern_config::bundle::JwtKey;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Change, Store, StoreError, number};

/// A published key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedJwtKey {
    /// Its public half, under its name.
    pub key: JwtKey,
    /// The replica that holds its private half.
    pub replica: String,
    /// Milliseconds since 1970, like the others.
    pub published_at: i64,
    /// When it begins to sign.
    pub signs_from: i64,
    /// When its successor takes over.
    pub signs_until: i64,
    /// No token that it signed is valid after this.
    pub ends_at: i64,
}

const ALL: &str = "SELECT jwk, replica, published_at, signs_from, signs_until, ends_at FROM jwt_keys ORDER BY published_at, kid";

impl Store {
    /// All published keys, in the order in which they were published.
    pub async fn jwt_keys(&self) -> Result<Vec<PublishedJwtKey>, StoreError> {
        sqlx::query(ALL).fetch_all(&self.read).await?.iter().map(published).collect()
    }

    /// When the first of them ends.
    pub async fn first_jwt_key_end(&self) -> Result<Option<i64>, StoreError> {
        let row = sqlx::query("SELECT MIN(ends_at) FROM jwt_keys").fetch_one(&self.read).await?;
        Ok(row.try_get(0)?)
    }
}

impl Change {
    /// How many keys are published: whether there may be a verifier that has to learn of a new one.
    pub async fn count_jwt_keys(&mut self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT COUNT(*) FROM jwt_keys").fetch_one(&mut *self.tx).await?;
        Ok(number(&row, 0)?)
    }

    /// Publishes a key; advance `bundle` and `generation` in the same change.
    pub async fn add_jwt_key(&mut self, published: &PublishedJwtKey) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO jwt_keys (kid, replica, jwk, published_at, signs_from, signs_until, ends_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(published.key.kid())
        .bind(published.replica.as_str())
        .bind(published.key.to_jwk().to_string())
        .bind(published.published_at)
        .bind(published.signs_from)
        .bind(published.signs_until)
        .bind(published.ends_at)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Whether the key of this name is published.
    pub async fn has_jwt_key(&mut self, kid: &str) -> Result<bool, StoreError> {
        let found = sqlx::query("SELECT kid FROM jwt_keys WHERE kid = $1").bind(kid);
        Ok(found.fetch_optional(&mut *self.tx).await?.is_some())
    }

    /// Takes a key back at once, if it is there; advance `bundle` and `generation` in the same change.
    pub async fn remove_jwt_key(&mut self, kid: &str) -> Result<bool, StoreError> {
        let done =
            sqlx::query("DELETE FROM jwt_keys WHERE kid = $1").bind(kid).execute(&mut *self.tx).await?;
        Ok(done.rows_affected() == 1)
    }

    /// Takes back keys that ended, and says how many; advance `bundle` and `generation` in the same change if there were any.
    pub async fn sweep_jwt_keys(&mut self, now: i64) -> Result<u64, StoreError> {
        let done =
            sqlx::query("DELETE FROM jwt_keys WHERE ends_at <= $1").bind(now).execute(&mut *self.tx).await?;
        Ok(done.rows_affected())
    }
}

fn published(row: &AnyRow) -> Result<PublishedJwtKey, StoreError> {
    let jwk: String = row.try_get("jwk")?;
    let key = serde_json::from_str(&jwk).ok().and_then(|value| JwtKey::from_jwk(&value).ok());
    Ok(PublishedJwtKey {
        key: key.ok_or(StoreError::Unreadable { what: "JWK", value: jwk })?,
        replica: row.try_get("replica")?,
        published_at: row.try_get("published_at")?,
        signs_from: row.try_get("signs_from")?,
        signs_until: row.try_get("signs_until")?,
        ends_at: row.try_get("ends_at")?,
    })
}
