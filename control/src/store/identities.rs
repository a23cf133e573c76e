//! Declared identities at rest, each a JSON document under its name.

use std::sync::{Arc, Mutex, PoisonError};

use postern_config::id::SpiffeId;
use postern_config::registry::{self, Declarations, Identity};
use sqlx::any::AnyRow;

use super::{Change, Store, StoreError, json};

/// The declarations as they were last read, and the generation that they are at least of: every change of them makes a new one.
pub(super) type Cache = Arc<Mutex<Option<(u64, Arc<Declarations>)>>>;

impl Store {
    /// All declared identities, by name. Read again only after a change.
    pub async fn declared(&self) -> Result<Arc<Declarations>, StoreError> {
        // The number first: what is read may then be newer than its number, and is only read once more than needed.
        let generation = self.counter("generation").await?;
        let cached = self.declared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((of, declared)) = cached
            && of == generation
        {
            return Ok(declared);
        }
        let rows = sqlx::query("SELECT document FROM identities ORDER BY name").fetch_all(&self.read).await?;
        let all = rows.iter().map(identity).collect::<Result<_, _>>()?;
        let declared = Arc::new(Declarations::new(all));
        *self.declared.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((generation, Arc::clone(&declared)));
        Ok(declared)
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
    /// The document that binds an identity, as this change sees it: its own, or the closest template.
    pub async fn declared(&mut self, id: &SpiffeId) -> Result<Option<Identity>, StoreError> {
        let rows = sqlx::query("SELECT document FROM identities WHERE spiffe_id = $1 OR template = 1")
            .bind(id.as_str())
            .fetch_all(&mut *self.tx)
            .await?;
        let candidates = rows.iter().map(identity).collect::<Result<_, _>>()?;
        Ok(registry::closest(candidates, id))
    }

    /// The documents that stand under this name, or declare the same as `wanted`: two at most.
    pub async fn declared_like(&mut self, wanted: &Identity) -> Result<Vec<Identity>, StoreError> {
        let rows = sqlx::query("SELECT document FROM identities WHERE name = $1 OR spiffe_id = $2")
            .bind(wanted.metadata.name.as_str())
            .bind(wanted.pattern().to_string())
            .fetch_all(&mut *self.tx)
            .await?;
        rows.iter().map(identity).collect()
    }

    /// The document that stands under this name.
    pub async fn declaration(&mut self, name: &str) -> Result<Option<Identity>, StoreError> {
        let row = sqlx::query("SELECT document FROM identities WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *self.tx)
            .await?;
        row.as_ref().map(identity).transpose()
    }

    /// Declares an identity, or replaces what was declared under this name.
    pub async fn put_identity(&mut self, wanted: &Identity) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO identities (name, spiffe_id, document, template) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (name) DO UPDATE SET spiffe_id = excluded.spiffe_id, document = excluded.document, \
             template = excluded.template",
        )
        .bind(wanted.metadata.name.as_str())
        .bind(wanted.pattern().to_string())
        .bind(serde_json::json!(wanted).to_string())
        .bind(i64::from(wanted.id().is_none()))
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
