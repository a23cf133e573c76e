//! What stands in a certificate, for people to read. Nothing is verified here and nothing may be decided by it.

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The parts of one certificate that operators ask about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The subject, as RFC 4514 writes names; empty for most SVIDs.
    pub subject: String,
    /// The issuer, likewise.
    pub issuer: String,
    /// The serial number in hexadecimal, as it stands in the certificate.
    pub serial: String,
    /// notBefore, seconds since 1970.
    pub not_before: i64,
    /// notAfter, seconds since 1970.
    pub not_after: i64,
    /// Its URI names.
    pub uris: Vec<String>,
    /// The SubjectPublicKeyInfo, DER: what a pin hashes.
    pub spki: Vec<u8>,
}

impl Description {
    /// Reads a DER certificate; nothing where it cannot be read.
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|extension| &extension.value.general_names);
        let uri = |name: &GeneralName<'_>| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        };
        Some(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            serial: certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            uris: names.filter_map(uri).collect(),
            spki: certificate.public_key().raw.to_vec(),
        })
    }
}
