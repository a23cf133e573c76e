//! An authority above ours that signs issuing CAs: Vault's PKI engine. Its root is the trust domain's root.

use postern_config::file::control::keys::Upstream;
use postern_config::id::TrustDomain;
use rcgen::PublicKeyData as _;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::authorities::Root;
use super::keys::{Key, KeyError, vault};
use super::{CaError, ceremony, profile};
use crate::clock::{now_ms, rfc3339};
use crate::digest::hex;

/// The upstream's root. A CA that another one signed is refused: nobody below would be believed by it alone.
pub(super) fn root(upstream: &Upstream) -> Result<CertificateDer<'static>, CaError> {
    let Upstream::VaultPki(place) = upstream;
    let answer = vault::call(upstream, place, |client, place| {
        client.get(&format!("{}/issuer/{}", place.mount, place.name))
    })?;
    let certificate = certificate(upstream, &answer)?;
    let is_root = X509Certificate::from_der(&certificate).is_ok_and(|(_, c)| c.subject() == c.issuer());
    match is_root {
        true => Ok(certificate),
        false => {
            Err(unusable(upstream, "this issuer is itself signed by another CA; name one that is a root"))
        }
    }
}

/// Has an issuing CA signed for `key`, and believes nothing of what comes back unchecked.
pub(super) fn issuing(
    upstream: &Upstream,
    trust_domain: &TrustDomain,
    key: &Key,
    root: &Root,
    validity: (i64, i64),
) -> Result<CertificateDer<'static>, CaError> {
    let Upstream::VaultPki(place) = upstream;
    let request = profile::request(key).serialize_request(key).map_err(|e| key.failed(e))?;
    let day = rfc3339(validity.0 * 1000);
    let name =
        format!("issuing {} {}", day.split('T').next().unwrap_or_default(), &hex(&profile::key_id(key))[..8]);
    let body = json!({
        "csr": ceremony::pem("CERTIFICATE REQUEST", request.der()),
        "common_name": name,
        "uri_sans": trust_domain.id_string(),
        "exclude_cn_from_sans": true,
        "max_path_length": 0,
        "ttl": format!("{}s", validity.1.saturating_sub(now_ms() / 1000)),
        "format": "pem",
    });
    let answer = vault::call(upstream, place, move |client, place| {
        client.post(&format!("{}/issuer/{}/sign-intermediate", place.mount, place.name), &body)
    })?;
    let certificate = certificate(upstream, &answer)?;
    let roots = [root.certificate.clone()];
    ceremony::check(trust_domain, &certificate, &key.subject_public_key_info(), &roots, now_ms() / 1000)?;
    Ok(certificate)
}

fn certificate(upstream: &Upstream, answer: &Value) -> Result<CertificateDer<'static>, CaError> {
    let pem = answer["data"]["certificate"].as_str().unwrap_or_default();
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| unusable(upstream, "its answer holds no certificate"))
}

fn unusable(upstream: &Upstream, why: &str) -> CaError {
    CaError::Key(KeyError::Unusable { place: upstream.to_string(), why: why.to_owned() })
}
