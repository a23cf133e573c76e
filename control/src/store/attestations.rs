//! Which key a pod or a one-time credential has been bound to: one row each, taken by one guarded statement.

use sqlx::Row as _;

use super::{Change, StoreError};

/// What became of a try to bind something to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// It is bound to this key now. The lineage that its earlier key began, where there was one, is over.
    New {
        /// The earlier lineage.
        replaced: Option<String>,
    },
    /// This very key has it already: the lineage that it began.
    Same(String),
    /// Another key has it.
    Taken,
}

/// A binding about to be made.
#[derive(Debug, Clone, Copy)]
pub struct Binding<'a> {
    /// What is bound.
    pub name: &'a str,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub spki: &'a [u8],
    /// The lineage that begins.
    pub lineage: &'a str,
    /// Until when no other key takes its place, milliseconds since 1970.
    pub not_after: i64,
}

impl Change {
    /// Binds, unless another key has it at `now`.
    pub async fn bind(&mut self, binding: Binding<'_>, now: i64) -> Result<Bound, StoreError> {
        let earlier = self.bound(binding.name).await?;
        let done = sqlx::query(
            "INSERT INTO attestations (binding, spki, lineage, not_after) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (binding) DO UPDATE SET spki = excluded.spki, lineage = excluded.lineage, \
             not_after = excluded.not_after WHERE attestations.not_after < $5",
        )
        .bind(binding.name)
        .bind(binding.spki.to_vec())
        .bind(binding.lineage)
        .bind(binding.not_after)
        .bind(now)
        .execute(&mut *self.tx)
        .await?;
        if done.rows_affected() == 1 {
            return Ok(Bound::New { replaced: earlier.map(|(_, lineage)| lineage) });
        }
        Ok(match self.bound(binding.name).await? {
            Some((spki, lineage)) if spki == binding.spki => Bound::Same(lineage),
            _ => Bound::Taken,
        })
    }

    /// Lets the key that has it already begin another lineage.
    pub async fn rebind(&mut self, binding: Binding<'_>) -> Result<(), StoreError> {
        sqlx::query("UPDATE attestations SET lineage = $2, not_after = $3 WHERE binding = $1 AND spki = $4")
            .bind(binding.name)
            .bind(binding.lineage)
            .bind(binding.not_after)
            .bind(binding.spki.to_vec())
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Forgets bindings that ended before `before`.
    pub async fn forget_attestations(&mut self, before: i64) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM attestations WHERE not_after < $1")
            .bind(before)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected())
    }

    async fn bound(&mut self, name: &str) -> Result<Option<(Vec<u8>, String)>, StoreError> {
        let row = sqlx::query("SELECT spki, lineage FROM attestations WHERE binding = $1")
            .bind(name)
            .fetch_optional(&mut *self.tx)
            .await?;
        row.map(|row| Ok((row.try_get("spki")?, row.try_get("lineage")?))).transpose()
    }
}
