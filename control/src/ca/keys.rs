//! Signing keys of the trust domain behind one type, wherever they live: in a file, on a PKCS#11 token, in Vault.
//!
//! A key is known by its public half: whoever opens a place says which one is expected, so a key that was exchanged behind our
//! back is found before anything is signed with it. Every signature that comes from elsewhere is checked before it is used.
//! Signing may block for as long as a token or a server takes (bounded); on a runtime with several threads the others go on.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use postern_config::file::control::keys::KeyPlace;
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};

use super::CaError;
use super::files::{self, KeyFileError};
use crate::issue::csr::SubjectKey;

mod ecdsa;
#[cfg(not(target_feature = "crt-static"))]
mod pkcs11;
#[cfg(target_feature = "crt-static")]
#[path = "keys/without_pkcs11.rs"]
mod pkcs11;
mod thread;
pub(super) mod vault;

/// Why a key cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyError {
    /// The key file is exposed or unreadable.
    #[error("{0}")]
    File(Arc<KeyFileError>),
    /// Somebody has to put something right: the place, a permission, a PIN.
    #[error("{place}: {why}")]
    Unusable {
        /// The key's place.
        place: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The place does not answer now; it is asked again.
    #[error("{place} does not answer: {why}")]
    Unavailable {
        /// The key's place.
        place: String,
        /// What happened.
        why: String,
    },
}

impl KeyError {
    /// The closed word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File(_) => "key_file",
            Self::Unusable { .. } => "key_unusable",
            Self::Unavailable { .. } => "key_unavailable",
        }
    }

    /// The same for another key of the same token.
    #[cfg(not(target_feature = "crt-static"))]
    fn at(self, place: &KeyPlace) -> Self {
        match self {
            Self::Unusable { why, .. } => Self::unusable(place, why),
            Self::Unavailable { why, .. } => Self::unavailable(place, why),
            file @ Self::File(_) => file,
        }
    }

    fn unusable(place: &impl Display, why: impl Into<String>) -> Self {
        Self::Unusable { place: place.to_string(), why: why.into() }
    }

    fn unavailable(place: &impl Display, why: impl Into<String>) -> Self {
        Self::Unavailable { place: place.to_string(), why: why.into() }
    }
}

/// A key that signs. Cheap to clone; its `Debug` shows its place alone.
#[derive(Clone)]
pub struct Key(Arc<Inner>);

struct Inner {
    place: KeyPlace,
    public: SubjectKey,
    signer: Signer,
    /// Why the last use failed.
    fault: Mutex<Option<KeyError>>,
}

enum Signer {
    File(KeyPair),
    Pkcs11(pkcs11::Remote),
    Vault(vault::Remote),
}

impl Key {
    /// Opens the key at a place; `None` if there is none. `expected` is the DER of the SubjectPublicKeyInfo that it must have;
    /// where a place holds several keys (a token's label, versions in Vault), it chooses. Without it there must be one key, or
    /// in Vault the newest version is taken.
    pub fn open(place: &KeyPlace, expected: Option<&[u8]>) -> Result<Option<Self>, KeyError> {
        let found = match place {
            KeyPlace::File(path) => files::read_key(path)?.map(|pair| Self::of(place, pair)).transpose()?,
            KeyPlace::Pkcs11(token) => {
                let found = blocking(|| pkcs11::open(place, token, expected))?;
                found.map(|(public, remote)| Self::with(place, public, Signer::Pkcs11(remote)))
            }
            KeyPlace::Vault(key) => {
                let found = blocking(|| vault::open(place, key, expected))?;
                found.map(|(public, remote)| Self::with(place, public, Signer::Vault(remote)))
            }
        };
        let Some(key) = found else { return Ok(None) };
        if expected.is_some_and(|expected| key.subject_public_key_info() != expected) {
            return Err(KeyError::unusable(place, "the key there is not the one of the certificate"));
        }
        Ok(Some(key))
    }

    /// Makes a new P-256 key. In a file it takes the place of the one before it; on a token it is one more object of that
    /// label, in Vault one more version.
    pub fn create(place: &KeyPlace) -> Result<Self, KeyError> {
        match place {
            KeyPlace::File(path) => {
                let pair = KeyPair::generate().map_err(|_| KeyError::unusable(place, "no randomness"))?;
                files::write(path, pair.serialize_pem().as_bytes())?;
                Self::of(place, pair)
            }
            KeyPlace::Pkcs11(token) => {
                let (public, remote) = blocking(|| pkcs11::create(place, token))?;
                let key = Self::with(place, public, Signer::Pkcs11(remote));
                key.signature(b"postern: does this key sign?")?;
                Ok(key)
            }
            KeyPlace::Vault(key) => {
                let (public, remote) = blocking(|| vault::create(place, key))?;
                Ok(Self::with(place, public, Signer::Vault(remote)))
            }
        }
    }

    /// A key whose private half is in this process.
    pub fn of(place: &KeyPlace, pair: KeyPair) -> Result<Self, KeyError> {
        let public = SubjectKey::from_spki(&pair.subject_public_key_info()).map_err(|_| {
            KeyError::unusable(place, "keys of this kind do not sign here; use P-256 or P-384")
        })?;
        Ok(Self::with(place, public, Signer::File(pair)))
    }

    /// Where it lives.
    pub fn place(&self) -> &KeyPlace {
        &self.0.place
    }

    /// Its public half.
    pub fn public(&self) -> &SubjectKey {
        &self.0.public
    }

    /// Why its last use failed; `None` once one succeeded again.
    pub fn fault(&self) -> Option<KeyError> {
        self.0.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks its place whether the key is there and could be used, without using it. The answer is remembered for
    /// [`Key::fault`].
    pub fn probe(&self) -> Result<(), KeyError> {
        let asked = match &self.0.signer {
            Signer::File(_) => Ok(()),
            Signer::Pkcs11(remote) => blocking(|| remote.probe(&self.0.place, &self.0.public)),
            Signer::Vault(remote) => blocking(|| remote.probe(&self.0.place, &self.0.public)),
        };
        self.remember(asked)
    }

    /// Removes the private half where that is possible: from the file system or from the token.
    pub fn destroy(self) -> Result<(), KeyError> {
        match (&self.0.signer, &self.0.place) {
            (Signer::Pkcs11(remote), place) => blocking(|| remote.destroy(place, &self.0.public)),
            (Signer::File(_), KeyPlace::File(path)) => files::remove(path).map_err(KeyError::from),
            // Whoever runs Vault says how long old versions stay there.
            (Signer::File(_) | Signer::Vault(_), _) => Ok(()),
        }
    }

    /// A signature over `message`, by ECDSA in DER with the digest that belongs to the curve.
    pub fn signature(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let place = &self.0.place;
        let signed = match &self.0.signer {
            Signer::File(pair) => pair.sign(message).map_err(|e| KeyError::unusable(place, e.to_string())),
            Signer::Pkcs11(remote) => blocking(|| remote.sign(place, &self.0.public, message)),
            Signer::Vault(remote) => blocking(|| remote.sign(place, &self.0.public, message)),
        };
        let signed = signed.and_then(|signature| match self.0.public.verify(message, &signature) {
            true => Ok(signature),
            false => Err(KeyError::unavailable(place, "its signature does not fit its public key")),
        });
        self.remember(signed)
    }

    /// What `error` means for whoever wanted something signed.
    pub(crate) fn failed(&self, error: rcgen::Error) -> CaError {
        match (error, self.fault()) {
            (rcgen::Error::RemoteKeyError, Some(fault)) => CaError::Key(fault),
            (error, _) => CaError::Sign(error),
        }
    }

    fn with(place: &KeyPlace, public: SubjectKey, signer: Signer) -> Self {
        Self(Arc::new(Inner { place: place.clone(), public, signer, fault: Mutex::default() }))
    }

    fn remember<T>(&self, result: Result<T, KeyError>) -> Result<T, KeyError> {
        let mut fault = self.0.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match (&result, &*fault) {
            (Err(error), None) => tracing::error!(%error, "a signing key cannot be used"),
            (Ok(_), Some(_)) => tracing::info!(key = %self.0.place, "the signing key can be used again"),
            _ => {}
        }
        *fault = result.as_ref().err().cloned();
        result
    }
}

/// Lets other tasks of this runtime go on while this one waits.
fn blocking<T>(wait: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
        _ => wait(),
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.public.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.public.algorithm()
    }
}

impl SigningKey for Key {
    /// The reason of a failure is on record in [`Key::fault`].
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signature(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

impl From<KeyFileError> for KeyError {
    fn from(error: KeyFileError) -> Self {
        Self::File(Arc::new(error))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.0.place)
    }
}
