//! A trust anchor: a CA certificate out of a bundle, with what webpki drops from it (its dates, path length and key identifiers).

use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use crate::bundle::AnchorError;

/// One X.509 authority of a bundle, checked once when the bundle is built.
#[derive(Clone, PartialEq)]
pub struct Anchor {
    der: CertificateDer<'static>,
    spki: Vec<u8>,
    not_before: i64,
    not_after: i64,
    path_len: Option<u32>,
    issued_as: (Vec<u8>, Vec<u8>),
}

impl Anchor {
    /// Takes a DER certificate as an anchor; it must be CA:TRUE with keyCertSign. Dates are checked at each use.
    pub fn new(der: CertificateDer<'static>) -> Result<Self, AnchorError> {
        let Ok((rest, certificate)) = X509Certificate::from_der(&der) else {
            return Err(AnchorError::Unreadable);
        };
        if !rest.is_empty() {
            return Err(AnchorError::Unreadable);
        }
        let constraints = certificate.basic_constraints().ok().flatten().map(|c| c.value);
        let may_sign = matches!(certificate.key_usage(), Ok(Some(u)) if u.value.key_cert_sign());
        let Some(constraints) = constraints.filter(|c| c.ca) else {
            return Err(AnchorError::NotACa);
        };
        if !may_sign {
            return Err(AnchorError::NoCertSign);
        }
        let validity = certificate.validity();
        let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let spki = certificate.public_key().raw.to_vec();
        let path_len = constraints.path_len_constraint;
        let issued_as = (authority_key_id(&certificate), certificate.raw_serial().to_vec());
        Ok(Self { der, spki, not_before, not_after, path_len, issued_as })
    }

    /// The certificate.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The SubjectPublicKeyInfo, DER: what a pin hashes.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// notBefore, seconds since 1970.
    pub fn not_before(&self) -> i64 {
        self.not_before
    }

    /// notAfter, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// How many issuing CAs may stand between it and a leaf; webpki does not look.
    pub(crate) fn path_len(&self) -> Option<u32> {
        self.path_len
    }

    /// (authority key identifier, serial number): how a revocation names it.
    pub(crate) fn issued_as(&self) -> &(Vec<u8>, Vec<u8>) {
        &self.issued_as
    }

    /// What webpki needs of it.
    pub(crate) fn to_trust_anchor(&self) -> Result<TrustAnchor<'static>, AnchorError> {
        let anchor = webpki::anchor_from_trusted_cert(&self.der).map_err(|_| AnchorError::Unreadable)?;
        Ok(anchor.to_owned())
    }
}

impl std::fmt::Debug for Anchor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Anchor({} bytes, until {})", self.der.len(), self.not_after)
    }
}

/// The key identifier in a certificate's authorityKeyIdentifier, or nothing.
pub(crate) fn authority_key_id(certificate: &X509Certificate<'_>) -> Vec<u8> {
    let id = certificate.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(aki) => aki.key_identifier.as_ref(),
        _ => None,
    });
    id.map(|k| k.0.to_vec()).unwrap_or_default()
}
