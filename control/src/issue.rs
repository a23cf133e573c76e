//! An attested identity and a public key become an X.509-SVID, exactly as X509-SVID §2–§4 want it.

use std::time::Duration;

use postern_config::id::SpiffeId;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyUsagePurpose,
    PublicKeyData, SanType,
};

use crate::ca::{CaError, Issuing, key_id, revocation, serial, set_validity};
use crate::digest::serial_hex;

pub mod csr;
pub mod window;

/// A certificate as signed.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// DER.
    pub der: Vec<u8>,
    /// Lower-case hex.
    pub serial: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// What a leaf shall be.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Whose it is.
    pub id: &'a SpiffeId,
    /// Names beside the identity, which give no right (X509-SVID §2).
    pub dns_names: &'a [String],
    /// How long it lives.
    pub ttl: Duration,
    /// How far its begin lies in the past.
    pub backdate: Duration,
    /// Before which it never begins, milliseconds since 1970.
    pub earliest: i64,
}

/// Signs a leaf for `id`. It starts `backdate` before `now` and ends `ttl` after it (milliseconds since 1970), but never
/// outside of its issuer's life, nor before `earliest` (milliseconds since 1970), which is when the identity was revoked; with a
/// clock outside of its issuer's life nothing is signed.
///
/// The subject is empty, so the SAN is critical (RFC 5280 §4.1.2.6); both EKUs stand, because a workload is client and
/// server with one certificate.
pub fn sign(issuing: &Issuing, key: &impl PublicKeyData, wish: &Wish<'_>, now: i64) -> Result<Leaf, CaError> {
    let Wish { id, dns_names, ttl, backdate, earliest } = *wish;
    let ends = now.saturating_add(crate::clock::millis(ttl));
    let begins = now.saturating_sub(crate::clock::millis(backdate)).div_euclid(1000);
    // Rounded up: a certificate of five seconds lives five, not four and a bit.
    let ends = ends.saturating_add(999).div_euclid(1000);
    let not_before = begins.max(issuing.not_before).max(earliest.div_euclid(1000));
    let not_after = ends.min(issuing.not_after);
    let seconds = now.div_euclid(1000);
    if seconds < issuing.not_before || seconds >= issuing.not_after {
        let [now, from, until] =
            [seconds, issuing.not_before, issuing.not_after].map(|s| crate::clock::rfc3339(s * 1000));
        return Err(CaError::Clock { now, from, until });
    }

    let serial = serial()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    for name in dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(key));
    params.serial_number = Some(serial.clone());
    set_validity(&mut params, (not_before, not_after));
    if let Some(published) = &issuing.published {
        revocation::point_to(&mut params, published, &issuing.key_id, &serial);
    }
    let certificate = params.signed_by(key, &issuing.signer).map_err(|e| issuing.signer.key().failed(e))?;
    Ok(Leaf {
        der: certificate.der().to_vec(),
        serial: serial_hex(&serial.to_bytes()),
        not_before,
        not_after,
    })
}
