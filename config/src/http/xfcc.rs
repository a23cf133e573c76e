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

mod read;

pub use read::{Key, Pair, XfccError, check, parse};

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
/// Lines that are no XFCC count as none (give one that is not ASCII as an empty text): behind an open quotation mark, the
/// app would not see what we append.
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
    if lines.is_empty() || lines.iter().any(|line| check(line).is_err()) {
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
