//! Certificates to order: DER written by hand, well-formed where a test does not ask for something else.

use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use rustls_pki_types::CertificateDer;

// The last arc of 2.5.29.x.
pub(crate) const KEY_USAGE: u8 = 15;
pub(crate) const ALT_NAME: u8 = 17;
pub(crate) const BASIC: u8 = 19;
pub(crate) const NAME_CONSTRAINTS: u8 = 30;
pub(crate) const EXTENDED_USAGE: u8 = 37;
const SUBJECT_KEY_ID: u8 = 14;
const AUTHORITY_KEY_ID: u8 = 35;

// keyUsage bits as they stand in the bit string's first byte.
pub(crate) const DIGITAL_SIGNATURE: u8 = 0x80;
pub(crate) const CERT_SIGN: u8 = 0x04;
pub(crate) const CRL_SIGN: u8 = 0x02;

pub(crate) const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
pub(crate) const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
pub(crate) const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
pub(crate) const ANY_USAGE: &[u8] = &[0x55, 0x1d, 37, 0];

const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const HOUR: i64 = 3600;

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    Timestamp::now().as_second()
}

pub(crate) fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        n @ 0..=0x7f => out.push(n as u8),
        n @ 0x80..=0xff => out.extend([0x81, n as u8]),
        n => out.extend([0x82, (n >> 8) as u8, n as u8]),
    }
    out.extend_from_slice(content);
    out
}

pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// A Name with one CN, or with nothing.
fn name(common_name: &str) -> Vec<u8> {
    if common_name.is_empty() {
        return sequence(&[]);
    }
    let attribute = sequence(&[&[6, 3, 0x55, 4, 3], &tlv(0x0c, common_name.as_bytes())]);
    sequence(&[&tlv(0x31, &attribute)])
}

/// UTCTime up to 2049, GeneralizedTime from 2050 (RFC 5280 §4.1.2.5).
fn time(at: i64) -> Vec<u8> {
    let text = Timestamp::from_second(at).unwrap().to_string();
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if digits.as_str() < "2050" {
        tlv(0x17, format!("{}Z", &digits[2..]).as_bytes())
    } else {
        tlv(0x18, format!("{digits}Z").as_bytes())
    }
}

pub(crate) fn uri(value: impl AsRef<[u8]>) -> Vec<u8> {
    tlv(0x86, value.as_ref())
}

pub(crate) fn dns(value: &str) -> Vec<u8> {
    tlv(0x82, value.as_bytes())
}

pub(crate) fn usage(bits: u8) -> Vec<u8> {
    tlv(3, &[bits.trailing_zeros().min(7) as u8, bits])
}

pub(crate) fn extended(usages: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = usages.iter().flat_map(|u| tlv(6, u)).collect();
    tlv(0x30, &list)
}

/// basicConstraints CA:TRUE.
pub(crate) fn ca() -> Vec<u8> {
    sequence(&[&tlv(1, &[0xff])])
}

/// A certificate before it is signed.
#[derive(Clone)]
pub(crate) struct Spec {
    subject: Vec<u8>,
    not_before: i64,
    not_after: i64,
    /// The subject's SubjectPublicKeyInfo.
    spki: Vec<u8>,
    key_id: Vec<u8>,
    extensions: Vec<(u8, bool, Vec<u8>)>,
}

impl Spec {
    /// A workload's leaf as Postern issues it.
    pub(crate) fn leaf(id: &str, key: &KeyPair) -> Self {
        Self::blank("", key)
            .with(BASIC, true, sequence(&[]))
            .with(KEY_USAGE, true, usage(DIGITAL_SIGNATURE))
            .with(EXTENDED_USAGE, false, extended(&[SERVER_AUTH, CLIENT_AUTH]))
            .names(&[uri(id)])
    }

    fn authority(common_name: &str, key: &KeyPair) -> Self {
        Self::blank(common_name, key).with(BASIC, true, ca()).with(
            KEY_USAGE,
            true,
            usage(CERT_SIGN | CRL_SIGN),
        )
    }

    fn blank(common_name: &str, key: &KeyPair) -> Self {
        Self {
            subject: name(common_name),
            not_before: now() - HOUR,
            not_after: now() + HOUR,
            spki: key.subject_public_key_info(),
            key_id: key.public_key_raw()[..20].to_vec(),
            extensions: Vec::new(),
        }
    }

    /// With this extension in place of one of the same kind.
    pub(crate) fn with(self, id: u8, critical: bool, value: Vec<u8>) -> Self {
        let mut spec = self.without(id);
        spec.extensions.push((id, critical, value));
        spec
    }

    pub(crate) fn without(mut self, id: u8) -> Self {
        self.extensions.retain(|(have, ..)| *have != id);
        self
    }

    /// With this common name.
    pub(crate) fn named(self, common_name: &str) -> Self {
        Self { subject: name(common_name), ..self }
    }

    /// With exactly these subject alternative names.
    pub(crate) fn names(self, names: &[Vec<u8>]) -> Self {
        self.with(ALT_NAME, true, tlv(0x30, &names.concat()))
    }

    /// Valid between these moments, in seconds from now.
    pub(crate) fn valid(mut self, from: i64, to: i64) -> Self {
        (self.not_before, self.not_after) = (now() + from, now() + to);
        self
    }

    fn signed(&self, issuer: &[u8], key_id: &[u8], key: &KeyPair) -> CertificateDer<'static> {
        let issuer_key_id = sequence(&[&tlv(0x80, key_id)]);
        let own_key_id = tlv(4, &self.key_id);
        let own = [(SUBJECT_KEY_ID, false, own_key_id), (AUTHORITY_KEY_ID, false, issuer_key_id)];
        let extensions: Vec<u8> = own
            .iter()
            .chain(&self.extensions)
            .flat_map(|(id, critical, value)| {
                let flag = if *critical { tlv(1, &[0xff]) } else { Vec::new() };
                sequence(&[&[6, 3, 0x55, 0x1d, *id], &flag, &tlv(4, value)])
            })
            .collect();
        let mut serial = vec![0x40];
        serial.extend_from_slice(&self.spki[self.spki.len() - 12..]);
        let tbs = sequence(&[
            &[0xa0, 3, 2, 1, 2],
            &tlv(2, &serial),
            ECDSA_SHA256,
            issuer,
            &sequence(&[&time(self.not_before), &time(self.not_after)]),
            &self.subject,
            &self.spki,
            &tlv(0xa3, &tlv(0x30, &extensions)),
        ]);
        let mut signature = vec![0];
        signature.extend(key.sign(&tbs).unwrap());
        sequence(&[&tbs, ECDSA_SHA256, &tlv(3, &signature)]).into()
    }
}

/// A certificate with its key: a root, an issuing CA, or whatever a test lets sign.
pub(crate) struct Authority {
    spec: Spec,
    pub(crate) key: KeyPair,
    pub(crate) der: CertificateDer<'static>,
}

impl Authority {
    /// A self-signed root.
    pub(crate) fn root(common_name: &str) -> Self {
        let key = key();
        Self::self_signed(Spec::authority(common_name, &key), key)
    }

    /// What has signed itself.
    pub(crate) fn self_signed(spec: Spec, key: KeyPair) -> Self {
        let der = spec.signed(&spec.subject, &spec.key_id, &key);
        Self { spec, key, der }
    }

    /// A root with the name and the key identifier of this one, and another key.
    pub(crate) fn twin(&self) -> Self {
        let key = key();
        let spec = Spec { spki: key.subject_public_key_info(), ..self.spec.clone() };
        Self::self_signed(spec, key)
    }

    /// A CA under this one, with these changes.
    pub(crate) fn issuing(&self, common_name: &str, change: impl FnOnce(Spec) -> Spec) -> Self {
        let key = key();
        let spec = change(Spec::authority(common_name, &key));
        self.under(spec, key)
    }

    /// Whatever this one signs, able to sign in turn.
    pub(crate) fn under(&self, spec: Spec, key: KeyPair) -> Self {
        Self { der: self.sign(&spec), spec, key }
    }

    pub(crate) fn sign(&self, spec: &Spec) -> CertificateDer<'static> {
        spec.signed(&self.spec.subject, &self.spec.key_id, &self.key)
    }
}
