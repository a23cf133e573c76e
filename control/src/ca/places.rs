//! Where this replica's keys lie: files in its data directory unless the configuration names a token or a Vault.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use postern_config::file::control::ControlConfig;
use postern_config::file::control::keys::{KeyPlace, RootKey, Upstream};
use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::files::{self, KeyFileError};
use super::keys::{Key, KeyError};
use super::{CaError, ISSUING_CERTIFICATE, Issuing, Published, issuing_from, read_certificate};
use crate::digest::{hex, sha256};

/// The root's key.
const ROOT_KEY: &str = "root.key";
/// The key that signs workloads.
const ISSUING_KEY: &str = "issuing.key";
/// The key of a CA that is asked for, until the answer is there.
const NEXT_KEY: &str = "issuing-next.key";
/// Its public half, where the private one is elsewhere.
const NEXT_PUBLIC: &str = "issuing-next.spki";

/// How names of CAs begin that sign nothing more but revocation lists.
const RETIRED: &str = "retired-";

/// The places.
pub(super) struct Places {
    /// Certificates, and keys unless they are elsewhere.
    pub(super) dir: PathBuf,
    root: Option<RootKey>,
    /// Who signs issuing CAs in place of a root of ours.
    pub(super) upstream: Option<Upstream>,
    issuing: Option<KeyPlace>,
    published: Option<Published>,
    /// Keys that are elsewhere, by their public half: opening one anew each time would mean to log in each time.
    open: Mutex<HashMap<Vec<u8>, Key>>,
}

impl Places {
    pub(super) fn new(dir: &Path, config: &ControlConfig) -> Self {
        let (root, issuing) = (config.ca.root_key.clone(), config.ca.issuing_key.clone());
        let published = config.revocation.url.as_ref().map(|url| Published {
            url: url.trim_end_matches('/').to_owned(),
            shards: config.revocation.shards,
        });
        let upstream = config.ca.upstream.clone();
        Self { dir: dir.to_owned(), root, upstream, issuing, published, open: Mutex::default() }
    }

    /// With the address where its lists are.
    pub(super) fn publish(&self, issuing: Issuing) -> Issuing {
        Issuing { published: self.published.clone(), ..issuing }
    }

    /// The place of the root's key; `None` if that is not here: offline, or an upstream's.
    pub(super) fn root(&self) -> Option<KeyPlace> {
        match (&self.root, &self.upstream) {
            (Some(RootKey::Offline), _) | (_, Some(_)) => None,
            (Some(RootKey::At(place)), None) => Some((**place).clone()),
            (None, None) => Some(KeyPlace::File(self.dir.join(ROOT_KEY))),
        }
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
        let Some(spki) = spki_of(certificate) else { return Ok(None) };
        let place = self.issuing();
        match (self.opened(&place, &spki), &place) {
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
        self.keep_retired()?;
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

    /// Issuing CAs of before, as long as their certificates may be valid; those whose time is over are removed with their keys.
    pub(super) fn retired(&self, now: i64) -> Result<Vec<Issuing>, CaError> {
        let mut found = Vec::new();
        let entries = std::fs::read_dir(&self.dir)
            .map_err(|source| KeyFileError::Io { path: self.dir.clone(), source })?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !(name.starts_with(RETIRED) && name.ends_with(".pem")) {
                continue;
            }
            let certificate = read_certificate(&path)?;
            let Some(spki) = spki_of(&certificate) else { continue };
            let place = match &self.issuing {
                Some(elsewhere @ (KeyPlace::Pkcs11(_) | KeyPlace::Vault(_))) => elsewhere.clone(),
                _ => KeyPlace::File(path.with_extension("key")),
            };
            let Some(key) = self.opened(&place, &spki)? else { continue };
            let issuing = issuing_from(certificate, key.clone())?;
            if now < issuing.not_after {
                found.push(self.publish(issuing));
                continue;
            }
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&spki);
            key.destroy()?;
            files::remove(&path)?;
        }
        Ok(found)
    }

    /// The CA that signed until now has lists to sign as long as its certificates are valid.
    fn keep_retired(&self) -> Result<(), CaError> {
        let path = self.dir.join(ISSUING_CERTIFICATE);
        let (Some(_), Ok(certificate)) = (&self.published, read_certificate(&path)) else { return Ok(()) };
        let Some(spki) = spki_of(&certificate) else { return Ok(()) };
        // A crash between key and certificate has left a pair that does not fit: there is nothing to keep.
        if self.issuing_key(&certificate)?.is_none() {
            return Ok(());
        }
        let name = format!("{RETIRED}{}", &hex(&sha256(&spki))[..16]);
        if let KeyPlace::File(key) = self.issuing() {
            files::write(&self.dir.join(format!("{name}.key")), files::read_secret(&key)?.as_bytes())?;
        }
        let pem = std::fs::read(&path).map_err(|source| KeyFileError::Io { path, source })?;
        files::write(&self.dir.join(format!("{name}.pem")), &pem)?;
        Ok(())
    }

    /// A CA that was withdrawn after its trial has lists to sign as long as its certificates are valid.
    pub(super) fn keep_withdrawn(&self, key: &Key, certificate: &CertificateDer<'_>) -> Result<(), CaError> {
        let spki = key.subject_public_key_info();
        if self.published.is_none() {
            return Ok(());
        }
        let name = format!("{RETIRED}{}", &hex(&sha256(&spki))[..16]);
        if let KeyPlace::File(next) = self.next() {
            files::write(&self.dir.join(format!("{name}.key")), files::read_secret(&next)?.as_bytes())?;
        }
        let pem = super::authorities::pem(certificate);
        files::write(&self.dir.join(format!("{name}.pem")), pem.as_bytes())?;
        Ok(())
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

fn spki_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}
