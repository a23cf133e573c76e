//! Who asked for what and what became of it: appended in the transaction of the thing itself, and logged once it is durable.

use serde_json::{Value, json};

use crate::clock::now_ms;
use crate::store::{Change, Record, Store, StoreError};

pub mod chain;
pub mod checkpoint;
pub mod syslog;
pub mod verify;

tokio::task_local! {
    /// What the records of one request have in common.
    static CORRELATION: String;
}

/// Runs one request: every record that it leads to carries `id`.
pub async fn correlated<F: Future>(id: String, request: F) -> F::Output {
    CORRELATION.scope(id, request).await
}

/// A new correlation id, a ULID.
pub fn correlation() -> String {
    ulid::Ulid::new().to_string()
}

/// An audit record on its way to the store.
#[derive(Debug, Clone)]
pub struct Entry {
    record: Record,
}

impl Entry {
    /// Something that happened.
    pub fn done(actor: impl Into<String>, action: &str, subject: impl Into<String>, detail: Value) -> Self {
        Self::new(actor.into(), action, subject.into(), "done", detail)
    }

    /// Something that was refused, for a closed reason.
    pub fn refused(actor: impl Into<String>, action: &str, subject: impl Into<String>, reason: &str) -> Self {
        Self::new(actor.into(), action, subject.into(), "refused", json!({ "reason": reason }))
    }

    fn new(actor: String, action: &str, subject: String, outcome: &str, detail: Value) -> Self {
        // A caller chooses what it asks for; the record keeps enough of it to recognise it.
        let subject = subject.chars().take(300).collect();
        let record = Record {
            chain: String::new(),
            seq: 0,
            at: now_ms(),
            id: CORRELATION.try_with(Clone::clone).unwrap_or_else(|_| correlation()),
            actor,
            action: action.to_owned(),
            subject,
            outcome: outcome.to_owned(),
            detail,
            prev: String::new(),
            hash: String::new(),
        };
        Self { record }
    }

    /// Adds the token that it was about.
    pub fn about_token(mut self, id: &str) -> Self {
        self.record.detail["token"] = id.into();
        self
    }

    /// Adds one more thing to know.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.record.detail[name] = value;
        self
    }

    /// Appends to a change that is under way; call [`Entry::log`] once that is committed.
    pub async fn append(&self, change: &mut Change) -> Result<(), StoreError> {
        change.append_audit(&self.record).await
    }

    /// Tells the log.
    pub fn log(&self) {
        let Record { id, actor, action, subject, outcome, detail, .. } = &self.record;
        tracing::info!(target: "audit", %id, %actor, %action, %subject, %outcome, %detail);
    }

    /// Appends as a change of its own: for refusals, which change nothing else.
    pub async fn write(&self, store: &Store) {
        let written = async {
            let mut change = store.change().await?;
            self.append(&mut change).await?;
            change.commit().await
        };
        match written.await {
            Ok(()) => self.log(),
            Err(error) => {
                tracing::error!(%error, record = ?self.record, "an audit record could not be written")
            }
        }
    }
}
