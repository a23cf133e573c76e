//! What a certificate calls its holder: its subject as RFC 2253 writes it, and its names. Apps are told, nothing is decided by it.

use std::fmt::Write as _;

use x509_parser::asn1_rs::ToDer as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

/// The short names of RFC 2253 §2.3 and of OpenSSL; any other type is written as its number.
const TYPES: [(&str, &str); 16] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.42", "GN"),
    ("2.5.4.97", "organizationIdentifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// What a leaf certificate calls its holder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// The subject as OpenSSL's `RFC2253` writes it: last attribute first, in ASCII.
    pub subject: String,
    /// The URI SANs, in order.
    pub uris: Vec<String>,
    /// The DNS SANs, in order.
    pub dns: Vec<String>,
}

impl Names {
    /// Reads a certificate in DER that was verified before; `None` if it is none.
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Self::within(&certificate)
    }

    /// Those of a certificate that has been parsed; `None` if its SANs cannot be read.
    pub(super) fn within(certificate: &X509Certificate<'_>) -> Option<Self> {
        let mut names = Self { subject: rfc2253(certificate), ..Self::default() };
        let sans = certificate.subject_alternative_name().ok()?;
        for name in sans.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                _ => {}
            }
        }
        Some(names)
    }
}

fn rfc2253(certificate: &X509Certificate<'_>) -> String {
    let mut out = String::new();
    let sets: Vec<_> = certificate.subject().iter_rdn().collect();
    for (i, set) in sets.into_iter().rev().enumerate() {
        let attributes: Vec<_> = set.iter().collect();
        for (j, attribute) in attributes.into_iter().rev().enumerate() {
            out.push_str(match (i, j) {
                (0, 0) => "",
                (_, 0) => ",",
                _ => "+",
            });
            write_attribute(&mut out, attribute);
        }
    }
    out
}

fn write_attribute(out: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    let number = attribute.attr_type().to_id_string();
    let known = TYPES.iter().find(|(known, _)| *known == number);
    out.push_str(known.map_or(&number, |(_, name)| name));
    out.push('=');
    match attribute.as_str() {
        Ok(text) if known.is_some() => escape(out, text),
        // RFC 2253 §2.4: what is no text, or of a type without a name, is written as its BER encoding.
        _ => {
            out.push('#');
            for byte in attribute.attr_value().to_der_vec().unwrap_or_default() {
                // Writing to a `String` does not fail.
                let _ = write!(out, "{byte:02X}");
            }
        }
    }
}

/// RFC 2253 §2.4, with everything outside of ASCII written as the bytes of its UTF-8.
fn escape(out: &mut String, text: &str) {
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend(['\\', char::from(byte)]),
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            0x20..=0x7e => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}
