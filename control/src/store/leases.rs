//! Leases on work that one replica does for all of them. A lease is fenced: its token grows with every holder, and a change made
//! under an older one is refused when it tries to commit.

use super::{Change, Store, StoreError, number};

/// A lease that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// What work it is for.
    pub name: &'static str,
    /// Grows whenever the holder changes.
    pub token: u64,
    /// When it ends unless it is renewed, milliseconds since 1970.
    pub expires_at: i64,
}

impl Store {
    /// Takes the lease or renews it, until `until`; `None` while somebody else holds it at `now`.
    ///
    /// Replicas compare `now` by their own clocks: one whose clock is ahead takes over early. The token keeps that harmless.
    pub async fn lease(
        &self,
        name: &'static str,
        holder: &str,
        now: i64,
        until: i64,
    ) -> Result<Option<Lease>, StoreError> {
        let mut change = self.change_rows().await?;
        let row = sqlx::query(
            "UPDATE leases SET token = CASE WHEN holder = $2 THEN token ELSE token + 1 END, holder = $3, expires_at = $4 \
             WHERE name = $1 AND (holder = $5 OR expires_at < $6) RETURNING token",
        )
        .bind(name)
        .bind(holder)
        .bind(holder)
        .bind(until)
        .bind(holder)
        .bind(now)
        .fetch_optional(&mut *change.tx)
        .await?;
        let token = row.map(|row| number(&row, 0)).transpose()?;
        change.commit().await?;
        Ok(token.map(|token| Lease { name, token, expires_at: until }))
    }
}

impl Change {
    /// Refuses to go on unless `lease` is still held: call it in the change that does the work. It locks the lease's row, so
    /// nobody takes over before this change is committed.
    pub async fn fence(&mut self, lease: &Lease) -> Result<(), StoreError> {
        let done = sqlx::query("UPDATE leases SET token = token WHERE name = $1 AND token = $2")
            .bind(lease.name)
            .bind(lease.token as i64)
            .execute(&mut *self.tx)
            .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Fenced(lease.name)) }
    }
}
