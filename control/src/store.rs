//! The one store: every durable fact of the control plane, and the only place that names SQL.
//!
//! Reads go through [`Store`], each one statement. Changes go through [`Change`], one transaction that holds the write
//! lock from its first statement on, so that what it read is still true when it commits; a change that is not
//! committed leaves nothing behind.

use std::path::PathBuf;

use sqlx::any::AnyRow;
use sqlx::{Any, AnyPool, Row as _};

mod attestations;
mod audit;
mod authorities;
mod engine;
mod federation;
mod feed;
mod identities;
mod jwt_keys;
mod leases;
mod lineages;
mod mesh;
mod policies;
mod replicas;
mod revocations;
mod rotations;
mod snapshot;
mod tokens;

pub use attestations::{Binding, Bound};
pub use audit::{Head, Record};
pub use authorities::{Authority, IssuingRequest, Kind, State};
pub use federation::Foreign;
pub use feed::Hints;
pub use jwt_keys::PublishedJwtKey;
pub use leases::Lease;
pub use lineages::{Certificate, Lineage, LiveLineage};
pub use mesh::{Acknowledgement, Announced};
pub use replicas::Replica;
pub use revocations::{Revocation, Revoked, RevokedCertificate, Standing, Subject};
pub use rotations::CanaryReport;
pub use tokens::Token;

use engine::Engine;

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or failed.
    #[error("the store failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the store's schema cannot be brought up to date: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// The file could not be created.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// The file is torn.
    #[error(
        "{} is damaged ({why}); nothing was written to it: put a backup in its place, with the control plane stopped",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It does not answer in time.
    #[error("the store at {0} does not answer; nothing was written")]
    Unreachable(String),
    /// Somebody else does the work that this change belongs to.
    #[error("another replica has taken over {0}")]
    Fenced(&'static str),
    /// A stored value cannot be read back.
    #[error("the store holds an unreadable {what}: {value:?}")]
    Unreadable {
        /// Which value.
        what: &'static str,
        /// What stands there.
        value: String,
    },
}

/// Where the store is.
#[derive(Debug, Clone)]
pub enum Location {
    /// A SQLite file, absolute; created with mode 0600.
    File(PathBuf),
    /// PostgreSQL.
    Server {
        /// `postgres://…`, without password.
        url: String,
        /// The file that holds the password.
        password_file: Option<PathBuf>,
    },
}

/// The database, open.
#[derive(Clone, Debug)]
pub struct Store {
    engine: Engine,
    read: AnyPool,
    write: AnyPool,
    chain: std::sync::Arc<str>,
    declared: identities::Cache,
}

/// One transaction of changes. Dropped without [`Change::commit`], it changes nothing.
#[derive(Debug)]
pub struct Change {
    engine: Engine,
    tx: sqlx::Transaction<'static, Any>,
    is_news: bool,
    chain: std::sync::Arc<str>,
}

impl StoreError {
    /// Whether the same change may succeed if it is tried once more: the connection was lost, or two changes stood in each other's way.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => engine::is_transient(error),
            _ => false,
        }
    }
}

impl Store {
    /// Opens the store and brings its schema up to date.
    pub async fn open(location: &Location) -> Result<Self, StoreError> {
        engine::open(location).await
    }

    /// Begins a change and takes the write lock: no other change of this kind runs beside it, on any replica.
    pub async fn change(&self) -> Result<Change, StoreError> {
        let mut change = self.change_rows().await?;
        if self.engine.is_shared() {
            sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'writer'")
                .execute(&mut *change.tx)
                .await?;
        }
        Ok(change)
    }

    /// Begins a change that locks the rows that it writes and no others: what it has read it must have written first. Issuing
    /// goes this way, so that a stopped or slow replica holds up nobody else.
    pub async fn change_rows(&self) -> Result<Change, StoreError> {
        let begun = self.write.begin_with(self.engine.begin()).await;
        let tx = begun.map_err(|error| self.engine.explain(error))?;
        Ok(Change { engine: self.engine.clone(), tx, is_news: false, chain: self.chain.clone() })
    }

    /// A fact written once, such as the trust domain.
    pub async fn fact(&self, name: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT value FROM facts WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.read)
            .await?;
        Ok(row.map(|r| r.try_get(0)).transpose()?)
    }

    /// The number that stands in a counter now.
    pub async fn counter(&self, name: &str) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT value FROM counters WHERE name = $1")
            .bind(name)
            .fetch_one(&self.read)
            .await?;
        Ok(number(&row, 0)?)
    }

    /// Waits for running changes and closes the file.
    pub async fn close(&self) {
        self.write.close().await;
        self.read.close().await;
    }
}

impl Change {
    /// Makes the change durable; when this returns, it survives a crash. A sync that fails ends the process.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        if self.is_news {
            self.engine.tell(&mut self.tx).await?;
        }
        let done = self.tx.commit().await;
        if let Err(error) = &done
            && engine::is_lost_sync(error)
        {
            tracing::error!(%error, "a sync failed, and nobody knows what the disk holds: ending; the next start reads it anew");
            std::process::exit(1);
        }
        Ok(done?)
    }

    /// Writes a fact that has no value yet.
    pub async fn set_fact(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO facts (name, value) VALUES ($1, $2)")
            .bind(name)
            .bind(value)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Increases a counter and says its new value. `generation` is increased by every change that proxies must hear of.
    pub async fn advance(&mut self, counter: &str) -> Result<u64, StoreError> {
        self.is_news |= counter == "generation";
        let row = sqlx::query("UPDATE counters SET value = value + 1 WHERE name = $1 RETURNING value")
            .bind(counter)
            .fetch_one(&mut *self.tx)
            .await?;
        Ok(number(&row, 0)?)
    }
}

/// A stored text as the type it was written from.
fn parsed<T: std::str::FromStr>(row: &AnyRow, column: &str, what: &'static str) -> Result<T, StoreError> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|_| StoreError::Unreadable { what, value: text })
}

/// A stored JSON text as the value it was written from.
fn json<T: serde::de::DeserializeOwned>(
    row: &AnyRow,
    column: &str,
    what: &'static str,
) -> Result<T, StoreError> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|_| StoreError::Unreadable { what, value: text })
}

/// A count or sequence; never negative as stored.
fn number(row: &AnyRow, column: usize) -> Result<u64, sqlx::Error> {
    row.try_get::<i64, _>(column).map(|n| n.max(0) as u64)
}
