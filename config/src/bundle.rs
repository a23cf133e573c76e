//! Trust bundles in SPIFFE form: which CAs speak for which trust domain
//! (SPIFFE Trust Domain and Bundle §4; X509-SVID §6).

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::id::TrustDomain;
use crate::svid::Anchor;

/// The largest bundle document that is parsed, in bytes. A foreign domain's endpoint may be hostile.
pub const MAX_DOCUMENT: usize = 1024 * 1024;
/// The most X.509 authorities that one bundle may hold; path building tries each.
pub const MAX_AUTHORITIES: usize = 64;

/// One trust domain's bundle: its X.509 authorities, ready for path validation.
#[derive(Debug, Clone, PartialEq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    refresh_hint: Option<u64>,
    anchors: Vec<Arc<Anchor>>,
    /// The same anchors as path building takes them, in the same order.
    trust_anchors: Vec<TrustAnchor<'static>>,
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

    fn empty(trust_domain: TrustDomain, sequence: u64, refresh_hint: Option<u64>) -> Self {
        Self { trust_domain, sequence, refresh_hint, anchors: Vec::new(), trust_anchors: Vec::new() }
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

    /// Reads a SPIFFE bundle document. The document does not name its trust domain: the caller knows whose it is.
    ///
    /// Keys with an unknown `kty` or `use` are ignored one by one (§4.2), an `x509-svid` key without `x5c` likewise; of
    /// several `x5c` values only the first counts (X509-SVID §6.2). A bundle without usable keys trusts nobody.
    pub fn parse(trust_domain: TrustDomain, document: &str) -> Result<Self, BundleError> {
        if document.len() > MAX_DOCUMENT {
            return Err(BundleError::TooLarge);
        }
        let set: JwkSet = serde_json::from_str(document)?;
        let mut bundle = Self::empty(trust_domain, set.spiffe_sequence.unwrap_or(0), set.spiffe_refresh_hint);
        for (index, value) in set.keys.into_iter().enumerate() {
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
    /// in `x5c` (X509-SVID §6.1).
    pub fn to_document(&self) -> String {
        let keys = self.anchors.iter().map(|a| jwk_of(a.der())).collect();
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
