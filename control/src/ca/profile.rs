//! What the certificates of the trust domain's own keys say (X509-SVID §3.2, §4; RFC 5280).
//!
//! Every CA generation has a subject of its own: verifiers that look issuers up by name would otherwise try them all.

use std::time::Duration;

use postern_config::id::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyIdMethod, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::CaError;
use crate::digest::{hex, random, sha256};

/// The root: no path length, so that a rotation may put an intermediate between.
pub(super) fn root(
    td: &TrustDomain,
    key: &impl PublicKeyData,
    validity: (i64, i64),
) -> Result<CertificateParams, CaError> {
    let mut params = authority(td, key, BasicConstraints::Unconstrained, validity)?;
    let name = format!("postern root {}", short(&key_id(key)));
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// An issuing CA: it signs leaves and no further CA. No EKU, and never name constraints on URIs, which TLS stacks reject.
pub(super) fn issuing(
    td: &TrustDomain,
    key: &impl PublicKeyData,
    validity: (i64, i64),
) -> Result<CertificateParams, CaError> {
    let mut params = authority(td, key, BasicConstraints::Constrained(0), validity)?;
    let day = crate::clock::rfc3339(validity.0 * 1000);
    let name = format!("issuing {} {}", day.split('T').next().unwrap_or_default(), short(&key_id(key)));
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// The request for an issuing CA: it proposes the name that [`issuing`] would give, for whoever signs elsewhere and takes it.
pub(super) fn request(key: &impl PublicKeyData) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = format!("issuing {}", short(&key_id(key)));
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority(
    td: &TrustDomain,
    key: &impl PublicKeyData,
    limits: BasicConstraints,
    validity: (i64, i64),
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::Ca(limits);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(td.id_string().try_into()?)];
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(key));
    params.serial_number = Some(serial()?);
    set_validity(&mut params, validity);
    Ok(params)
}

/// The subject key identifier of a key: the first 160 bits of the SHA-256 of its bits (RFC 7093 §2, method 1).
pub(crate) fn key_id(key: &impl PublicKeyData) -> Vec<u8> {
    sha256(key.der_bytes())[..20].to_vec()
}

/// A random positive serial of 128 bits; its first byte is never zero, so that it has one length and one spelling.
pub(crate) fn serial() -> Result<SerialNumber, aws_lc_rs::error::Unspecified> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets notBefore and notAfter, in seconds since 1970; nothing of ours is older than that.
pub(crate) fn set_validity(params: &mut CertificateParams, (not_before, not_after): (i64, i64)) {
    let at =
        |secs: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(secs).unwrap_or(0));
    params.not_before = at(not_before);
    params.not_after = at(not_after);
}

/// The URI names of a certificate.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(san)) = parsed.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    san.value.general_names.iter().filter_map(uri).collect()
}

fn short(key_id: &[u8]) -> String {
    hex(&key_id[..key_id.len().min(4)])
}
