//! The small languages for HTTP: hosts, paths with templates, request principals, claims and header values.

use std::borrow::Cow;

use ::http::{HeaderMap, HeaderName, header};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::http::authority;

use super::pattern::{TextPattern, check_length, text_schema};

/// `{*}`: one segment of a path, not empty.
const ONE: &str = "{*}";
/// `{**}`: whatever is left of a path.
const REST: &str = "{**}";

/// Headers whose value is one value although it may hold commas (RFC 9110 §5.5, RFC 6265 §5.4); every other one is read
/// as a list too.
const NO_LISTS: [HeaderName; 13] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::DATE,
    header::EXPIRES,
    header::FROM,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::LAST_MODIFIED,
    header::LOCATION,
    header::REFERER,
    header::SERVER,
    header::USER_AGENT,
];

/// A host as it is compared: lower case, without port, without one trailing dot. What is no host at all should have been
/// refused before; it is compared as well as it can be, so that a rule for `secret.com` does not miss it.
pub(super) fn canonical_host(host: &str) -> Cow<'_, str> {
    authority::canonical_host(host).unwrap_or_else(|_| {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        Cow::Owned(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
    })
}

/// A pattern over hosts. A port in it (`example.com:8080`, `example.com:*`) is dropped, as it is from the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostPattern {
    text: String,
    pub(super) pattern: TextPattern,
}

impl HostPattern {
    /// Whether a host in canonical form is meant.
    pub(super) fn matches(&self, host: &str) -> bool {
        self.pattern.matches(host)
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let without_port = text.strip_suffix(":*").unwrap_or(text);
        let pattern = match TextPattern::parse(without_port)? {
            TextPattern::Exact(host) => TextPattern::Exact(canonical_host(&host).into_owned()),
            // The end of a name is no name yet: only its port and its dot go.
            TextPattern::Suffix(end) => {
                let end = end.split_once(':').map_or(&*end, |(end, _)| end);
                TextPattern::Suffix(end.strip_suffix('.').unwrap_or(end).to_ascii_lowercase())
            }
            TextPattern::Prefix(start) => TextPattern::Prefix(start.to_ascii_lowercase()),
            TextPattern::Present => TextPattern::Present,
        };
        match &pattern {
            TextPattern::Exact(rest) | TextPattern::Suffix(rest) if rest.is_empty() => {
                Err(format!("{text:?} names no host"))
            }
            _ => Ok(Self { text: text.to_owned(), pattern }),
        }
    }

    pub(super) fn text(&self) -> String {
        self.text.clone()
    }
}

/// A pattern over paths, or a template such as `/shop/{*}/orders/{**}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathPattern {
    Text(TextPattern),
    Template(Template),
}

/// A path in segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    text: String,
    /// The segments in front of `{**}`, or all; `None` is `{*}`.
    head: Vec<Option<String>>,
    /// What must stand at the end after `{**}`, with its leading slash or empty; `None` without `{**}`.
    tail: Option<String>,
}

impl PathPattern {
    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(pattern) => pattern.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.contains(ONE) || text.contains(REST) {
            check_length(text)?;
            return Template::parse(text).map(Self::Template);
        }
        if text.contains(['{', '}']) {
            return Err(format!("path {text:?}: braces stand only in the templates {ONE} and {REST}"));
        }
        TextPattern::parse(text).map(Self::Text)
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(pattern) => pattern.text(),
            Self::Template(template) => template.text.clone(),
        }
    }
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("path template {text:?}: {why}"));
        let Some(path) = text.strip_prefix('/') else { return bad("it must begin with a `/`") };
        let mut head = Vec::new();
        let mut tail: Option<String> = None;
        for segment in path.split('/') {
            match (segment, &mut tail) {
                (ONE | REST, Some(_)) => return bad("`{**}` must be the last operator"),
                (ONE, None) => head.push(None),
                (REST, None) => tail = Some(String::new()),
                (literal, _) if literal.contains(['*', '{', '}']) => {
                    return bad("a segment is `{*}`, `{**}` or plain text without `*`, `{` and `}`");
                }
                (literal, Some(tail)) => {
                    tail.push('/');
                    tail.push_str(literal);
                }
                (literal, None) => head.push(Some(literal.to_owned())),
            }
        }
        Ok(Self { text: text.to_owned(), head, tail })
    }

    /// The text in front of the first operator: every path that matches begins with it.
    pub(super) fn literal(&self) -> &str {
        &self.text[..self.text.find('{').unwrap_or(self.text.len())]
    }

    fn matches(&self, path: &str) -> bool {
        let Some(mut left) = path.strip_prefix('/') else { return false };
        for (index, wanted) in self.head.iter().enumerate() {
            let is_last = index + 1 == self.head.len() && self.tail.is_none();
            let segment = match left.split_once('/') {
                Some(_) if is_last => return false,
                Some((segment, rest)) => {
                    left = rest;
                    segment
                }
                None if is_last => left,
                None => return false,
            };
            let met = match wanted {
                Some(literal) => segment == literal,
                None => !segment.is_empty(),
            };
            if !met {
                return false;
            }
        }
        self.tail.as_ref().is_none_or(|tail| left.ends_with(tail.as_str()))
    }
}

/// Who a JWT speaks for: a pattern over the issuer and one over the subject, divided at the last `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestPrincipal {
    text: String,
    pub(super) issuer: TextPattern,
    pub(super) subject: TextPattern,
}

impl RequestPrincipal {
    pub(super) fn matches(&self, issuer: &str, subject: &str) -> bool {
        self.issuer.matches(issuer) && self.subject.matches(subject)
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (issuer, subject) = match (text.rsplit_once('/'), TextPattern::parse(text)?) {
            (Some((issuer, subject)), _) if !issuer.is_empty() && !subject.is_empty() => {
                (TextPattern::parse(issuer)?, TextPattern::parse(subject)?)
            }
            (None, TextPattern::Present) => (TextPattern::Present, TextPattern::Present),
            (None, issuer @ TextPattern::Prefix(_)) => (issuer, TextPattern::Present),
            (None, subject @ TextPattern::Suffix(_)) => (TextPattern::Present, subject),
            _ => {
                return Err(format!(
                    "{text:?} is not a request principal; write `<issuer>/<subject>`, divided at the last `/`"
                ));
            }
        };
        Ok(Self { text: text.to_owned(), issuer, subject })
    }

    pub(super) fn text(&self) -> String {
        self.text.clone()
    }
}

/// `[a][b]` of `request.auth.claims[a][b]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClaimPath(pub(super) Vec<String>);

impl ClaimPath {
    /// Reads `[a][b]…`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        let names: Vec<String> = inner.split("][").map(str::to_owned).collect();
        names.iter().all(|n| !n.is_empty() && !n.contains(['[', ']'])).then_some(Self(names))
    }

    /// Whether the claim is a text that matches, or a list that holds one. `scope` and `permission` are lists in one text,
    /// divided by spaces (RFC 8693 §4.2).
    pub(super) fn matches(&self, claims: &Map<String, Value>, pattern: &TextPattern) -> bool {
        let Some((first, rest)) = self.0.split_first() else { return false };
        let found = claims.get(first).and_then(|claim| rest.iter().try_fold(claim, |at, name| at.get(name)));
        match found {
            Some(Value::String(text)) => {
                let words = rest.is_empty() && matches!(first.as_str(), "scope" | "permission");
                pattern.matches(text) || (words && text.split(' ').any(|word| pattern.matches(word)))
            }
            Some(Value::Array(list)) => {
                list.iter().filter_map(Value::as_str).any(|text| pattern.matches(text))
            }
            _ => false,
        }
    }
}

/// The values that a header is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Values {
    pub(super) patterns: Vec<TextPattern>,
    /// Whether every line must match, or one is enough. Every one where a match admits, so that nothing is smuggled in
    /// beside a good value; one where a match refuses.
    pub(super) every: bool,
}

impl Values {
    pub(super) fn match_lines(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        let is_list = !NO_LISTS.contains(name);
        let mut lines = headers.get_all(name).iter().map(|value| value.as_bytes()).peekable();
        if self.every {
            lines.peek().is_some() && lines.all(|line| self.whole_line_matches(line, is_list))
        } else {
            lines.any(|line| self.some_of_line_matches(line, is_list))
        }
    }

    /// A star does not reach over the comma of a list: every element must match then.
    fn whole_line_matches(&self, line: &[u8], is_list: bool) -> bool {
        let elements = || elements(line).all(|e| self.patterns.iter().any(|p| p.matches_bytes(e)));
        self.patterns.iter().any(|pattern| {
            let reaches = matches!(pattern, TextPattern::Prefix(_) | TextPattern::Suffix(_));
            pattern.matches_bytes(line) && (!reaches || !is_list || !line.contains(&b',') || elements())
        })
    }

    fn some_of_line_matches(&self, line: &[u8], is_list: bool) -> bool {
        let any = |text: &[u8]| self.patterns.iter().any(|p| p.matches_bytes(text));
        any(line) || (is_list && line.contains(&b',') && elements(line).any(any))
    }
}

/// The elements of a list (RFC 9110 §5.6.1).
fn elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

text_schema!(HostPattern, PathPattern, RequestPrincipal);
