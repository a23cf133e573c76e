//! Trust bundles in SPIFFE form: which CAs and which JWT keys speak for which trust domain
//! (SPIFFE Trust Domain and Bundle §4; X509-SVID §6; JWT-SVID §6).

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::id::TrustDomain;
use crate::svid::Anchor;

mod jwt_key;

pub(crate) use jwt_key::sequence_of_integers;
pub use jwt_key::{JwtKey, JwtKeyError};

/// The largest bundle document that is parsed, in bytes. A foreign domain's endpoint may be hostile.
pub const MAX_DOCUMENT: usize = 1024 * 1024;
/// The most X.509 authorities that one bundle may hold; path building tries each.
pub const MAX_AUTHORITIES: usize = 64;
/// The most keys for JWT-SVIDs that one bundle may hold.
pub const MAX_JWT_KEYS: usize = 256;

/// One trust domain's bundle: its X.509 authorities, ready for path validation, and its keys for JWT-SVIDs.
#[derive(Debug, Clone, PartialEq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    refresh_hint: Option<u64>,
    anchors: Vec<Arc<Anchor>>,
    /// The same anchors as path building takes them, in the same order.
    trust_anchors: Vec<TrustAnchor<'static>>,
    jwt_keys: Vec<JwtKey>,
}

/// Why a bundle document is refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// More than [`MAX_DOCUMENT`] bytes.
    #[error("the bundle is larger than 1 MiB")]
    TooLarge,
    /// More than [`MAX_AUTHORITIES`] authorities.
    #[error("the bundle holds more than 64 X.509 authorities")]
    TooMany,
    /// Not the JSON of a bundle; `keys` is mandatory.
    #[error("not a SPIFFE bundle: {0}")]
    Json(#[from] serde_json::Error),
    /// An `x509-svid` key whose certificate cannot serve as an anchor.
    #[error("authority {index}: {why}")]
    Authority {
        /// Position in `keys`.
        index: usize,
        /// What is wrong with it.
        why: AnchorError,
    },
    /// More than [`MAX_JWT_KEYS`] keys.
    #[error("the bundle holds more than 256 JWT keys")]
    TooManyJwtKeys,
    /// A `jwt-svid` key that cannot be used.
    #[error("JWT key {index}: {why}")]
    JwtKey {
        /// Position in `keys`.
        index: usize,
        /// What is wrong with it.
        why: JwtKeyError,
    },
}

/// Why a certificate cannot serve as a trust anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// Not parsable as a certificate.
    #[error("its certificate cannot be read")]
    Unreadable,
    /// basicConstraints CA:TRUE is missing (X509-SVID §4.1).
    #[error("its certificate is no CA (basicConstraints CA:TRUE is missing)")]
    NotACa,
    /// keyCertSign is missing (X509-SVID §4.3).
    #[error("its certificate may not sign others (keyUsage keyCertSign is missing)")]
    NoCertSign,
}

impl TrustBundle {
    /// A bundle of these DER certificates; each must be a CA, and one that stands twice counts once.
    pub fn new(
        trust_domain: TrustDomain,
        sequence: u64,
        authorities: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let mut bundle = Self::empty(trust_domain, sequence, None);
        authorities.into_iter().enumerate().try_for_each(|(index, der)| bundle.add(index, der))?;
        Ok(bundle)
    }

    /// A bundle without authorities: whoever has it believes nobody of that trust domain.
    pub fn nobody(trust_domain: TrustDomain) -> Self {
        Self::empty(trust_domain, 0, None)
    }

    fn empty(trust_domain: TrustDomain, sequence: u64, refresh_hint: Option<u64>) -> Self {
        let (anchors, trust_anchors, jwt_keys) = (Vec::new(), Vec::new(), Vec::new());
        Self { trust_domain, sequence, refresh_hint, anchors, trust_anchors, jwt_keys }
    }

    fn add(&mut self, index: usize, der: CertificateDer<'static>) -> Result<(), BundleError> {
        if self.anchors.iter().any(|a| a.der() == der.as_ref()) {
            return Ok(());
        }
        let refused = |why| BundleError::Authority { index, why };
        if self.anchors.len() == MAX_AUTHORITIES {
            return Err(BundleError::TooMany);
        }
        let anchor = Anchor::new(der).map_err(refused)?;
        self.trust_anchors.push(anchor.to_trust_anchor().map_err(refused)?);
        self.anchors.push(Arc::new(anchor));
        Ok(())
    }

    /// The same bundle with these keys for JWT-SVIDs beside those that it has; no two may have one `kid`.
    pub fn with_jwt_keys(mut self, keys: impl IntoIterator<Item = JwtKey>) -> Result<Self, BundleError> {
        keys.into_iter().enumerate().try_for_each(|(index, key)| self.add_jwt_key(index, key))?;
        Ok(self)
    }

    /// The same bundle, which asks its readers to come back every so many seconds (§4.1.2).
    pub fn with_refresh_hint(mut self, seconds: u64) -> Self {
        self.refresh_hint = Some(seconds);
        self
    }

    fn add_jwt_key(&mut self, index: usize, key: JwtKey) -> Result<(), BundleError> {
        if self.jwt_keys.iter().any(|other| other.kid() == key.kid()) {
            return Err(BundleError::JwtKey { index, why: JwtKeyError::SameKid });
        }
        if self.jwt_keys.len() == MAX_JWT_KEYS {
            return Err(BundleError::TooManyJwtKeys);
        }
        self.jwt_keys.push(key);
        Ok(())
    }

    /// Reads a SPIFFE bundle document. The document does not name its trust domain: the caller knows whose it is.
    ///
    /// Keys with an unknown `kty` or `use` are ignored one by one (§4.2), an `x509-svid` key without `x5c` likewise; of
    /// several `x5c` values only the first counts (X509-SVID §6.2). A `jwt-svid` key needs a `kid` that no other has (JWT-SVID
    /// §6.1). A member that stands twice in one object refuses the whole. A bundle without usable keys trusts nobody.
    pub fn parse(trust_domain: TrustDomain, document: &str) -> Result<Self, BundleError> {
        if document.len() > MAX_DOCUMENT {
            return Err(BundleError::TooLarge);
        }
        let set: JwkSet = serde_json::from_value(crate::json::parse(document.as_bytes())?)?;
        let mut bundle = Self::empty(trust_domain, set.spiffe_sequence.unwrap_or(0), set.spiffe_refresh_hint);
        for (index, value) in set.keys.into_iter().enumerate() {
            if value.get("use").and_then(|usage| usage.as_str()) == Some("jwt-svid") {
                match JwtKey::from_jwk(&value) {
                    Ok(key) => bundle.add_jwt_key(index, key)?,
                    Err(JwtKeyError::Kind) => {}
                    Err(why) => return Err(BundleError::JwtKey { index, why }),
                }
                continue;
            }
            let Ok(key) = serde_json::from_value::<Jwk>(value) else { continue };
            if key.usage.as_deref() != Some("x509-svid")
                || !matches!(key.kty.as_deref(), Some("EC" | "RSA" | "OKP"))
            {
                continue;
            }
            let Some(first) = key.x5c.first() else { continue };
            let unreadable = |_| BundleError::Authority { index, why: AnchorError::Unreadable };
            bundle.add(index, CertificateDer::from(STANDARD.decode(first).map_err(unreadable)?))?;
        }
        Ok(bundle)
    }

    /// The SPIFFE bundle document: one JWK per authority, `use` "x509-svid", no `kid`, one padded base64 certificate
    /// in `x5c` (X509-SVID §6.1); one per JWT key, `use` "jwt-svid", with its `kid` (JWT-SVID §6.1).
    pub fn to_document(&self) -> String {
        let authorities = self.anchors.iter().map(|a| jwk_of(a.der()));
        let keys = authorities.chain(self.jwt_keys.iter().map(JwtKey::to_jwk)).collect();
        let set =
            JwkSet { keys, spiffe_sequence: Some(self.sequence), spiffe_refresh_hint: self.refresh_hint };
        serde_json::to_string(&set).unwrap_or_default()
    }

    /// The trust domain that this bundle speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// `spiffe_sequence`: grows with every change (§4.1.2).
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// `spiffe_refresh_hint`: how often its readers should come back, in seconds (§4.1.2).
    pub fn refresh_hint(&self) -> Option<u64> {
        self.refresh_hint
    }

    /// The keys for JWT-SVIDs, in document order.
    pub fn jwt_keys(&self) -> &[JwtKey] {
        &self.jwt_keys
    }

    /// The key for JWT-SVIDs with this name.
    pub fn jwt_key(&self, kid: &str) -> Option<&JwtKey> {
        self.jwt_keys.iter().find(|key| key.kid() == kid)
    }

    /// The anchors, in document order.
    pub fn anchors(&self) -> &[Arc<Anchor>] {
        &self.anchors
    }

    pub(crate) fn trust_anchors(&self) -> &[TrustAnchor<'static>] {
        &self.trust_anchors
    }

    /// The anchor that path building returned a reference to.
    pub(crate) fn anchor_of(&self, found: &TrustAnchor<'_>) -> Option<&Arc<Anchor>> {
        // By address: a renewed root has the same name and key, and its own dates.
        let index = self.trust_anchors.iter().position(|t| std::ptr::addr_eq(t, found))?;
        self.anchors.get(index)
    }
}

/// Bundles by trust domain. A peer's own trust domain selects the bundle; bundles are never merged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BundleSet(BTreeMap<TrustDomain, Arc<TrustBundle>>);

impl BundleSet {
    /// The bundle of `trust_domain`.
    pub fn of(&self, trust_domain: &str) -> Option<&Arc<TrustBundle>> {
        self.0.get(trust_domain)
    }

    /// All bundles, ordered by trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<TrustBundle>> {
        self.0.values()
    }

    /// Whether no trust domain is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<TrustBundle> for BundleSet {
    fn from_iter<I: IntoIterator<Item = TrustBundle>>(bundles: I) -> Self {
        Self(bundles.into_iter().map(|b| (b.trust_domain.clone(), Arc::new(b))).collect())
    }
}

#[derive(Serialize, Deserialize)]
struct JwkSet {
    keys: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    x5c: Vec<String>,
}

/// The JWK of an authority. Consumers take the key from `x5c`; `crv`, `x`, `y`, `n` and `e` repeat it as JWK asks.
fn jwk_of(der: &[u8]) -> serde_json::Value {
    use x509_parser::public_key::PublicKey;
    let mut jwk = serde_json::json!({ "use": "x509-svid", "x5c": [STANDARD.encode(der)] });
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return jwk };
    let field = |bytes: &[u8]| serde_json::Value::from(URL_SAFE_NO_PAD.encode(bytes));
    match certificate.public_key().parsed() {
        Ok(PublicKey::EC(point)) if point.data().len() % 2 == 1 => {
            let (x, y) = point.data()[1..].split_at(point.data().len() / 2);
            jwk["kty"] = "EC".into();
            jwk["crv"] = if x.len() == 48 { "P-384" } else { "P-256" }.into();
            jwk["x"] = field(x);
            jwk["y"] = field(y);
        }
        Ok(PublicKey::RSA(rsa)) => {
            jwk["kty"] = "RSA".into();
            jwk["n"] = field(rsa.modulus.strip_prefix(&[0]).unwrap_or(rsa.modulus));
            jwk["e"] = field(rsa.exponent);
        }
        _ => {
            jwk["kty"] = "OKP".into();
            jwk["crv"] = "Ed25519".into();
            jwk["x"] = field(&certificate.public_key().subject_public_key.data);
        }
    }
    jwk
}
