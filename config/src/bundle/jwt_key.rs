//! Keys that verify JWT-SVIDs, as they stand in a bundle (JWT-SVID §6.1) and in a plain JWK Set (RFC 7517).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::{AlgorithmIdentifier, alg_id};
use serde_json::{Value, json};

use crate::svid::RSA_BITS;

/// The longest `kid` that is taken, in bytes.
const MAX_KID: usize = 256;

/// A public key that verifies JWT-SVIDs of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtKey {
    kid: String,
    material: Material,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Ec { curve: Curve, x: Vec<u8>, y: Vec<u8> },
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

/// The curves that JWT-SVID §2.1 knows algorithms for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

/// Why a key for JWT-SVIDs cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtKeyError {
    /// JWT-SVID §6.1 wants one.
    #[error("it has no `kid`, or one that is empty or longer than 256 bytes")]
    NoKid,
    /// Which of the two is meant?
    #[error("another key has the same `kid`")]
    SameKid,
    /// A coordinate, modulus or exponent.
    #[error("its key material cannot be read")]
    Unreadable,
    /// RSA beyond the bounds, or a curve that no algorithm uses.
    #[error("it is of a kind that no algorithm of JWT-SVID uses")]
    Kind,
}

impl JwtKey {
    /// A P-256 key: its uncompressed point, 65 bytes that begin with 4.
    pub fn p256(kid: &str, point: &[u8]) -> Result<Self, JwtKeyError> {
        match point.split_first() {
            Some((4, coordinates)) if coordinates.len() == 64 => {
                let (x, y) = coordinates.split_at(32);
                let material = Material::Ec { curve: Curve::P256, x: x.to_vec(), y: y.to_vec() };
                Ok(Self { kid: checked(Some(kid))?, material })
            }
            _ => Err(JwtKeyError::Unreadable),
        }
    }

    /// Reads a JWK of `use` "jwt-svid". `Kind` means that it is to be passed over alone, as a key of unknown kind is.
    pub fn from_jwk(jwk: &Value) -> Result<Self, JwtKeyError> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| {
            let text = text(name).ok_or(JwtKeyError::Unreadable)?;
            URL_SAFE_NO_PAD.decode(text).map_err(|_| JwtKeyError::Unreadable)
        };
        let material = match text("kty") {
            Some("EC") => {
                let curve = text("crv").and_then(Curve::named).ok_or(JwtKeyError::Kind)?;
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != curve.size() || y.len() != curve.size() {
                    return Err(JwtKeyError::Unreadable);
                }
                Material::Ec { curve, x, y }
            }
            Some("RSA") => {
                let (n, e) = (bytes("n")?, bytes("e")?);
                let first = n.first().ok_or(JwtKeyError::Unreadable)?;
                let bits = n.len() * 8 - first.leading_zeros() as usize;
                if e.is_empty() || e.len() > 8 || *first == 0 || e[0] == 0 {
                    return Err(JwtKeyError::Unreadable);
                }
                if !RSA_BITS.contains(&bits) {
                    return Err(JwtKeyError::Kind);
                }
                Material::Rsa { n, e }
            }
            _ => return Err(JwtKeyError::Kind),
        };
        Ok(Self { kid: checked(text("kid"))?, material })
    }

    /// Its name within the bundle.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// As it stands in a SPIFFE bundle.
    pub fn to_jwk(&self) -> Value {
        let mut jwk = self.bare();
        jwk["use"] = "jwt-svid".into();
        jwk
    }

    /// As verifiers that know nothing of SPIFFE want it: `use` "sig" and, for a curve, the one algorithm.
    pub fn to_plain_jwk(&self) -> Value {
        let mut jwk = self.bare();
        jwk["use"] = "sig".into();
        if let Material::Ec { curve, .. } = &self.material {
            jwk["alg"] = curve.algorithm().into();
        }
        jwk
    }

    fn bare(&self) -> Value {
        let field = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.material {
            Material::Ec { curve, x, y } => {
                json!({ "kty": "EC", "kid": self.kid, "crv": curve.name(), "x": field(x), "y": field(y) })
            }
            Material::Rsa { n, e } => {
                json!({ "kty": "RSA", "kid": self.kid, "n": field(n), "e": field(e) })
            }
        }
    }

    /// The algorithm identifier of its SubjectPublicKeyInfo.
    pub(crate) fn algorithm_id(&self) -> AlgorithmIdentifier {
        match &self.material {
            Material::Ec { curve: Curve::P256, .. } => alg_id::ECDSA_P256,
            Material::Ec { curve: Curve::P384, .. } => alg_id::ECDSA_P384,
            Material::Ec { curve: Curve::P521, .. } => alg_id::ECDSA_P521,
            Material::Rsa { .. } => alg_id::RSA_ENCRYPTION,
        }
    }

    /// The bits of its SubjectPublicKeyInfo: a point (SEC 1 §2.3.3), or an RSAPublicKey (RFC 8017 §A.1.1).
    pub(crate) fn public_key(&self) -> Vec<u8> {
        match &self.material {
            Material::Ec { x, y, .. } => [&[4], x.as_slice(), y].concat(),
            Material::Rsa { n, e } => sequence_of_integers([n, e]),
        }
    }
}

impl Curve {
    fn named(name: &str) -> Option<Self> {
        [Self::P256, Self::P384, Self::P521].into_iter().find(|curve| curve.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    fn algorithm(self) -> &'static str {
        match self {
            Self::P256 => "ES256",
            Self::P384 => "ES384",
            Self::P521 => "ES512",
        }
    }

    /// Of a coordinate, in bytes (RFC 7518 §6.2.1.2).
    fn size(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

fn checked(kid: Option<&str>) -> Result<String, JwtKeyError> {
    kid.filter(|kid| !kid.is_empty() && kid.len() <= MAX_KID).map(str::to_owned).ok_or(JwtKeyError::NoKid)
}

/// DER: a SEQUENCE of two unsigned INTEGERs, which RSA keys and ECDSA signatures both are.
pub(crate) fn sequence_of_integers(numbers: [&[u8]; 2]) -> Vec<u8> {
    let mut content = Vec::new();
    for number in numbers {
        let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len().saturating_sub(1));
        let digits = &number[start..];
        // A first bit of one would make it negative.
        let pad = usize::from(digits.first().is_none_or(|first| *first >= 0x80));
        content.push(0x02);
        push_length(&mut content, digits.len() + pad);
        content.extend(std::iter::repeat_n(0, pad));
        content.extend_from_slice(digits);
    }
    let mut out = vec![0x30];
    push_length(&mut out, content.len());
    out.extend(content);
    out
}

fn push_length(out: &mut Vec<u8>, length: usize) {
    match u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes() {
        [0, short @ 0..0x80] => out.push(short),
        [0, long] => out.extend([0x81, long]),
        [high, low] => out.extend([0x82, high, low]),
    }
}
