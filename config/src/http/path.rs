//! The path of a request, normalised once, so that policy, log and app read the same one (RFC 3986 §6.2.2).

use std::borrow::Cow;

/// How much is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Istio's `BASE`: escaped unreserved characters are decoded, dot segments removed. `//` stays, and so does `%2f`.
    Basic,
    /// For workloads with a rule about paths: slashes are merged as well, and what an app might take for a slash or for
    /// a dot segment (`%2f`, `%5c`, `..;x`) is an error.
    Strict,
}

/// Why a path is refused; the answer to it is 400. No message repeats the path's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Neither `/…` nor `*`.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// A space, a control character or a byte beyond ASCII.
    #[error("the path holds a byte outside visible ASCII, which must be %-escaped  (RFC 3986 §2)")]
    Byte,
    /// A `\`, which some apps take for `/`.
    #[error("the path holds a `\\`")]
    Backslash,
    /// A `#`: a fragment stays with the client.
    #[error("the path holds a `#`; a fragment is not sent  (RFC 9110 §7.1)")]
    Fragment,
    /// A `?`: the caller has not cut the query off.
    #[error("the path holds a `?`; the query is not part of it")]
    Query,
    /// A `%` without two hexadecimal digits.
    #[error("a `%` in the path is not followed by two hexadecimal digits  (RFC 3986 §2.1)")]
    Escape,
    /// `%00`, where C programs see the end of the text.
    #[error("the path holds an escaped NUL (`%00`)")]
    Nul,
    /// `%2f` or `%5c` under [`Rules::Strict`].
    #[error("the path holds an escaped slash (`%2f` or `%5c`), which apps read differently than policies do")]
    EscapedSlash,
    /// A segment `.;…` or `..;…` under [`Rules::Strict`]: servlet containers cut the parameter off and then go up.
    #[error(
        "the path holds a dot segment with a parameter (`..;`), which apps read differently than policies do"
    )]
    DotParameter,
}

/// Normalises `raw`, a request target's path without its query.
///
/// Escapes of unreserved characters (RFC 3986 §2.3) are decoded, once; every other escape stays as it is written,
/// `%2F` and `%2f` alike. Then `.` and `..` segments are removed (§5.2.4), then, under [`Rules::Strict`], runs of `/`
/// become one. The result is normal: normalising it again changes nothing. `*` (of `OPTIONS *`) is its own normal form.
///
/// A path that is normal already is returned as it is, after one scan and without an allocation.
pub fn normalise(raw: &str, rules: Rules) -> Result<Cow<'_, str>, PathError> {
    if raw == "*" {
        return Ok(Cow::Borrowed(raw));
    }
    if !raw.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    if is_normal(raw.as_bytes(), rules)? {
        Ok(Cow::Borrowed(raw))
    } else {
        rewrite(raw, rules).map(Cow::Owned)
    }
}

/// Checks every byte; whether anything is left to change.
fn is_normal(path: &[u8], rules: Rules) -> Result<bool, PathError> {
    let mut normal = true;
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        at += 1;
        match byte {
            b'/' => normal &= is_normal_segment(&path[at..], rules)?,
            b'%' => {
                let value = escaped(&path[at..]).ok_or(PathError::Escape)?;
                match value {
                    0 => return Err(PathError::Nul),
                    b'/' | b'\\' if rules == Rules::Strict => return Err(PathError::EscapedSlash),
                    _ => normal &= !is_unreserved(value),
                }
                at += 2;
            }
            b'\\' => return Err(PathError::Backslash),
            b'#' => return Err(PathError::Fragment),
            b'?' => return Err(PathError::Query),
            0x21..=0x7e => {}
            _ => return Err(PathError::Byte),
        }
    }
    Ok(normal)
}

/// Whether the segment at the beginning of `rest` may stay. Cheap: only one that begins with a dot is looked at.
fn is_normal_segment(rest: &[u8], rules: Rules) -> Result<bool, PathError> {
    match rest.first() {
        Some(b'/') => Ok(rules == Rules::Basic),
        Some(b'.') => {
            let end = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
            check_parameter(&rest[..end], rules)?;
            Ok(!matches!(&rest[..end], b"." | b".."))
        }
        _ => Ok(true),
    }
}

fn check_parameter(segment: &[u8], rules: Rules) -> Result<(), PathError> {
    let hidden = segment.starts_with(b".;") || segment.starts_with(b"..;");
    if hidden && rules == Rules::Strict { Err(PathError::DotParameter) } else { Ok(()) }
}

/// The normal form of a path whose bytes [`is_normal`] has checked.
fn rewrite(path: &str, rules: Rules) -> Result<String, PathError> {
    let mut out = String::with_capacity(path.len());
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let start = out.len();
        out.push('/');
        decode_into(&mut out, segment);
        let up = match &out.as_bytes()[start + 1..] {
            b"." => false,
            b".." => true,
            kept => {
                check_parameter(kept, rules)?;
                continue;
            }
        };
        out.truncate(start);
        if up {
            out.truncate(out.rfind('/').unwrap_or(0));
        }
        // `/a/..` names the folder: its slash stays.
        if segments.peek().is_none() {
            out.push('/');
        }
    }
    if rules == Rules::Strict {
        let mut after_slash = false;
        out.retain(|c| {
            let again = c == '/' && after_slash;
            after_slash = c == '/';
            !again
        });
    }
    Ok(out)
}

/// Appends `segment` with its unreserved characters decoded.
fn decode_into(out: &mut String, mut segment: &str) {
    while let Some(at) = segment.find('%') {
        let (before, rest) = segment.split_at(at);
        out.push_str(before);
        match escaped(&rest.as_bytes()[1..]) {
            Some(value) if is_unreserved(value) => out.push(char::from(value)),
            // Checked before: a `%` begins three ASCII characters.
            _ => out.push_str(&rest[..3]),
        }
        segment = &rest[3..];
    }
    out.push_str(segment);
}

/// The value of the two hexadecimal digits at the beginning of `digits`.
fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| digits.get(at).and_then(|b| char::from(*b).to_digit(16));
    Some((digit(0)? * 16 + digit(1)?) as u8)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}
