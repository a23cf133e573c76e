//! The small languages inside a policy document: text patterns, namespaces, accounts, address blocks, ports.
//! Each is parsed when the document is read, so that a bad one is named with its line.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::SpiffeId;

/// The longest pattern in bytes: longer than any host, path or identity that people write.
const MAX_PATTERN: usize = 1024;

/// `abc`, `abc*`, `*abc` or `*`; a star elsewhere is a star.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TextPattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    /// `*`: anything but the empty text.
    Present,
}

impl TextPattern {
    pub(super) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Present => !text.is_empty(),
        }
    }

    /// The same for a header's value, which need not be text.
    pub(super) fn matches_bytes(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => bytes == exact.as_bytes(),
            Self::Prefix(prefix) => bytes.starts_with(prefix.as_bytes()),
            Self::Suffix(suffix) => bytes.ends_with(suffix.as_bytes()),
            Self::Present => !bytes.is_empty(),
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        check_length(text)?;
        Ok(if text == "*" {
            Self::Present
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix.to_owned())
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix.to_owned())
        } else {
            Self::Exact(text.to_owned())
        })
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Exact(exact) => exact.clone(),
            Self::Prefix(prefix) => format!("{prefix}*"),
            Self::Suffix(suffix) => format!("*{suffix}"),
            Self::Present => "*".to_owned(),
        }
    }
}

/// A pattern for identities, as Istio writes `principals`: over the SPIFFE ID without its scheme, `abc`, `abc*`, `*abc`
/// or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal(pub(super) TextPattern);

impl Principal {
    /// Whether `id` is meant, aliases of trust domains aside.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        self.0.matches(id.principal())
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("spiffe://") {
            return Err(format!("principal {text:?} must be written without `spiffe://`"));
        }
        TextPattern::parse(text).map(Self)
    }

    pub(super) fn text(&self) -> String {
        self.0.text()
    }
}

/// A namespace, in which every `*` stands for any run of characters; it is compared with the whole segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamespacePattern(String);

impl NamespacePattern {
    /// The one namespace that is meant, where there is no star.
    pub(super) fn exact(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&self.0)
    }

    pub(super) fn matches(&self, namespace: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else { return self.0 == namespace };
        let Some(mut left) = namespace.strip_prefix(head) else { return false };
        let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
        // Leftmost matching of each middle part is enough: a later start never leaves more room.
        for part in middle.split('*').filter(|p| !p.is_empty()) {
            match left.find(part) {
                Some(at) => left = &left[at + part.len()..],
                None => return false,
            }
        }
        left.ends_with(tail)
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        check_length(text)?;
        if text.contains('/') {
            return Err(format!("namespace {text:?} must not hold a `/`"));
        }
        Ok(Self(text.to_owned()))
    }

    pub(super) fn text(&self) -> String {
        self.0.clone()
    }
}

/// `namespace/account`, or `account` in the policy's own namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceAccount {
    pub(super) namespace: Option<String>,
    pub(super) account: String,
}

impl ServiceAccount {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        check_length(text)?;
        let (namespace, account) = match text.split_once('/') {
            Some((namespace, account)) => (Some(namespace.to_owned()), account),
            None => (None, text),
        };
        if account.is_empty()
            || account.contains(['/', '*'])
            || namespace.as_deref().is_some_and(|n| n.is_empty() || n.contains('*'))
        {
            return Err(format!("{text:?} is not a service account; write `account` or `namespace/account`"));
        }
        Ok(Self { namespace, account: account.to_owned() })
    }

    pub(super) fn text(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.account),
            None => self.account.clone(),
        }
    }
}

/// An address or a CIDR block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IpBlock(IpNet);

impl IpBlock {
    /// The block, its host bits cut off.
    pub(super) fn net(&self) -> IpNet {
        self.0
    }

    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        // An IPv4 peer of a dual-stack listener shows up as ::ffff:a.b.c.d.
        self.0.contains(&ip.to_canonical())
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self(IpNet::from(ip.to_canonical())));
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self(canonical(net.trunc())));
        }
        let why = match text.split_once('/').map(|(ip, length)| (ip.parse::<IpAddr>(), length.parse::<u32>()))
        {
            Some((Ok(ip), Ok(_))) => {
                format!(" (prefix length goes to {})", if ip.is_ipv4() { 32 } else { 128 })
            }
            _ => String::new(),
        };
        Err(format!("{text:?} is not a CIDR block{why}"))
    }

    pub(super) fn text(&self) -> String {
        self.0.to_string()
    }
}

/// A block of IPv4-mapped addresses as the IPv4 block that it means: peers are compared in canonical form.
fn canonical(net: IpNet) -> IpNet {
    let length = net.prefix_len().checked_sub(96);
    match (net.network().to_canonical(), length) {
        (ip @ IpAddr::V4(_), Some(length)) => IpNet::new(ip, length).unwrap_or(net),
        _ => net,
    }
}

/// A port, written as text as Istio does, or as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port(pub(super) u16);

impl Port {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let port = crate::service::parse_port(text);
        port.map(Self).ok_or_else(|| format!("{text:?} is not a port (1 to 65535)"))
    }

    pub(super) fn text(&self) -> String {
        self.0.to_string()
    }
}

pub(super) fn check_length(text: &str) -> Result<(), String> {
    match text.len() {
        0 => Err("an empty pattern matches nothing; leave the field out to match everything".to_owned()),
        n if n > MAX_PATTERN => Err(format!("a pattern of {n} bytes is too long (at most {MAX_PATTERN})")),
        _ => Ok(()),
    }
}

/// A type that stands in documents as a text, by its `parse` and `text`.
macro_rules! text_schema {
    ($($type:ident),+) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.text())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string" })
            }
        }
    )+};
}
pub(super) use text_schema;

text_schema!(TextPattern, Principal, NamespacePattern, ServiceAccount, IpBlock, Port);
