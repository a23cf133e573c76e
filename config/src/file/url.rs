//! A URL that this proxy fetches by itself: `https` only.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::Uri;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest URL that is taken, in bytes.
const MAX: usize = 2048;

/// An absolute `https` URL without user, password and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebUrl(Uri);

impl WebUrl {
    /// As the HTTP library takes it.
    pub fn uri(&self) -> &Uri {
        &self.0
    }
}

impl FromStr for WebUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("{text:?} is not an https URL: {why}");
        if text.len() > MAX {
            return Err("a URL of more than 2048 bytes".to_owned());
        }
        let uri: Uri = text.parse().map_err(|_| bad("write it as https://host/path"))?;
        if uri.scheme_str() != Some("https") {
            return Err(bad(
                "it must begin with https://, for whoever changes it on the way decides who is let in",
            ));
        }
        let authority = uri.authority().map_or("", |a| a.as_str());
        if authority.contains('@') || uri.host().is_none_or(str::is_empty) {
            return Err(bad("write a host, without user and password"));
        }
        if text.contains('#') {
            return Err(bad("a fragment (#…) means nothing here"));
        }
        // `Uri` takes a port that is no number for none at all.
        let port = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest).rsplit_once(':');
        if port.is_some_and(|(_, port)| port.parse::<u16>().is_err()) {
            return Err(bad("its port is not a number"));
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for WebUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for WebUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for WebUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for WebUrl {
    fn schema_name() -> Cow<'static, str> {
        "WebUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^https://",
            "maxLength": MAX,
            "description": "An absolute https URL."
        })
    }
}
