//! The answers that this proxy gives itself: each a word of a closed set, with a status, and for gRPC a status of its own.

use ::http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use ::http::{HeaderMap, StatusCode};

use super::headers::GRPC_STATUS;
use super::{Body, Response};

/// The denial's id, by which both sides can ask about it.
pub const DENIAL: HeaderName = HeaderName::from_static("x-postern-denial");

/// Whose fault it is that a request was not answered by the one it was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words say it")]
pub enum Blame {
    Downstream,
    Upstream,
    Local,
}

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal, $status:literal, $blame:ident;)+) => {
        /// Why this proxy answered a request itself; closed, so that it can label a metric.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Fault { $($(#[doc = $doc])+ $variant,)+ }

        impl Fault {
            /// Every fault, in order of declaration; `Fault as usize` is an index into it.
            pub const ALL: &'static [Fault] = &[$(Fault::$variant,)+];

            /// The word that stands in logs, labels and answers.
            pub const fn as_str(self) -> &'static str {
                match self { $(Fault::$variant => $word,)+ }
            }

            /// The status of the answer.
            pub fn status(self) -> StatusCode {
                let code: u16 = match self { $(Fault::$variant => $status,)+ };
                StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// Whose fault it is.
            pub const fn blame(self) -> Blame {
                match self { $(Fault::$variant => Blame::$blame,)+ }
            }

            /// Whether what follows on an HTTP/1 connection is not read: its sender does not mean what it says.
            const fn ends_connection(self) -> bool {
                matches!(self, Fault::BadRequest | Fault::BadBody | Fault::Method | Fault::UriTooLong)
            }
        }
    };
}

faults! {
    /// Framing, method, target or headers that mean more than one thing.
    BadRequest = "bad_request", 400, Downstream;
    /// The request's body broke off or was framed wrongly.
    BadBody = "bad_body", 400, Downstream;
    /// A method that is not carried: CONNECT, TRACE.
    Method = "method_not_allowed", 405, Downstream;
    /// A target of more than 8 KiB.
    UriTooLong = "uri_too_long", 414, Downstream;
    /// Policy says no.
    Denied = "denied", 403, Downstream;
    /// A token that does not hold, or none where one is needed.
    Unauthenticated = "unauthenticated", 401, Downstream;
    /// The host is not one of this connection's.
    Misdirected = "misdirected", 421, Downstream;
    /// No route leads there.
    NoRoute = "no_route", 404, Downstream;
    /// More requests than the rate limit lets through.
    RateLimited = "rate_limited", 429, Downstream;
    /// A limit on requests or connections to the upstream is reached.
    Overload = "overload", 503, Local;
    /// This proxy holds no identity, or no policy.
    NotReady = "not_ready", 503, Local;
    /// The service is unknown or has no endpoint.
    NoEndpoint = "no_endpoint", 503, Upstream;
    /// No connection to app or endpoint.
    Unreachable = "unreachable", 503, Upstream;
    /// The endpoint did not prove the expected identity, or refused ours.
    Handshake = "handshake_failed", 503, Upstream;
    /// The connection broke before the answer.
    Reset = "upstream_reset", 502, Upstream;
    /// The answer broke a rule of HTTP.
    BadAnswer = "bad_answer", 502, Upstream;
    /// No answer in time.
    Timeout = "upstream_timeout", 504, Upstream;
    /// Keys to judge a token by could not be had.
    KeysUnavailable = "keys_unavailable", 503, Upstream;
    /// A fault on this side.
    Internal = "internal", 500, Local;
}

/// A fault and the sentence for the log.
#[derive(Debug)]
pub struct Refusal {
    /// The word.
    pub fault: Fault,
    /// The sentence; it holds no bytes that a peer chose.
    pub detail: String,
    /// The denial's id, where policy decided.
    pub denial: Option<String>,
    /// How to come with a token that holds, where that is what is missing (RFC 9110 §11.6.1).
    pub challenge: Option<&'static str>,
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(fault: Fault, detail: impl Into<String>) -> Self {
        Self { fault, detail: detail.into(), denial: None, challenge: None }
    }

    /// The answer, with the denial's id where `tells_id`. A gRPC client gets its own kind (trailers only, status 200), as it understands no other.
    pub fn answer(&self, grpc: bool, tells_id: bool) -> Response {
        let mut response = Response::new(Body::default());
        let headers = response.headers_mut();
        let denial = self.denial.as_deref().filter(|_| tells_id);
        if let Some(denial) = denial.and_then(|d| HeaderValue::from_str(d).ok()) {
            headers.insert(DENIAL, denial);
        }
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from_static(grpc_status(self.fault)));
            headers.insert("grpc-message", HeaderValue::from_static(self.fault.as_str()));
            return response;
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.fault.ends_connection() {
            // HTTP/2, whose streams stand each for itself, has no such header: the library leaves it out there.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        *response.status_mut() = self.fault.status();
        *response.body_mut() = Body::whole(format!("{}\n", self.fault.as_str()));
        response
    }
}

/// Whether a request is one of gRPC's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// gRPC over HTTP/2, "HTTP2 status code to gRPC status code".
fn grpc_status(fault: Fault) -> &'static str {
    match fault.status().as_u16() {
        _ if fault == Fault::Timeout => "4", // DEADLINE_EXCEEDED
        400 => "13",                         // INTERNAL
        401 => "16",                         // UNAUTHENTICATED
        403 => "7",                          // PERMISSION_DENIED
        404 | 405 => "12",                   // UNIMPLEMENTED
        429 | 502 | 503 | 504 => "14",       // UNAVAILABLE
        _ => "2",                            // UNKNOWN
    }
}
