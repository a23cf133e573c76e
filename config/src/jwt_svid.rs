//! JWT-SVIDs: how one is written, and the one judge of those that are presented (JWT-SVID §2, §3, §5).
//!
//! Pure: the caller brings bundles, time and signature algorithms. No claim leaves [`validate`] before the signature is good,
//! and only bytes that the signature covers are ever parsed for what is returned.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::{AlgorithmIdentifier, SignatureVerificationAlgorithm, alg_id};
use serde_json::{Map, Value, json};

use crate::bundle::{BundleSet, JwtKey, sequence_of_integers};
use crate::id::{IdError, SpiffeId};
use crate::json;
use crate::svid::NOT_BEFORE_TOLERANCE;

#[cfg(test)]
mod tests;

/// The longest token that is looked at, in bytes: what fits into the headers of a request beside others.
pub const MAX_TOKEN: usize = 8 * 1024;

/// What a token that was found good says.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtSvid {
    /// `sub`: whose it is.
    pub id: SpiffeId,
    /// `aud`, never empty.
    pub audiences: Vec<String>,
    /// `exp`, seconds since 1970; a fraction is cut off.
    pub expires: i64,
    /// `iat`, seconds since 1970, where it is a number.
    pub issued: Option<i64>,
    /// All claims as signed.
    pub claims: Map<String, Value>,
}

/// Why a token is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtSvidError {
    /// More than [`MAX_TOKEN`] bytes.
    #[error("the token is longer than 8 KiB")]
    TooLarge,
    /// Not three parts of base64url with JSON objects in the first two (JWT-SVID §1: JWS compact serialization alone).
    #[error("not a JWS in compact serialization")]
    Malformed,
    /// None of the nine (JWT-SVID §2.1), or one that does not go with its key.
    #[error("its algorithm is not one that JWT-SVIDs and this key may use")]
    Algorithm,
    /// `crit` or the like: nothing critical is understood here (RFC 7515 §4.1.11).
    #[error("its header asks for what is not understood here")]
    Critical,
    /// `typ` is neither JWT nor JOSE (JWT-SVID §2.3).
    #[error("its type is neither JWT nor JOSE")]
    Type,
    /// No `kid`.
    #[error("its header names no key")]
    NoKid,
    /// `sub` is missing or no workload's SPIFFE ID.
    #[error("its subject is no workload's SPIFFE ID")]
    Subject(Option<IdError>),
    /// No bundle for the subject's trust domain.
    #[error("its trust domain is not known here")]
    UnknownTrustDomain,
    /// The trust domain's bundle holds no JWT key of this name.
    #[error("the bundle of its trust domain holds no JWT key of this name")]
    UnknownKey,
    /// The signature is not by that key.
    #[error("its signature is not by the key that it names")]
    Signature,
    /// `exp` is missing or no number (JWT-SVID §3.3).
    #[error("it has no end (`exp`)")]
    NoExpiry,
    /// Too late.
    #[error("it has expired")]
    Expired,
    /// Too early.
    #[error("it is not valid yet")]
    NotYetValid,
    /// Meant for others, or for nobody (JWT-SVID §3.2).
    #[error("it is not for this audience")]
    Audience,
}

impl JwtSvidError {
    /// The closed word for logs, metrics and audit records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Critical => "critical",
            Self::Type => "type",
            Self::NoKid => "no_kid",
            Self::Subject(_) => "subject",
            Self::UnknownTrustDomain => "unknown_trust_domain",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "bad_signature",
            Self::NoExpiry => "no_expiry",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Audience => "audience",
        }
    }
}

/// Judges a token for one audience at `now` (seconds since 1970).
///
/// There is no tolerance after `exp`, and the one of certificates before `nbf`. What the header says of keys (`jwk`, `jku`,
/// `x5u`, `x5c`) is not looked at: the bundle of the subject's trust domain alone knows keys.
pub fn validate(
    token: &str,
    audience: &str,
    bundles: &BundleSet,
    now: i64,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> Result<JwtSvid, JwtSvidError> {
    if token.len() > MAX_TOKEN {
        return Err(JwtSvidError::TooLarge);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(JwtSvidError::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(JwtSvidError::Malformed)?;
    if payload.contains('.') || header.is_empty() || payload.is_empty() || signature.is_empty() {
        return Err(JwtSvidError::Malformed);
    }
    let (algorithm, kid) = read_header(&object(header)?)?;
    let claims = object(payload)?;
    let id = subject(&claims)?;
    let bundle = bundles.of(id.trust_domain_str()).ok_or(JwtSvidError::UnknownTrustDomain)?;
    let key = bundle.jwt_key(&kid).ok_or(JwtSvidError::UnknownKey)?;
    let signature = decode(signature)?;
    algorithm.verify(key, signed.as_bytes(), &signature, algorithms)?;

    let expires = date(&claims, "exp").ok_or(JwtSvidError::NoExpiry)??;
    if now >= expires {
        return Err(JwtSvidError::Expired);
    }
    let tolerance = i64::try_from(NOT_BEFORE_TOLERANCE).unwrap_or(0);
    if date(&claims, "nbf").transpose()?.is_some_and(|from| from > now.saturating_add(tolerance)) {
        return Err(JwtSvidError::NotYetValid);
    }
    let audiences = audiences(&claims)?;
    if !audiences.iter().any(|a| a == audience) || audience.is_empty() {
        return Err(JwtSvidError::Audience);
    }
    let issued = date(&claims, "iat").and_then(Result::ok);
    Ok(JwtSvid { id, audiences, expires, issued, claims })
}

/// What a new token shall say.
#[derive(Debug, Clone)]
pub struct Statement<'a> {
    /// `sub`.
    pub id: &'a SpiffeId,
    /// `aud`: at least one, none empty.
    pub audiences: &'a [String],
    /// `iat`, seconds since 1970.
    pub issued: i64,
    /// `exp`, seconds since 1970.
    pub expires: i64,
    /// `iss`, for verifiers that find keys by OIDC discovery.
    pub issuer: Option<&'a str>,
    /// `jti`, for verifiers that take a token once.
    pub jti: Option<&'a str>,
}

/// The signing input of an ES256 token, whose signature by the key `kid` makes it whole: header `alg`, `kid` and `typ` alone
/// (JWT-SVID §2), dates as integers.
pub fn signing_input(kid: &str, statement: &Statement<'_>) -> String {
    let Statement { id, audiences, issued, expires, issuer, jti } = statement;
    let header = json!({ "alg": "ES256", "kid": kid, "typ": "JWT" });
    let mut claims = json!({ "aud": audiences, "exp": expires, "iat": issued, "sub": id.as_str() });
    for (name, value) in [("iss", issuer), ("jti", jti)] {
        if let Some(value) = value {
            claims[name] = (*value).into();
        }
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(&header), part(&claims))
}

/// The nine algorithms (JWT-SVID §2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Algorithm {
    name: &'static str,
    /// The keys that it goes with; each elliptic curve has one algorithm (RFC 7518 §3.4).
    key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    /// Of each of the two numbers of an ECDSA signature, in bytes; 0 for RSA.
    number: usize,
}

const ALGORITHMS: [Algorithm; 9] = [
    rsa("RS256", alg_id::RSA_PKCS1_SHA256),
    rsa("RS384", alg_id::RSA_PKCS1_SHA384),
    rsa("RS512", alg_id::RSA_PKCS1_SHA512),
    Algorithm { name: "ES256", key: alg_id::ECDSA_P256, signature: alg_id::ECDSA_SHA256, number: 32 },
    Algorithm { name: "ES384", key: alg_id::ECDSA_P384, signature: alg_id::ECDSA_SHA384, number: 48 },
    Algorithm { name: "ES512", key: alg_id::ECDSA_P521, signature: alg_id::ECDSA_SHA512, number: 66 },
    rsa("PS256", alg_id::RSA_PSS_SHA256),
    rsa("PS384", alg_id::RSA_PSS_SHA384),
    rsa("PS512", alg_id::RSA_PSS_SHA512),
];

const fn rsa(name: &'static str, signature: AlgorithmIdentifier) -> Algorithm {
    Algorithm { name, key: alg_id::RSA_ENCRYPTION, signature, number: 0 }
}

impl Algorithm {
    fn verify(
        self,
        key: &JwtKey,
        message: &[u8],
        signature: &[u8],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), JwtSvidError> {
        if key.algorithm_id() != self.key {
            return Err(JwtSvidError::Algorithm);
        }
        let fits = |a: &&&dyn SignatureVerificationAlgorithm| {
            a.public_key_alg_id() == self.key && a.signature_alg_id() == self.signature
        };
        let verifier = algorithms.iter().find(fits).ok_or(JwtSvidError::Algorithm)?;
        let der;
        let signature = if self.number == 0 {
            signature
        } else {
            if signature.len() != 2 * self.number {
                return Err(JwtSvidError::Signature);
            }
            let (r, s) = signature.split_at(self.number);
            der = sequence_of_integers([r, s]);
            &der
        };
        verifier.verify_signature(&key.public_key(), message, signature).map_err(|_| JwtSvidError::Signature)
    }
}

/// Algorithm and key name, before anything is done with either.
fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, String), JwtSvidError> {
    let text = |name: &str| header.get(name).and_then(Value::as_str);
    let algorithm = text("alg").and_then(|name| ALGORITHMS.iter().find(|a| a.name == name));
    let algorithm = *algorithm.ok_or(JwtSvidError::Algorithm)?;
    // `b64` and `zip` change what the signature is over; they need `crit`, and are refused without it as well.
    if ["crit", "b64", "zip", "enc"].iter().any(|name| header.contains_key(*name)) {
        return Err(JwtSvidError::Critical);
    }
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) if typ == "JWT" || typ == "JOSE" => {}
        Some(_) => return Err(JwtSvidError::Type),
    }
    let kid = text("kid").filter(|kid| !kid.is_empty()).ok_or(JwtSvidError::NoKid)?;
    Ok((algorithm, kid.to_owned()))
}

fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, JwtSvidError> {
    let subject = claims.get("sub").and_then(Value::as_str).ok_or(JwtSvidError::Subject(None))?;
    subject.parse().map_err(|why| JwtSvidError::Subject(Some(why)))
}

/// One text or several (RFC 7519 §4.1.3); never none.
fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, JwtSvidError> {
    let several = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) => several
            .iter()
            .map(|a| a.as_str().map(str::to_owned).ok_or(JwtSvidError::Audience))
            .collect::<Result<_, _>>()?,
        _ => Vec::new(),
    };
    if several.is_empty() { Err(JwtSvidError::Audience) } else { Ok(several) }
}

/// A NumericDate, which may have a fraction (RFC 7519 §2); what is present and no number refuses the token.
fn date(claims: &Map<String, Value>, name: &str) -> Option<Result<i64, JwtSvidError>> {
    let value = claims.get(name)?;
    let whole = value.as_i64().or_else(|| {
        // Seconds since 1970 are exact in a float for as long as anybody will care.
        let at = value.as_f64().filter(|at| at.abs() < 9e15)?;
        Some(at.floor() as i64)
    });
    Some(whole.ok_or(JwtSvidError::Malformed))
}

fn object(part: &str) -> Result<Map<String, Value>, JwtSvidError> {
    match json::parse(&decode(part)?) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(JwtSvidError::Malformed),
    }
}

fn decode(part: &str) -> Result<Vec<u8>, JwtSvidError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtSvidError::Malformed)
}
