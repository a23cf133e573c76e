//! Snapshots by the engine itself, and what makes an old one safe to go on from.

use std::path::Path;

use super::{Change, Store, StoreError};

impl Store {
    /// Writes a consistent copy to a file that does not exist yet, mode 0600, while everything goes on. `false`: the store is no
    /// file, and its server has means of its own.
    pub async fn snapshot(&self, path: &Path) -> Result<bool, StoreError> {
        if self.engine.is_shared() {
            return Ok(false);
        }
        // SQLite writes into an empty file, and keeps its mode.
        super::engine::create_private(path)?;
        sqlx::query("VACUUM INTO $1").bind(path.to_string_lossy().as_ref()).execute(&self.read).await?;
        Ok(true)
    }
}

impl Change {
    /// Lifts what proxies and verifiers must never see go backwards.
    pub async fn lift_counters(&mut self, by: u64) -> Result<(), StoreError> {
        sqlx::query("UPDATE counters SET value = value + $1 WHERE name IN ('generation', 'bundle')")
            .bind(i64::try_from(by).unwrap_or(i64::MAX))
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Ends every join token that has not been redeemed; says how many.
    pub async fn end_open_tokens(&mut self, now: i64) -> Result<u64, StoreError> {
        let done =
            sqlx::query("UPDATE tokens SET expires_at = $1 WHERE redeemed_at IS NULL AND expires_at > $1")
                .bind(now)
                .execute(&mut *self.tx)
                .await?;
        Ok(done.rows_affected())
    }
}
