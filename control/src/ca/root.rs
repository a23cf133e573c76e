//! The root: made once, on the first start of its trust domain; its key stays where it was made.

use std::path::{Path, PathBuf};

use postern_config::id::TrustDomain;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::authorities::{Authorities, pem};
use super::{CaError, Terms, check_key, files, profile, read_certificate, subject_key_id};
use crate::audit::Entry;
use crate::clock::now_ms;
use crate::digest::hex;
use crate::store::{Authority, Kind, State, Store};

const KEY: &str = "root.key";
const CERTIFICATE: &str = "root.pem";

/// The roots of the store; if it has none, this is the trust domain's first start, and one is made.
pub(super) async fn ensure(
    dir: &Path,
    trust_domain: &TrustDomain,
    terms: &Terms,
    store: &Store,
    now: i64,
) -> Result<Authorities, CaError> {
    let mut change = store.change().await?;
    let mut rows = change.authorities().await?;
    let stored = rows.iter().any(|a| a.kind == Kind::Root);
    if let Some(own) = stored_root(dir, trust_domain)? {
        let row = row_of(&own)?;
        // The store of another trust domain, or of one that was begun anew: neither would be what proxies are pinned to.
        if stored && !rows.iter().any(|a| a.key_id == row.key_id) {
            let why = "the store belongs to another root; restore the store that fits, or use an empty data directory".to_owned();
            return Err(CaError::Unusable { path: dir.join(CERTIFICATE), why });
        }
    }
    if !stored {
        // Files first: a root that was made and not recorded is taken up again by the next start.
        let (certificate, _) = make(dir, KEY, CERTIFICATE, trust_domain, terms.root(now))?;
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

/// The key of the root with this key identifier, if it lies here.
pub(super) fn key_of(dir: &Path, key_id: &str) -> Result<Option<KeyPair>, CaError> {
    for name in [KEY.to_owned(), next_name(key_id, "key")] {
        let Some(key) = files::read_key(&dir.join(name))? else { continue };
        if hex(&rcgen::CertificateParams::default().key_identifier(&key)) == key_id {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// The file of a root that was made for a rotation.
pub(super) fn next_name(key_id: &str, extension: &str) -> String {
    format!("root-{}.{extension}", &key_id[..key_id.len().min(16)])
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
fn stored_root(dir: &Path, trust_domain: &TrustDomain) -> Result<Option<CertificateDer<'static>>, CaError> {
    let (key_path, path) = (dir.join(KEY), dir.join(CERTIFICATE));
    let (key, has_certificate) = (files::read_key(&key_path)?, path.exists());
    match (key, has_certificate) {
        (None, true) => Err(missing_key(key_path)),
        (_, false) => Ok(None),
        (Some(key), true) => {
            let certificate = read_certificate(&path)?;
            check_key(&certificate, &key, &path)?;
            let subject = trust_domain.id_string();
            if !profile::names(&certificate).contains(&subject) {
                return Err(CaError::Unusable { path, why: format!("it is not the root of {trust_domain}") });
            }
            Ok(Some(certificate))
        }
    }
}

/// Makes a root, or takes up what an interrupted start has left. The key is written first.
fn make(
    dir: &Path,
    key_name: &str,
    certificate_name: &str,
    trust_domain: &TrustDomain,
    validity: (i64, i64),
) -> Result<(CertificateDer<'static>, KeyPair), CaError> {
    let (key_path, path) = (dir.join(key_name), dir.join(certificate_name));
    let key = match files::read_key(&key_path)? {
        Some(key) => key,
        None => {
            let key = KeyPair::generate()?;
            files::write(&key_path, key.serialize_pem().as_bytes())?;
            key
        }
    };
    if !path.exists() {
        let certificate = profile::root(trust_domain, &key, validity)?.self_signed(&key)?;
        files::write(&path, pem(certificate.der()).as_bytes())?;
    }
    let certificate = read_certificate(&path)?;
    check_key(&certificate, &key, &path)?;
    Ok((certificate, key))
}

fn missing_key(path: PathBuf) -> CaError {
    CaError::Unusable { path, why: "the root's key is missing".to_owned() }
}
