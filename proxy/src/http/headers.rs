//! Headers at a hop: what ends here is removed (RFC 9110 §7.6.1, RFC 9113 §8.2.2), and so is what only a proxy may say.

use std::time::Duration;

use ::http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, Entry, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use ::http::{StatusCode, Version, request, response};
use postern_config::http::trace::TraceParent;

use super::refuse::{DENIAL, Fault, Refusal};

/// Who called, for the app.
pub const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// How a gRPC call ended, where its answer has no message.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHENTICATE: HeaderName = HeaderName::from_static("proxy-authenticate");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// A request id that is taken over from a caller is no longer than this.
const MAX_REQUEST_ID: usize = 128;
/// Headers with one of these beginnings are a proxy's alone, and no caller is one.
const OURS: [&str; 2] = ["x-postern-", "x-envoy-"];
/// What proxies say about where a request comes from; in no other spelling than this.
const FORWARDED: &str = "x-forwarded-";

/// End at every hop, beside what `Connection` names.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
];

/// Without these a message means something else, so `Connection` may not name them.
const ESSENTIAL: [HeaderName; 4] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, TE];

/// Removes from a request what ends at this hop; the protocol that it asks to switch to, if this proxy can carry that.
pub fn end_hop_of_request(
    parts: &mut request::Parts,
    has_body: bool,
) -> Result<Option<HeaderValue>, Refusal> {
    let headers = &mut parts.headers;
    let wants_trailers = names(headers, &TE, "trailers");
    let switch = (parts.version == Version::HTTP_11 && !has_body && names(headers, &CONNECTION, "upgrade"))
        .then(|| headers.get(UPGRADE).cloned())
        .flatten()
        .filter(|to| !to.is_empty() && !offers_http(headers));
    remove_named(headers)?;
    remove_all(headers, |name| HOP_BY_HOP.contains(name));
    remove(headers, &TE);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    Ok(switch)
}

/// Whether `Upgrade` names another version of HTTP, alone or among others: the next requests would be carried in a tunnel,
/// past everything that judges requests.
fn offers_http(headers: &HeaderMap) -> bool {
    let mut offers = headers.get_all(UPGRADE).iter().flat_map(|line| line.as_bytes().split(|b| *b == b','));
    offers.any(|offer| {
        let offer = offer.trim_ascii().to_ascii_lowercase();
        offer.starts_with(b"h2") || offer.starts_with(b"http")
    })
}

/// Why an answer means more than one thing, or something that nobody asked for; its text is for the log. `offered` are the
/// protocols that the request offered to switch to.
pub(super) fn flaw_of_answer<B>(
    answer: &::http::Response<B>,
    offered: Option<&HeaderValue>,
) -> Option<&'static str> {
    let headers = answer.headers();
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let chosen = headers.get(UPGRADE).map(HeaderValue::as_bytes).unwrap_or_default().trim_ascii();
        let mut offers = offered.iter().flat_map(|o| o.as_bytes().split(|b| *b == b','));
        // RFC 9110 §7.8. Not that the request of a tunnel was judged, but another one.
        return (!offers.any(|offer| offer.trim_ascii().eq_ignore_ascii_case(chosen)))
            .then_some("it switches to a protocol that it was not offered");
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        // RFC 9112 §6.3: what the two ends of it take for its end differs, and so does what follows.
        (Some(_), Some(_)) => Some("it has both content-length and transfer-encoding"),
        (Some(coding), None) => {
            let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
            (!chunked).then_some("it has a transfer-encoding other than `chunked`, once")
        }
        (None, Some(_)) => lengths.next().is_some().then_some("it has more than one content-length"),
        (None, None) => None,
    }
}

/// Removes from an answer what ends at this hop.
pub fn end_hop_of_answer(parts: &mut response::Parts) {
    let headers = &mut parts.headers;
    // An answer that cannot be cleaned as it asks is still cleaned of what every answer is.
    let _ = remove_named(headers);
    remove_all(headers, |name| HOP_BY_HOP.contains(name));
}

/// Says that this hop switches protocols.
pub(super) fn switch(headers: &mut HeaderMap, to: Option<HeaderValue>) {
    let Some(to) = to else { return };
    headers.insert(UPGRADE, to);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Removes what only this proxy may tell the app: every spelling of it that a CGI-like app would take for the same.
pub fn remove_spoofed(headers: &mut HeaderMap) {
    remove_all(headers, |name| is_ours(name.as_str()));
}

/// Removes from an app's answer what only this proxy may say.
pub fn remove_denial(headers: &mut HeaderMap) {
    remove(headers, &DENIAL);
}

/// Cleans trailers of what may only stand in a head (RFC 9110 §6.5.1).
pub(super) fn clean_trailers(trailers: &mut HeaderMap) {
    if trailers.is_empty() {
        return;
    }
    remove_spoofed(trailers);
    HOP_BY_HOP
        .iter()
        .chain(&ESSENTIAL)
        .chain([&TRAILER, &DENIAL, &XFCC])
        .for_each(|name| remove(trailers, name));
    for name in
        ["authorization", "cookie", "set-cookie", "content-type", "content-encoding", "x-forwarded-for"]
    {
        trailers.remove(name);
    }
}

/// A name that only a proxy may use, and any other spelling of one that is forwarded: CGI takes `_` for `-`.
fn is_ours(name: &str) -> bool {
    if !name.starts_with('x') {
        return false;
    }
    let begins = |ours: &str| {
        name.len() >= ours.len()
            && name.bytes().zip(ours.bytes()).all(|(a, b)| a == b || (a == b'_' && b == b'-'))
    };
    OURS.into_iter().any(begins) || (name.contains('_') && begins(FORWARDED))
}

/// Continues the caller's trace or begins one, and gives a request that has none an id.
pub fn trace(headers: &mut HeaderMap) {
    // These two and who called: the map would grow step by step.
    headers.reserve(3);
    let (trace_id, parent) = rand::random();
    let theirs = TraceParent::of(headers.get_all(TRACEPARENT).iter().map(HeaderValue::as_bytes));
    let trace = match theirs {
        Some(trace) => trace.child(parent),
        None => {
            headers.remove(&TRACESTATE);
            TraceParent::new(trace_id, parent, false)
        }
    };
    if let Ok(value) = HeaderValue::from_bytes(&trace.to_bytes()) {
        headers.insert(TRACEPARENT, of_one_request(value));
    }
    let known =
        |id: &HeaderValue| id.len() <= MAX_REQUEST_ID && id.as_bytes().iter().all(u8::is_ascii_graphic);
    let mut ids = headers.get_all(REQUEST_ID).iter();
    match (ids.next(), ids.next()) {
        (Some(id), None) if known(id) => {
            let id = of_one_request(id.clone());
            headers.insert(REQUEST_ID, id);
        }
        _ => {
            let mut text = [0; ulid::ULID_LEN];
            let id = ulid::Ulid::new();
            if let Ok(value) = HeaderValue::from_str(id.array_to_str(&mut text)) {
                headers.insert(REQUEST_ID, of_one_request(value));
            }
        }
    }
}

/// A value that no other request will have: HTTP/2 is told never to index it (RFC 7541 §6.2.3), or it would drive what comes
/// again out of both sides' tables.
fn of_one_request(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// The request's id, which [`trace`] has set.
pub fn request_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(REQUEST_ID)
}

/// How long a gRPC caller waits: digits and a unit (gRPC over HTTP/2, "Timeout").
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(&GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Joins the cookies that HTTP/2 may send apart: HTTP/1 has one line (RFC 9113 §8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let joined =
        headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

fn remove_named(headers: &mut HeaderMap) -> Result<(), Refusal> {
    if !headers.contains_key(CONNECTION) {
        return Ok(());
    }
    let mut named: Vec<HeaderName> = Vec::new();
    for line in headers.get_all(CONNECTION) {
        for token in line.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if token.is_empty()
                || token.eq_ignore_ascii_case(b"close")
                || token.eq_ignore_ascii_case(b"keep-alive")
            {
                continue;
            }
            named.extend(HeaderName::from_bytes(token));
        }
    }
    if named.iter().any(|n| ESSENTIAL.contains(n) && *n != TE) {
        return Err(Refusal::new(
            Fault::BadRequest,
            "Connection names a header without which the request is another",
        ));
    }
    named.iter().for_each(|name| remove(headers, name));
    Ok(())
}

/// Whether a comma-separated header holds `word`.
fn names(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers.get_all(name).iter().any(|line| {
        line.as_bytes().split(|b| *b == b',').any(|item| {
            let item = item.split(|b| *b == b';').next().unwrap_or_default();
            item.trim_ascii().eq_ignore_ascii_case(word.as_bytes())
        })
    })
}

/// Most messages have none of these, and asking of the names that are there costs less than looking up each that may be.
fn remove_all(headers: &mut HeaderMap, these: impl Fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| these(name)).cloned() {
        remove(headers, &name);
    }
}

fn remove(headers: &mut HeaderMap, name: &HeaderName) {
    if let Entry::Occupied(entry) = headers.entry(name) {
        entry.remove_entry_mult();
    }
}
