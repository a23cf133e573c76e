//! This replica's keys for JWT-SVIDs: published before they sign, kept published until the last token has ended.
//!
//! A private key is a file of mode 0600 below the data directory, named by its key's `kid`; everything that others need to know
//! stands in the store. A file without its row was interrupted before it was published and is removed; a row without its file
//! just ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_config::bundle::{JwtKey, JwtKeyError};
use postern_config::file::control::JwtConfig;
use serde_json::json;
use zeroize::Zeroizing;

use crate::audit::Entry;
use crate::ca::files::{self, KeyFileError};
use crate::clock::{millis, now_ms, rfc3339};
use crate::digest::sha256;
use crate::store::{PublishedJwtKey, Store, StoreError};

/// Beyond the last token's end, milliseconds: verifiers whose clock is behind still look for the key.
const LINGER: i64 = 60_000;
const EXTENSION: &str = "pem";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A key file is exposed or unreadable.
    #[error("{0}")]
    File(#[from] KeyFileError),
    /// The directory cannot be read.
    #[error("{}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key cannot be made.
    #[error("a key for JWT-SVIDs cannot be made: {0}")]
    Generate(#[from] rcgen::Error),
    /// A key cannot be used.
    #[error("a key for JWT-SVIDs cannot be used")]
    Unusable,
    /// The system gave no randomness.
    #[error("no randomness from the system")]
    Random(#[from] aws_lc_rs::error::Unspecified),
}

impl From<JwtKeyError> for KeysError {
    fn from(_: JwtKeyError) -> Self {
        Self::Unusable
    }
}

/// A key that signs.
pub struct SigningKey {
    /// Its name: the thumbprint of its JWK (RFC 7638).
    pub kid: String,
    /// When it begins to sign, milliseconds since 1970.
    pub signs_from: i64,
    /// From when on it may stand in for one that was taken back: verifiers have seen it.
    pub stands_in_from: i64,
    /// When its successor takes over.
    pub signs_until: i64,
    /// No token may end later.
    pub ends_at: i64,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    /// The token: the input with its ES256 signature (RFC 7515 §3.1, RFC 7518 §3.4).
    pub fn sign(&self, input: &str) -> Result<Zeroizing<String>, KeysError> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let signature = self.pair.sign(&random, input.as_bytes())?;
        Ok(Zeroizing::new(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))))
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({}, {} to {})", self.kid, rfc3339(self.signs_from), rfc3339(self.signs_until))
    }
}

/// The keys of one replica.
#[derive(Debug)]
pub struct Keyring {
    dir: PathBuf,
    replica: String,
    /// In the order in which they sign.
    keys: ArcSwap<Vec<Arc<SigningKey>>>,
    turning: tokio::sync::Mutex<()>,
}

impl Keyring {
    /// The keys below `dir` that are still published, with a new one if none of them signs any more.
    pub async fn open(
        dir: &Path,
        replica: &str,
        terms: &JwtConfig,
        store: &Store,
    ) -> Result<Self, KeysError> {
        files::private_directory(dir)?;
        let mut keys = Vec::new();
        for published in store.jwt_keys().await?.into_iter().filter(|p| p.replica == replica) {
            if let Some(pair) = files::read_key(&path(dir, published.key.kid()))? {
                let key = signing(&pair, &published, terms)?;
                if key.kid == published.key.kid() {
                    keys.push(Arc::new(key));
                }
            }
        }
        let keyring = Self {
            dir: dir.to_owned(),
            replica: replica.to_owned(),
            keys: ArcSwap::from_pointee(keys),
            turning: tokio::sync::Mutex::default(),
        };
        keyring.clean_up(now_ms())?;
        keyring.turn(terms, store, now_ms(), None).await?;
        Ok(keyring)
    }

    /// The key that signs at `now`: the newest whose time has come, else one that has been published for long enough; `None` while
    /// the first one waits to be seen.
    pub fn signing(&self, now: i64) -> Option<Arc<SigningKey>> {
        let keys = self.keys.load();
        let live = || keys.iter().filter(|key| now < key.signs_until);
        let due = live().rfind(|key| key.signs_from <= now);
        due.or_else(|| live().find(|key| key.stands_in_from <= now)).cloned()
    }

    /// Makes and publishes the next key if half of the last one's time is over, or `by` somebody's wish; whether it did. Forgets keys
    /// that ended, and those that were taken back: where none is left that may sign, the next one does so at once.
    pub async fn turn(
        &self,
        terms: &JwtConfig,
        store: &Store,
        now: i64,
        by: Option<&str>,
    ) -> Result<bool, KeysError> {
        let _turn = self.turning.lock().await;
        let taken_back = self.drop_taken_back(store).await?;
        let last = self.keys.load().last().cloned();
        let is_due = last
            .as_ref()
            .is_none_or(|last| now >= last.signs_from + (last.signs_until - last.signs_from) / 2);
        let is_bare = taken_back && self.signing(now).is_none();
        if !is_due && !is_bare && by.is_none() {
            return Ok(false);
        }
        self.clean_up(now)?;
        let pair = rcgen::KeyPair::generate()?;
        let public = public(pair.public_key_raw())?;
        files::write(&path(&self.dir, public.kid()), pair.serialize_pem().as_bytes())?;
        let mut change = store.change().await?;
        let ahead = match change.count_jwt_keys().await? {
            0 => 0,
            // Whoever meets an unknown key looks it up; without a key nobody gets a token.
            _ if is_bare => 0,
            _ => millis(terms.publish_ahead.as_duration()),
        };
        // The last one goes on until then, unless its time is over already.
        let signs_from = match last {
            Some(last) if by.is_none() && !is_bare => last.signs_until.max(now + ahead),
            _ => now + ahead,
        };
        let signs_until = signs_from + millis(terms.rotation.as_duration());
        let published = PublishedJwtKey {
            replica: self.replica.clone(),
            published_at: now,
            signs_from,
            signs_until,
            ends_at: signs_until + millis(terms.max_ttl.as_duration()) + LINGER,
            key: public,
        };
        change.add_jwt_key(&published).await?;
        change.advance("bundle").await?;
        change.advance("generation").await?;
        let detail = json!({ "signs_from": signs_from, "signs_until": signs_until });
        let entry = Entry::done(by.unwrap_or("control"), "jwt key", published.key.kid(), detail);
        entry.append(&mut change).await?;
        change.commit().await?;
        entry.log();
        let mut keys = Vec::clone(&self.keys.load());
        keys.push(Arc::new(signing(&pair, &published, terms)?));
        self.keys.store(Arc::new(keys));
        Ok(true)
    }

    /// Forgets keys that are not published any more; whether there were any.
    async fn drop_taken_back(&self, store: &Store) -> Result<bool, KeysError> {
        let published = store.jwt_keys().await?;
        let held = self.keys.load();
        let is_published = |key: &Arc<SigningKey>| published.iter().any(|p| p.key.kid() == key.kid);
        let kept: Vec<_> = held.iter().filter(|key| is_published(key)).cloned().collect();
        if kept.len() == held.len() {
            return Ok(false);
        }
        for key in held.iter().filter(|key| !is_published(key)) {
            let path = path(&self.dir, &key.kid);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(KeysError::Directory { path, source });
                }
                _ => tracing::warn!(kid = %key.kid, "a key for JWT-SVIDs was taken back and is gone"),
            }
        }
        self.keys.store(Arc::new(kept));
        Ok(true)
    }

    /// Removes keys that sign no more, and files that belong to none.
    fn clean_up(&self, now: i64) -> Result<(), KeysError> {
        let keys: Vec<_> = self.keys.load().iter().filter(|key| now < key.signs_until).cloned().collect();
        let directory = |source| KeysError::Directory { path: self.dir.clone(), source };
        for entry in fs::read_dir(&self.dir).map_err(directory)? {
            let found = entry.map_err(directory)?.path();
            let name = found.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            if found.extension().is_some_and(|e| e == EXTENSION) && !keys.iter().any(|key| key.kid == name) {
                fs::remove_file(&found).map_err(directory)?;
            }
        }
        self.keys.store(Arc::new(keys));
        Ok(())
    }
}

fn path(dir: &Path, kid: &str) -> PathBuf {
    dir.join(kid).with_extension(EXTENSION)
}

/// The public half under the thumbprint of its JWK (RFC 7638 §3.2: these members, in this order).
fn public(point: &[u8]) -> Result<JwtKey, KeysError> {
    let jwk = JwtKey::p256("-", point)?.to_jwk();
    let member = |name: &str| jwk[name].as_str().unwrap_or_default().to_owned();
    let (x, y) = (member("x"), member("y"));
    let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    Ok(JwtKey::p256(&URL_SAFE_NO_PAD.encode(sha256(canonical.as_bytes())), point)?)
}

fn signing(
    pair: &rcgen::KeyPair,
    published: &PublishedJwtKey,
    terms: &JwtConfig,
) -> Result<SigningKey, KeysError> {
    let der = Zeroizing::new(pair.serialize_der());
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der);
    let pair = pair.map_err(|_| KeysError::Unusable)?;
    Ok(SigningKey {
        kid: public(pair.public_key().as_ref())?.kid().to_owned(),
        signs_from: published.signs_from,
        stands_in_from: published.published_at + millis(terms.publish_ahead.as_duration()),
        signs_until: published.signs_until,
        ends_at: published.ends_at - LINGER,
        pair,
    })
}
