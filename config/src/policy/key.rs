//! What a `when` entry looks at.

use ::http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::http::ClaimPath;

/// A condition's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(into = "String")]
#[schemars(with = "String")]
pub(super) enum Key {
    SourceIp,
    RemoteIp,
    SourceNamespace,
    SourceServiceAccount,
    SourcePrincipal,
    SourceTrustDomain,
    DestinationIp,
    DestinationPort,
    Sni,
    RequestPrincipal,
    Audiences,
    Presenter,
    Claim(ClaimPath),
    Header(HeaderName),
}

const KEYS: [(&str, Key); 12] = [
    ("source.ip", Key::SourceIp),
    ("remote.ip", Key::RemoteIp),
    ("source.namespace", Key::SourceNamespace),
    ("source.serviceAccount", Key::SourceServiceAccount),
    ("source.principal", Key::SourcePrincipal),
    ("source.trustDomain", Key::SourceTrustDomain),
    ("destination.ip", Key::DestinationIp),
    ("destination.port", Key::DestinationPort),
    ("connection.sni", Key::Sni),
    ("request.auth.principal", Key::RequestPrincipal),
    ("request.auth.audiences", Key::Audiences),
    ("request.auth.presenter", Key::Presenter),
];
const CLAIMS: &str = "request.auth.claims";
const HEADERS: &str = "request.headers";

impl Key {
    /// Its name in a document.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Claim(path) => format!("{CLAIMS}[{}]", path.0.join("][")),
            Self::Header(name) => format!("{HEADERS}[{name}]"),
            other => KEYS.iter().find(|(_, key)| key == other).map_or("", |(name, _)| name).to_owned(),
        }
    }

    /// Whether only HTTP has it.
    pub(super) fn is_http(&self) -> bool {
        matches!(
            self,
            Self::RequestPrincipal | Self::Audiences | Self::Presenter | Self::Claim(_) | Self::Header(_)
        )
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some((_, key)) = KEYS.iter().find(|(name, _)| *name == text) {
            return Some(key.clone());
        }
        if let Some(claims) = text.strip_prefix(CLAIMS) {
            return ClaimPath::parse(claims).map(Self::Claim);
        }
        let name = text.strip_prefix(HEADERS)?.strip_prefix('[')?.strip_suffix(']')?;
        HeaderName::from_bytes(name.as_bytes()).ok().map(Self::Header)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.name()
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::pattern::check_length(&text).map_err(serde::de::Error::custom)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(match text.strip_prefix("request.headers[:") {
                Some(_) => {
                    format!("{text:?} is no header; use `hosts`, `methods` or `paths` of an operation")
                }
                None => format!("unknown condition key {text:?}"),
            })
        })
    }
}
