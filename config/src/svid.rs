//! The one SPIFFE verifier: is this presented chain a workload's X509-SVID that we believe now, and whose?
//!
//! `rustls-webpki` builds and checks the path (RFC 5280); this module adds what SPIFFE asks beyond it (X509-SVID §2, §4,
//! §5.2) and what webpki leaves out: the anchor's own dates, the rules for key usage, revocation on every member of a path.
//! Both planes call it, as server and as client, through thin TLS adapters of their own.

use std::cell::RefCell;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::asn1_rs::Sequence;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::bundle::{BundleSet, TrustBundle};
use crate::id::{SpiffeId, TrustDomain};
use crate::revocation::Revocations;

mod anchor;
mod describe;
pub mod endorsement;
mod error;
pub mod foreign;
mod names;
#[cfg(test)]
mod tests;

pub use anchor::Anchor;
pub use describe::Description;
pub use error::{Flaw, VerifyError};
pub use names::Names;

/// The most certificates that a peer may present. A leaf, an issuing CA and a root are three.
pub const MAX_CHAIN: usize = 4;
/// The most bytes that a peer's certificates may have together; checked before anything is parsed.
pub const MAX_CHAIN_BYTES: usize = 16 * 1024;
/// The RSA moduli that are verified, in bits: larger ones cost CPU that an attacker does not pay, smaller ones are weak.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;
/// How far in the future a notBefore may lie, in seconds: two honest clocks differ. There is no tolerance after notAfter.
pub const NOT_BEFORE_TOLERANCE: u64 = 60;

/// What the peer is in this handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The peer opened the connection.
    Client,
    /// The peer accepted it.
    Server,
}

/// The cryptography that the caller brings; this crate has none of its own.
#[derive(Clone, Copy)]
pub struct Algorithms<'a> {
    /// Accepted certificate signatures; a leaf's own key must be of a kind that one of them takes.
    pub signatures: &'a [&'a dyn SignatureVerificationAlgorithm],
    /// SHA-256.
    pub sha256: fn(&[u8]) -> [u8; 32],
}

/// Who a verified chain speaks for, and until when.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The one URI SAN of the leaf.
    pub id: SpiffeId,
    /// The greatest notBefore over the path with its anchor, seconds since 1970.
    pub not_before: i64,
    /// The least notAfter over the path with its anchor, seconds since 1970.
    pub not_after: i64,
    /// The leaf's own notBefore, seconds since 1970.
    pub issued: i64,
    /// What the leaf calls its holder, for those who are told of it.
    pub names: Names,
    /// The leaf's serial number, big-endian, as it stands in the certificate.
    pub serial: Vec<u8>,
    /// The leaf's authority key identifier; empty where it has none.
    pub issuer_key_id: Vec<u8>,
    /// (authority key identifier, serial number) of every issuer on the path, nearest first, anchor last.
    pub issuers: Vec<(Vec<u8>, Vec<u8>)>,
    /// SHA-256 of the leaf.
    pub fingerprint: [u8; 32],
    /// SHA-256 of the SubjectPublicKeyInfo of every member of the path, leaf first, anchor last.
    pub spkis: Vec<[u8; 32]>,
    /// The anchor that the path led to.
    pub anchor: Arc<Anchor>,
}

impl Peer {
    /// Whether this peer, verified earlier, would still be believed at `now` (seconds since 1970): the question that is
    /// asked of open connections when bundles or revocations change.
    pub fn recheck(&self, bundles: &BundleSet, revoked: &Revocations, now: i64) -> Result<(), VerifyError> {
        if now > self.not_after {
            return Err(VerifyError::Expired { not_after: self.not_after, now });
        }
        let bundle = bundle_of(bundles, &self.id)?;
        if !bundle.anchors().iter().any(|a| a.der() == self.anchor.der()) {
            return Err(VerifyError::UnknownIssuer);
        }
        self.check_revoked(revoked)
    }

    /// Whether [`verify`] would find the same path good at `now` (seconds since 1970), without asking its signatures again:
    /// everything about it that can change. An error says that this path is no longer good, not that there is no other.
    pub fn still_verifies(
        &self,
        bundles: &BundleSet,
        revoked: &Revocations,
        now: i64,
    ) -> Result<(), VerifyError> {
        if self.not_before > now.saturating_add(NOT_BEFORE_TOLERANCE as i64) {
            return Err(VerifyError::NotYetValid { not_before: self.not_before, now });
        }
        self.recheck(bundles, revoked, now)
    }

    /// Asks again about revocation alone.
    pub fn check_revoked(&self, revoked: &Revocations) -> Result<(), VerifyError> {
        if revoked.is_empty() {
            return Ok(());
        }
        let serial = (self.issuer_key_id.clone(), self.serial.clone());
        // The leaf's date alone counts: a renewed issuer of the same key must not make an old leaf look new.
        let identity = revoked.identities.get(&self.id).is_some_and(|before| self.issued < *before);
        if identity
            || revoked.serials.contains(&serial)
            || self.issuers.iter().any(|i| revoked.serials.contains(i))
            || self.spkis.iter().any(|s| revoked.spkis.contains(s))
        {
            return Err(VerifyError::Revoked { id: self.id.clone() });
        }
        Ok(())
    }
}

/// Verifies a presented chain, leaf first, against the bundle of the trust domain that the leaf itself names.
///
/// The order is the order of cost: sizes, then parsing, then the leaf's profile, then signatures, then revocation.
pub fn verify(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    revoked: &Revocations,
    role: Role,
    now: UnixTime,
    algorithms: Algorithms<'_>,
) -> Result<Peer, VerifyError> {
    let (leaf_der, intermediates) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    if chain.len() > MAX_CHAIN || chain.iter().map(|c| c.len()).sum::<usize>() > MAX_CHAIN_BYTES {
        return Err(Flaw::ChainTooLarge.into());
    }
    let members = chain.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    members.iter().try_for_each(check_key_size)?;
    let leaf = &members[0];
    let names = subject_alternative_name(leaf)?;
    let id = leaf_identity(&names)?;
    check_leaf_profile(leaf, &names)?;
    check_leaf_key(leaf, algorithms)?;
    let bundle = bundle_of(bundles, &id)?;

    let now_secs = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let at = tolerant_time(&members, now_secs)?;
    let end_entity = EndEntityCert::try_from(leaf_der).map_err(error::from_webpki)?;
    if !end_entity.valid_uri_names().eq([id.as_str()]) {
        // Two parsers that read the same bytes differently are an attack, not an accident.
        return Err(Flaw::Ambiguous.into());
    }
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let found = RefCell::new(None);
    let judge = |path: &VerifiedPath<'_>| {
        let verdict = judge_path(path, leaf, &id, bundle, now_secs, algorithms)
            .and_then(|peer| peer.check_revoked(revoked).map(|()| peer));
        let accepted = verdict.is_ok();
        *found.borrow_mut() = Some(verdict);
        if accepted { Ok(()) } else { Err(webpki::Error::UnknownIssuer) }
    };
    let built = end_entity.verify_for_usage(
        algorithms.signatures,
        bundle.trust_anchors(),
        intermediates,
        at,
        usage,
        None,
        Some(&judge),
    );
    match (built, found.take()) {
        (Ok(_), Some(verdict)) => verdict,
        // A path was built and refused by us: our reason says more than webpki's.
        (Err(_), Some(Err(why))) => Err(why),
        (Err(why), _) => Err(error::from_webpki(why)),
        (Ok(_), None) => Err(VerifyError::UnknownIssuer),
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, VerifyError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Flaw::Unreadable.into()),
    }
}

fn bundle_of<'a>(bundles: &'a BundleSet, id: &SpiffeId) -> Result<&'a TrustBundle, VerifyError> {
    let bundle = bundles.of(id.trust_domain_str());
    bundle.map(Arc::as_ref).ok_or_else(|| VerifyError::WrongTrustDomain { presented: id.trust_domain() })
}

/// The leaf's identity: its one URI SAN (X509-SVID §2). Other names may be there and never matter.
fn leaf_identity(names: &AlternativeNames<'_>) -> Result<SpiffeId, VerifyError> {
    let mut uris = names.iter().flat_map(|(_, names)| names.iter()).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(VerifyError::BadSpiffeId),
        (None, _) => Err(VerifyError::NoUriName),
        (Some(_), Some(_)) => Err(VerifyError::ManyUriNames),
    }
}

/// The SAN extension, if there is one: whether it is critical, and its names.
type AlternativeNames<'a> = Option<(bool, Vec<GeneralName<'a>>)>;

/// A damaged extension is an error, a missing one is not.
fn subject_alternative_name<'a>(
    certificate: &X509Certificate<'a>,
) -> Result<AlternativeNames<'a>, VerifyError> {
    let mut found = None;
    for extension in certificate.extensions() {
        if extension.oid == x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME {
            match extension.parsed_extension() {
                // A name whose value cannot be read may be a second URI name.
                ParsedExtension::SubjectAlternativeName(san)
                    if found.is_none()
                        && !san.general_names.iter().any(|n| matches!(n, GeneralName::Invalid(..))) =>
                {
                    found = Some((extension.critical, san.general_names.clone()));
                }
                _ => return Err(Flaw::Unreadable.into()),
            }
        }
    }
    Ok(found)
}

/// X509-SVID §4 and appendix A, for a leaf.
fn check_leaf_profile(leaf: &X509Certificate<'_>, names: &AlternativeNames<'_>) -> Result<(), VerifyError> {
    let constraints =
        leaf.basic_constraints().map_err(|_| Flaw::Unreadable)?.ok_or(Flaw::NoBasicConstraints)?;
    if constraints.value.ca {
        return Err(Flaw::CaAsLeaf.into());
    }
    let usage = leaf.key_usage().map_err(|_| Flaw::Unreadable)?.ok_or(Flaw::NoKeyUsage)?;
    if !usage.critical {
        return Err(Flaw::KeyUsageNotCritical.into());
    }
    if !usage.value.digital_signature() || usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(Flaw::LeafKeyUsage.into());
    }
    if let Some(extended) = leaf.extended_key_usage().map_err(|_| Flaw::Unreadable)?
        && !(extended.value.server_auth && extended.value.client_auth)
    {
        return Err(Flaw::ExtendedKeyUsage.into());
    }
    let san_is_critical = names.as_ref().is_some_and(|(critical, _)| *critical);
    if leaf.subject().iter_attributes().next().is_none() && !san_is_critical {
        return Err(Flaw::SanNotCritical.into());
    }
    Ok(())
}

fn check_key_size(certificate: &X509Certificate<'_>) -> Result<(), VerifyError> {
    match certificate.public_key().parsed().map_err(|_| Flaw::Unreadable)? {
        PublicKey::RSA(rsa) => {
            let zeros = rsa.modulus.iter().take_while(|b| **b == 0).count();
            if RSA_BITS.contains(&((rsa.modulus.len() - zeros) * 8)) {
                Ok(())
            } else {
                Err(Flaw::RsaKeySize.into())
            }
        }
        _ => Ok(()),
    }
}

/// The leaf's key will sign the handshake, where a bad kind would show as nothing but a bad signature.
fn check_leaf_key(leaf: &X509Certificate<'_>, algorithms: Algorithms<'_>) -> Result<(), VerifyError> {
    let (_, key) = Sequence::from_der(leaf.public_key().raw).map_err(|_| Flaw::Unreadable)?;
    let (_, kind) = Sequence::from_der(&key.content).map_err(|_| Flaw::Unreadable)?;
    if algorithms.signatures.iter().any(|a| *a.public_key_alg_id() == *kind.content) {
        Ok(())
    } else {
        Err(Flaw::KeyKind.into())
    }
}

/// The time at which webpki checks dates: `now`, or the latest notBefore where that lies within the tolerance.
/// Moving forward only makes the check of notAfter stricter.
fn tolerant_time(members: &[X509Certificate<'_>], now: i64) -> Result<UnixTime, VerifyError> {
    let latest = members.iter().map(|m| m.validity().not_before.timestamp()).max().unwrap_or(now);
    if latest > now.saturating_add(NOT_BEFORE_TOLERANCE as i64) {
        return Err(VerifyError::NotYetValid { not_before: latest, now });
    }
    let at = u64::try_from(latest.max(now)).unwrap_or(0);
    Ok(UnixTime::since_unix_epoch(std::time::Duration::from_secs(at)))
}

/// Judges a path that webpki has built: the rules for CAs (X509-SVID §3.2, §4), the anchor's dates.
fn judge_path(
    path: &VerifiedPath<'_>,
    leaf: &X509Certificate<'_>,
    id: &SpiffeId,
    bundle: &TrustBundle,
    now: i64,
    algorithms: Algorithms<'_>,
) -> Result<Peer, VerifyError> {
    let anchor = bundle.anchor_of(path.anchor()).ok_or(VerifyError::UnknownIssuer)?;
    let issued = leaf.validity().not_before.timestamp();
    let mut not_before = anchor.not_before().max(issued);
    let mut not_after = anchor.not_after().min(leaf.validity().not_after.timestamp());
    let mut spkis = vec![(algorithms.sha256)(leaf.public_key().raw)];
    let mut issuers = Vec::new();
    for member in path.intermediate_certificates() {
        let der = member.der();
        let ca = parse(&der)?;
        check_ca_profile(&ca, id.trust_domain_str())?;
        not_before = not_before.max(ca.validity().not_before.timestamp());
        not_after = not_after.min(ca.validity().not_after.timestamp());
        spkis.push((algorithms.sha256)(ca.public_key().raw));
        issuers.push((anchor::authority_key_id(&ca), ca.raw_serial().to_vec()));
    }
    if anchor.path_len().is_some_and(|most| issuers.len() > most as usize) {
        return Err(Flaw::Path("an issuer's path length is exceeded").into());
    }
    issuers.push(anchor.issued_as().clone());
    spkis.push((algorithms.sha256)(anchor.spki()));
    if now > not_after {
        return Err(VerifyError::Expired { not_after, now });
    }
    if not_before > now.saturating_add(NOT_BEFORE_TOLERANCE as i64) {
        return Err(VerifyError::NotYetValid { not_before, now });
    }
    Ok(Peer {
        id: id.clone(),
        not_before,
        not_after,
        issued,
        names: Names::within(leaf).ok_or(Flaw::Unreadable)?,
        serial: leaf.raw_serial().to_vec(),
        issuer_key_id: anchor::authority_key_id(leaf),
        issuers,
        fingerprint: (algorithms.sha256)(path.end_entity().der().as_ref()),
        spkis,
        anchor: Arc::clone(anchor),
    })
}

/// An intermediate: CA:TRUE and pathLen are webpki's; key usage and the name are ours.
fn check_ca_profile(ca: &X509Certificate<'_>, trust_domain: &str) -> Result<(), VerifyError> {
    let usage = ca.key_usage().map_err(|_| Flaw::Unreadable)?.ok_or(Flaw::NoKeyUsage)?;
    if !usage.critical {
        return Err(Flaw::KeyUsageNotCritical.into());
    }
    if !usage.value.key_cert_sign() {
        return Err(Flaw::IssuerMayNotSign.into());
    }
    for name in subject_alternative_name(ca)?.into_iter().flat_map(|(_, names)| names) {
        if let GeneralName::URI(uri) = name {
            let named: Option<TrustDomain> = uri.strip_prefix("spiffe://").and_then(|td| td.parse().ok());
            if named.is_none_or(|td| td.as_str() != trust_domain) {
                return Err(Flaw::IssuerName.into());
            }
        }
    }
    Ok(())
}
