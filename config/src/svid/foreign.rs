//! Client certificates of an existing PKI, which are no SVIDs: the same bounds and the same path building, another profile, and
//! what they prove as selectors.
//!
//! Everything that is said of the issuer comes from the path that was verified, never from what was presented beside it.

use std::cell::RefCell;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{GeneralName, X509Certificate};

use super::{
    Algorithms, Anchor, Flaw, MAX_CHAIN, MAX_CHAIN_BYTES, NOT_BEFORE_TOLERANCE, VerifyError, check_key_size,
    check_leaf_key, error, parse, subject_alternative_name, tolerant_time,
};
use crate::attest::Selectors;
use crate::bundle::{AnchorError, BundleSet};
use crate::id::SpiffeId;

/// The roots of an existing PKI.
#[derive(Debug)]
pub struct Roots {
    anchors: Vec<Anchor>,
    /// In the same order.
    trust_anchors: Vec<TrustAnchor<'static>>,
}

impl Roots {
    /// Takes CA certificates; each must be one.
    pub fn new(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, AnchorError> {
        let anchors = certificates.into_iter().map(Anchor::new).collect::<Result<Vec<_>, _>>()?;
        let trust_anchors = anchors.iter().map(Anchor::to_trust_anchor).collect::<Result<_, _>>()?;
        Ok(Self { anchors, trust_anchors })
    }

    pub(super) fn trust_anchors(&self) -> &[TrustAnchor<'static>] {
        &self.trust_anchors
    }

    /// Whether nobody is believed.
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }
}

/// What a verified client certificate proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// `x509.issuer` (the pin of the CA that issued it), `x509.serial` (lower-case hex), and where it has exactly one name, that:
    /// `x509.san` with its kind in front, and `x509.dns` or `x509.uri` without.
    pub selectors: Selectors,
    /// The least notAfter over the path with its anchor, seconds since 1970.
    pub not_after: i64,
}

/// Whether the leaf names nobody of a trust domain that has a bundle here. What cannot be read, or has a damaged SPIFFE ID, is
/// not foreign: it is refused as the SVID that it pretends to be.
pub fn is_foreign(chain: &[CertificateDer<'_>], bundles: &BundleSet) -> bool {
    let Some(leaf) = chain.first().and_then(|der| parse(der).ok()) else { return false };
    let Ok(names) = subject_alternative_name(&leaf) else { return false };
    names.iter().flat_map(|(_, names)| names).all(|name| match name {
        GeneralName::URI(uri)
            if uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:")) =>
        {
            uri.parse::<SpiffeId>().is_ok_and(|id| bundles.of(id.trust_domain_str()).is_none())
        }
        _ => true,
    })
}

/// Verifies a presented chain, leaf first, by these roots. The order is the order of cost, as for an SVID: nothing is verified
/// that is larger than it may be.
pub fn verify(
    chain: &[CertificateDer<'_>],
    roots: &Roots,
    now: UnixTime,
    algorithms: Algorithms<'_>,
) -> Result<Certificate, VerifyError> {
    let (leaf_der, intermediates) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    if chain.len() > MAX_CHAIN || chain.iter().map(|c| c.len()).sum::<usize>() > MAX_CHAIN_BYTES {
        return Err(Flaw::ChainTooLarge.into());
    }
    let members = chain.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    members.iter().try_for_each(check_key_size)?;
    let leaf = &members[0];
    check_profile(leaf)?;
    check_leaf_key(leaf, algorithms)?;

    let now_secs = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let at = tolerant_time(&members, now_secs)?;
    let end_entity = EndEntityCert::try_from(leaf_der).map_err(error::from_webpki)?;
    let names = names(leaf, &end_entity)?;
    let found = RefCell::new(None);
    let judge = |path: &VerifiedPath<'_>| {
        let verdict = judge_path(path, leaf, roots, now_secs, algorithms);
        let accepted = verdict.is_ok();
        *found.borrow_mut() = Some(verdict);
        if accepted { Ok(()) } else { Err(webpki::Error::UnknownIssuer) }
    };
    let built = end_entity.verify_for_usage(
        algorithms.signatures,
        &roots.trust_anchors,
        intermediates,
        at,
        KeyUsage::client_auth(),
        None,
        Some(&judge),
    );
    let (issuer, not_after) = match (built, found.take()) {
        (Ok(_), Some(verdict)) => verdict?,
        (Err(_), Some(Err(why))) => return Err(why),
        (Err(why), _) => return Err(error::from_webpki(why)),
        (Ok(_), None) => return Err(VerifyError::UnknownIssuer),
    };
    let serial = hex(leaf.raw_serial());
    let serial = serial.trim_start_matches('0');
    let mut selectors = names;
    selectors.insert("x509.serial".to_owned(), serial.to_owned());
    selectors.insert("x509.issuer".to_owned(), format!("sha256:{}", hex(&issuer)));
    Ok(Certificate { selectors, not_after })
}

/// A leaf that may sign a handshake as a client. What it says of neither use is not for this.
fn check_profile(leaf: &X509Certificate<'_>) -> Result<(), VerifyError> {
    if leaf.basic_constraints().map_err(|_| Flaw::Unreadable)?.is_some_and(|constraints| constraints.value.ca)
    {
        return Err(Flaw::CaAsLeaf.into());
    }
    let usage = leaf.key_usage().map_err(|_| Flaw::Unreadable)?.ok_or(Flaw::NoKeyUsage)?;
    if !usage.value.digital_signature() || usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(Flaw::LeafKeyUsage.into());
    }
    match leaf.extended_key_usage().map_err(|_| Flaw::Unreadable)? {
        Some(extended) if extended.value.client_auth => Ok(()),
        _ => Err(Flaw::NoClientAuth.into()),
    }
}

/// The one name of a leaf; with several, none of them stands for it.
fn names(leaf: &X509Certificate<'_>, same: &EndEntityCert<'_>) -> Result<Selectors, VerifyError> {
    let names = subject_alternative_name(leaf)?.map(|(_, names)| names).unwrap_or_default();
    let [name] = names.as_slice() else { return Ok(Selectors::new()) };
    let (kind, value) = match name {
        GeneralName::DNSName(name) => ("dns", *name),
        GeneralName::URI(name) => ("uri", *name),
        _ => return Ok(Selectors::new()),
    };
    // Two parsers that read the same bytes differently are an attack, not an accident.
    let agree = match kind {
        "dns" => same.valid_dns_names().eq([value]),
        _ => same.valid_uri_names().eq([value]),
    };
    if !agree {
        return Err(Flaw::Ambiguous.into());
    }
    let san = ("x509.san".to_owned(), format!("{kind}:{value}"));
    Ok(Selectors::from([san, (format!("x509.{kind}"), value.to_owned())]))
}

/// The hash of the issuing CA's key, and when the path ends.
pub(super) fn judge_path(
    path: &VerifiedPath<'_>,
    leaf: &X509Certificate<'_>,
    roots: &Roots,
    now: i64,
    algorithms: Algorithms<'_>,
) -> Result<([u8; 32], i64), VerifyError> {
    let index = roots.trust_anchors.iter().position(|anchor| std::ptr::addr_eq(anchor, path.anchor()));
    let anchor = index.and_then(|n| roots.anchors.get(n)).ok_or(VerifyError::UnknownIssuer)?;
    let mut not_before = anchor.not_before();
    let mut not_after = anchor.not_after().min(leaf.validity().not_after.timestamp());
    let (mut issuer, mut count) = (None, 0_u32);
    for member in path.intermediate_certificates() {
        let der = member.der();
        let ca = parse(&der)?;
        let usage = ca.key_usage().map_err(|_| Flaw::Unreadable)?.ok_or(Flaw::NoKeyUsage)?;
        if !usage.value.key_cert_sign() {
            return Err(Flaw::IssuerMayNotSign.into());
        }
        not_before = not_before.max(ca.validity().not_before.timestamp());
        not_after = not_after.min(ca.validity().not_after.timestamp());
        issuer.get_or_insert_with(|| (algorithms.sha256)(ca.public_key().raw));
        count += 1;
    }
    if anchor.path_len().is_some_and(|most| count > most) {
        return Err(Flaw::Path("an issuer's path length is exceeded").into());
    }
    if now > not_after {
        return Err(VerifyError::Expired { not_after, now });
    }
    if not_before > now.saturating_add(NOT_BEFORE_TOLERANCE as i64) {
        return Err(VerifyError::NotYetValid { not_before, now });
    }
    Ok((issuer.unwrap_or_else(|| (algorithms.sha256)(anchor.spki())), not_after))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
