//! The record of one request: what is known of it when its answer begins, and its log line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::{Method, StatusCode, Uri};
use postern_config::id::SpiffeId;

use super::Direction;

/// Everything that is worth knowing about one request. Neither its query nor its headers are: secrets travel there.
#[derive(Debug)]
pub struct Exchange {
    /// Which way.
    pub direction: Direction,
    /// When its head had come.
    pub started: SystemTime,
    /// From there to the answer's head.
    pub duration: Duration,
    /// Who connected here.
    pub source: SocketAddr,
    /// Its proven identity.
    pub peer: Option<SpiffeId>,
    /// The method.
    pub method: Method,
    /// The host in one spelling.
    pub host: String,
    /// The target in one spelling.
    pub uri: Uri,
    /// The address that answered, or that it was for.
    pub target: Arc<str>,
    /// The answer's status.
    pub status: StatusCode,
    /// Why this proxy answered itself, where it did.
    pub fault: Option<&'static str>,
    /// The sentence that goes with it.
    pub detail: Option<String>,
    /// The id by which a denial can be asked about: a full ULID.
    pub denial: Option<String>,
    /// `<namespace>/<name>` of the policy that decided, and its rule.
    pub policy: Option<(Arc<str>, usize)>,
    /// The policy that an AUDIT rule belongs to, where one matched.
    pub audit: Option<Arc<str>>,
    /// What the policies that only try themselves out would have said, where that differs.
    pub dry_run: Option<String>,
    /// `x-request-id`.
    pub request_id: Option<String>,
}

impl Exchange {
    /// Writes the one structured log event of this request.
    pub(super) fn log(&self) {
        let duration_us = u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX);
        let (policy, rule) = match &self.policy {
            Some((policy, rule)) => (Some(&**policy), Some(*rule)),
            None => (None, None),
        };
        // One field list for every answer: a reader may filter on any of them.
        tracing::info!(
            target: "request",
            direction = self.direction.as_str(),
            status = self.status.as_u16(),
            source = %self.source,
            target_address = %self.target,
            peer = self.peer.as_ref().map(SpiffeId::as_str),
            method = self.method.as_str(),
            host = self.host,
            path = self.uri.path(),
            reason = self.fault,
            detail = self.detail.as_deref(),
            denial = self.denial.as_deref(),
            policy,
            rule,
            audit = self.audit.as_deref(),
            dry_run = self.dry_run.as_deref(),
            request_id = self.request_id.as_deref(),
            duration_us,
            "{}",
            match self.fault {
                Some("denied") => "denied",
                Some(_) => "refused",
                None => "request",
            }
        );
    }
}
