//! Where this replica's keys lie: files in its data directory unless the configuration names a token or a Vault.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use postern_config::file::control::CaConfig;
use postern_config::file::control::keys::KeyPlace;
use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::files::{self, KeyFileError};
use super::keys::{Key, KeyError};
use super::{CaError, ISSUING_CERTIFICATE};

/// The root's key.
const ROOT_KEY: &str = "root.key";
/// The key that signs workloads.
const ISSUING_KEY: &str = "issuing.key";
/// The key of a CA that is asked for, until the answer is there.
const NEXT_KEY: &str = "issuing-next.key";
/// Its public half, where the private one is elsewhere.
const NEXT_PUBLIC: &str = "issuing-next.spki";

/// The places.
pub(super) struct Places {
    /// Certificates, and keys unless they are elsewhere.
    pub(super) dir: PathBuf,
    root: Option<KeyPlace>,
    issuing: Option<KeyPlace>,
    /// Keys that are elsewhere, by their public half: opening one anew each time would mean to log in each time.
    open: Mutex<HashMap<Vec<u8>, Key>>,
}

impl Places {
    pub(super) fn new(dir: &Path, config: &CaConfig) -> Self {
        let (root, issuing) = (config.root_key.clone(), config.issuing_key.clone());
        Self { dir: dir.to_owned(), root, issuing, open: Mutex::default() }
    }

    /// The place of the root's key.
    pub(super) fn root(&self) -> KeyPlace {
        self.root.clone().unwrap_or_else(|| KeyPlace::File(self.dir.join(ROOT_KEY)))
    }

    /// The key at a place that has this public half.
    pub(super) fn opened(&self, place: &KeyPlace, spki: &[u8]) -> Result<Option<Key>, KeyError> {
        if matches!(place, KeyPlace::File(_)) {
            return Key::open(place, Some(spki));
        }
        let known = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(spki).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let found = Key::open(place, Some(spki))?;
        if let Some(key) = &found {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(spki.to_vec(), key.clone());
        }
        Ok(found)
    }

    /// The key of this issuing CA; `None` if it is not there, or is another one's.
    pub(super) fn issuing_key(&self, certificate: &CertificateDer<'_>) -> Result<Option<Key>, CaError> {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Ok(None) };
        let place = self.issuing();
        match (self.opened(&place, parsed.public_key().raw), &place) {
            (Ok(key), _) => Ok(key),
            (Err(KeyError::Unusable { .. }), KeyPlace::File(_)) => Ok(None),
            (Err(KeyError::File(why)), _) if matches!(*why, KeyFileError::NoKey { .. }) => Ok(None),
            (Err(refused), _) => Err(refused.into()),
        }
    }

    /// The key for the next issuing CA: made once, so that an answer that comes after a restart still fits.
    pub(super) fn next_key(&self) -> Result<Key, CaError> {
        let place = self.next();
        if let KeyPlace::File(_) = place {
            return Ok(match Key::open(&place, None)? {
                Some(key) => key,
                None => Key::create(&place)?,
            });
        }
        let note = self.dir.join(NEXT_PUBLIC);
        if let Ok(spki) = std::fs::read(&note)
            && let Some(key) = self.opened(&place, &spki)?
        {
            return Ok(key);
        }
        let key = Key::create(&place)?;
        files::write(&note, &key.subject_public_key_info())?;
        Ok(key)
    }

    /// Gives the key for the next issuing CA up.
    pub(super) fn forget_next(&self) -> Result<(), CaError> {
        match self.next() {
            KeyPlace::File(path) => files::remove(&path)?,
            _ => files::remove(&self.dir.join(NEXT_PUBLIC))?,
        }
        Ok(())
    }

    /// The next key becomes the one that signs, with its certificate (PEM).
    pub(super) fn take(&self, key: Key, certificate: &[u8]) -> Result<Key, CaError> {
        let place = self.issuing();
        let key = match (self.next(), &place) {
            (KeyPlace::File(next), KeyPlace::File(path)) => {
                files::write(path, files::read_secret(&next)?.as_bytes())?;
                Key::open(&place, Some(&key.subject_public_key_info()))?
                    .ok_or_else(|| CaError::Unusable { path: path.clone(), why: "it is gone".to_owned() })?
            }
            _ => key,
        };
        files::write(&self.dir.join(ISSUING_CERTIFICATE), certificate)?;
        self.forget_next()?;
        Ok(key)
    }

    fn issuing(&self) -> KeyPlace {
        self.issuing.clone().unwrap_or_else(|| KeyPlace::File(self.dir.join(ISSUING_KEY)))
    }

    fn next(&self) -> KeyPlace {
        match &self.issuing {
            None => KeyPlace::File(self.dir.join(NEXT_KEY)),
            Some(KeyPlace::File(path)) => KeyPlace::File(path.with_extension("next.key")),
            Some(elsewhere) => elsewhere.clone(),
        }
    }
}
