//! `x-forwarded-client-cert`: who called, told to the app in the grammar and the modes of Envoy.
//!
//! ```text
//! xfcc = element *("," element)    element = pair *(";" pair)    pair = key "=" value
//! ```
//!
//! A value is bare, or in double quotes if it holds `,`, `;` or `=`; a `"` within is written `\"`.

use std::borrow::Cow;
use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::SpiffeId;
use crate::policy::Principal;

/// What an app is told of callers, and what of a header that the caller itself sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// No header reaches the app.
    #[default]
    Sanitize,
    /// A caller with a proven identity may send the header; it is passed on as it is.
    ForwardOnly,
    /// The caller's identity is added behind the header that it sent.
    AppendForward,
    /// The caller's identity alone, whatever it sent.
    SanitizeSet,
    /// What comes is passed on, from callers without an identity as well: anybody can write anything into it.
    AlwaysForwardOnly,
}

/// A caller with a proven identity.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Its identity; `None` if its certificate was accepted without a SPIFFE ID, as a gateway may.
    pub id: Option<&'a SpiffeId>,
    /// Its own element, as [`Element`] wrote it; made once per connection.
    pub element: &'a str,
}

/// The header's value for the app; `None`: it goes without.
///
/// `peer` is `None` on plain text and under TLS without a client certificate. `incoming` are the values of the lines that
/// came, in their order; several are joined by a comma. With `append_if`, [`Mode::AppendForward`] appends for the
/// callers that one of its patterns matches, and sets for all others.
///
/// Lines that are no XFCC count as none: behind an open quotation mark, the app would not see what we append.
pub fn outgoing<'a>(
    mode: Mode,
    append_if: Option<&[Principal]>,
    peer: Option<Caller<'a>>,
    incoming: &[&'a str],
) -> Option<Cow<'a, str>> {
    let theirs = || joined(incoming);
    match (mode, peer) {
        (Mode::Sanitize, _) | (Mode::ForwardOnly | Mode::AppendForward | Mode::SanitizeSet, None) => None,
        (Mode::ForwardOnly, Some(_)) | (Mode::AlwaysForwardOnly, _) => theirs(),
        (Mode::SanitizeSet, Some(caller)) => Some(Cow::Borrowed(caller.element)),
        (Mode::AppendForward, Some(caller)) => {
            let matches =
                |patterns: &[Principal]| caller.id.is_some_and(|id| patterns.iter().any(|p| p.matches(id)));
            match theirs().filter(|_| append_if.is_none_or(matches)) {
                Some(theirs) => Some(Cow::Owned(format!("{theirs},{}", caller.element))),
                None => Some(Cow::Borrowed(caller.element)),
            }
        }
    }
}

/// The lines as one; `None` if there is none, or if one of them is no XFCC.
fn joined<'a>(lines: &[&'a str]) -> Option<Cow<'a, str>> {
    if lines.is_empty() || lines.iter().any(|line| parse(line).is_err()) {
        return None;
    }
    Some(match lines {
        [one] => Cow::Borrowed(one),
        several => Cow::Owned(several.join(",")),
    })
}

/// One caller, to be written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Element<'a> {
    /// The URI SANs of this proxy's own certificate.
    pub by: &'a [&'a str],
    /// SHA-256 of the caller's certificate in DER.
    pub hash: [u8; 32],
    /// The caller's certificate in PEM, if the app is to have it.
    pub cert: Option<&'a str>,
    /// The caller's whole chain in PEM, its own certificate first, if the app is to have it.
    pub chain: Option<&'a str>,
    /// The caller's subject as RFC 2253 writes it (`CN=…,O=…`); empty if it has none.
    pub subject: &'a str,
    /// The caller's URI SANs.
    pub uris: &'a [&'a str],
    /// The caller's DNS SANs.
    pub dns: &'a [&'a str],
}

impl Element<'_> {
    /// The element as Envoy writes it: `By=…;Hash=…;Cert=…;Chain=…;Subject="…";URI=…;DNS=…`. Whatever the fields hold,
    /// it is one element, in visible ASCII and spaces.
    pub fn to_text(&self) -> String {
        let mut out = String::with_capacity(256);
        for by in self.by {
            pair(&mut out, "By", by);
        }
        out.push_str("Hash=");
        for byte in self.hash {
            // Writing to a `String` does not fail.
            let _ = write!(out, "{byte:02x}");
        }
        out.push(';');
        for (key, pem) in [("Cert", self.cert), ("Chain", self.chain)] {
            let Some(pem) = pem else { continue };
            out.push_str(key);
            out.push_str("=\"");
            url_encode(&mut out, pem);
            out.push_str("\";");
        }
        out.push_str("Subject=");
        quote(&mut out, self.subject);
        out.push(';');
        self.uris.iter().for_each(|uri| pair(&mut out, "URI", uri));
        self.dns.iter().for_each(|name| pair(&mut out, "DNS", name));
        out.pop();
        out
    }
}

/// `key=value;`, the value bare wherever that is unambiguous.
fn pair(out: &mut String, key: &str, value: &str) {
    out.push_str(key);
    out.push('=');
    if !value.is_empty() && value.bytes().all(is_bare) {
        out.push_str(value);
    } else {
        quote(out, value);
    }
    out.push(';');
}

/// `value` in quotation marks. Escapes that RFC 2253 has put there stay; a mark without one gets it. A backslash that
/// stands for itself is written `\5C`, and a byte that no header may hold as `\` and two digits, as RFC 2253 allows:
/// behind `\\`, readers disagree on whether a mark ends the value.
fn quote(out: &mut String, value: &str) {
    out.push('"');
    let mut bytes = value.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek()) {
            (b'\\', Some(b'\\')) => {
                bytes.next();
                out.push_str("\\5C");
            }
            (b'\\', Some(next @ (0x20..=0x7e))) => {
                out.extend(['\\', char::from(*next)]);
                bytes.next();
            }
            (b'\\', _) => out.push_str("\\5C"),
            (b'"', _) => out.push_str("\\\""),
            (0x20..=0x7e, _) => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
    out.push('"');
}

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3), as Envoy does with PEM.
fn url_encode(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// Whether a byte may stand in a value without quotation marks.
fn is_bare(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b',' | b';' | b'=' | b'"' | b'\\')
}

/// A `key=value` that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair<'a> {
    /// What it tells.
    pub key: Key<'a>,
    /// The value without its quotation marks and with each `\"` as `"`; other backslashes belong to it.
    pub value: Cow<'a, str>,
}

/// What a pair tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// A URI SAN of the proxy that wrote the element.
    By,
    /// SHA-256 of the caller's certificate, in hexadecimal digits.
    Hash,
    /// The caller's certificate, PEM, percent-encoded.
    Cert,
    /// The caller's chain, PEM, percent-encoded.
    Chain,
    /// The caller's subject.
    Subject,
    /// A URI SAN of the caller.
    Uri,
    /// A DNS SAN of the caller.
    Dns,
    /// Something that Envoy's documentation does not know: letters and digits.
    Other(&'a str),
}

impl<'a> Key<'a> {
    fn of(text: &'a str) -> Self {
        const KNOWN: [(&str, Key<'_>); 7] = [
            ("By", Key::By),
            ("Hash", Key::Hash),
            ("Cert", Key::Cert),
            ("Chain", Key::Chain),
            ("Subject", Key::Subject),
            ("URI", Key::Uri),
            ("DNS", Key::Dns),
        ];
        let known = KNOWN.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        known.map_or(Self::Other(text), |(_, key)| *key)
    }
}

/// Why a text is no XFCC. No message repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum XfccError {
    /// No letters and digits with a `=` behind them.
    #[error("an XFCC pair does not begin with `key=`")]
    Key,
    /// A bare value with `=`, `"` or `\`; or a byte that no header holds; or `\\` within quotation marks, behind which
    /// readers disagree on whether a mark ends the value.
    #[error("an XFCC value holds a byte that must not stand there")]
    Value,
    /// The closing `"` is missing.
    #[error("an XFCC value's quotation mark is not closed")]
    Open,
    /// A `"` closes a value and something other than `;`, `,` or the end follows.
    #[error("an XFCC value goes on behind its closing quotation mark")]
    BehindQuote,
}

/// Reads one header value, strictly: its elements in order, the oldest caller first. Spaces and tabs are allowed around
/// the commas between elements (RFC 9110 §5.6.1) and nowhere else outside of quotation marks.
pub fn parse(text: &str) -> Result<Vec<Vec<Pair<'_>>>, XfccError> {
    let mut elements = Vec::new();
    let mut element = Vec::new();
    let mut rest = text.trim_start_matches(BLANK);
    loop {
        let (pair, behind) = read_pair(rest)?;
        element.push(pair);
        // Within an element nothing may stand before the `;`, around elements blanks may.
        if let Some(next) = behind.strip_prefix(';') {
            rest = next;
            continue;
        }
        elements.push(std::mem::take(&mut element));
        match behind.trim_start_matches(BLANK).strip_prefix(',') {
            Some(next) => rest = next.trim_start_matches(BLANK),
            None if behind.trim_start_matches(BLANK).is_empty() => return Ok(elements),
            None => return Err(XfccError::BehindQuote),
        }
    }
}

const BLANK: [char; 2] = [' ', '\t'];

/// The pair at the beginning of `text`, and what follows it.
fn read_pair(text: &str) -> Result<(Pair<'_>, &str), XfccError> {
    let (key, rest) = text.split_once('=').ok_or(XfccError::Key)?;
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(XfccError::Key);
    }
    let key = Key::of(key);
    if let Some(quoted) = rest.strip_prefix('"') {
        let (value, rest) = read_quoted(quoted)?;
        return Ok((Pair { key, value }, rest));
    }
    let end = rest.find([',', ';', ' ', '\t']).unwrap_or(rest.len());
    let (value, rest) = rest.split_at(end);
    if !value.bytes().all(is_bare) {
        return Err(XfccError::Value);
    }
    Ok((Pair { key, value: Cow::Borrowed(value) }, rest))
}

/// The value up to the closing mark, and what follows the mark.
fn read_quoted(text: &str) -> Result<(Cow<'_, str>, &str), XfccError> {
    let mut escaped = false;
    let mut marks = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if !(0x20..=0x7e).contains(&byte) => return Err(XfccError::Value),
            b'"' if !escaped => {
                let (value, rest) = (&text[..at], &text[at + 1..]);
                let value =
                    if marks { Cow::Owned(value.replace("\\\"", "\"")) } else { Cow::Borrowed(value) };
                return Ok((value, rest));
            }
            b'"' => (marks, escaped) = (true, false),
            // `\\` is refused: behind it, readers disagree on whether a mark ends the value.
            b'\\' if escaped => return Err(XfccError::Value),
            b'\\' => escaped = true,
            _ => escaped = false,
        }
    }
    Err(XfccError::Open)
}
