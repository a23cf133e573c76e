//! Keys of Vault's (or OpenBao's) transit engine: the digest goes there, the signature comes back.
//!
//! One thread speaks for all keys of one login. Its token is renewed while a third of its life is left, and got anew from the
//! files whenever Vault no longer takes it.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{LazyLock, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_config::file::control::keys::{KeyPlace, VaultPlace};
use rcgen::PublicKeyData as _;
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::thread::Worker;
use super::{KeyError, ecdsa};
use crate::issue::csr::SubjectKey;

pub(crate) mod client;

use client::{Client, VaultError};

/// The thread of each login: key names apart, a place says everything that matters for it.
static CLIENTS: LazyLock<Mutex<HashMap<VaultPlace, Worker<Client>>>> = LazyLock::new(Mutex::default);

/// One version of a transit key.
pub(super) struct Remote {
    vault: VaultPlace,
    version: u64,
    worker: Worker<Client>,
}

/// Finds the version with this public half, or the newest.
pub(super) fn open(
    place: &KeyPlace,
    vault: &VaultPlace,
    expected: Option<&[u8]>,
) -> Result<Option<(SubjectKey, Remote)>, KeyError> {
    let worker = worker(place, vault)?;
    let versions = ask(&worker, place, vault, |client, vault| {
        match client.get(&format!("{}/keys/{}", vault.mount, vault.name)) {
            Err(VaultError::NotFound) => Ok(None),
            other => other.map(Some),
        }
    })?;
    let Some(answer) = versions else { return Ok(None) };
    let mut versions = read_versions(place, &answer)?;
    versions.sort_by_key(|(version, _)| *version);
    let found = match expected {
        Some(expected) => versions.into_iter().find(|(_, key)| key.subject_public_key_info() == expected),
        None => versions.pop(),
    };
    Ok(found.map(|(version, public)| (public, Remote { vault: vault.clone(), version, worker })))
}

/// Makes the key, or one more version of it.
pub(super) fn create(place: &KeyPlace, vault: &VaultPlace) -> Result<(SubjectKey, Remote), KeyError> {
    let before = open(place, vault, None)?;
    let worker = worker(place, vault)?;
    let is_new = before.is_none();
    ask(&worker, place, vault, move |client, vault| {
        let path = format!("{}/keys/{}", vault.mount, vault.name);
        match is_new {
            true => client.post(&path, &json!({ "type": "ecdsa-p256", "exportable": false })),
            false => client.post(&format!("{path}/rotate"), &json!({})),
        }
    })?;
    open(place, vault, None)?
        .ok_or_else(|| KeyError::unavailable(place, "the key that was made is not there"))
}

impl Remote {
    pub(super) fn sign(
        &self,
        place: &KeyPlace,
        public: &SubjectKey,
        message: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let digest = ecdsa::digest_for(public, message)
            .ok_or_else(|| KeyError::unusable(place, "keys of this kind do not sign here"))?;
        let hash = if digest.len() == 48 { "sha2-384" } else { "sha2-256" };
        let body = json!({
            "input": STANDARD.encode(&digest),
            "prehashed": true,
            "hash_algorithm": hash,
            "marshaling_algorithm": "asn1",
            "key_version": self.version,
        });
        let answer = ask(&self.worker, place, &self.vault, move |client, vault| {
            client.post(&format!("{}/sign/{}", vault.mount, vault.name), &body)
        })?;
        // `vault:v3:BASE64`
        let signature = answer["data"]["signature"].as_str().and_then(|text| text.rsplit(':').next());
        signature
            .and_then(|text| STANDARD.decode(text).ok())
            .ok_or_else(|| KeyError::unavailable(place, "its answer holds no signature"))
    }

    pub(super) fn probe(&self, place: &KeyPlace, public: &SubjectKey) -> Result<(), KeyError> {
        match open(place, &self.vault, Some(&public.subject_public_key_info()))? {
            Some(_) => Ok(()),
            None => Err(KeyError::unavailable(place, "Vault no longer holds this version of the key")),
        }
    }
}

fn read_versions(place: &KeyPlace, answer: &Value) -> Result<Vec<(u64, SubjectKey)>, KeyError> {
    let kind = answer["data"]["type"].as_str().unwrap_or_default();
    if !matches!(kind, "ecdsa-p256" | "ecdsa-p384") {
        return Err(KeyError::unusable(
            place,
            format!("its type is {kind:?}; create it with type=ecdsa-p256 or ecdsa-p384"),
        ));
    }
    let keys = answer["data"]["keys"].as_object().into_iter().flatten();
    let read = |(version, key): (&String, &Value)| {
        let pem = key["public_key"].as_str()?;
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).ok()?;
        Some((version.parse().ok()?, SubjectKey::from_spki(&spki).ok()?))
    };
    Ok(keys.filter_map(read).collect())
}

/// A call by whom `place` describes, for messages and for the login.
pub(in crate::ca) fn call<T: Send + 'static>(
    place: &impl Display,
    vault: &VaultPlace,
    work: impl FnOnce(&mut Client, &VaultPlace) -> Result<T, VaultError> + Send + 'static,
) -> Result<T, KeyError> {
    super::blocking(|| ask(&worker(place, vault)?, place, vault, work))
}

fn ask<T: Send + 'static>(
    worker: &Worker<Client>,
    place: &impl Display,
    vault: &VaultPlace,
    work: impl FnOnce(&mut Client, &VaultPlace) -> Result<T, VaultError> + Send + 'static,
) -> Result<T, KeyError> {
    let own = vault.clone();
    let asked = worker.ask(move |client| work(client, &own));
    let answered = asked.map_err(|silent| KeyError::unavailable(place, silent.to_string()))?;
    answered.map_err(|error| match error.is_ours() {
        true => KeyError::unusable(place, error.to_string()),
        false => KeyError::unavailable(place, error.to_string()),
    })
}

fn worker(place: &impl Display, vault: &VaultPlace) -> Result<Worker<Client>, KeyError> {
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    let login = VaultPlace { name: String::new(), mount: String::new(), ..vault.clone() };
    if let Some(worker) = clients.get(&login) {
        return Ok(worker.clone());
    }
    let client = Client::new(&login).map_err(|e| KeyError::unusable(place, e.to_string()))?;
    let started = Worker::start("vault", move || client);
    let worker = started.map_err(|e| KeyError::unavailable(place, format!("no thread: {e}")))?;
    clients.insert(login, worker.clone());
    Ok(worker)
}
