//! The root: made once, on the first start of its trust domain; its key stays where it was made.

use std::path::{Path, PathBuf};

use postern_config::file::control::keys::KeyPlace;
use postern_config::id::TrustDomain;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::authorities::{Authorities, Root, pem};
use super::keys::{Key, KeyError};
use super::places::Places;
use super::upstream;
use super::{CaError, Terms, check_key, files, profile, read_certificate, subject_key_id};
use crate::audit::Entry;
use crate::clock::now_ms;
use crate::digest::hex;
use crate::store::{Authority, Kind, State, Store};

const CERTIFICATE: &str = "root.pem";

/// The roots of the store; if it has none, this is the trust domain's first start, and one is made.
pub(super) async fn ensure(
    places: &Places,
    trust_domain: &TrustDomain,
    terms: &Terms,
    store: &Store,
    now: i64,
) -> Result<Authorities, CaError> {
    let mut change = store.change().await?;
    let mut rows = change.authorities().await?;
    let stored = rows.iter().any(|a| a.kind == Kind::Root);
    if let Some(own) = stored_root(places, trust_domain)? {
        let row = row_of(&own)?;
        // The store of another trust domain, or of one that was begun anew: neither would be what proxies are pinned to.
        if stored && !change.knows_authority(&row.key_id).await? {
            let why = "the store belongs to another root; restore the store that fits, or use an empty data directory".to_owned();
            return Err(CaError::Unusable { path: places.dir.join(CERTIFICATE), why });
        }
    }
    if !stored {
        // Files first: a root that was made and not recorded is taken up again by the next start.
        let path = places.dir.join(CERTIFICATE);
        let certificate = match (places.root(), &places.upstream) {
            (Some(place), _) => make(&place, &path, trust_domain, terms.root(now))?.0,
            (None, Some(upstream)) => upstream::root(upstream)?,
            (None, None) => given(&path)?,
        };
        let row = row_of(&certificate)?;
        change.put_authority(&row, now_ms()).await?;
        let entry = Entry::done(
            "control",
            "ca root",
            &*row.name,
            serde_json::json!({ "key_id": row.key_id, "not_after": row.not_after * 1000 }),
        );
        entry.append(&mut change).await?;
        change.commit().await?;
        entry.log();
        rows.push(row);
    }
    Authorities::new(&rows)
}

/// The root's key, if it lies here.
pub(super) fn key_of(places: &Places, root: &Root) -> Result<Option<Key>, CaError> {
    let spki = spki_of(&root.certificate)?;
    let beside = KeyPlace::File(places.dir.join(next_name(&root.key_id, "key")));
    for place in places.root().into_iter().chain([beside]) {
        match places.opened(&place, &spki) {
            // The file is there, and holds another root's key.
            Err(KeyError::Unusable { .. }) if matches!(place, KeyPlace::File(_)) => {}
            Ok(None) => {}
            found => return Ok(found?),
        }
    }
    Ok(None)
}

/// The file of a root that was made for a rotation.
pub(super) fn next_name(key_id: &str, extension: &str) -> String {
    format!("root-{}.{extension}", &key_id[..key_id.len().min(16)])
}

/// DER of a certificate's SubjectPublicKeyInfo.
fn spki_of(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, CaError> {
    let unusable = || CaError::Authority { name: "root".to_owned(), why: "it is no certificate".to_owned() };
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unusable())?;
    Ok(parsed.public_key().raw.to_vec())
}

/// A certificate as a row of the store.
pub(super) fn row_of(certificate: &CertificateDer<'_>) -> Result<Authority, CaError> {
    let unusable = |why: &str| CaError::Authority { name: "root".to_owned(), why: why.to_owned() };
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unusable("it is no certificate"))?;
    let key_id = hex(&subject_key_id(&parsed).ok_or_else(|| unusable("it has no subject key identifier"))?);
    let name =
        parsed.subject().iter_common_name().find_map(|cn| cn.as_str().ok()).unwrap_or_default().to_owned();
    Ok(Authority {
        issuer: key_id.clone(),
        key_id,
        kind: Kind::Root,
        state: State::Active,
        replica: String::new(),
        name,
        der: certificate.to_vec(),
        cross_der: Vec::new(),
        not_before: parsed.validity().not_before.timestamp(),
        not_after: parsed.validity().not_after.timestamp(),
    })
}

/// The root as its files have it. A key without certificate is a first start that was interrupted; a certificate without key
/// is a loss that nobody should paper over.
fn stored_root(
    places: &Places,
    trust_domain: &TrustDomain,
) -> Result<Option<CertificateDer<'static>>, CaError> {
    let path = places.dir.join(CERTIFICATE);
    if !path.exists() {
        return Ok(None);
    }
    let certificate = read_certificate(&path)?;
    // A token that is away now is asked again when there is something to sign.
    if let Some(KeyPlace::File(key_path)) = places.root() {
        let key = files::read_key(&key_path)?.ok_or_else(|| missing_key(key_path))?;
        check_key(&certificate, &key, &path)?;
    }
    // A company's own root names no trust domain.
    let names = profile::names(&certificate);
    let ours = places.root().is_some() || !names.is_empty();
    if ours && !names.contains(&trust_domain.id_string()) {
        return Err(CaError::Unusable { path, why: format!("it is not the root of {trust_domain}") });
    }
    Ok(Some(certificate))
}

/// The certificate of an offline root, as somebody has put it here.
fn given(path: &Path) -> Result<CertificateDer<'static>, CaError> {
    if !path.exists() {
        let why = "the root's key is offline, and so its certificate has to be brought: copy what `postern ca root init` made to this path";
        return Err(CaError::Unusable { path: path.to_owned(), why: why.to_owned() });
    }
    read_certificate(path)
}

/// Makes a root, or takes up what an interrupted start has left. The key is written first.
fn make(
    place: &KeyPlace,
    path: &Path,
    trust_domain: &TrustDomain,
    validity: (i64, i64),
) -> Result<(CertificateDer<'static>, Key), CaError> {
    let key = match Key::open(place, None)? {
        Some(key) => key,
        None => Key::create(place)?,
    };
    if !path.exists() {
        let certificate = profile::root(trust_domain, &key, validity)?.self_signed(&key);
        let certificate = certificate.map_err(|e| key.failed(e))?;
        files::write(path, pem(certificate.der()).as_bytes())?;
    }
    let certificate = read_certificate(path)?;
    check_key(&certificate, &key, path)?;
    Ok((certificate, key))
}

fn missing_key(path: PathBuf) -> CaError {
    CaError::Unusable { path, why: "the root's key is missing".to_owned() }
}
