//! The optional on-disk cache: key, chain and the last state, so that a restart survives a control plane that is away.
//!
//! It is the one place where a private key leaves the process's memory, and off by default. The directory is 0700, the
//! file 0600, both owned by this user, and a file that is not is refused, not repaired: somebody else may have read it.

use std::path::{Path, PathBuf};

use postern_config::id::TrustDomain;
use postern_config::wire::v1;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::key::Issued;
use crate::private::{Private, PrivateError};

/// The file's name within the directory.
const FILE: &str = "identity.json";
/// The largest cache that is read, in bytes.
const MAX_CACHE: u64 = 64 * 1024 * 1024;

/// Why the cache is not used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Directory or file is not this user's alone, or the system refused.
    #[error("identity cache {0}")]
    Private(#[from] PrivateError),
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
pub struct Cache(Private);

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
        Ok(Self(Private::open(directory)?))
    }

    /// What is in it, if anything.
    pub fn read(&self) -> Result<Option<Cached>, CacheError> {
        let Some(text) = self.0.read(FILE, MAX_CACHE)? else { return Ok(None) };
        decode(&text).map(Some).map_err(|why| CacheError::Damaged { path: self.0.path(FILE), why })
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
        Ok(self.0.replace(FILE, &encode(address, trust_domain, issued, state, not_after))?)
    }
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
