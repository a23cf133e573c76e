//! The audit record at rest: rows are added, never changed; the database refuses the rest.

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Change, Store, StoreError, number};
use crate::audit::chain;

/// One audit record.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Record {
    /// The chain that it belongs to: the name of the replica that wrote it. Empty for records from before there were chains.
    pub chain: String,
    /// Position in its chain, from 1, without holes.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at: i64,
    /// What belongs together: a ULID that stands in the log line and in the API's answer as well.
    pub id: String,
    /// Who: an address, a SPIFFE ID, `uid 0`, or `control`.
    pub actor: String,
    /// What was asked, such as `enroll`.
    pub action: String,
    /// On what: a token, an identity, a name.
    pub subject: String,
    /// `done` or `refused`.
    pub outcome: String,
    /// JSON; for a refusal it holds `reason`.
    pub detail: serde_json::Value,
    /// The hash of the record before it in its chain.
    pub prev: String,
    /// [`chain::hash`] of all that.
    pub hash: String,
}

/// The last record of a chain.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Head {
    /// The chain.
    pub chain: String,
    /// Position of its last record.
    pub seq: u64,
    /// That record's hash.
    pub hash: String,
}

impl Store {
    /// The same store; records that are appended through it stand in this chain.
    pub fn recording_as(mut self, chain: &str) -> Self {
        self.chain = chain.into();
        self
    }

    /// The last `count` records of all chains, oldest first.
    pub async fn audit(&self, count: u32) -> Result<Vec<Record>, StoreError> {
        let rows = sqlx::query(
            "SELECT chain, seq, at, id, actor, action, subject, outcome, detail, prev, hash FROM audit \
             ORDER BY at DESC, chain DESC, seq DESC LIMIT $1",
        )
        .bind(i64::from(count))
        .fetch_all(&self.read)
        .await?;
        rows.iter().rev().map(record).collect()
    }

    /// At most `count` records of one chain behind position `after`, in order.
    pub async fn audit_records(
        &self,
        chain: &str,
        after: u64,
        count: u32,
    ) -> Result<Vec<Record>, StoreError> {
        let rows = sqlx::query(
            "SELECT chain, seq, at, id, actor, action, subject, outcome, detail, prev, hash FROM audit \
             WHERE chain = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        )
        .bind(chain)
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(i64::from(count))
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(record).collect()
    }

    /// The heads of all chains, by name.
    pub async fn audit_heads(&self) -> Result<Vec<Head>, StoreError> {
        let rows = sqlx::query("SELECT chain, seq, hash FROM audit_heads ORDER BY chain")
            .fetch_all(&self.read)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Head { chain: row.try_get("chain")?, seq: number(row, 1)?, hash: row.try_get("hash")? })
            })
            .collect()
    }

    /// Every chain that has a record or a head, and the position of its first record since `since` (milliseconds since 1970),
    /// if there is one: what stands behind that is written later, whatever the clock said.
    pub async fn audit_starts(&self, since: i64) -> Result<Vec<(String, Option<u64>)>, StoreError> {
        let rows = sqlx::query(
            "SELECT c.chain, (SELECT MIN(a.seq) FROM audit a WHERE a.chain = c.chain AND a.at >= $1) \
             FROM (SELECT chain FROM audit_heads UNION SELECT DISTINCT chain FROM audit) c ORDER BY c.chain",
        )
        .bind(since)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                let first: Option<i64> = row.try_get(1)?;
                Ok((row.try_get(0)?, first.map(|n| n.max(0) as u64)))
            })
            .collect()
    }

    /// At most `count` checkpoints behind the one named `after`, oldest first, as they were signed.
    pub async fn checkpoints(&self, after: &str, count: u32) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query("SELECT document FROM audit_checkpoints WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(after)
            .bind(i64::from(count))
            .fetch_all(&self.read)
            .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }
}

impl Change {
    /// Appends a record to this store's chain; position and hashes are assigned here.
    pub async fn append_audit(&mut self, record: &Record) -> Result<(), StoreError> {
        // Holds the chain's row until the change ends, so that the next record follows this one or nothing.
        let head = sqlx::query(
            "INSERT INTO audit_heads (chain, seq, hash) VALUES ($1, 1, '') \
             ON CONFLICT (chain) DO UPDATE SET seq = audit_heads.seq + 1 RETURNING seq, hash",
        )
        .bind(&*self.chain)
        .fetch_one(&mut *self.tx)
        .await?;
        let mut record = record.clone();
        record.chain = self.chain.to_string();
        record.seq = number(&head, 0)?;
        record.prev = match head.try_get::<String, _>(1)? {
            prev if prev.is_empty() => chain::genesis(&record.chain),
            prev => prev,
        };
        record.hash = chain::hash(&record);
        sqlx::query(
            "INSERT INTO audit (chain, seq, at, id, actor, action, subject, outcome, detail, prev, hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(record.chain.as_str())
        .bind(record.seq as i64)
        .bind(record.at)
        .bind(record.id.as_str())
        .bind(record.actor.as_str())
        .bind(record.action.as_str())
        .bind(record.subject.as_str())
        .bind(record.outcome.as_str())
        .bind(record.detail.to_string())
        .bind(record.prev.as_str())
        .bind(record.hash.as_str())
        .execute(&mut *self.tx)
        .await?;
        sqlx::query("UPDATE audit_heads SET hash = $2 WHERE chain = $1")
            .bind(&*self.chain)
            .bind(record.hash.as_str())
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Keeps a signed checkpoint.
    pub async fn put_checkpoint(&mut self, id: &str, document: &str) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO audit_checkpoints (id, document) VALUES ($1, $2)")
            .bind(id)
            .bind(document)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}

fn record(row: &AnyRow) -> Result<Record, StoreError> {
    Ok(Record {
        chain: row.try_get("chain")?,
        seq: number(row, 1)?,
        at: row.try_get("at")?,
        id: row.try_get("id")?,
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        subject: row.try_get("subject")?,
        outcome: row.try_get("outcome")?,
        detail: detail(row.try_get("detail")?),
        prev: row.try_get("prev")?,
        hash: row.try_get("hash")?,
    })
}

/// What is not spelled as it is written here was put there by somebody else: it is shown as text, and its hash will not fit.
fn detail(text: String) -> serde_json::Value {
    let parsed = serde_json::from_str::<serde_json::Value>(&text).ok();
    match parsed.map(|value| (value.to_string(), value)) {
        Some((spelled, value)) if spelled == text => value,
        _ => text.into(),
    }
}
