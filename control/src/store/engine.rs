//! The two engines, and everything in which they differ: how a pool is opened, how a change begins, what an error means.

use std::path::Path;
use std::str::FromStr as _;
use std::sync::{Arc, Once};
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::Migrator;
use sqlx::{Any, AnyConnection, Connection as _, Executor as _, Row as _};

use super::{Location, Store, StoreError};

/// How many connections read beside the one that writes. Reads are short; more would only queue on two cores.
const READERS: u32 = 4;
/// How long a statement waits for another process that holds SQLite's file (a backup, a shell), and how long a change waits for
/// its turn in this process.
const BUSY: Duration = Duration::from_secs(10);
/// How long a caller waits for a PostgreSQL that does not answer: shorter than any caller's own patience.
const UNREACHABLE: Duration = Duration::from_secs(4);

/// The chain of records that no replica has written.
const NAMELESS: &str = "nameless";

static SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("./migrations/postgres");

/// Which engine, and where.
#[derive(Debug, Clone)]
pub(super) enum Engine {
    /// A file that one process owns.
    Sqlite,
    /// A server that replicas share.
    Postgres {
        /// `host:port/database`, for people.
        place: Arc<str>,
        /// The whole address, password included, for the connection that listens.
        url: Arc<Secret>,
    },
}

/// An address with a password in it.
pub(super) struct Secret(pub(super) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// Opens pools for `location` and brings the schema up to date.
pub(super) async fn open(location: &Location) -> Result<Store, StoreError> {
    static DRIVERS: Once = Once::new();
    DRIVERS.call_once(sqlx::any::install_default_drivers);
    let (engine, url) = match location {
        Location::File(path) => {
            create_private(path)?;
            let url = format!("sqlite://{}?mode=rw", percent_encode(path));
            examine(&url, path).await?;
            (Engine::Sqlite, url)
        }
        Location::Server { url, password_file } => {
            let url = with_password(url, password_file.as_deref())?;
            let place = place_of(&url).into();
            (Engine::Postgres { place, url: Arc::new(Secret(url.clone())) }, url)
        }
    };
    let options = AnyConnectOptions::from_str(&url)?;
    let pool = |connections| engine.pool(connections).connect_with(options.clone());
    // One writer: changes queue here in order instead of meeting each other inside the engine.
    let write = pool(1).await.map_err(|error| engine.explain(error))?;
    engine.migrations().run(&write).await?;
    let read = pool(READERS).await.map_err(|error| engine.explain(error))?;
    Ok(Store { engine, read, write, chain: NAMELESS.into(), declared: super::identities::Cache::default() })
}

/// Whether the same statement may succeed on another connection, or once somebody else's change is over.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => true,
        // Serialization failure, deadlock, lock not available; an administrator's or a timeout's end of the connection.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            matches!(&*code, "40001" | "40P01" | "55P03" | "25P03" | "08006" | "08003")
                || code.starts_with("57P")
        }),
        _ => false,
    }
}

impl Engine {
    /// Whether other processes write, too.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres { .. })
    }

    /// SQLite's write lock is taken at once: a deferred transaction that upgrades later fails when another one wrote.
    pub(super) fn begin(&self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres { .. } => "BEGIN ISOLATION LEVEL READ COMMITTED",
        }
    }

    /// The migrations of this engine.
    pub(super) fn migrations(&self) -> &'static Migrator {
        match self {
            Self::Sqlite => &SQLITE,
            Self::Postgres { .. } => &POSTGRES,
        }
    }

    /// Tells other replicas with the commit that there is something new: a hint, since they look by themselves.
    pub(super) async fn tell(&self, tx: &mut sqlx::Transaction<'static, Any>) -> Result<(), StoreError> {
        if self.is_shared() {
            sqlx::query(super::feed::TELL).execute(&mut **tx).await?;
        }
        Ok(())
    }

    /// A failed connection as an operator wants to read it.
    pub(super) fn explain(&self, error: sqlx::Error) -> StoreError {
        match (self, error) {
            (Self::Postgres { place, .. }, sqlx::Error::PoolTimedOut) => {
                StoreError::Unreachable(place.to_string())
            }
            (_, error) => error.into(),
        }
    }

    fn pool(&self, connections: u32) -> AnyPoolOptions {
        let statements: &'static [&'static str] = match self {
            Self::Sqlite => &[
                "PRAGMA journal_mode = WAL",
                // FULL: a committed enrollment must survive a power cut, or its token could be redeemed twice.
                "PRAGMA synchronous = FULL",
                "PRAGMA foreign_keys = ON",
                const {
                    assert!(BUSY.as_secs() == 10);
                    "PRAGMA busy_timeout = 10000"
                },
            ],
            Self::Postgres { .. } => &[
                "SET synchronous_commit = on",
                // A replica that is stopped in the middle of a change must not hold its locks for long.
                "SET idle_in_transaction_session_timeout = '3s'",
                "SET lock_timeout = '5s'",
                "SET statement_timeout = '10s'",
            ],
        };
        let patience = if self.is_shared() { UNREACHABLE } else { 3 * BUSY };
        AnyPoolOptions::new()
            .max_connections(connections)
            .min_connections(1)
            .acquire_timeout(patience)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    for statement in statements {
                        connection.execute(*statement).await?;
                    }
                    Ok(())
                })
            })
            .after_release(|connection, _| {
                Box::pin(async move {
                    // A full disk makes SQLite roll back by itself; the library's own rollback then fails, and it would take
                    // every later change on this connection for one within the first.
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
    }
}

/// Refuses a torn file before anything is written to it; a pool would try to open it for half a minute and say that it timed out.
async fn examine(url: &str, path: &Path) -> Result<(), StoreError> {
    let damaged = |why: String| StoreError::Damaged { path: path.to_owned(), why };
    let judged = async {
        let mut connection = AnyConnection::connect(url).await?;
        let row = sqlx::query("PRAGMA quick_check(1)").fetch_one(&mut connection).await?;
        let verdict: String = row.try_get(0)?;
        connection.close().await?;
        Ok::<_, sqlx::Error>(verdict)
    };
    match judged.await {
        Ok(verdict) if verdict == "ok" => Ok(()),
        Ok(verdict) => Err(damaged(verdict)),
        // SQLITE_CORRUPT and SQLITE_NOTADB, with their extended codes.
        Err(sqlx::Error::Database(error)) if primary_code(&*error).is_some_and(|c| matches!(c, 11 | 26)) => {
            Err(damaged(error.message().to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether SQLite could not make sure that something is on disk. What the disk holds then nobody knows, and the kernel says so
/// only once: the next sync would succeed without having written anything.
pub(super) fn is_lost_sync(error: &sqlx::Error) -> bool {
    const SYNCS: [&str; 2] = ["1034", "1290"]; // SQLITE_IOERR_FSYNC, SQLITE_IOERR_DIR_FSYNC
    matches!(error, sqlx::Error::Database(error) if error.code().is_some_and(|code| SYNCS.contains(&&*code)))
}

fn primary_code(error: &dyn sqlx::error::DatabaseError) -> Option<u32> {
    error.code()?.parse::<u32>().ok().map(|code| code & 0xff)
}

/// SQLite gives its `-wal` and `-shm` files the mode of the database, so one file created well is enough.
pub(super) fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

fn with_password(url: &str, file: Option<&Path>) -> std::io::Result<String> {
    let Some(file) = file else { return Ok(url.to_owned()) };
    let password = std::fs::read_to_string(file)
        .map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", file.display())))?;
    let password = percent(password.trim_end_matches(['\r', '\n']).as_bytes(), b'-');
    // The configuration's check has refused a URL that holds a password already.
    Ok(match url.split_once('@') {
        Some((user, rest)) => format!("{user}:{password}@{rest}"),
        None => url.replacen("://", &format!("://:{password}@"), 1),
    })
}

/// `host:port/database` of a URL, without user and password.
fn place_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    rest.split('?').next().unwrap_or_default().to_owned()
}

/// A path as it may stand in a URL.
fn percent_encode(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    percent(path.as_os_str().as_bytes(), b'/')
}

/// What may stand in a URL as it is, and `plain` as well.
fn percent(bytes: &[u8], plain: u8) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => out.push(*byte as char),
            _ if *byte == plain => out.push(*byte as char),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_schema_goes_up_and_down_and_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&Location::File(dir.path().join("store.db"))).await.unwrap();
        let tables = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '\\_sqlx%' ESCAPE '\\'";
        let count = async || {
            use sqlx::Row as _;
            sqlx::query(tables).fetch_one(&store.write).await.unwrap().get::<i64, _>(0)
        };
        let all = count().await;
        assert!(all > 10, "{all}");
        store.engine.migrations().undo(&store.write, 0).await.unwrap();
        assert_eq!(count().await, 0, "something was left behind");
        store.engine.migrations().run(&store.write).await.unwrap();
        assert_eq!(count().await, all);
        assert_eq!(store.counter("generation").await.unwrap(), 1);
    }

    #[test]
    fn a_password_gets_into_the_address_and_into_nothing_that_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "p@ss/word\n").unwrap();
        let url = with_password("postgres://postern@db:5432/postern?sslmode=require", Some(&file)).unwrap();
        assert_eq!(url, "postgres://postern:p%40ss%2Fword@db:5432/postern?sslmode=require");
        assert_eq!(place_of(&url), "db:5432/postern");
        assert_eq!(format!("{:?}", Secret(url)), "…");
    }
}
