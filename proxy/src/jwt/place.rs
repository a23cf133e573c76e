//! Where in a request a token stands: found there, and removed from there.

use std::borrow::Cow;

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Uri};
use postern_config::file::jwt::TokenPlace;

/// One place of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A header, with the scheme that stands before the token.
    Header(HeaderName, Option<String>),
    /// A cookie.
    Cookie(String),
    /// A parameter of the query.
    Query(String),
}

/// What a request holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'p, 'r> {
    /// No token.
    None,
    /// One token.
    One(&'p Place, &'r str),
    /// More than one.
    Several,
    /// Bytes that no token is made of, where a token should be.
    Unreadable,
}

impl Place {
    /// As the file says it; the file has been checked.
    pub fn new(config: &TokenPlace) -> Option<Self> {
        match (&config.header, &config.cookie, &config.query) {
            (Some(name), ..) => Some(Self::Header(HeaderName::try_from(name).ok()?, config.prefix.clone())),
            (_, Some(name), _) => Some(Self::Cookie(name.clone())),
            (.., Some(name)) => Some(Self::Query(name.clone())),
            _ => None,
        }
    }

    /// Removes whatever stands there.
    pub(super) fn strip(&self, headers: &mut HeaderMap, uri: &mut Uri) {
        match self {
            Self::Header(name, _) => {
                headers.remove(name);
            }
            Self::Cookie(name) => strip_cookie(name, headers),
            Self::Query(name) => strip_parameter(name, uri),
        }
    }

    /// `None` stands for bytes that no token is made of.
    fn tokens<'r>(&self, headers: &'r HeaderMap, query: Option<&'r str>, found: &mut Vec<Option<&'r str>>) {
        let readable = |bytes| std::str::from_utf8(bytes).ok();
        match self {
            Self::Header(name, prefix) => {
                let lines = headers.get_all(name).iter().map(|line| line.as_bytes().trim_ascii());
                let lines = lines.filter_map(|line| match prefix {
                    Some(scheme) => after(scheme.as_bytes(), line),
                    None => Some(line),
                });
                found.extend(lines.map(readable));
            }
            Self::Cookie(name) => {
                let lines = headers.get_all(header::COOKIE).iter();
                let pairs = lines.flat_map(|line| line.as_bytes().split(|b| *b == b';')).filter_map(cookie);
                found.extend(pairs.filter(|(n, _)| *n == name.as_bytes()).map(|(_, value)| readable(value)));
            }
            Self::Query(name) => {
                let pairs = query.unwrap_or_default().split('&').map(parameter);
                found.extend(pairs.filter(|(n, _)| n == name).map(|(_, value)| Some(value)));
            }
        }
    }
}

/// Looks at every place. The same token twice is two: one could be replaced on the way.
pub(super) fn find<'p, 'r>(
    places: &'p [Place],
    headers: &'r HeaderMap,
    query: Option<&'r str>,
) -> Found<'p, 'r> {
    let mut all = Found::None;
    let mut tokens = Vec::new();
    for place in places {
        tokens.clear();
        place.tokens(headers, query, &mut tokens);
        for token in &tokens {
            all = match (&all, token) {
                (Found::None, Some(token)) => Found::One(place, token),
                (Found::None, None) => Found::Unreadable,
                _ => return Found::Several,
            };
        }
    }
    all
}

/// What follows a scheme and its spaces (RFC 9110 §11.4); the scheme's case does not matter. `None` for another scheme.
fn after<'a>(scheme: &[u8], line: &'a [u8]) -> Option<&'a [u8]> {
    let (head, rest) = line.split_at_checked(scheme.len())?;
    let ends = matches!(rest.first(), None | Some(b' ' | b'\t'));
    (ends && head.eq_ignore_ascii_case(scheme)).then(|| rest.trim_ascii_start())
}

/// Name and value of a cookie (RFC 6265 §4.2.1); the quotes around a value are not part of it.
fn cookie(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = pair.iter().position(|b| *b == b'=')?;
    let (name, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
    let unquoted = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
    Some((name, unquoted))
}

/// Name, decoded as an app would, and value of a parameter. A token needs no encoding, so an encoded value is none.
fn parameter(pair: &str) -> (Cow<'_, str>, &str) {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    (decoded(name), value)
}

fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).filter(|h| byte == b'%' && h.iter().all(u8::is_ascii_hexdigit));
        let value = hex.and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        out.push(value.unwrap_or(if byte == b'+' { b' ' } else { byte }));
        at += if value.is_some() { 3 } else { 1 };
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

fn strip_cookie(name: &str, headers: &mut HeaderMap) {
    let lines: Vec<HeaderValue> = headers.get_all(header::COOKIE).iter().cloned().collect();
    headers.remove(header::COOKIE);
    for line in lines {
        let is_other = |pair: &&[u8]| cookie(pair).is_none_or(|(n, _)| n != name.as_bytes());
        let kept: Vec<&[u8]> =
            line.as_bytes().split(|b| *b == b';').filter(is_other).map(<[u8]>::trim_ascii).collect();
        if let (false, Ok(value)) = (kept.is_empty(), HeaderValue::from_bytes(&kept.join(&b"; "[..]))) {
            headers.append(header::COOKIE, value);
        }
    }
}

fn strip_parameter(name: &str, uri: &mut Uri) {
    let Some(query) = uri.query() else { return };
    let kept: Vec<&str> = query.split('&').filter(|pair| parameter(pair).0 != name).collect();
    let path = uri.path();
    let target = if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) };
    let mut parts = uri.clone().into_parts();
    // A part of what was a good target is one too; should it not be, the query goes as a whole.
    parts.path_and_query = target.parse().or_else(|_| path.parse()).ok();
    if let Ok(stripped) = Uri::from_parts(parts) {
        *uri = stripped;
    }
}
