//! Who may call what. A method that does not stand in the table is denied.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use postern_config::enroll::EXPORTER_LEN;
use postern_config::file::Span;
use postern_config::file::control::SvidConfig;
use postern_config::id::TrustDomain;
use postern_config::svid::Peer;
use postern_config::svid::foreign::Certificate;
use tonic::Status;

/// The required caller of each method.
pub const TABLE: [(&str, Required); 5] = [
    ("/postern.control.v1.Control/Challenge", Required::Anonymous),
    ("/postern.control.v1.Control/Enroll", Required::Anonymous),
    ("/postern.control.v1.Control/Renew", Required::WorkloadOrLate),
    ("/postern.control.v1.Control/Watch", Required::Workload),
    ("/postern.control.v1.Control/FetchJwtSvid", Required::Workload),
];

/// Who a method is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Required {
    /// Somebody without a certificate: who has one renews.
    Anonymous,
    /// A workload of the own trust domain, by a certificate that is valid at the time of the call.
    Workload,
    /// The same, or one whose certificate ended within the [`Grace`] or lost its CA to a taint.
    WorkloadOrLate,
}

/// How long after its end a certificate may still be renewed, so that a proxy which was cut off for long comes back by
/// itself. Never longer than the certificate itself lived: an hour must not become a week.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    seconds: i64,
    backdate: i64,
}

impl Grace {
    /// By these terms.
    pub fn new(terms: &SvidConfig) -> Self {
        let seconds = |span: Span| i64::try_from(span.as_duration().as_secs()).unwrap_or(i64::MAX);
        Self { seconds: seconds(terms.grace), backdate: seconds(terms.backdate) }
    }

    /// Whether `peer`, whose certificate may have ended, is still within it at `now` (seconds since 1970).
    pub fn covers(self, peer: &Peer, now: i64) -> bool {
        let late = now.saturating_sub(peer.not_after);
        let lifetime = peer.not_after.saturating_sub(peer.not_before).saturating_sub(self.backdate);
        late <= self.seconds && late <= lifetime.max(0)
    }

    /// Whether there is any.
    pub fn is_off(self) -> bool {
        self.seconds == 0
    }
}

/// Whether a caller's certificate is good for everything that a workload may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Good,
    /// It ended, or the key of a CA above it is known to others: it may ask for the next one, if it is on record as it is.
    Last,
}

/// Who is on the other end of one TLS connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The proven identity, if a certificate was presented.
    pub peer: Option<Peer>,
    /// What a certificate of an existing PKI proves, if such a one was presented. It is good for [`Required::Anonymous`] alone.
    pub foreign: Option<Certificate>,
    /// How far that certificate is good.
    pub standing: Standing,
    /// The certificate itself, DER; empty if there is none.
    pub leaf: Vec<u8>,
    /// This connection's exporter, which an enrollment has to sign.
    pub exporter: [u8; EXPORTER_LEN],
    /// Where the connection comes from.
    pub remote: SocketAddr,
}

/// Whether a handler saw the request: what is refused before leaves no trace unless somebody notes it.
#[derive(Debug, Clone, Default)]
pub struct Reached(Arc<AtomicBool>);

impl Reached {
    /// The handler has it.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the handler had it.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Admits or denies a call of `method` at `now` (seconds since 1970).
///
/// The certificate's end is asked again for every call: a connection may outlive it.
pub fn admit(
    method: &str,
    peer: Option<(&Peer, Standing)>,
    own: &TrustDomain,
    grace: Grace,
    now: i64,
) -> Result<(), Status> {
    let required = TABLE.iter().find(|(name, _)| *name == method).map(|(_, required)| *required);
    match (required, peer) {
        (None, _) => Err(Status::permission_denied("no such method")),
        (Some(Required::Anonymous), None) => Ok(()),
        (Some(Required::Anonymous), Some(_)) => Err(Status::permission_denied(
            "this call is for callers without a certificate; call Renew instead",
        )),
        (Some(Required::Workload | Required::WorkloadOrLate), None) => {
            Err(Status::unauthenticated("this call needs a workload's certificate"))
        }
        (Some(required), Some((peer, standing))) => {
            if peer.id.trust_domain_str() != own.as_str() || peer.id.is_reserved() {
                return Err(Status::permission_denied("this identity may not call"));
            }
            if standing == Standing::Last && required != Required::WorkloadOrLate {
                return Err(Status::permission_denied("this certificate is good for a renewal alone"));
            }
            let late = required == Required::WorkloadOrLate && grace.covers(peer, now);
            if peer.not_after < now && !late {
                return Err(Status::unauthenticated("the certificate has expired"));
            }
            Ok(())
        }
    }
}
