//! Certificates of TPMs' endorsement keys: the same bounds and the same path building, the profile of the TCG (EK Credential
//! Profile 3.2), and what they prove as selectors.

use std::cell::RefCell;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{GeneralName, X509Certificate};

use super::foreign::{Roots, judge_path};
use super::{
    Algorithms, Flaw, VerifyError, check_key_size, error, parse, subject_alternative_name, tolerant_time,
};
use crate::attest::Selectors;
use crate::tpm::MAX_CERTIFICATE;

/// tcg-kp-EKCertificate (2.23.133.8.1), as DER holds it.
const EK_USE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
/// tcg-at-tpmManufacturer and tcg-at-tpmModel.
const ATTRIBUTES: [(&str, &str); 2] = [("2.23.133.2.1", "tpm.manufacturer"), ("2.23.133.2.2", "tpm.model")];
/// No maker's name of a model is longer, bytes.
const MAX_VALUE: usize = 64;

/// What a verified EK certificate proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endorsed {
    /// The endorsement key's SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// `tpm.manufacturer` (the eight hex digits behind `id:`, in capitals) and `tpm.model`, where it has exactly one of each.
    pub selectors: Selectors,
}

/// Verifies an EK certificate that one of `roots` has issued: makers' intermediate CAs are roots here, since no TPM sends them.
pub fn verify(
    certificate: &CertificateDer<'_>,
    roots: &Roots,
    now: UnixTime,
    algorithms: Algorithms<'_>,
) -> Result<Endorsed, VerifyError> {
    if certificate.len() > MAX_CERTIFICATE {
        return Err(Flaw::ChainTooLarge.into());
    }
    let leaf = parse(certificate)?;
    check_key_size(&leaf)?;
    if leaf.basic_constraints().map_err(|_| Flaw::Unreadable)?.is_some_and(|constraints| constraints.value.ca)
    {
        return Err(Flaw::CaAsLeaf.into());
    }
    let now_secs = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let at = tolerant_time(std::slice::from_ref(&leaf), now_secs)?;
    let end_entity = EndEntityCert::try_from(certificate).map_err(error::from_webpki)?;
    let found = RefCell::new(None);
    let judge = |path: &VerifiedPath<'_>| {
        let verdict = judge_path(path, &leaf, roots, now_secs, algorithms);
        let accepted = verdict.is_ok();
        *found.borrow_mut() = Some(verdict);
        if accepted { Ok(()) } else { Err(webpki::Error::UnknownIssuer) }
    };
    let built = end_entity.verify_for_usage(
        algorithms.signatures,
        roots.trust_anchors(),
        &[],
        at,
        KeyUsage::required_if_present(EK_USE),
        None,
        Some(&judge),
    );
    match (built, found.take()) {
        (Ok(_), Some(verdict)) => verdict?,
        (Err(_), Some(Err(why))) => return Err(why),
        (Err(why), _) => return Err(error::from_webpki(why)),
        (Ok(_), None) => return Err(VerifyError::UnknownIssuer),
    };
    Ok(Endorsed { spki: leaf.public_key().raw.to_vec(), selectors: selectors(&leaf)? })
}

/// Who made the TPM, by the directory name among the subject's alternative names.
fn selectors(leaf: &X509Certificate<'_>) -> Result<Selectors, VerifyError> {
    let names = subject_alternative_name(leaf)?.map(|(_, names)| names).unwrap_or_default();
    let attributes: Vec<(String, &str)> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DirectoryName(name) => Some(name.iter_attributes()),
            _ => None,
        })
        .flatten()
        .filter_map(|attribute| Some((attribute.attr_type().to_id_string(), attribute.as_str().ok()?)))
        .collect();
    let mut selectors = Selectors::new();
    for (oid, key) in ATTRIBUTES {
        let mut values = attributes.iter().filter(|(id, _)| id == oid).map(|(_, value)| *value);
        // With several, none of them stands for it.
        let (Some(value), None) = (values.next(), values.next()) else { continue };
        let value = if key == "tpm.manufacturer" { manufacturer(value) } else { model(value) };
        selectors.extend(value.map(|value| (key.to_owned(), value)));
    }
    Ok(selectors)
}

fn manufacturer(value: &str) -> Option<String> {
    let digits = value.strip_prefix("id:")?;
    (digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| digits.to_ascii_uppercase())
}

fn model(value: &str) -> Option<String> {
    (!value.is_empty() && value.len() <= MAX_VALUE && !value.chars().any(char::is_control))
        .then(|| value.to_owned())
}
