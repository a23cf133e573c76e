//! The one store: every durable fact of the control plane, and the only place that names SQL.
//!
//! Reads go through [`Store`], each one statement. Changes go through [`Change`], one transaction that holds the write
//! lock from its first statement on, so that what it read is still true when it commits; a change that is not
//! committed leaves nothing behind.

use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::{Any, AnyPool, Row as _};

mod audit;
mod lineages;
mod mesh;
mod policies;
mod tokens;

pub use audit::Record;
pub use lineages::{Certificate, Lineage, LiveLineage};
pub use mesh::{Acknowledgement, Announced};
pub use tokens::Token;

/// How many connections read beside the one that writes. Reads are short; more would only queue on two cores.
const READERS: u32 = 4;
/// SQLite's write lock is taken at once: a deferred transaction that upgrades later fails when another one wrote.
const BEGIN: &str = "BEGIN IMMEDIATE";
/// How long a statement waits for another process that holds the file (a backup, a shell).
const BUSY: Duration = Duration::from_secs(10);

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
    /// A stored value cannot be read back.
    #[error("the store holds an unreadable {what}: {value:?}")]
    Unreadable {
        /// Which value.
        what: &'static str,
        /// What stands there.
        value: String,
    },
}

/// The database, open.
#[derive(Clone, Debug)]
pub struct Store {
    read: AnyPool,
    write: AnyPool,
}

/// One transaction of changes. Dropped without [`Change::commit`], it changes nothing.
#[derive(Debug)]
pub struct Change {
    tx: sqlx::Transaction<'static, Any>,
}

impl Store {
    /// Opens `path` (absolute), creating it with mode 0600, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        create_private(path)?;
        let url = format!("sqlite://{}?mode=rw", percent_encode(path));
        // One writer: changes queue here in order instead of meeting SQLITE_BUSY inside SQLite.
        let write = pool(1).connect(&url).await?;
        sqlx::migrate!("./migrations/sqlite").run(&write).await?;
        let read = pool(READERS).connect(&url).await?;
        Ok(Self { read, write })
    }

    /// Begins a change and takes the write lock.
    pub async fn change(&self) -> Result<Change, StoreError> {
        Ok(Change { tx: self.write.begin_with(BEGIN).await? })
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

    /// Whether this issuing CA is on record.
    pub async fn knows_issuing_ca(&self, key_id: &str) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT COUNT(*) FROM issuing_cas WHERE key_id = $1")
            .bind(key_id)
            .fetch_one(&self.read)
            .await?;
        Ok(number(&row, 0)? > 0)
    }

    /// Waits for running changes and closes the file.
    pub async fn close(&self) {
        self.write.close().await;
        self.read.close().await;
    }
}

impl Change {
    /// Makes the change durable; when this returns, it survives a crash.
    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.tx.commit().await?)
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
        sqlx::query("UPDATE counters SET value = value + 1 WHERE name = $1")
            .bind(counter)
            .execute(&mut *self.tx)
            .await?;
        let row = sqlx::query("SELECT value FROM counters WHERE name = $1")
            .bind(counter)
            .fetch_one(&mut *self.tx)
            .await?;
        Ok(number(&row, 0)?)
    }

    /// Records an issuing CA that has begun to sign.
    pub async fn add_issuing_ca(
        &mut self,
        key_id: &str,
        der: &[u8],
        not_after: i64,
    ) -> Result<(), StoreError> {
        let number = self.advance("issuing").await?;
        sqlx::query("INSERT INTO issuing_cas (number, key_id, der, not_after) VALUES ($1, $2, $3, $4)")
            .bind(number as i64)
            .bind(key_id)
            .bind(der.to_vec())
            .bind(not_after)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}

fn pool(connections: u32) -> AnyPoolOptions {
    AnyPoolOptions::new().max_connections(connections).min_connections(1).after_connect(|connection, _| {
        Box::pin(async move {
            use sqlx::Executor as _;
            // FULL: a committed enrollment must survive a power cut, or its token could be redeemed twice.
            connection.execute("PRAGMA journal_mode = WAL").await?;
            connection.execute("PRAGMA synchronous = FULL").await?;
            connection.execute("PRAGMA foreign_keys = ON").await?;
            const { assert!(BUSY.as_secs() == 10) };
            connection.execute("PRAGMA busy_timeout = 10000").await?;
            Ok(())
        })
    })
}

/// SQLite gives its `-wal` and `-shm` files the mode of the database, so one file created well is enough.
fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

/// A path as it may stand in a URL.
fn percent_encode(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let mut out = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => out.push(*byte as char),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
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
