//! Certificates to order: DER written by hand, well-formed where a test does not ask for something else.

use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls_pki_types::CertificateDer;

/// The moment at which tests stand: 2033-05-18.
pub(super) const NOW: i64 = 2_000_000_000;
pub(super) const HOUR: i64 = 3600;

// The last arc of 2.5.29.x.
pub(super) const SUBJECT_KEY_ID: u8 = 14;
pub(super) const KEY_USAGE: u8 = 15;
pub(super) const ALT_NAME: u8 = 17;
pub(super) const BASIC: u8 = 19;
pub(super) const NAME_CONSTRAINTS: u8 = 30;
pub(super) const AUTHORITY_KEY_ID: u8 = 35;
pub(super) const EXTENDED_USAGE: u8 = 37;

// keyUsage bits as they stand in the bit string's first byte.
pub(super) const DIGITAL_SIGNATURE: u8 = 0x80;
pub(super) const CERT_SIGN: u8 = 0x04;
pub(super) const CRL_SIGN: u8 = 0x02;

pub(super) const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
pub(super) const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
pub(super) const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
pub(super) const ANY_USAGE: &[u8] = &[0x55, 0x1d, 37, 0];

const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA384: &[u8] = &[0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
/// ecdsa-with-SHA1.
pub(super) const ECDSA_SHA1: &[u8] = &[0x30, 9, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1];
const ED25519: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70];

pub(super) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        n @ 0..=0x7f => out.push(n as u8),
        n @ 0x80..=0xff => out.extend([0x81, n as u8]),
        n => out.extend([0x82, (n >> 8) as u8, n as u8]),
    }
    out.extend_from_slice(content);
    out
}

pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// A Name with one CN, or with nothing.
pub(super) fn name(common_name: &str) -> Vec<u8> {
    if common_name.is_empty() {
        return sequence(&[]);
    }
    let attribute = sequence(&[&[6, 3, 0x55, 4, 3], &tlv(0x0c, common_name.as_bytes())]);
    sequence(&[&tlv(0x31, &attribute)])
}

/// UTCTime up to 2049, GeneralizedTime from 2050 (RFC 5280 §4.1.2.5).
fn time(at: i64) -> Vec<u8> {
    let text: String = jiff::Timestamp::from_second(at).unwrap().to_string();
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if digits.as_str() < "2050" {
        tlv(0x17, format!("{}Z", &digits[2..]).as_bytes())
    } else {
        tlv(0x18, format!("{digits}Z").as_bytes())
    }
}

pub(super) fn uri(value: &[u8]) -> Vec<u8> {
    tlv(0x86, value)
}

pub(super) fn dns(value: &str) -> Vec<u8> {
    tlv(0x82, value.as_bytes())
}

pub(super) fn usage(bits: u8) -> Vec<u8> {
    tlv(3, &[bits.trailing_zeros().min(7) as u8, bits])
}

pub(super) fn extended(usages: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = usages.iter().flat_map(|u| tlv(6, u)).collect();
    tlv(0x30, &list)
}

/// basicConstraints CA:TRUE, with a path length or without.
pub(super) fn ca(path_len: Option<u8>) -> Vec<u8> {
    let len: Vec<u8> = path_len.map(|n| tlv(2, &[n])).unwrap_or_default();
    sequence(&[&tlv(1, &[0xff]), &len])
}

/// A certificate before it is signed.
#[derive(Clone)]
pub(super) struct Spec {
    pub(super) serial: Vec<u8>,
    pub(super) subject: Vec<u8>,
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    /// The subject's SubjectPublicKeyInfo.
    pub(super) key: Vec<u8>,
    pub(super) extensions: Vec<(u8, bool, Vec<u8>)>,
}

impl Spec {
    /// A workload's leaf as Postern issues it, for a fresh key that is thrown away.
    pub(super) fn leaf(id: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self::blank("", &key, HOUR)
            .with(BASIC, true, sequence(&[]))
            .with(KEY_USAGE, true, usage(DIGITAL_SIGNATURE))
            .with(EXTENDED_USAGE, false, extended(&[SERVER_AUTH, CLIENT_AUTH]))
            .names(&[uri(id.as_bytes())])
    }

    fn authority(common_name: &str, key: &KeyPair) -> Self {
        Self::blank(common_name, key, 24 * HOUR).with(BASIC, true, ca(None)).with(
            KEY_USAGE,
            true,
            usage(CERT_SIGN | CRL_SIGN),
        )
    }

    fn blank(common_name: &str, key: &KeyPair, life: i64) -> Self {
        let key_id = tlv(4, &key.public_key_raw()[..20]);
        Self {
            serial: key.public_key_raw().iter().rev().take(12).copied().collect(),
            subject: name(common_name),
            not_before: NOW - HOUR,
            not_after: NOW + life,
            key: key.subject_public_key_info(),
            extensions: vec![(SUBJECT_KEY_ID, false, key_id)],
        }
    }

    /// With this extension in place of one of the same kind.
    pub(super) fn with(self, id: u8, critical: bool, value: Vec<u8>) -> Self {
        self.without(id).twice(id, critical, value)
    }

    /// With this extension beside others of the same kind.
    pub(super) fn twice(mut self, id: u8, critical: bool, value: Vec<u8>) -> Self {
        self.extensions.push((id, critical, value));
        self
    }

    pub(super) fn without(mut self, id: u8) -> Self {
        self.extensions.retain(|(have, ..)| *have != id);
        self
    }

    /// With exactly these subject alternative names.
    pub(super) fn names(self, names: &[Vec<u8>]) -> Self {
        self.with(ALT_NAME, true, tlv(0x30, &names.concat()))
    }

    pub(super) fn dates(mut self, not_before: i64, not_after: i64) -> Self {
        (self.not_before, self.not_after) = (not_before, not_after);
        self
    }

    fn signed(&self, issuer: &[u8], key: &KeyPair, algorithm: &[u8]) -> CertificateDer<'static> {
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(id, critical, value)| {
                let flag = if *critical { tlv(1, &[0xff]) } else { Vec::new() };
                sequence(&[&[6, 3, 0x55, 0x1d, *id], &flag, &tlv(4, value)])
            })
            .collect();
        let mut serial = vec![0];
        serial.extend_from_slice(&self.serial);
        serial[1] |= 0x80;
        let tbs = sequence(&[
            &[0xa0, 3, 2, 1, 2],
            &tlv(2, &serial),
            algorithm,
            issuer,
            &sequence(&[&time(self.not_before), &time(self.not_after)]),
            &self.subject,
            &self.key,
            &tlv(0xa3, &tlv(0x30, &extensions)),
        ]);
        let mut signature = vec![0];
        signature.extend(key.sign(&tbs).unwrap());
        sequence(&[&tbs, algorithm, &tlv(3, &signature)]).into()
    }
}

/// A certificate with its key: a root, an issuing CA, or whatever a test lets sign.
pub(super) struct Authority {
    pub(super) spec: Spec,
    pub(super) key: KeyPair,
    pub(super) der: CertificateDer<'static>,
}

impl Authority {
    /// A self-signed root.
    pub(super) fn root(common_name: &str) -> Self {
        Self::root_as(common_name, KeyPair::generate().unwrap(), |spec| spec)
    }

    /// A self-signed root with this key and these changes.
    pub(super) fn root_as(common_name: &str, key: KeyPair, change: impl FnOnce(Spec) -> Spec) -> Self {
        let spec = change(Spec::authority(common_name, &key));
        let der = spec.signed(&spec.subject, &key, algorithm_of(&key));
        Self { spec, key, der }
    }

    /// The same name and key in another certificate.
    pub(super) fn renewed(&self, change: impl FnOnce(Spec) -> Spec) -> Self {
        let key = KeyPair::try_from(self.key.serialized_der()).unwrap();
        let spec = change(self.spec.clone());
        let der = spec.signed(&spec.subject, &key, algorithm_of(&key));
        Self { spec, key, der }
    }

    /// An issuing CA under this one.
    pub(super) fn issuing(&self, common_name: &str) -> Self {
        self.issuing_as(common_name, KeyPair::generate().unwrap(), |spec| spec)
    }

    /// An issuing CA with this key and these changes.
    pub(super) fn issuing_as(
        &self,
        common_name: &str,
        key: KeyPair,
        change: impl FnOnce(Spec) -> Spec,
    ) -> Self {
        let spec = change(Spec::authority(common_name, &key));
        let der = self.sign(&spec);
        Self { spec, key, der }
    }

    /// Signs whatever it is given, and says who signed.
    pub(super) fn sign(&self, spec: &Spec) -> CertificateDer<'static> {
        self.sign_as(spec, algorithm_of(&self.key))
    }

    /// Signs and claims another algorithm.
    pub(super) fn sign_as(&self, spec: &Spec, algorithm: &[u8]) -> CertificateDer<'static> {
        let key_id = sequence(&[&tlv(0x80, &self.key_id())]);
        spec.clone().with(AUTHORITY_KEY_ID, false, key_id).signed(&self.spec.subject, &self.key, algorithm)
    }

    pub(super) fn key_id(&self) -> Vec<u8> {
        self.key.public_key_raw()[..20].to_vec()
    }
}

fn algorithm_of(key: &KeyPair) -> &'static [u8] {
    let algorithm = key.algorithm();
    if algorithm == &rcgen::PKCS_ED25519 {
        ED25519
    } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
        ECDSA_SHA384
    } else {
        ECDSA_SHA256
    }
}

/// The SubjectPublicKeyInfo of an RSA key that nobody holds.
pub(super) fn rsa_key(bits: usize) -> Vec<u8> {
    let mut modulus = vec![0; bits / 8 + 1];
    modulus[1] = 0x80;
    modulus[bits / 8] = 1;
    let key = sequence(&[&tlv(2, &modulus), &tlv(2, &[1, 0, 1])]);
    let kind = sequence(&[&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1], &[5, 0]]);
    sequence(&[&kind, &tlv(3, &[&[0], key.as_slice()].concat())])
}

/// The SubjectPublicKeyInfo of a point on P-192 that nobody holds.
pub(super) fn p192_key() -> Vec<u8> {
    let ec = [6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    let p192 = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 1];
    let point = [&[0, 4][..], &[9; 48]].concat();
    sequence(&[&sequence(&[&ec, &p192]), &tlv(3, &point)])
}
