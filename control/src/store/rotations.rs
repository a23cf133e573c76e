//! Rotations that are under way, what decides when they go on, and what proxies say while a canary is watched.

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Change, Kind, Store, StoreError, json, number};
use crate::ca::canary::{Counters, Trial};
use crate::ca::rotation::{Rotation, Stage};

const CURRENT: &str = "SELECT id, stage, old_root, new_root, generation, forced, tainted, began_at, changed_at, kind, replica, share, \
     bound, watch, reason FROM rotations WHERE stage NOT IN ('pruned', 'rolled_back') ORDER BY kind DESC, began_at";
const LAST: &str = "SELECT id, stage, old_root, new_root, generation, forced, tainted, began_at, changed_at, kind, replica, share, \
     bound, watch, reason FROM rotations ORDER BY began_at DESC, id DESC LIMIT 20";

/// What one proxy said of its handshakes while a canary was watched: its first report and its newest one, each with the moment since
/// which it counts (milliseconds since 1970).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryReport {
    /// Whose it is.
    pub lineage: String,
    /// The first of this rotation.
    pub first: (i64, Counters),
    /// The newest.
    pub latest: (i64, Counters),
}

impl Store {
    /// The root's rotation that is under way.
    pub async fn rotation(&self) -> Result<Option<Rotation>, StoreError> {
        Ok(self.rotations().await?.into_iter().find(|r| r.kind == Kind::Root))
    }

    /// All rotations that are under way, the root's first.
    pub async fn rotations(&self) -> Result<Vec<Rotation>, StoreError> {
        let rows = sqlx::query(CURRENT).fetch_all(&self.read).await?;
        rows.iter().map(rotation).collect()
    }

    /// The last rotations, newest first, also those that have ended.
    pub async fn last_rotations(&self) -> Result<Vec<Rotation>, StoreError> {
        let rows = sqlx::query(LAST).fetch_all(&self.read).await?;
        rows.iter().map(rotation).collect()
    }

    /// What the proxies have said while this rotation's canary was watched.
    pub async fn canary_reports(&self, rotation: &str) -> Result<Vec<CanaryReport>, StoreError> {
        let rows = sqlx::query(
            "SELECT lineage, first_since, first, latest_since, latest FROM canary_reports WHERE rotation = $1",
        )
        .bind(rotation)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                let counters = |column| json::<Counters>(row, column, "report of handshakes");
                Ok(CanaryReport {
                    lineage: row.try_get("lineage")?,
                    first: (row.try_get("first_since")?, counters("first")?),
                    latest: (row.try_get("latest_since")?, counters("latest")?),
                })
            })
            .collect()
    }

    /// When the last valid leaf ends that this issuing CA signed, milliseconds since 1970; 0 if there is none.
    pub async fn last_leaf_of(&self, issuing: &str, now: i64) -> Result<i64, StoreError> {
        let row = sqlx::query(
            "SELECT COALESCE(MAX(not_after), 0) FROM certificates WHERE issuer_key_id = $1 AND not_after > $2",
        )
        .bind(issuing)
        .bind(now)
        .fetch_one(&self.read)
        .await?;
        Ok(row.try_get(0)?)
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
    /// The root's rotation that is under way, as this change sees it.
    pub async fn rotation(&mut self) -> Result<Option<Rotation>, StoreError> {
        Ok(self.rotations().await?.into_iter().find(|r| r.kind == Kind::Root))
    }

    /// All rotations that are under way, as this change sees them; the root's first.
    pub async fn rotations(&mut self) -> Result<Vec<Rotation>, StoreError> {
        let rows = sqlx::query(CURRENT).fetch_all(&mut *self.tx).await?;
        rows.iter().map(rotation).collect()
    }

    /// Records a rotation, or how far it has come.
    pub async fn put_rotation(&mut self, rotation: &Rotation) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO rotations (id, stage, old_root, new_root, generation, forced, tainted, began_at, changed_at, kind, replica, share, \
             bound, watch, reason) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
             ON CONFLICT (id) DO UPDATE SET stage = excluded.stage, forced = excluded.forced, tainted = excluded.tainted, \
             changed_at = excluded.changed_at, bound = excluded.bound, reason = excluded.reason",
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
        .bind(rotation.kind.as_str())
        .bind(rotation.replica.as_str())
        .bind(i64::from(rotation.trial.share))
        .bind(rotation.trial.bound as i64)
        .bind(rotation.trial.watch_ms)
        .bind(rotation.reason.as_str())
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Records what a proxy says of its handshakes; the first report of a rotation stays beside the newest.
    pub async fn put_canary_report(
        &mut self,
        rotation: &str,
        lineage: &str,
        report: &(i64, Counters),
        now: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO canary_reports (rotation, lineage, first_since, first, latest_since, latest, reported_at) \
             VALUES ($1, $2, $3, $4, $3, $4, $5) ON CONFLICT (rotation, lineage) DO UPDATE SET \
             latest_since = excluded.latest_since, latest = excluded.latest, reported_at = excluded.reported_at",
        )
        .bind(rotation)
        .bind(lineage)
        .bind(report.0)
        .bind(serde_json::json!(report.1).to_string())
        .bind(now)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Forgets what was said during a rotation that is over.
    pub async fn forget_canary_reports(&mut self, rotation: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM canary_reports WHERE rotation = $1")
            .bind(rotation)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}

fn rotation(row: &AnyRow) -> Result<Rotation, StoreError> {
    let (stage, kind): (String, String) = (row.try_get("stage")?, row.try_get("kind")?);
    let unreadable = |what, value| StoreError::Unreadable { what, value };
    let known = Stage::ALL.into_iter().find(|s| s.as_str() == stage);
    let kinds = [Kind::Root, Kind::Issuing];
    Ok(Rotation {
        id: row.try_get("id")?,
        stage: known.ok_or_else(|| unreadable("stage of a rotation", stage))?,
        old_root: row.try_get("old_root")?,
        new_root: row.try_get("new_root")?,
        generation: number(row, 4)?,
        is_forced: row.try_get::<i64, _>("forced")? != 0,
        is_taint: row.try_get::<i64, _>("tainted")? != 0,
        began_at: row.try_get("began_at")?,
        changed_at: row.try_get("changed_at")?,
        kind: kinds
            .into_iter()
            .find(|k| k.as_str() == kind)
            .ok_or_else(|| unreadable("kind of a rotation", kind))?,
        replica: row.try_get("replica")?,
        trial: Trial {
            share: u8::try_from(row.try_get::<i64, _>("share")?).unwrap_or(100),
            bound: number(row, 12)?,
            watch_ms: row.try_get("watch")?,
        },
        reason: row.try_get("reason")?,
    })
}
