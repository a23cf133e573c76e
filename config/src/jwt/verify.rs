//! Whether a JWT is good: pure, given keys and the time.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde_json::{Map, Value};

use super::Reason;
use super::keys::Keys;
use crate::policy::Token;

/// The longest token that is looked at, in bytes: what fits into the headers of a request beside others.
pub const MAX_TOKEN: usize = 8 * 1024;
/// How far clocks may be apart, seconds.
pub const LEEWAY: i64 = 60;
/// How many keys are tried for a token that names none.
const MAX_TRIED: usize = 16;

/// Signatures by a secret that both sides know are not among them, nor is `none`: a public key would pass for a secret.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// What a token says of itself before anything is proven: by whom, and how to find the key. Good for nothing else.
#[derive(Debug)]
pub struct Peeked {
    /// `iss`.
    pub issuer: String,
    /// `kid`.
    pub kid: Option<String>,
    /// `alg`: one of those that are taken at all.
    pub algorithm: Algorithm,
}

/// Reads what is needed to find the key. Whatever else the head says (`jwk`, `jku`, `x5c`, …) finds no ear; a `crit` refuses
/// the token, for nothing critical is understood here (RFC 7515 §4.1.11).
pub fn peek(token: &str) -> Result<Peeked, Reason> {
    if token.len() > MAX_TOKEN || token.split('.').count() != 3 {
        return Err(Reason::Malformed);
    }
    let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
        ErrorKind::Json(why) if why.to_string().contains("unknown variant") => Reason::Algorithm,
        _ => Reason::Malformed,
    })?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(Reason::Algorithm);
    }
    // A JWS over something that is not base64 needs `crit` (RFC 7797 §6); without, it must not be taken either.
    if header.crit.is_some()
        || header.zip.is_some()
        || header.enc.is_some()
        || header.extras.inner().contains_key("b64")
    {
        return Err(Reason::Malformed);
    }
    let claims: Map<String, Value> =
        jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| Reason::Malformed)?;
    let issuer = match claims.get("iss") {
        Some(Value::String(issuer)) => issuer.clone(),
        None => return Err(Reason::UnknownIssuer),
        Some(_) => return Err(Reason::Malformed),
    };
    Ok(Peeked { issuer, kid: header.kid, algorithm: header.alg })
}

/// Verifies signature, issuer, audience and dates; `now` is in seconds since 1970.
pub fn verify(
    token: &str,
    peeked: &Peeked,
    keys: &Keys,
    issuer: &str,
    audiences: &[String],
    now: i64,
) -> Result<Token, Reason> {
    let mut validation = Validation::new(peeked.algorithm);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    validation.set_issuer(&[issuer]);
    validation.set_audience(audiences);
    // The library would ask the host's clock; `dates` asks for the same, by the time that is given.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    let mut reason = Reason::UnknownKey;
    for key in keys.fitting(peeked.algorithm, peeked.kid.as_deref()).take(MAX_TRIED) {
        match jsonwebtoken::decode::<Map<String, Value>>(token, &key.decoding, &validation) {
            Ok(decoded) => {
                dates(&decoded.claims, now)?;
                return principal(decoded.claims);
            }
            Err(error) => reason = named(error.kind()),
        }
        if reason != Reason::BadSignature {
            break;
        }
    }
    Err(reason)
}

fn named(error: &ErrorKind) -> Reason {
    match error {
        ErrorKind::InvalidSignature => Reason::BadSignature,
        ErrorKind::InvalidAudience => Reason::WrongAudience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => Reason::WrongAudience,
        ErrorKind::InvalidIssuer => Reason::UnknownIssuer,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => Reason::Algorithm,
        ErrorKind::InvalidKeyFormat => Reason::UnknownKey,
        _ => Reason::Malformed,
    }
}

/// `exp` must be there, `nbf` may be (RFC 7519 §4.1.4, §4.1.5). Both may have a fraction.
fn dates(claims: &Map<String, Value>, now: i64) -> Result<(), Reason> {
    let date = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().filter(|at| at.is_finite()).map(Some).ok_or(Reason::Malformed),
    };
    // Seconds since 1970 are exact in a float for as long as anybody will care.
    let (now, leeway) = (now as f64, LEEWAY as f64);
    if date("exp")?.ok_or(Reason::Malformed)? + leeway < now {
        return Err(Reason::Expired);
    }
    match date("nbf")? {
        Some(from) if from > now + leeway => Err(Reason::NotYetValid),
        _ => Ok(()),
    }
}

fn principal(claims: Map<String, Value>) -> Result<Token, Reason> {
    let text = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Reason::Malformed),
    };
    let audiences = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) => several
            .iter()
            .map(|a| a.as_str().map(str::to_owned).ok_or(Reason::Malformed))
            .collect::<Result<_, _>>()?,
        _ => return Err(Reason::Malformed),
    };
    Ok(Token {
        issuer: text("iss")?.ok_or(Reason::Malformed)?,
        subject: text("sub")?.unwrap_or_default(),
        audiences,
        presenter: text("azp")?,
        claims,
    })
}
