//! What is noted about a request while it is answered: counted always, logged where it was refused or all are wanted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use ::http::{HeaderMap, HeaderValue, Method, Uri};
use postern_config::file::proxy::RequestLog;
use postern_config::id::SpiffeId;
use postern_config::policy::Verdict;

use super::forward::Answer;
use super::refuse::{Refusal, is_grpc};
use super::{Response, headers};
use crate::policy::CurrentPolicy;
use crate::telemetry::{Direction, Exchange};
use crate::worker::Worker;

/// One request's notes.
pub struct Note {
    begun: Instant,
    direction: Direction,
    grpc: bool,
    method: Method,
    uri: Uri,
    /// The host in one spelling, once it is known.
    pub host: String,
    /// The policy that decided, and its rule.
    pub policy: Option<(Arc<str>, usize)>,
    /// The policy whose AUDIT rule matched.
    pub audit: Option<Arc<str>>,
    /// What the policies on trial would have said, where that differs.
    pub dry_run: Option<String>,
    request_id: Option<HeaderValue>,
}

impl Note {
    /// Notes of a request whose head has come.
    pub fn new(direction: Direction, method: &Method, headers: &HeaderMap) -> Self {
        Self {
            begun: Instant::now(),
            direction,
            grpc: is_grpc(headers),
            method: method.clone(),
            uri: Uri::default(),
            host: String::new(),
            policy: None,
            audit: None,
            dry_run: None,
            request_id: None,
        }
    }

    /// Notes the target in its one spelling, and the request's id.
    pub fn sees(&mut self, uri: &Uri, headers: &HeaderMap) {
        self.uri = uri.clone();
        self.request_id = headers::request_id(headers).cloned();
    }

    /// Notes what policy said.
    pub fn decided(&mut self, policy: &CurrentPolicy, verdict: &Verdict) {
        self.policy = policy.decider(verdict);
        self.audit = policy.auditor(verdict);
        self.dry_run = policy.trial(verdict);
    }

    /// Counts and logs how the request was answered, and makes the answer of a refusal.
    pub fn finish(
        self,
        worker: &Worker,
        source: SocketAddr,
        peer: Option<&SpiffeId>,
        target: &Arc<str>,
        answered: Result<Answer, Refusal>,
    ) -> Response {
        let telemetry = &worker.shared.telemetry;
        let took = self.begun.elapsed();
        let (response, from, refusal) = match answered {
            Ok(answer) => (answer.response, Some(answer.from), None),
            Err(refusal) => {
                let answer = refusal.answer(self.grpc, worker.shared.http.denial_header);
                (answer, None, Some(refusal))
            }
        };
        // What a gRPC client reads as an error travels as 200; it counts as what it is.
        let status = refusal.as_ref().map_or(response.status(), |r| r.fault.status());
        telemetry.metrics.requests.answered(self.direction, status, refusal.as_ref().map(|r| r.fault), took);
        let wanted = refusal.is_some()
            || self.audit.is_some()
            || self.dry_run.is_some()
            || worker.shared.request_log == RequestLog::All;
        if wanted {
            let (fault, detail, denial) = match refusal {
                Some(Refusal { fault, detail, denial, .. }) => (Some(fault.as_str()), Some(detail), denial),
                None => (None, None, None),
            };
            telemetry.exchanged(Box::new(Exchange {
                direction: self.direction,
                started: SystemTime::now() - took,
                duration: took,
                source,
                peer: peer.cloned(),
                method: self.method,
                host: self.host,
                uri: self.uri,
                target: from.unwrap_or_else(|| Arc::clone(target)),
                status,
                fault,
                detail,
                denial,
                policy: self.policy,
                audit: self.audit,
                dry_run: self.dry_run,
                request_id: self.request_id.and_then(|id| Some(id.to_str().ok()?.to_owned())),
            }));
        }
        response
    }
}
