//! Is this certificate, which was signed elsewhere, an issuing CA that proxies will believe? Asked before it signs anything.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use postern_config::id::TrustDomain;
use rustls::pki_types::CertificateDer;
use x509_parser::oid_registry::{
    OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384,
};
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use crate::ca::{authority_key_id, profile, subject_key_id};
use crate::clock::rfc3339;

/// Why a certificate is no issuing CA for here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// No DER, or something behind it.
    #[error("it is no certificate")]
    Unreadable,
    /// Signed for somebody else.
    #[error(
        "it is for another key than the one that waits here; sign the request that `postern ca csr` prints"
    )]
    OtherKey,
    /// A leaf.
    #[error("it is no CA: basicConstraints must be critical and say CA:TRUE")]
    NotCa,
    /// May not sign.
    #[error("its keyUsage must be critical and hold keyCertSign and cRLSign")]
    KeyUsage,
    /// Peers would refuse it.
    #[error(
        "it has name constraints; TLS stacks reject those on URIs, and nothing that it signs would be believed"
    )]
    NameConstraints,
    /// Peers would refuse its leaves.
    #[error("it has an extendedKeyUsage; a CA of a mesh has none (X509-SVID §4.4)")]
    ExtendedKeyUsage,
    /// An extension that peers do not know.
    #[error("it has a critical extension that verifiers do not know ({0})")]
    Critical(String),
    /// Nobody finds its issuer, or it cannot be found.
    #[error("it lacks a subject key identifier, an authority key identifier or a common name")]
    Unnamed,
    /// Of another trust domain.
    #[error("it names {0}, not this trust domain")]
    OtherTrustDomain(String),
    /// Its dates.
    #[error("it is valid from {from} until {until}, and the clock here says {now}")]
    Dates {
        /// RFC 3339.
        from: String,
        /// RFC 3339.
        until: String,
        /// RFC 3339.
        now: String,
    },
    /// It ends after its root.
    #[error("it outlives the root that signed it")]
    Outlives,
    /// The root forbids it.
    #[error("the root's path length allows no CA below it")]
    PathLength,
    /// No root of the bundle signed it.
    #[error(
        "no root of this trust domain signed it; an intermediate between root and issuing CA is not supported"
    )]
    Unsigned,
}

/// Checks an issuing CA against the key it should have (DER of a SubjectPublicKeyInfo) and the roots that are believed. `now` in
/// seconds since 1970.
pub fn check(
    trust_domain: &TrustDomain,
    der: &CertificateDer<'_>,
    spki: &[u8],
    roots: &[CertificateDer<'_>],
    now: i64,
) -> Result<(), ChainFault> {
    let Ok(([], certificate)) = X509Certificate::from_der(der) else { return Err(ChainFault::Unreadable) };
    if certificate.public_key().raw != spki {
        return Err(ChainFault::OtherKey);
    }
    check_profile(&certificate)?;
    let named = subject_key_id(&certificate).is_some() && authority_key_id(&certificate).is_some();
    if !named || certificate.subject().iter_common_name().next().is_none() {
        return Err(ChainFault::Unnamed);
    }
    let names = profile::names(der);
    if let Some(other) = names.iter().find(|name| **name != trust_domain.id_string()) {
        return Err(ChainFault::OtherTrustDomain(other.clone()));
    }
    let (from, until) =
        (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    if now < from || now >= until {
        let [from, until, now] = [from, until, now].map(|secs| rfc3339(secs * 1000));
        return Err(ChainFault::Dates { from, until, now });
    }
    let parsed = roots.iter().filter_map(|root| X509Certificate::from_der(root).ok()).map(|(_, root)| root);
    let mut signers = parsed.filter(|root| is_signed_by(&certificate, root));
    let root = signers.next().ok_or(ChainFault::Unsigned)?;
    if until > root.validity().not_after.timestamp() {
        return Err(ChainFault::Outlives);
    }
    match root.basic_constraints().ok().flatten().and_then(|c| c.value.path_len_constraint) {
        Some(0) => Err(ChainFault::PathLength),
        _ => Ok(()),
    }
}

fn check_profile(certificate: &X509Certificate<'_>) -> Result<(), ChainFault> {
    let is_ca = |c: x509_parser::certificate::BasicExtension<&x509_parser::extensions::BasicConstraints>| {
        c.critical && c.value.ca
    };
    if !certificate.basic_constraints().ok().flatten().is_some_and(is_ca) {
        return Err(ChainFault::NotCa);
    }
    let usage = certificate.key_usage().ok().flatten();
    if !usage.is_some_and(|u| u.critical && u.value.key_cert_sign() && u.value.crl_sign()) {
        return Err(ChainFault::KeyUsage);
    }
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::NameConstraints(_) => return Err(ChainFault::NameConstraints),
            ParsedExtension::ExtendedKeyUsage(_) => return Err(ChainFault::ExtendedKeyUsage),
            ParsedExtension::BasicConstraints(_) | ParsedExtension::KeyUsage(_) => {}
            _ if extension.critical => return Err(ChainFault::Critical(extension.oid.to_id_string())),
            _ => {}
        }
    }
    Ok(())
}

fn is_signed_by(certificate: &X509Certificate<'_>, root: &X509Certificate<'_>) -> bool {
    let oid = &certificate.signature_algorithm.algorithm;
    let curve = root.public_key().subject_public_key.data.len();
    let algorithm: &dyn VerificationAlgorithm = match (oid, curve) {
        (o, 65) if *o == OID_SIG_ECDSA_WITH_SHA256 => &signature::ECDSA_P256_SHA256_ASN1,
        (o, 97) if *o == OID_SIG_ECDSA_WITH_SHA384 => &signature::ECDSA_P384_SHA384_ASN1,
        (o, _) if *o == OID_PKCS1_SHA256WITHRSA => &signature::RSA_PKCS1_2048_8192_SHA256,
        (o, _) if *o == OID_PKCS1_SHA384WITHRSA => &signature::RSA_PKCS1_2048_8192_SHA384,
        (o, _) if *o == OID_PKCS1_SHA512WITHRSA => &signature::RSA_PKCS1_2048_8192_SHA512,
        _ => return false,
    };
    let key = UnparsedPublicKey::new(algorithm, &root.public_key().subject_public_key.data);
    certificate.issuer() == root.subject()
        && key.verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data).is_ok()
}
