//! Backups: one file with a snapshot of the store and, only where that was asked for, the keys.
//!
//! The file is a line with the SHA-256 of the next line in hex, a line of JSON ([`Manifest`]), and then the bytes of every file
//! in the manifest's order.
//!
//! A restored store is older than the one that was lost, and nobody knows by how much. So a restore lifts `generation` and
//! `spiffe_sequence` by [`STRIDE`], ends every join token that was open (it may have been spent since), notes the time, before which
//! no platform's token is good any more (likewise), and begins a new chain of audit records: the old one may have gone on elsewhere.
//! What it cannot know is what was revoked since: whoever restores has to be told.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::audit::Entry;
use crate::ca::files::{self, KeyFileError};
use crate::clock::now_ms;
use crate::digest::{hex, sha256};
use crate::store::{Location, Store, StoreError};

/// By how much counters are lifted: more changes than are made between two backups.
pub const STRIDE: u64 = 1 << 20;
/// The file below the data directory that names the chain of audit records, where that is not the replica's name.
pub const CHAIN: &str = "chain";
/// The store's fact that says when it was restored, milliseconds since 1970: credentials that may be used once and are older may have
/// been used since the backup.
pub const RESTORED_AT: &str = "restored_at";
/// The store's file.
const DATABASE: &str = "postern.db";
/// The same, while it is being restored: nothing serves from that.
const RESTORING: &str = "postern.db.restoring";
const FORMAT: &str = "postern backup v1";
/// The longest manifest, in bytes.
const MAX_MANIFEST: u64 = 1024 * 1024;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A private file cannot be made.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// It is no backup, or not a whole one.
    #[error("{}: {why}; nothing was restored", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is something already.
    #[error("{} is not empty: a backup is restored into an empty directory", .0.display())]
    NotEmpty(PathBuf),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is in a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The form of the file.
    pub format: String,
    /// When the snapshot was made, milliseconds since 1970.
    pub at: i64,
    /// The program's version.
    pub version: String,
    /// The trust domain.
    pub trust_domain: String,
    /// Whether private keys are in it.
    pub with_keys: bool,
    /// The files, in order.
    pub files: Vec<Part>,
}

/// One file in a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its path below the data directory.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// Packs a snapshot that lies at `database`, and files of the data directory, into `out`, which must not exist.
pub fn pack(
    data: &Path,
    database: &Path,
    trust_domain: &str,
    with_keys: bool,
    out: &Path,
) -> Result<Manifest, BackupError> {
    let mut parts = vec![(DATABASE.to_owned(), read(database)?)];
    for name in chosen(data, with_keys)? {
        let content = read(&data.join(&name))?;
        let is_secret = content.windows(11).any(|w| w == b"PRIVATE KEY");
        if with_keys || !is_secret {
            parts.push((name, content));
        }
    }
    let part = |(name, content): &(String, Vec<u8>)| Part {
        name: name.clone(),
        size: content.len() as u64,
        sha256: hex(&sha256(content)),
    };
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        at: now_ms(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trust_domain: trust_domain.to_owned(),
        with_keys,
        files: parts.iter().map(part).collect(),
    };
    let io = |source| BackupError::Io { path: out.to_owned(), source };
    let line = json!(manifest).to_string();
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(out).map_err(io)?;
    let written = writeln!(file, "{}\n{line}", hex(&sha256(line.as_bytes())))
        .and_then(|()| parts.iter().try_for_each(|(_, content)| file.write_all(content)))
        .and_then(|()| file.sync_all());
    if let Err(error) = written {
        let _ = fs::remove_file(out);
        return Err(io(error));
    }
    Ok(manifest)
}

/// Files of a data directory that a backup may hold, by their path below it.
fn chosen(data: &Path, with_keys: bool) -> Result<Vec<String>, BackupError> {
    let mut names = vec!["replica".to_owned()];
    let directories: &[&str] = if with_keys { &["ca", "jwt", "audit"] } else { &["ca"] };
    for directory in directories {
        let path = data.join(directory);
        let io = |source| BackupError::Io { path: path.clone(), source };
        let entries = match fs::read_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(io)?,
        };
        for entry in entries {
            let entry = entry.map_err(io)?;
            if entry.file_type().map_err(io)?.is_file()
                && let Some(name) = entry.file_name().to_str()
            {
                names.push(format!("{directory}/{name}"));
            }
        }
    }
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<Vec<u8>, BackupError> {
    fs::read(path).map_err(|source| BackupError::Io { path: path.to_owned(), source })
}

/// Restores a backup into the empty directory `data`. The store gets its name last: before that there is nothing to serve.
pub async fn restore(from: &Path, data: &Path) -> Result<Manifest, BackupError> {
    let (manifest, parts) = unpack(from)?;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::Io { path, source }
    };
    if fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(BackupError::NotEmpty(data.to_owned()));
    }
    files::private_directory(data)?;
    for (part, content) in manifest.files.iter().zip(&parts) {
        let name = if part.name == DATABASE { RESTORING } else { &part.name };
        let path = data.join(name);
        if let Some(directory) = path.parent() {
            files::private_directory(directory)?;
        }
        files::write(&path, content)?;
    }
    let chain = ulid::Ulid::new().to_string();
    files::write(&data.join(CHAIN), format!("{chain}\n").as_bytes())?;
    let restoring = data.join(RESTORING);
    let data = data.canonicalize().map_err(io(data))?;
    let store = Store::open(&Location::File(data.join(RESTORING))).await?.recording_as(&chain);
    let mut change = store.change().await?;
    change.lift_counters(STRIDE).await?;
    let now = now_ms();
    let ended = change.end_open_tokens(now).await?;
    change.set_fact(RESTORED_AT, &now.to_string()).await?;
    let detail = json!({ "backup_at": manifest.at, "tokens_ended": ended, "lifted_by": STRIDE });
    Entry::done("operator", "restore", manifest.trust_domain.clone(), detail).append(&mut change).await?;
    change.commit().await?;
    store.close().await;
    fs::rename(&restoring, data.join(DATABASE)).map_err(io(&restoring))?;
    File::open(&data).and_then(|d| d.sync_all()).map_err(io(&data))?;
    Ok(manifest)
}

fn unpack(from: &Path) -> Result<(Manifest, Vec<Vec<u8>>), BackupError> {
    let io = |source| BackupError::Io { path: from.to_owned(), source };
    let broken = |why: &str| BackupError::Broken { path: from.to_owned(), why: why.to_owned() };
    let mut file = BufReader::new(File::open(from).map_err(io)?);
    let mut line = || {
        let mut line = Vec::new();
        (&mut file).take(MAX_MANIFEST).read_until(b'\n', &mut line).map_err(io)?;
        String::from_utf8(line).map_err(|_| broken("this is no backup of postern"))
    };
    let (sum, text) = (line()?, line()?);
    let text = text.strip_suffix('\n').ok_or_else(|| broken("this is no backup of postern"))?;
    if hex(&sha256(text.as_bytes())) != sum.trim_end() {
        return Err(broken("this is no backup of postern, or its first lines are damaged"));
    }
    let manifest: Manifest =
        serde_json::from_str(text).map_err(|_| broken("it is of another version of postern"))?;
    if manifest.format != FORMAT || !manifest.files.iter().any(|part| part.name == DATABASE) {
        return Err(broken("it is of another version of postern"));
    }
    let mut parts = Vec::new();
    for part in &manifest.files {
        if !is_inside(&part.name) {
            return Err(broken("it names a file outside of the data directory"));
        }
        let mut content = Vec::new();
        (&mut file).take(part.size).read_to_end(&mut content).map_err(io)?;
        if hex(&sha256(&content)) != part.sha256 {
            return Err(broken(&format!("{} is damaged or cut off", part.name)));
        }
        parts.push(content);
    }
    if file.read(&mut [0]).map_err(io)? != 0 {
        return Err(broken("something stands behind its end"));
    }
    Ok((manifest, parts))
}

fn is_inside(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let plain = components.all(|c| matches!(c, std::path::Component::Normal(_)));
    plain && !name.is_empty() && name != RESTORING && name != CHAIN
}

/// The chain of audit records of the replica whose data lies here.
pub fn chain(data: &Path, replica: &str) -> io::Result<String> {
    match fs::read_to_string(data.join(CHAIN)) {
        Ok(text) => match ulid::Ulid::from_string(text.trim()) {
            Ok(chain) => Ok(chain.to_string()),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the file `chain` names no chain")),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(replica.to_owned()),
        Err(e) => Err(e),
    }
}
