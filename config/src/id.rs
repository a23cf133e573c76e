//! SPIFFE IDs and trust domains: parsed once, strictly, never normalised (SPIFFE-ID §2).

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest SPIFFE ID in bytes (SPIFFE-ID §2.3).
pub const MAX_ID: usize = 2048;
/// The longest trust domain name in bytes (SPIFFE-ID §2.3).
pub const MAX_TRUST_DOMAIN: usize = 255;

const SCHEME: &str = "spiffe://";
/// The first path segment that the control plane keeps for itself; never issued to a workload.
const RESERVED_SEGMENT: &str = "postern";

/// Why a text is no SPIFFE ID or no trust domain. Each message names the rule and its section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// No `spiffe://` in front.
    #[error("it does not begin with `spiffe://`  (SPIFFE-ID §2)")]
    Scheme,
    /// A query or fragment.
    #[error("a query (`?`) or fragment (`#`) is not allowed  (SPIFFE-ID §2)")]
    QueryOrFragment,
    /// No trust domain between `//` and the path.
    #[error("the trust domain is empty  (SPIFFE-ID §2.1)")]
    EmptyTrustDomain,
    /// User information or a port beside the trust domain.
    #[error("user information and port are not allowed beside the trust domain  (SPIFFE-ID §2.1)")]
    UserInfoOrPort,
    /// A byte outside `[a-z0-9.-_]` in the trust domain.
    #[error("a trust domain holds only a-z, 0-9, `.`, `-` and `_`, in lower case  (SPIFFE-ID §2.1)")]
    TrustDomainByte,
    /// More than 255 bytes of trust domain.
    #[error("the trust domain is longer than 255 bytes  (SPIFFE-ID §2.3)")]
    TrustDomainTooLong,
    /// A `/` at the end.
    #[error("the path ends in `/`  (SPIFFE-ID §2.2)")]
    TrailingSlash,
    /// Two slashes in a row.
    #[error("the path has an empty segment (`//`)  (SPIFFE-ID §2.2)")]
    EmptySegment,
    /// A `.` or `..` segment.
    #[error("`.` and `..` are not allowed as path segments  (SPIFFE-ID §2.2)")]
    DotSegment,
    /// A byte outside `[a-zA-Z0-9.-_]` in the path.
    #[error(
        "a path segment holds only letters, digits, `.`, `-` and `_`, without %-escapes  (SPIFFE-ID §2.2)"
    )]
    PathByte,
    /// No path where a workload's identity needs one.
    #[error("a workload's identity needs a path after the trust domain  (X509-SVID §3.1)")]
    EmptyPath,
    /// More than 2048 bytes.
    #[error("it is longer than 2048 bytes  (SPIFFE-ID §2.3)")]
    TooLong,
}

/// The name of a trust domain, such as `corp.example`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The identity of the control plane itself: `spiffe://<td>/postern/control`.
    pub fn control_plane(&self) -> SpiffeId {
        SpiffeId::from_parts(self.as_str(), &format!("/{RESERVED_SEGMENT}/control"))
    }

    /// The trust domain's own SPIFFE ID, which has no path: `spiffe://<td>` (X509-SVID §3.2).
    pub fn id_string(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        check_trust_domain(text)?;
        Ok(Self(text.into()))
    }
}

/// A workload's SPIFFE ID: `spiffe://<trust domain>/<segment>…`, at most 2048 bytes.
///
/// One allocation, cheap to clone. Equality is equality of bytes: the strict parser leaves one spelling for each
/// identity. An ID without a path names a trust domain, not a workload, and is a [`TrustDomain`] here.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    path_at: usize,
}

impl SpiffeId {
    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name, borrowed.
    pub fn trust_domain_str(&self) -> &str {
        &self.text[SCHEME.len()..self.path_at]
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_str().into())
    }

    /// The path with its leading slash.
    pub fn path(&self) -> &str {
        &self.text[self.path_at..]
    }

    /// The path's segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path()[1..].split('/')
    }

    /// The principal as Istio writes it: the ID without its scheme.
    pub fn principal(&self) -> &str {
        &self.text[SCHEME.len()..]
    }

    /// The namespace of `/ns/<namespace>/sa/<account>`; `None` for every other shape.
    pub fn namespace(&self) -> Option<&str> {
        self.kubernetes().map(|(namespace, _)| namespace)
    }

    /// The service account of `/ns/<namespace>/sa/<account>`; `None` for every other shape.
    pub fn service_account(&self) -> Option<&str> {
        self.kubernetes().map(|(_, account)| account)
    }

    /// Whether the path lies in the part that is kept for the control plane.
    pub fn is_reserved(&self) -> bool {
        self.segments().next() == Some(RESERVED_SEGMENT)
    }

    fn kubernetes(&self) -> Option<(&str, &str)> {
        let mut segments = self.segments();
        match (segments.next(), segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some((namespace, account)),
            _ => None,
        }
    }

    fn from_parts(trust_domain: &str, path: &str) -> Self {
        let text = format!("{SCHEME}{trust_domain}{path}");
        Self { path_at: SCHEME.len() + trust_domain.len(), text: text.into() }
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() > MAX_ID {
            return Err(IdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        if rest.contains(['?', '#']) {
            return Err(IdError::QueryOrFragment);
        }
        let path_in_rest = rest.find('/').unwrap_or(rest.len());
        let (trust_domain, path) = rest.split_at(path_in_rest);
        check_trust_domain(trust_domain)?;
        check_path(path)?;
        Ok(Self { text: text.into(), path_at: SCHEME.len() + path_in_rest })
    }
}

fn check_trust_domain(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::EmptyTrustDomain);
    }
    if name.len() > MAX_TRUST_DOMAIN {
        return Err(IdError::TrustDomainTooLong);
    }
    if name.contains(['@', ':']) {
        return Err(IdError::UserInfoOrPort);
    }
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if name.bytes().all(allowed) { Ok(()) } else { Err(IdError::TrustDomainByte) }
}

fn check_path(path: &str) -> Result<(), IdError> {
    let Some(segments) = path.strip_prefix('/') else {
        return Err(IdError::EmptyPath);
    };
    if path.ends_with('/') {
        return Err(IdError::TrailingSlash);
    }
    segments.split('/').try_for_each(check_segment)
}

/// Whether `segment` may stand between two slashes of a SPIFFE ID. Everything that builds an ID from attested
/// data (names of pods, accounts, branches) asks this for each part first, so that no part can add a segment.
pub fn check_segment(segment: &str) -> Result<(), IdError> {
    match segment {
        "" => Err(IdError::EmptySegment),
        "." | ".." => Err(IdError::DotSegment),
        _ if segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) => Ok(()),
        _ => Err(IdError::PathByte),
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl Borrow<str> for SpiffeId {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

macro_rules! text_type {
    ($type:ty, $name:literal, $pattern:literal, $description:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|e| {
                    serde::de::Error::custom(format_args!("{text:?} is not a {}: {e}", $description))
                })
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

text_type!(TrustDomain, "TrustDomain", "^[a-z0-9._-]{1,255}$", "trust domain");
text_type!(SpiffeId, "SpiffeId", "^spiffe://[a-z0-9._-]{1,255}(/[a-zA-Z0-9._-]+)+$", "SPIFFE ID");
