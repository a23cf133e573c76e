//! A certificate request gives a public key and proves that its private half is there; whatever else it asks for is ignored,
//! or refused where it contradicts.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use postern_config::enroll::MAX_CSR;
use postern_config::id::SpiffeId;
use rcgen::PublicKeyData;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension};
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::digest::sha256;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// More than [`MAX_CSR`] bytes.
    #[error("the certificate request is larger than 8 KiB")]
    TooLarge,
    /// No PKCS#10, or something behind it.
    #[error("the certificate request is not one PKCS#10 structure in DER")]
    Malformed,
    /// The request is not signed by its own key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
    /// A kind of key that no certificate is issued for.
    #[error("keys of this kind get no certificate; use P-256, P-384 or Ed25519")]
    KeyKind,
    /// A URI name that is not the attested identity.
    #[error("the certificate request asks for another identity than the attested one")]
    OtherIdentity,
    /// A name that is no URI.
    #[error("the certificate request asks for a name beside the identity (DNS, IP or e-mail)")]
    OtherName,
    /// CA:TRUE, keyCertSign or cRLSign.
    #[error("the certificate request asks to become a CA")]
    Authority,
}

impl CsrError {
    /// The closed word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge => "csr_too_large",
            Self::Malformed => "csr_malformed",
            Self::Signature => "csr_signature",
            Self::KeyKind => "csr_key_kind",
            Self::OtherIdentity => "csr_other_identity",
            Self::OtherName => "csr_other_name",
            Self::Authority => "csr_ca",
        }
    }
}

/// A public key that may get a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectKey {
    kind: KeyKind,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    P256,
    P384,
    Ed25519,
}

/// What a request asked for beside a certificate for its key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wishes {
    uris: Vec<String>,
    other_name: bool,
    authority: bool,
}

/// A request whose signature is good.
#[derive(Debug, Clone)]
pub struct Csr {
    /// Its key.
    pub key: SubjectKey,
    wishes: Wishes,
}

impl Csr {
    /// Reads a request and checks its own signature.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR {
            return Err(CsrError::TooLarge);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info;
        let key = SubjectKey::read(&info.subject_pki)?;
        let algorithm = &request.signature_algorithm.algorithm;
        if *algorithm != key.kind.signature_oid() || !key.verify(info.raw, &request.signature_value.data) {
            return Err(CsrError::Signature);
        }
        Ok(Self { key, wishes: wishes(&request)? })
    }

    /// Refuses a request that asks for more than a certificate for `id`.
    pub fn check(&self, id: &SpiffeId) -> Result<(), CsrError> {
        if self.wishes.authority {
            return Err(CsrError::Authority);
        }
        if self.wishes.uris.iter().any(|uri| uri != id.as_str()) {
            return Err(CsrError::OtherIdentity);
        }
        if self.wishes.other_name { Err(CsrError::OtherName) } else { Ok(()) }
    }
}

impl SubjectKey {
    /// The key of a SubjectPublicKeyInfo in DER.
    pub fn from_spki(der: &[u8]) -> Result<Self, CsrError> {
        match SubjectPublicKeyInfo::from_der(der) {
            Ok(([], spki)) => Self::read(&spki),
            _ => Err(CsrError::Malformed),
        }
    }

    /// An uncompressed point of P-256 (65 bytes) or P-384 (97 bytes).
    pub fn from_point(bytes: Vec<u8>) -> Option<Self> {
        let kind = match (bytes.len(), bytes.first()) {
            (65, Some(4)) => KeyKind::P256,
            (97, Some(4)) => KeyKind::P384,
            _ => return None,
        };
        Some(Self { kind, bytes })
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.kind.algorithm(), &self.bytes).verify(message, signature).is_ok()
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.subject_public_key_info())
    }

    /// Reads a certificate's or a request's public key.
    pub fn read(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, CsrError> {
        let parameters = spki.algorithm.parameters.as_ref();
        let curve = parameters.and_then(|p| p.as_oid().ok());
        let bytes = spki.subject_public_key.data.to_vec();
        let kind = match (&spki.algorithm.algorithm, curve) {
            (a, Some(c)) if *a == OID_KEY_TYPE_EC_PUBLIC_KEY && c == OID_EC_P256 => KeyKind::P256,
            (a, Some(c)) if *a == OID_KEY_TYPE_EC_PUBLIC_KEY && c == OID_NIST_EC_P384 => KeyKind::P384,
            (a, None) if *a == OID_SIG_ED25519 && parameters.is_none() => KeyKind::Ed25519,
            _ => return Err(CsrError::KeyKind),
        };
        // Uncompressed points only: one key has one spelling, and renewals are recognised by its hash.
        let fits = match kind {
            KeyKind::P256 => bytes.len() == 65 && bytes[0] == 4,
            KeyKind::P384 => bytes.len() == 97 && bytes[0] == 4,
            KeyKind::Ed25519 => bytes.len() == 32,
        };
        if fits { Ok(Self { kind, bytes }) } else { Err(CsrError::Malformed) }
    }
}

impl PublicKeyData for SubjectKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.kind {
            KeyKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyKind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyKind::Ed25519 => &rcgen::PKCS_ED25519,
        }
    }
}

impl KeyKind {
    fn algorithm(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_ASN1,
            Self::P384 => &signature::ECDSA_P384_SHA384_ASN1,
            Self::Ed25519 => &signature::ED25519,
        }
    }

    fn signature_oid(self) -> x509_parser::der_parser::oid::Oid<'static> {
        match self {
            Self::P256 => OID_SIG_ECDSA_WITH_SHA256,
            Self::P384 => OID_SIG_ECDSA_WITH_SHA384,
            Self::Ed25519 => OID_SIG_ED25519,
        }
    }
}

/// Every requested extension of every attribute: a second `extensionRequest` must not hide behind the first.
fn wishes(request: &X509CertificationRequest<'_>) -> Result<Wishes, CsrError> {
    let mut wishes = Wishes::default();
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else { continue };
        for extension in &asked.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => {
                    for name in &san.general_names {
                        match name {
                            GeneralName::URI(uri) => wishes.uris.push((*uri).to_owned()),
                            _ => wishes.other_name = true,
                        }
                    }
                }
                ParsedExtension::BasicConstraints(constraints) => wishes.authority |= constraints.ca,
                ParsedExtension::KeyUsage(usage) => {
                    wishes.authority |= usage.key_cert_sign() || usage.crl_sign()
                }
                ParsedExtension::ParseError { .. } => return Err(CsrError::Malformed),
                _ => {}
            }
        }
    }
    Ok(wishes)
}
