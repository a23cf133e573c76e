//! Reading `x-forwarded-client-cert`: what is no XFCC is refused, so that nothing hides behind it.

use std::borrow::Cow;

use super::is_bare;

const BLANK: [char; 2] = [' ', '\t'];

/// Reads one header value, strictly: its elements in order, the oldest caller first. Spaces and tabs are allowed around
/// the commas between elements (RFC 9110 §5.6.1) and nowhere else outside of quotation marks.
pub fn parse(text: &str) -> Result<Vec<Vec<Pair<'_>>>, XfccError> {
    let mut elements = Vec::new();
    let mut element = Vec::new();
    walk(text, |pair, last| {
        element.push(pair);
        if last {
            elements.push(std::mem::take(&mut element));
        }
    })?;
    Ok(elements)
}

/// Whether [`parse`] would read it, without keeping what it says.
pub fn check(text: &str) -> Result<(), XfccError> {
    walk(text, |_, _| ())
}

/// Gives each pair to `each`, with whether it is the last of its element.
fn walk<'a>(text: &'a str, mut each: impl FnMut(Pair<'a>, bool)) -> Result<(), XfccError> {
    let mut rest = text.trim_start_matches(BLANK);
    loop {
        let (pair, behind) = read_pair(rest)?;
        // Within an element nothing may stand before the `;`, around elements blanks may.
        if let Some(next) = behind.strip_prefix(';') {
            each(pair, false);
            rest = next;
            continue;
        }
        each(pair, true);
        match behind.trim_start_matches(BLANK).strip_prefix(',') {
            Some(next) => rest = next.trim_start_matches(BLANK),
            None if behind.trim_start_matches(BLANK).is_empty() => return Ok(()),
            None => return Err(XfccError::BehindQuote),
        }
    }
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
