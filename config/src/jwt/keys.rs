//! A JWK Set (RFC 7517) as keys that can verify: each with the algorithms that it may be used with, and no secret among them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// The most keys that a set may hold; issuers publish two to ten.
const MAX_KEYS: usize = 100;
/// RSA below 2048 bits is refused (RFC 7518 §3.3).
const MIN_RSA_BYTES: usize = 256;
/// And above 8192 bits it only costs time.
const MAX_RSA_BYTES: usize = 1024;

/// An issuer's keys at one moment.
#[derive(Debug)]
pub struct Keys {
    keys: Vec<Key>,
    ignored: usize,
    read_ms: i64,
}

/// One public key.
#[derive(Debug)]
pub struct Key {
    id: Option<String>,
    /// What it may be used with: by its type and curve, and by its `alg` where it has one (RFC 8725 §3.1).
    algorithms: Vec<Algorithm>,
    /// As the library takes it.
    pub decoding: DecodingKey,
}

/// Why a text is no JWK Set.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It is no JSON, or has no `keys`.
    #[error("not a JWK Set: {0}")]
    Json(#[from] serde_json::Error),
    /// There are too many.
    #[error("a JWK Set of more than {MAX_KEYS} keys")]
    TooMany,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

impl Keys {
    /// Reads a JWK Set. Keys of other kinds or uses are left out, as RFC 7517 §5 asks; so the result may hold none, and then
    /// no token is good.
    pub fn parse(json: &[u8], read_ms: i64) -> Result<Self, KeysError> {
        let set: Set = serde_json::from_slice(json)?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeysError::TooMany);
        }
        let count = set.keys.len();
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Key::new).collect();
        Ok(Self { ignored: count - keys.len(), keys, read_ms })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many were left out.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// How long ago they were read, milliseconds.
    pub fn age_ms(&self, now_ms: i64) -> i64 {
        now_ms.saturating_sub(self.read_ms)
    }

    /// Those that may have signed a token with this algorithm and this `kid`. A key without an id may be any.
    pub fn fitting<'a>(
        &'a self,
        algorithm: Algorithm,
        kid: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Key> {
        let named = move |key: &Key| match (kid, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        self.keys.iter().filter(move |key| key.algorithms.contains(&algorithm) && named(key))
    }
}

impl Key {
    fn new(value: serde_json::Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let common = &jwk.common;
        let verifies = match (&common.public_key_use, &common.key_operations) {
            (Some(used), _) if *used != PublicKeyUse::Signature => false,
            (_, Some(operations)) => operations.contains(&KeyOperations::Verify),
            _ => true,
        };
        if !verifies {
            return None;
        }
        let mut algorithms = by_type(&jwk.algorithm)?;
        if let Some(given) = common.key_algorithm {
            let given = Algorithm::try_from(given).ok()?;
            algorithms.retain(|a| *a == given);
        }
        if algorithms.is_empty() {
            return None;
        }
        Some(Self { id: common.key_id.clone(), algorithms, decoding: DecodingKey::from_jwk(&jwk).ok()? })
    }
}

/// The algorithms that a key can be used with; `None` for a secret, another curve or a size that is not taken.
fn by_type(parameters: &AlgorithmParameters) -> Option<Vec<Algorithm>> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let length = |text: &str| URL_SAFE_NO_PAD.decode(text).ok().map(|bytes| bytes.len());
    let point = |x: &str, y: &str, bytes| length(x) == Some(bytes) && length(y) == Some(bytes);
    match parameters {
        AlgorithmParameters::RSA(rsa) => {
            let modulus = URL_SAFE_NO_PAD.decode(&rsa.n).ok()?;
            let significant = modulus.iter().skip_while(|byte| **byte == 0).count();
            let taken = (MIN_RSA_BYTES..=MAX_RSA_BYTES).contains(&significant);
            taken.then(|| vec![RS256, RS384, RS512, PS256, PS384, PS512])
        }
        AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
            EllipticCurve::P256 if point(&ec.x, &ec.y, 32) => Some(vec![ES256]),
            EllipticCurve::P384 if point(&ec.x, &ec.y, 48) => Some(vec![ES384]),
            _ => None,
        },
        AlgorithmParameters::OctetKeyPair(pair) => {
            (pair.curve == EllipticCurve::Ed25519 && length(&pair.x) == Some(32)).then(|| vec![EdDSA])
        }
        _ => None,
    }
}
