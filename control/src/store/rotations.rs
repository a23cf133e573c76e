//! The root's rotation that is under way, and what decides when it goes on.

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Change, Store, StoreError, number};
use crate::ca::rotation::{Rotation, Stage};

const CURRENT: &str = "SELECT id, stage, old_root, new_root, generation, forced, tainted, began_at, changed_at FROM rotations \
     WHERE stage <> 'pruned' ORDER BY began_at LIMIT 1";

impl Store {
    /// The rotation that is under way.
    pub async fn rotation(&self) -> Result<Option<Rotation>, StoreError> {
        let row = sqlx::query(CURRENT).fetch_optional(&self.read).await?;
        row.as_ref().map(rotation).transpose()
    }

    /// When the last valid leaf below this root ends, milliseconds since 1970; 0 if there is none.
    pub async fn last_leaf_below(&self, root: &str, now: i64) -> Result<i64, StoreError> {
        let row = sqlx::query(
            "SELECT COALESCE(MAX(c.not_after), 0) FROM certificates c JOIN authorities a ON a.key_id = c.issuer_key_id \
             WHERE a.issuer = $1 AND c.not_after > $2",
        )
        .bind(root)
        .bind(now)
        .fetch_one(&self.read)
        .await?;
        Ok(row.try_get(0)?)
    }

    /// When the last unused token ends that was made before a moment, milliseconds since 1970; 0 if there is none.
    pub async fn last_token_before(&self, created_before: i64, now: i64) -> Result<i64, StoreError> {
        let row = sqlx::query(
            "SELECT COALESCE(MAX(expires_at), 0) FROM tokens WHERE created_at < $1 AND expires_at > $2 AND redeemed_at IS NULL",
        )
        .bind(created_before)
        .bind(now)
        .fetch_one(&self.read)
        .await?;
        Ok(row.try_get(0)?)
    }
}

impl Change {
    /// The rotation that is under way, as this change sees it.
    pub async fn rotation(&mut self) -> Result<Option<Rotation>, StoreError> {
        let row = sqlx::query(CURRENT).fetch_optional(&mut *self.tx).await?;
        row.as_ref().map(rotation).transpose()
    }

    /// Records a rotation, or how far it has come.
    pub async fn put_rotation(&mut self, rotation: &Rotation) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO rotations (id, stage, old_root, new_root, generation, forced, tainted, began_at, changed_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO UPDATE SET stage = excluded.stage, \
             forced = excluded.forced, tainted = excluded.tainted, changed_at = excluded.changed_at",
        )
        .bind(rotation.id.as_str())
        .bind(rotation.stage.as_str())
        .bind(rotation.old_root.as_str())
        .bind(rotation.new_root.as_str())
        .bind(rotation.generation as i64)
        .bind(i64::from(rotation.is_forced))
        .bind(i64::from(rotation.is_taint))
        .bind(rotation.began_at)
        .bind(rotation.changed_at)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }
}

fn rotation(row: &AnyRow) -> Result<Rotation, StoreError> {
    let stage: String = row.try_get("stage")?;
    let stages = [Stage::Prepared, Stage::Active, Stage::Pruned];
    let unreadable = |value| StoreError::Unreadable { what: "stage of a rotation", value };
    Ok(Rotation {
        id: row.try_get("id")?,
        stage: stages.into_iter().find(|s| s.as_str() == stage).ok_or_else(|| unreadable(stage))?,
        old_root: row.try_get("old_root")?,
        new_root: row.try_get("new_root")?,
        generation: number(row, 4)?,
        is_forced: row.try_get::<i64, _>("forced")? != 0,
        is_taint: row.try_get::<i64, _>("tainted")? != 0,
        began_at: row.try_get("began_at")?,
        changed_at: row.try_get("changed_at")?,
    })
}
