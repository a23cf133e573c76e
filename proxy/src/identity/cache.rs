//! The optional on-disk cache: key, chain and the last state, so that a restart survives a control plane that is away.
//!
//! It is the one place where a private key leaves the process's memory, and off by default. The directory is 0700, the
//! file 0600, both owned by this user, and a file that is not is refused, not repaired: somebody else may have read it.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use postern_config::id::TrustDomain;
use postern_config::wire::v1;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::key::Issued;

/// The file's name within the directory.
const FILE: &str = "identity.json";
/// The largest cache that is read, in bytes.
const MAX_CACHE: u64 = 64 * 1024 * 1024;

/// Why the cache is not used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The system refused.
    #[error("identity cache {}: {source}", path.display())]
    Io {
        /// Directory or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others can read or write it.
    #[error(
        "identity cache {}: mode {mode:04o} lets other users in; run `chmod {wanted:04o} {}` and enroll anew if \
         they are not trusted",
        path.display(),
        path.display()
    )]
    Mode {
        /// Directory or file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it should be.
        wanted: u32,
    },
    /// It belongs to somebody else.
    #[error("identity cache {}: it belongs to user {owner}, not to this process", path.display())]
    Owner {
        /// Directory or file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// It is damaged.
    #[error("identity cache {}: it cannot be read ({why}); delete it and enroll anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// The cache's directory, checked.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
}

/// What a cache held.
pub struct Cached {
    /// The control plane's address.
    pub address: String,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Key and chain.
    pub(super) issued: Issued,
    /// The state that was in force.
    pub state: v1::WatchResponse,
    not_after: i64,
}

impl Cached {
    /// Whether its certificate has ended at `now`, seconds since 1970.
    pub fn is_expired(&self, now: i64) -> bool {
        now > self.not_after
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    address: String,
    trust_domain: TrustDomain,
    /// PKCS#8, base64.
    key: Zeroizing<String>,
    /// DER, base64, leaf first.
    chain: Vec<String>,
    not_after: i64,
    /// A `WatchResponse`, base64.
    state: String,
}

impl Cache {
    /// Opens the directory, or creates it with mode 0700.
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        if !directory.exists() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|source| CacheError::Io { path: directory.to_owned(), source })?;
        }
        check(directory, 0o700)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// What is in it, if anything.
    pub fn read(&self) -> Result<Option<Cached>, CacheError> {
        use std::io::Read as _;
        let path = self.directory.join(FILE);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CacheError::Io { path, source }),
        };
        check(&path, 0o600)?;
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_CACHE)
            .read_to_string(&mut text)
            .map_err(|source| CacheError::Io { path: path.clone(), source })?;
        decode(&text).map(Some).map_err(|why| CacheError::Damaged { path, why })
    }

    /// Replaces it as a whole: a crash leaves the old file or the new one.
    pub(super) fn write(
        &self,
        address: &str,
        trust_domain: &TrustDomain,
        issued: &Issued,
        state: &v1::WatchResponse,
        not_after: i64,
    ) -> Result<(), CacheError> {
        let path = self.directory.join(FILE);
        let next = self.directory.join(format!("{FILE}.next"));
        let text = encode(address, trust_domain, issued, state, not_after);
        let written = (|| {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&next)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&next, &path)?;
            std::fs::File::open(&self.directory)?.sync_all()
        })();
        written.map_err(|source| CacheError::Io { path, source })
    }
}

fn check(path: &Path, wanted: u32) -> Result<(), CacheError> {
    let io = |source| CacheError::Io { path: path.to_owned(), source };
    let metadata = std::fs::symlink_metadata(path).map_err(io)?;
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(CacheError::Owner { path: path.to_owned(), owner: metadata.uid() });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CacheError::Mode { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

fn encode(
    address: &str,
    trust_domain: &TrustDomain,
    issued: &Issued,
    state: &v1::WatchResponse,
    not_after: i64,
) -> Zeroizing<String> {
    use prost::Message as _;
    let document = Document {
        version: 1,
        address: address.to_owned(),
        trust_domain: trust_domain.clone(),
        key: Zeroizing::new(base64(issued.key().secret_pkcs8_der())),
        chain: issued.chain().iter().map(|c| base64(c)).collect(),
        not_after,
        state: base64(&state.encode_to_vec()),
    };
    Zeroizing::new(serde_json::to_string(&document).unwrap_or_default())
}

fn decode(text: &str) -> Result<Cached, String> {
    use prost::Message as _;
    let document: Document = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if document.version != 1 {
        return Err(format!("version {} is not known here", document.version));
    }
    let chain = document.chain.iter().map(|c| unbase64(c)).collect::<Result<_, _>>()?;
    let state =
        v1::WatchResponse::decode(unbase64(&document.state)?.as_slice()).map_err(|e| e.to_string())?;
    Ok(Cached {
        address: document.address,
        trust_domain: document.trust_domain,
        issued: Issued::new(PrivatePkcs8KeyDer::from(unbase64(&document.key)?), chain),
        state,
        not_after: document.not_after,
    })
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn unbase64(text: &str) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| e.to_string())
}
