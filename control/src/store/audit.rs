//! The audit record at rest: rows are added, never changed; the database refuses the rest.

use sqlx::Row as _;

use super::{Change, Store, StoreError, number};

/// One audit record.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// Position, from 1, without holes.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at: i64,
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
}

impl Store {
    /// The last `count` records, oldest first.
    pub async fn audit(&self, count: u32) -> Result<Vec<Record>, StoreError> {
        let rows = sqlx::query(
            "SELECT seq, at, actor, action, subject, outcome, detail FROM audit ORDER BY seq DESC LIMIT $1",
        )
        .bind(i64::from(count))
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .rev()
            .map(|row| {
                Ok(Record {
                    seq: number(row, 0)?,
                    at: row.try_get("at")?,
                    actor: row.try_get("actor")?,
                    action: row.try_get("action")?,
                    subject: row.try_get("subject")?,
                    outcome: row.try_get("outcome")?,
                    detail: super::json(row, "detail", "audit detail")?,
                })
            })
            .collect()
    }
}

impl Change {
    /// Appends a record; its `seq` is assigned here.
    pub async fn append_audit(&mut self, record: &Record) -> Result<u64, StoreError> {
        let seq = self.advance("audit").await?;
        sqlx::query(
            "INSERT INTO audit (seq, at, actor, action, subject, outcome, detail) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(seq as i64)
        .bind(record.at)
        .bind(record.actor.as_str())
        .bind(record.action.as_str())
        .bind(record.subject.as_str())
        .bind(record.outcome.as_str())
        .bind(record.detail.to_string())
        .execute(&mut *self.tx)
        .await?;
        Ok(seq)
    }
}
