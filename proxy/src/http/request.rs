//! What a request asks for, in one spelling: policy, log and app read the same method, host and path (authorization.md §5, §7).

use ::http::header::HOST;
use ::http::request::Parts;
use ::http::uri::PathAndQuery;
use ::http::{HeaderValue, Method, Uri, Version};
use postern_config::http::authority::Authority;
use postern_config::http::path::{self, Rules};

use super::refuse::{Fault, Refusal};

/// The longest target that is carried; what apps commonly accept.
const MAX_TARGET: usize = 8 * 1024;

/// A checked request's target. The request itself holds it in the same spelling, its URI without scheme and authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The host in lower case, without port and trailing dot.
    pub host: String,
    /// The authority as it was sent: what the app gets as `Host`.
    pub authority: HeaderValue,
}

/// Checks a request and rewrites it into its one spelling; `rules` say how its path is normalised, none leaves it be.
pub fn check(parts: &mut Parts, rules: Option<Rules>) -> Result<Target, Refusal> {
    check_method(&parts.method)?;
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if path.len() > MAX_TARGET {
        return Err(Refusal::new(Fault::UriTooLong, "the target is longer than 8 KiB"));
    }
    if path == "*" && parts.method != Method::OPTIONS {
        return Err(bad("only OPTIONS may ask for `*`"));
    }
    let authority = authority(parts)?;
    let host = {
        let text = authority.to_str().map_err(|_| bad("the host holds a byte that no host has"))?;
        Authority::parse(text).map_err(|e| bad(&e.to_string()))?.host.into_owned()
    };
    parts.headers.insert(HOST, authority.clone());
    parts.uri = spelled(&parts.uri, rules)?;
    Ok(Target { host, authority })
}

/// CONNECT would make this proxy a relay to anywhere, TRACE echo headers that it adds itself.
fn check_method(method: &Method) -> Result<(), Refusal> {
    if *method == Method::CONNECT || *method == Method::TRACE {
        return Err(Refusal::new(Fault::Method, "CONNECT and TRACE are not carried"));
    }
    // Policies write methods in capitals; an app that reads `get` as GET would escape them.
    if !method.as_str().bytes().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')) {
        return Err(bad("the method is not written in capital letters"));
    }
    Ok(())
}

/// The one authority of a request (RFC 9112 §3.2, RFC 9113 §8.3.1): an absolute target's goes before `Host`.
fn authority(parts: &Parts) -> Result<HeaderValue, Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("more than one Host"));
    }
    let Some(own) = parts.uri.authority() else {
        return host.filter(|h| !h.is_empty()).cloned().ok_or_else(|| bad("no Host and no :authority"));
    };
    if !matches!(parts.uri.scheme_str(), None | Some("http" | "https")) {
        return Err(bad("the scheme is neither http nor https"));
    }
    if parts.version != Version::HTTP_2 && parts.uri.scheme().is_none() {
        return Err(bad("the target is a host alone, which only CONNECT may have"));
    }
    let differs = || host.is_some_and(|h| !h.as_bytes().eq_ignore_ascii_case(own.as_str().as_bytes()));
    if parts.version == Version::HTTP_2 && differs() {
        return Err(bad("Host is not the same as :authority"));
    }
    HeaderValue::from_str(own.as_str()).map_err(|_| bad("the authority holds a byte that none has"))
}

/// The target in origin form, its path normalised.
fn spelled(uri: &Uri, rules: Option<Rules>) -> Result<Uri, Refusal> {
    let raw = uri.path();
    let path = match rules {
        // An absolute target without a path means the root.
        _ if raw.is_empty() => "/".into(),
        Some(rules) => path::normalise(raw, rules).map_err(|e| bad(&e.to_string()))?,
        None => raw.into(),
    };
    // HTTP/2 could carry them; in the request line of HTTP/1 they would be bytes of which each reader thinks differently.
    if !uri.query().unwrap_or_default().bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad("the query holds a byte outside visible ASCII, which must be %-escaped"));
    }
    if path == raw && uri.authority().is_none() {
        return Ok(uri.clone());
    }
    let target = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    };
    target.parse().map_err(|_| bad("the target is no URI"))
}

fn bad(why: &str) -> Refusal {
    Refusal::new(Fault::BadRequest, why)
}
