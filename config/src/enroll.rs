//! How an identity begins: the join string that carries a one-time secret and the pin of the root, and the
//! proof that binds an enrollment to one TLS connection.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::id::TrustDomain;
use crate::service::is_host_port;

/// The TLS exporter's label (RFC 8446 §7.5) for the proof of possession.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-postern-enroll-v1";
/// How many bytes both sides export.
pub const EXPORTER_LEN: usize = 32;
/// The largest CSR that the control plane looks at, in bytes. A P-256 one has about 200.
pub const MAX_CSR: usize = 8 * 1024;
/// Bounds of the nonce in an enrollment, in bytes.
pub const NONCE_LEN: std::ops::RangeInclusive<usize> = 16..=64;

/// SHA-256 over a public key's SubjectPublicKeyInfo, DER; printed as `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is no pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pin is `sha256:` and 64 hex digits in lower case, as `postern serve` prints its root's")]
pub struct NoPin;

impl FromStr for Pin {
    type Err = NoPin;

    fn from_str(text: &str) -> Result<Self, NoPin> {
        let digits = text.strip_prefix("sha256:").ok_or(NoPin)?.as_bytes();
        let digit = |b: u8| match b {
            b'0'..=b'9' => Ok(b - b'0'),
            b'a'..=b'f' => Ok(b - b'a' + 10),
            _ => Err(NoPin),
        };
        let bytes: Vec<u8> = digits
            .chunks(2)
            .map(|p| Ok(digit(p[0])? << 4 | digit(*p.get(1).ok_or(NoPin)?)?))
            .collect::<Result<_, _>>()?;
        bytes.try_into().map(Self).map_err(|_| NoPin)
    }
}

impl Serialize for Pin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Pin {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Pin".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^sha256:[0-9a-f]{64}$",
            "description": "SHA-256 over a public key's SubjectPublicKeyInfo."
        })
    }
}

/// Why a text is no join string. The text itself is a secret and never part of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Does not start with `v1.`.
    #[error("a join string starts with `v1.`; is this the output of `postern token create`?")]
    Version,
    /// Not five parts, or a part is malformed.
    #[error(
        "the join string is damaged (its {0} cannot be read); it may be cut off or wrapped: create a new one"
    )]
    Part(&'static str),
}

/// A join string, taken apart: everything a proxy needs to begin.
///
/// Shape: `v1.<token id>.<secret>.<pin>[~<next pin>].<place>`, where secret and pins are 32 bytes in unpadded base64url and
/// place is `<trust domain>,<host:port>,` in the same form; the last comma shows that nothing was cut off.
#[derive(Clone)]
pub struct JoinString {
    /// The token's public name, a ULID.
    pub token_id: String,
    /// The token's secret; wiped when dropped.
    pub secret: Zeroizing<[u8; 32]>,
    /// The root's pin, and the next root's while a rotation is under way.
    pub pins: Vec<Pin>,
    /// The trust domain to join.
    pub trust_domain: TrustDomain,
    /// Where the control plane listens, `host:port`.
    pub address: String,
}

impl JoinString {
    /// The whole string, secret included: for the file that carries it, nothing else.
    pub fn reveal(&self) -> Zeroizing<String> {
        let pins: Vec<String> = self.pins.iter().map(|p| URL_SAFE_NO_PAD.encode(p.0)).collect();
        let place = URL_SAFE_NO_PAD.encode(format!("{},{},", self.trust_domain, self.address));
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(self.secret.as_slice()));
        Zeroizing::new(format!("v1.{}.{}.{}.{place}", self.token_id, secret.as_str(), pins.join("~")))
    }
}

impl fmt::Debug for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinString({}, {} at {}, …)", self.token_id, self.trust_domain, self.address)
    }
}

impl FromStr for JoinString {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        let mut parts = text.trim().split('.');
        if parts.next() != Some("v1") {
            return Err(JoinError::Version);
        }
        let mut part = |name| parts.next().filter(|p| !p.is_empty()).ok_or(JoinError::Part(name));
        let token_id = part("token id")?;
        let secret = part("secret")?;
        let pins = part("pin")?;
        let place = part("address")?;
        if parts.next().is_some() {
            return Err(JoinError::Part("end"));
        }
        if token_id.len() > 64 || !token_id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(JoinError::Part("token id"));
        }
        let pins: Vec<Pin> = pins
            .split('~')
            .map(|p| decode_32(p).map(Pin).ok_or(JoinError::Part("pin")))
            .collect::<Result<_, _>>()?;
        if pins.len() > 2 {
            return Err(JoinError::Part("pin"));
        }
        let (trust_domain, address) = parse_place(place).ok_or(JoinError::Part("address"))?;
        Ok(Self {
            token_id: token_id.to_owned(),
            secret: Zeroizing::new(decode_32(secret).ok_or(JoinError::Part("secret"))?),
            pins,
            trust_domain,
            address,
        })
    }
}

fn decode_32(text: &str) -> Option<[u8; 32]> {
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
    bytes.as_slice().try_into().ok()
}

fn parse_place(text: &str) -> Option<(TrustDomain, String)> {
    let place = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let (trust_domain, address) = place.strip_suffix(',')?.split_once(',')?;
    let trust_domain = trust_domain.parse().ok()?;
    is_host_port(address).then(|| (trust_domain, address.to_owned()))
}

/// What the CSR's key signs in an enrollment: a domain separator, this connection's exporter, the nonce and the CSR,
/// each with its length in front, so that no two inputs read the same.
pub fn proof_message(exporter: &[u8; EXPORTER_LEN], nonce: &[u8], csr: &[u8]) -> Vec<u8> {
    let mut message = b"postern-enroll-v1\0".to_vec();
    for part in [exporter.as_slice(), nonce, csr] {
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> JoinString {
        JoinString {
            token_id: "01JD9W3V8Q4T7ZK2M5XB6R0N1C".into(),
            secret: Zeroizing::new([7; 32]),
            pins: vec![Pin([1; 32]), Pin([2; 32])],
            trust_domain: "corp.example".parse().unwrap(),
            address: "[::1]:7443".into(),
        }
    }

    #[test]
    fn a_join_string_reads_back_as_it_was_written() {
        let sample = sample();
        let read: JoinString = format!("{}\n", sample.reveal().as_str()).parse().unwrap();
        assert_eq!(read.token_id, sample.token_id);
        assert_eq!(*read.secret, *sample.secret);
        assert_eq!(read.pins, sample.pins);
        assert_eq!(read.trust_domain, sample.trust_domain);
        assert_eq!(read.address, sample.address);
    }

    #[test]
    fn every_cut_of_a_join_string_is_refused() {
        let whole = sample().reveal();
        for end in 0..whole.len() {
            assert!(whole[..end].parse::<JoinString>().is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_pin_has_one_spelling() {
        let pin = Pin([0xa5; 32]);
        assert_eq!(pin.to_string().parse(), Ok(pin));
        for bad in ["", "sha256:", "sha256:a5", "a5", &pin.to_string()[..70], &pin.to_string().to_uppercase()]
        {
            assert_eq!(bad.parse::<Pin>(), Err(NoPin), "{bad}");
        }
        assert!(format!("{pin}00").parse::<Pin>().is_err());
    }

    #[test]
    fn the_secret_is_in_no_debug_output() {
        let secret = URL_SAFE_NO_PAD.encode([7; 32]);
        assert!(!format!("{:?}", sample()).contains(&secret));
    }

    #[test]
    fn the_proof_separates_its_parts() {
        assert_ne!(proof_message(&[0; 32], b"ab", b"c"), proof_message(&[0; 32], b"a", b"bc"));
    }
}
