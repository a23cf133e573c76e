//! The record of one connection: what is known about it when it ends, and its log line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_config::id::SpiffeId;
use postern_config::reason::Reason;

use super::Direction;

/// How a connection ended; closed, so that it can label a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the words say it; `as_str` is the documentation")]
pub enum Outcome {
    Completed,
    HandshakeFailed,
    Denied,
    AppUnreachable,
    NoEndpoint,
    Broken,
    IdleTimeout,
    TooSlow,
    BadRequest,
    PolicyChanged,
    PeerExpired,
    TrustChanged,
    Drained,
}

impl Outcome {
    /// Every outcome, in order of declaration; `Outcome as usize` is an index into it.
    pub const ALL: [Self; 13] = [
        Self::Completed,
        Self::HandshakeFailed,
        Self::Denied,
        Self::AppUnreachable,
        Self::NoEndpoint,
        Self::Broken,
        Self::IdleTimeout,
        Self::TooSlow,
        Self::BadRequest,
        Self::PolicyChanged,
        Self::PeerExpired,
        Self::TrustChanged,
        Self::Drained,
    ];

    /// The word in labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::HandshakeFailed => "handshake_failed",
            Self::Denied => "denied",
            Self::AppUnreachable => "app_unreachable",
            Self::NoEndpoint => "no_endpoint",
            Self::Broken => "broken",
            Self::IdleTimeout => "idle_timeout",
            Self::TooSlow => "too_slow",
            Self::BadRequest => "bad_request",
            Self::PolicyChanged => "policy_changed",
            Self::PeerExpired => "peer_expired",
            Self::TrustChanged => "trust_changed",
            Self::Drained => "drained",
        }
    }
}

/// Everything that is worth knowing about one finished connection.
#[derive(Debug)]
pub struct Record {
    /// Which way.
    pub direction: Direction,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was accepted.
    pub started: SystemTime,
    /// From accept to end.
    pub duration: Duration,
    /// Who connected here.
    pub source: SocketAddr,
    /// The app or endpoint that it was for.
    pub target: Arc<str>,
    /// The first name of the host that was called, at a gateway.
    pub host: Option<Arc<str>>,
    /// The peer's proven identity.
    pub peer: Option<SpiffeId>,
    /// How long the handshake took, where one ended.
    pub handshake: Option<Duration>,
    /// The closed reason of a failed handshake.
    pub reason: Option<Reason>,
    /// The sentence that goes with a failure or denial.
    pub detail: Option<String>,
    /// The id by which a denial can be asked about: a full ULID.
    pub denial: Option<String>,
    /// `<namespace>/<name>` of the policy that decided, and its rule.
    pub policy: Option<(Arc<str>, usize)>,
    /// The policy that an AUDIT rule belongs to, where one matched.
    pub audit: Option<Arc<str>>,
    /// Why policies that only try themselves out would have decided otherwise.
    pub dry_run: Option<String>,
    /// Bytes from the connecting side onward.
    pub bytes_up: u64,
    /// Bytes back to it.
    pub bytes_down: u64,
}

impl Record {
    /// A record of a connection that has just been accepted.
    pub fn new(direction: Direction, source: SocketAddr, target: Arc<str>) -> Self {
        Self {
            direction,
            outcome: Outcome::Completed,
            started: SystemTime::now(),
            duration: Duration::ZERO,
            source,
            target,
            host: None,
            peer: None,
            handshake: None,
            reason: None,
            detail: None,
            denial: None,
            policy: None,
            audit: None,
            dry_run: None,
            bytes_up: 0,
            bytes_down: 0,
        }
    }

    /// Whether its log line would be written at the level in force.
    pub(super) fn is_logged(&self) -> bool {
        tracing::enabled!(target: "connection", tracing::Level::INFO)
    }

    /// Writes the one structured log event of this connection.
    pub(super) fn log(&self) {
        let handshake_us = self.handshake.map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
        let duration_ms = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let (policy, rule) = match &self.policy {
            Some((policy, rule)) => (Some(&**policy), Some(*rule)),
            None => (None, None),
        };
        // One field list for every outcome: a reader may filter on any of them.
        tracing::info!(
            target: "connection",
            direction = self.direction.as_str(),
            outcome = self.outcome.as_str(),
            source = %self.source,
            target_address = %self.target,
            host = self.host.as_deref(),
            peer = self.peer.as_ref().map(SpiffeId::as_str),
            reason = self.reason.map(Reason::as_str),
            detail = self.detail.as_deref(),
            denial = self.denial.as_deref(),
            policy,
            rule,
            audit = self.audit.as_deref(),
            dry_run = self.dry_run.as_deref(),
            handshake_us,
            duration_ms,
            bytes_up = self.bytes_up,
            bytes_down = self.bytes_down,
            "{}",
            match self.outcome {
                Outcome::Denied => "denied",
                Outcome::HandshakeFailed => "handshake failed",
                _ => "connection",
            }
        );
    }
}
