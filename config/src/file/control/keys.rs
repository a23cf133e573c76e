//! Where a signing key of the trust domain lives: a file, a PKCS#11 token (RFC 7512), Vault's transit engine; or nowhere near.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod pkcs11;
#[cfg(test)]
mod tests;
mod vault;

pub use pkcs11::Pkcs11Place;
pub use vault::{VaultAuth, VaultEngine, VaultPlace};

/// The longest text that is taken, in bytes.
const MAX: usize = 2048;

/// Where a private key lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyPlace {
    /// A PKCS#8 PEM file of mode 0600.
    File(PathBuf),
    /// An object of a PKCS#11 token; it never leaves it.
    Pkcs11(Pkcs11Place),
    /// A key of Vault's transit engine; it never leaves it.
    Vault(VaultPlace),
}

/// Where the root's key lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootKey {
    /// Here: this control plane signs issuing CAs itself.
    At(Box<KeyPlace>),
    /// Elsewhere: issuing CAs are signed in a ceremony (`postern ca csr`, `sign`, `install`).
    Offline,
}

/// Who signs issuing CAs in place of a root key of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// A mount of Vault's PKI engine; the trust domain's root is then Vault's.
    VaultPki(VaultPlace),
}

impl FromStr for KeyPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > MAX {
            return Err("a key's place of more than 2048 bytes".to_owned());
        }
        if let Some(rest) = text.strip_prefix("pkcs11:") {
            return Pkcs11Place::parse(rest).map(Self::Pkcs11).map_err(wrong);
        }
        if let Some(rest) = text.strip_prefix("vault:") {
            let place = VaultPlace::parse(rest, VaultEngine::Transit);
            return place.map(Self::Vault).map_err(wrong);
        }
        let path = text.strip_prefix("file:").unwrap_or(text);
        let scheme = path.split(['/', '.']).next().unwrap_or_default();
        if path.is_empty() || scheme.contains(':') {
            return Err(format!(
                "{text:?} is no place of a key: write a path, pkcs11:token=…;object=… or vault:https://…"
            ));
        }
        Ok(Self::File(path.into()))
    }
}

/// Without the text itself: somebody may have written a secret into it.
fn wrong(why: String) -> String {
    format!("the place of a key cannot be read: {why}")
}

impl FromStr for RootKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "offline" { Ok(Self::Offline) } else { text.parse().map(Box::new).map(Self::At) }
    }
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("vault-pki:");
        let rest = rest
            .ok_or_else(|| format!("{text:?} is no upstream: write vault-pki:https://host:8200/MOUNT?…"))?;
        let place = VaultPlace::parse(rest, VaultEngine::Pki);
        place.map(Self::VaultPki).map_err(wrong)
    }
}

impl fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Pkcs11(place) => write!(f, "{place}"),
            Self::Vault(place) => write!(f, "vault:{place}"),
        }
    }
}

impl fmt::Display for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(place) => write!(f, "{place}"),
            Self::Offline => f.write_str("offline"),
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::VaultPki(place) = self;
        write!(f, "vault-pki:{place}")
    }
}

/// Splits `name=value` pairs and undoes their percent-encoding; each name stands once.
fn pairs(text: &str, separator: char) -> Result<Vec<(&str, Vec<u8>)>, String> {
    let mut found: Vec<(&str, Vec<u8>)> = Vec::new();
    for pair in text.split(separator).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not name=value"))?;
        if found.iter().any(|(known, _)| *known == name) {
            return Err(format!("{name} stands twice"));
        }
        found.push((
            name,
            decoded(value).ok_or_else(|| format!("{name}: a % that is not followed by two hex digits"))?,
        ));
    }
    Ok(found)
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16));
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(out)
}

fn encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                out.push(char::from(*byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn utf8(name: &str, value: Vec<u8>) -> Result<String, String> {
    let text = String::from_utf8(value).map_err(|_| format!("{name} is not UTF-8"))?;
    match text.is_empty() || text.contains('\0') {
        true => Err(format!("{name} is empty or holds a zero byte")),
        false => Ok(text),
    }
}

/// An absolute path, bare or as `file:/path` or `file:///path`.
fn file(name: &str, value: Vec<u8>) -> Result<PathBuf, String> {
    let text = utf8(name, value)?;
    let path = text.strip_prefix("file://").or_else(|| text.strip_prefix("file:")).unwrap_or(&text);
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(format!("{name}: write an absolute path, not {text:?}")),
    }
}

/// A base URL of `https`, or of `http` for a loopback address given as digits; and its path without slashes at the ends.
fn base_url(text: &str) -> Result<(String, String), String> {
    let uri: Uri = text.parse().map_err(|_| "write it as https://host:port/path".to_owned())?;
    let authority = uri.authority().map_or("", |a| a.as_str());
    let host = uri.host().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') || host.is_empty() || text.contains('#') {
        return Err("write it as https://host:port/path, without user, password and fragment".to_owned());
    }
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if ip.is_ok_and(|ip| ip.is_loopback()) => {}
        _ => return Err("only https, or http to a loopback address such as 127.0.0.1".to_owned()),
    }
    let path = uri.path().trim_matches('/').to_owned();
    let is_plain = |segment: &str| {
        !segment.is_empty()
            && segment != "."
            && segment != ".."
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if !path.split('/').all(is_plain) {
        return Err("its path may hold letters, digits, '-', '_' and '.' between single slashes".to_owned());
    }
    Ok((format!("{}://{authority}", uri.scheme_str().unwrap_or("https")), path))
}

/// Strings in files, each with its own parser.
macro_rules! as_text {
    ($type:ty, $name:literal, $description:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                schemars::json_schema!({ "type": "string", "maxLength": MAX, "description": $description })
            }
        }
    };
}

as_text!(
    KeyPlace,
    "KeyPlace",
    "A path; `pkcs11:token=…;object=…?module-path=…&pin-source=file:/…`; or `vault:https://host:8200/transit/keys/NAME?token-file=/…`."
);
as_text!(RootKey, "RootKey", "A key's place, or `offline`.");
as_text!(Upstream, "Upstream", "`vault-pki:https://host:8200/MOUNT?token-file=/…`.");
