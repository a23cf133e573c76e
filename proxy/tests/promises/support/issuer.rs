//! An issuer of JWTs: real keys, tokens written by hand, so that a test can say anything in one.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
};
use aws_lc_rs::{hmac, signature};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::forge;

pub(crate) const ISSUER: &str = "https://issuer.test/";
pub(crate) const AUDIENCE: &str = "api";

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key that signs, with its algorithm.
pub(crate) enum Key {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    /// A secret, for attacks.
    Secret(Vec<u8>),
}

impl Key {
    pub(crate) fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    pub(crate) fn p256() -> Self {
        Self::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub(crate) fn p384() -> Self {
        Self::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap())
    }

    pub(crate) fn ed25519() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    /// The algorithm that it signs with by itself.
    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
            Self::P384(_) => "ES384",
            Self::Ed(_) => "EdDSA",
            Self::Secret(_) => "HS256",
        }
    }

    pub(crate) fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let scheme: &dyn signature::RsaEncoding =
                    if algorithm == "PS256" { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(scheme, &random, message, &mut out).unwrap();
                out
            }
            Self::P256(key) | Self::P384(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
            Self::Secret(secret) => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
            }
        }
    }

    /// The public key as others may have it in hand: DER, and what a JWK says.
    pub(crate) fn public(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Rsa(key) => {
                let public = key.public_key();
                let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = public.as_der().unwrap();
                let modulus = public.modulus().big_endian_without_leading_zero().to_vec();
                vec![public.as_ref().to_vec(), spki.as_ref().to_vec(), modulus]
            }
            Self::P256(key) | Self::P384(key) => vec![key.public_key().as_ref().to_vec()],
            Self::Ed(key) => vec![key.public_key().as_ref().to_vec()],
            Self::Secret(secret) => vec![secret.clone()],
        }
    }

    pub(crate) fn jwk(&self, kid: &str) -> Value {
        let mut jwk = match self {
            Self::Rsa(key) => {
                let public = key.public_key();
                let part = |bytes: &[u8]| base64url(bytes);
                json!({
                    "kty": "RSA",
                    "n": part(public.modulus().big_endian_without_leading_zero()),
                    "e": part(public.exponent().big_endian_without_leading_zero()),
                })
            }
            Self::P256(key) | Self::P384(key) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if point.len() == 64 { "P-256" } else { "P-384" };
                json!({ "kty": "EC", "crv": curve, "x": base64url(x), "y": base64url(y) })
            }
            Self::Ed(key) => json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_key()) }),
            Self::Secret(secret) => json!({ "kty": "oct", "k": base64url(secret) }),
        };
        if !kid.is_empty() {
            jwk["kid"] = json!(kid);
        }
        jwk
    }
}

/// A JWK Set.
pub(crate) fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// Claims that are good for an hour.
pub(crate) fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": forge::now() + 3600 })
}

/// [`claims`] with these in their place; `null` removes one.
pub(crate) fn claims_with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            _ => claims[name] = value.clone(),
        }
    }
    claims
}

/// A token with this head and these claims, signed as the head says.
pub(crate) fn signed(key: &Key, head: &Value, claims: &str) -> String {
    let message = format!("{}.{}", base64url(head.to_string()), base64url(claims));
    let algorithm = head["alg"].as_str().unwrap_or_default();
    format!("{message}.{}", base64url(key.sign(algorithm, message.as_bytes())))
}

/// A token by this key, whose id it names.
pub(crate) fn token(key: &Key, kid: &str, claims: &Value) -> String {
    let mut head = json!({ "alg": key.algorithm(), "typ": "JWT" });
    if !kid.is_empty() {
        head["kid"] = json!(kid);
    }
    signed(key, &head, &claims.to_string())
}
