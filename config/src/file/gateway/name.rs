//! The name of a host, as a client says it in SNI and `Host`: exact, or with a star for its first label.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A DNS name in lower case, without a trailing dot; `*.` in front stands for exactly one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

impl HostName {
    /// The name as it is written, star included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands behind `*.`, for a wildcard.
    pub fn wildcard(&self) -> Option<&str> {
        self.0.strip_prefix("*.")
    }
}

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().take(80).collect();
        let fail = |why: &str| Err(format!("{shown:?} is not a host name: {why}"));
        let name = text.to_ascii_lowercase();
        let rest = name.strip_prefix("*.").unwrap_or(&name);
        if rest.contains('*') {
            return fail("a star may only stand for the whole first label, such as *.example.com");
        }
        if rest.len() < name.len() && !rest.contains('.') {
            return fail("a wildcard for a top-level domain would answer for everybody");
        }
        if name.len() > 253 || rest.is_empty() {
            return fail("it has 1 to 253 bytes");
        }
        let good = |label: &str| {
            let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            matches!(label.len(), 1..=63)
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !rest.split('.').all(good) {
            return fail(
                "labels are letters, digits, `-` and `_`, without a port, a scheme or a trailing dot",
            );
        }
        // A client never names an address in SNI (RFC 6066 §3).
        if rest.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return fail("an IP address names no host");
        }
        Ok(Self(name))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for HostName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HostName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "maxLength": 253,
            "pattern": "^([*][.])?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*$",
            "description": "A host name such as shop.example.com, or *.example.com for exactly one label in place of the star."
        })
    }
}
