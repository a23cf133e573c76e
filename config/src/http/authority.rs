//! Whom a request is for: the value of `Host` or `:authority`, in one spelling (RFC 9110 §7.2, RFC 3986 §3.2).

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest authority in bytes: a DNS name has at most 253, and nothing longer is a name.
pub const MAX_AUTHORITY: usize = 255;

/// A host and perhaps a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Lower case, without port and without one trailing dot: `shop.example`, `10.0.0.1`, or `[::1]` with its brackets
    /// and in the spelling of RFC 5952.
    pub host: Cow<'a, str>,
    /// The port, if one is written; never 0.
    pub port: Option<u16>,
}

/// Why a text is no authority; the answer to it is 400. No message repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Nothing, or nothing before the port.
    #[error("the host is empty")]
    EmptyHost,
    /// More than [`MAX_AUTHORITY`] bytes.
    #[error("the host is longer than 255 bytes")]
    TooLong,
    /// An `@`.
    #[error("user information (`user@`) is not allowed beside the host  (RFC 9110 §4.2.4)")]
    UserInfo,
    /// A byte outside letters, digits, `-`, `.`, `_` and `~`. Escapes (`%73`) and the sub-delimiters that RFC 3986
    /// allows name no host that exists, and would be a second spelling.
    #[error("the host holds a byte outside letters, digits, `-`, `.`, `_`, `~`")]
    HostByte,
    /// `a..b`, `.a` or more than one trailing dot.
    #[error("the host has an empty label (two dots in a row, or one in front)")]
    EmptyLabel,
    /// The last label is a number, as only an IPv4 address may have it, and it is none: `127.1`, `010.0.0.1`.
    #[error("the host ends in a number but is not an IPv4 address of four decimal parts")]
    Ipv4,
    /// Brackets around something else than an IPv6 address; zones (`%25eth0`) mean nothing to another machine.
    #[error("the brackets do not hold an IPv6 address")]
    Ipv6,
    /// Something other than `:port` behind the brackets, or an unbracketed IPv6 address.
    #[error("behind the host only `:port` may follow, and an IPv6 address needs brackets")]
    AfterHost,
    /// The port is empty, no decimal number, 0, above 65535 or begins with a zero.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

impl<'a> Authority<'a> {
    /// Reads the value of `Host` or `:authority`, strictly.
    pub fn parse(text: &'a str) -> Result<Self, AuthorityError> {
        if text.len() > MAX_AUTHORITY {
            return Err(AuthorityError::TooLong);
        }
        if text.contains('@') {
            return Err(AuthorityError::UserInfo);
        }
        if text.starts_with('[') {
            let end = text.find(']').ok_or(AuthorityError::Ipv6)?;
            let port = match text[end + 1..].strip_prefix(':') {
                Some(port) => Some(parse_port(port)?),
                None if end + 1 == text.len() => None,
                None => return Err(AuthorityError::AfterHost),
            };
            return Ok(Self { host: ipv6(&text[..=end])?, port });
        }
        let (host, port) = match text.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(AuthorityError::AfterHost),
            Some((host, port)) => (host, Some(parse_port(port)?)),
            None => (text, None),
        };
        Ok(Self { host: name(host)?, port })
    }
}

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// The host of `text` alone, in the spelling in which hosts are compared: see [`Authority::host`]. A port is allowed and
/// dropped.
pub fn canonical_host(text: &str) -> Result<Cow<'_, str>, AuthorityError> {
    Authority::parse(text).map(|authority| authority.host)
}

fn parse_port(text: &str) -> Result<u16, AuthorityError> {
    let decimal = !text.is_empty() && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| decimal).ok_or(AuthorityError::Port)
}

/// A registered name or an IPv4 address.
fn name(host: &str) -> Result<Cow<'_, str>, AuthorityError> {
    if host.is_empty() || host == "." {
        return Err(AuthorityError::EmptyHost);
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let (mut upper, mut label_empty, mut label_numeric) = (false, true, true);
    for byte in host.bytes() {
        match byte {
            b'.' if label_empty => return Err(AuthorityError::EmptyLabel),
            b'.' => (label_empty, label_numeric) = (true, true),
            b'0'..=b'9' => label_empty = false,
            b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'~' => {
                upper |= byte.is_ascii_uppercase();
                (label_empty, label_numeric) = (false, false);
            }
            _ => return Err(AuthorityError::HostByte),
        }
    }
    if label_empty {
        return Err(AuthorityError::EmptyLabel);
    }
    if label_numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(AuthorityError::Ipv4);
    }
    Ok(if upper { Cow::Owned(host.to_ascii_lowercase()) } else { Cow::Borrowed(host) })
}

/// `[…]` in the one spelling of RFC 5952, so that no longer form of an address passes beside a rule about it.
fn ipv6(bracketed: &str) -> Result<Cow<'_, str>, AuthorityError> {
    let address: Ipv6Addr = bracketed[1..bracketed.len() - 1].parse().map_err(|_| AuthorityError::Ipv6)?;
    let canonical = format!("[{address}]");
    Ok(if canonical == bracketed { Cow::Borrowed(bracketed) } else { Cow::Owned(canonical) })
}
