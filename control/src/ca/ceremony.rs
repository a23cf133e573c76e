//! What is done where the root's key lies, away from any control plane: a root is made, and signs issuing CAs.
//!
//! The other side, where the signed certificate is taken in, is [`check`].

use postern_config::enroll::Pin;
use postern_config::id::TrustDomain;
use rcgen::{Issuer, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::keys::{Key, KeyError};
use super::profile;
use crate::digest::sha256;
use crate::issue::csr::{Csr, CsrError};

mod check;

pub use check::{ChainFault, check};

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is no key where one was expected.
    #[error("{0}: there is no key")]
    NoKey(String),
    /// The request.
    #[error("the certificate request: {0}")]
    Csr(#[from] CsrError),
    /// The root's certificate.
    #[error("the root's certificate: {0}")]
    Root(String),
    /// Signing.
    #[error("signing failed: {0}")]
    Sign(String),
}

/// Signs a root for this key by itself. The times are seconds since 1970.
pub fn root(
    trust_domain: &TrustDomain,
    key: &Key,
    validity: (i64, i64),
) -> Result<CertificateDer<'static>, CeremonyError> {
    let params =
        profile::root(trust_domain, key, validity).map_err(|e| CeremonyError::Sign(e.to_string()))?;
    let signed = params.self_signed(key).map_err(|e| failed(key, &e))?;
    Ok(signed.der().clone())
}

/// Signs the issuing CA of whoever made this request (PKCS#10, DER). Of the request nothing but its key is believed; the
/// certificate never outlives the root.
pub fn issuing(
    trust_domain: &TrustDomain,
    root: &CertificateDer<'_>,
    key: &Key,
    request: &[u8],
    validity: (i64, i64),
) -> Result<CertificateDer<'static>, CeremonyError> {
    let wrong = |why: &str| CeremonyError::Root(why.to_owned());
    let (_, parsed) = X509Certificate::from_der(root).map_err(|_| wrong("it is no certificate"))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(wrong("it belongs to another key"));
    }
    let names = profile::names(root);
    if !names.is_empty() && !names.contains(&trust_domain.id_string()) {
        return Err(CeremonyError::Root(format!("it is not of {trust_domain} but of {}", names.join(", "))));
    }
    let (begins, ends) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let validity = (validity.0.max(begins), validity.1.min(ends));
    if validity.0 >= validity.1 {
        return Err(wrong("it is not valid at the time that the issuing CA is wanted for"));
    }
    let csr = Csr::parse(request)?;
    if csr.key.subject_public_key_info() == key.subject_public_key_info() {
        return Err(wrong("the request is for the root's own key"));
    }
    let params = profile::issuing(trust_domain, &csr.key, validity);
    let params = params.map_err(|e| CeremonyError::Sign(e.to_string()))?;
    let signer = Issuer::from_ca_cert_der(root, key.clone()).map_err(|e| failed(key, &e))?;
    let signed = params.signed_by(&csr.key, &signer).map_err(|e| failed(key, &e))?;
    Ok(signed.der().clone())
}

/// SHA-256 of a certificate's public key: what join strings carry of a root.
pub fn pin(certificate: &CertificateDer<'_>) -> Option<Pin> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(Pin(sha256(parsed.public_key().raw)))
}

fn failed(key: &Key, error: &rcgen::Error) -> CeremonyError {
    match key.fault() {
        Some(fault) => CeremonyError::Key(fault),
        None => CeremonyError::Sign(error.to_string()),
    }
}

/// DER as PEM, with the label that stands in its first line.
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    use std::fmt::Write as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        let _ = writeln!(out, "{}", String::from_utf8_lossy(line));
    }
    out + &format!("-----END {label}-----\n")
}
