//! Declared identities at rest, each a JSON document under its name.

use postern_config::id::SpiffeId;
use postern_config::registry::Identity;
use sqlx::any::AnyRow;

use super::{Change, Store, StoreError, json};

impl Store {
    /// All declared identities, by name.
    pub async fn declared(&self) -> Result<Vec<Identity>, StoreError> {
        let rows = sqlx::query("SELECT document FROM identities ORDER BY name").fetch_all(&self.read).await?;
        rows.iter().map(identity).collect()
    }

    /// Whether an enrollment of this identity has not been ended, or a token for it waits at `now`.
    pub async fn is_in_service(&self, id: &SpiffeId, now: i64) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM lineages WHERE spiffe_id = $1 AND ended_at IS NULL) + \
                    (SELECT COUNT(*) FROM tokens WHERE spiffe_id = $2 AND redeemed_at IS NULL AND expires_at > $3)",
        )
        .bind(id.as_str())
        .bind(id.as_str())
        .bind(now)
        .fetch_one(&self.read)
        .await?;
        Ok(super::number(&row, 0)? > 0)
    }
}

impl Change {
    /// What is declared of an identity, as this change sees it.
    pub async fn declared(&mut self, id: &SpiffeId) -> Result<Option<Identity>, StoreError> {
        let row = sqlx::query("SELECT document FROM identities WHERE spiffe_id = $1")
            .bind(id.as_str())
            .fetch_optional(&mut *self.tx)
            .await?;
        row.as_ref().map(identity).transpose()
    }

    /// Declares an identity, or replaces what was declared under this name.
    pub async fn put_identity(&mut self, wanted: &Identity) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO identities (name, spiffe_id, document) VALUES ($1, $2, $3) \
             ON CONFLICT (name) DO UPDATE SET spiffe_id = excluded.spiffe_id, document = excluded.document",
        )
        .bind(wanted.metadata.name.as_str())
        .bind(wanted.spec.spiffe_id.as_str())
        .bind(serde_json::json!(wanted).to_string())
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Removes a declaration, and says whether it was there.
    pub async fn remove_identity(&mut self, name: &str) -> Result<bool, StoreError> {
        let done =
            sqlx::query("DELETE FROM identities WHERE name = $1").bind(name).execute(&mut *self.tx).await?;
        Ok(done.rows_affected() == 1)
    }
}

fn identity(row: &AnyRow) -> Result<Identity, StoreError> {
    json(row, "document", "declared identity")
}
