//! Finds who answers a request: an endpoint, a connection, and another try where that is safe and worth it.
//!
//! What a failed try means for the request is [`retry::decide`]'s to say, and the upstream's [`Budget`] must allow it.
//! Bodies stream through, so there is none to send twice: only a request without one can be sent again once it was read.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::StatusCode;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::pool::{Key, Lease, Lost, Speaks};
use super::refuse::{Fault, Refusal};
use super::{Body, Request, Response, headers};
use crate::dial::{self, Miss};
use crate::discover::Upstream;
use crate::inbound::App;
use crate::upstream::budget::Budget;
use crate::upstream::circuit::{Circuit, Full, Permit, Resource};
use crate::upstream::outlier;
use crate::upstream::rate::RateLimit;
use crate::upstream::retry::{self, Decision, Failure};
use crate::worker::Worker;

mod switch;

pub use switch::{Far, Switched, switch};

/// Whom a request is for.
#[derive(Debug, Clone)]
pub enum To<'a> {
    /// The app beside this proxy.
    App(&'a App, Speaks),
    /// One of a service's endpoints.
    Service(&'a Arc<Upstream>),
}

impl To<'_> {
    fn name(&self) -> &Arc<str> {
        match self {
            Self::App(app, _) => &app.address,
            Self::Service(upstream) => &upstream.name,
        }
    }

    fn circuit(&self) -> &Arc<Circuit> {
        match self {
            Self::App(app, _) => &app.circuit,
            Self::Service(upstream) => &upstream.circuit,
        }
    }

    fn upstream(&self) -> Option<&Arc<Upstream>> {
        match self {
            Self::App(..) => None,
            Self::Service(upstream) => Some(upstream),
        }
    }
}

/// An answer, and who gave it.
pub struct Answer {
    /// The answer, cleaned for the way back.
    pub response: Response,
    /// The address that it came from.
    pub from: Arc<str>,
}

/// What an exchange holds until the last of its answer.
pub(super) struct Carried {
    worker: Rc<Worker>,
    endpoint: Option<Arc<str>>,
    _permit: Rc<Permit>,
}

impl Drop for Carried {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.endpoint {
            self.worker.balance.borrow_mut().closed(endpoint);
        }
    }
}

/// Sends a request on, within the time that its caller and the configuration give it.
pub async fn send(worker: &Rc<Worker>, to: &To<'_>, request: Box<Request>) -> Result<Answer, Refusal> {
    let configured = worker.shared.http.timeouts.request.map(|t| t.as_duration());
    let wanted = headers::grpc_timeout(request.headers());
    let Some(limit) = configured.into_iter().chain(wanted).min() else {
        return attempts(worker, to, request).await;
    };
    let deadline = Instant::now() + limit;
    match tokio::time::timeout_at(deadline.into(), attempts(worker, to, request)).await {
        Err(_) => Err(Refusal::new(Fault::Timeout, "no answer within the time for the whole request")),
        Ok(Err(refusal)) => Err(refusal),
        Ok(Ok(mut answer)) => {
            answer.response.body_mut().end_by(deadline);
            Ok(answer)
        }
    }
}

async fn attempts(worker: &Rc<Worker>, to: &To<'_>, mut request: Box<Request>) -> Result<Answer, Refusal> {
    let permit = Rc::new(to.circuit().take(Resource::Request).map_err(full)?);
    let settings = &worker.shared.http.retries;
    spend(worker, to, |budget, now| {
        budget.request(now);
        true
    });
    let method = request.method().clone();
    let body_broke = request.body_mut().watch();
    // What is left of a request that may have to be sent again: its head, where there is nothing else.
    let head = request.body().is_empty().then(|| copy(&request)).filter(|_| settings.attempts > 0);
    let mut request = Some(request);
    let mut tried: Vec<Arc<str>> = Vec::new();
    let mut retries = 0;
    loop {
        let sending = match request.take().or_else(|| head.as_deref().map(copy)) {
            Some(sending) => sending,
            None => {
                return Err(Refusal::new(Fault::Internal, "a request without a copy was to be sent again"));
            }
        };
        let key = next(worker, to, &tried)?;
        let tried_now = Arc::clone(&key.address);
        let (end, failure) = match attempt(worker, to, key, sending, &permit, &body_broke).await {
            // There is one app, and its answer is its answer: the caller's side knows of others.
            Try::Answered(answer) if to.upstream().is_none() => return Ok(answer),
            Try::Answered(answer) => {
                let status = answer.response.status();
                (Ok(answer), Failure::Answer(status))
            }
            Try::Unsent(back, refusal) => {
                request = Some(back);
                (Err(refusal), Failure::NotProcessed)
            }
            Try::Failed(refusal, failure) => (Err(refusal), failure),
            Try::Final(refusal) => return Err(refusal),
        };
        let body_taken = request.is_none() && head.is_none();
        let asked = retry::Request { method: &method, body_taken, answer_begun: false, retries };
        let Decision::Retry { after } = retry::decide(asked, failure, settings.attempts, rand::random())
        else {
            return end;
        };
        let requests = &worker.shared.telemetry.metrics.requests;
        if !spend(worker, to, Budget::spend) {
            requests.retries_over_budget.inc();
            return end;
        }
        drop(end);
        requests.retries.inc();
        retries += 1;
        tried.push(tried_now);
        if !after.is_zero() {
            tokio::time::sleep(after).await;
        }
    }
}

/// How one try ended.
#[expect(clippy::large_enum_variant, reason = "nearly every try is answered; a box would cost each of them")]
enum Try {
    Answered(Answer),
    /// Nothing was sent: here it is again.
    Unsent(Box<Request>, Refusal),
    Failed(Refusal, Failure),
    /// No other try could end otherwise.
    Final(Refusal),
}

async fn attempt(
    worker: &Rc<Worker>,
    to: &To<'_>,
    key: Key,
    request: Box<Request>,
    permit: &Rc<Permit>,
    body_broke: &Rc<Cell<bool>>,
) -> Try {
    let leased = match to.circuit().take(Resource::PendingRequest) {
        Ok(_waiting) => worker.pool.lease(worker, &key, to.upstream(), to.circuit()).await,
        Err(over) => Err(Miss::Full(over)),
    };
    let mut lease = match leased {
        Ok(lease) => lease,
        Err(miss) => {
            let refusal = refusal(&key.address, miss);
            if to.upstream().is_none() || matches!(refusal.fault, Fault::NotReady | Fault::Overload) {
                return Try::Final(refusal);
            }
            worker.balance.borrow_mut().failed(&key.address, worker.uptime());
            return Try::Unsent(request, refusal);
        }
    };
    let endpoint = to.upstream().map(|_| Arc::clone(&key.address));
    if let Some(endpoint) = &endpoint {
        worker.balance.borrow_mut().sent(endpoint);
    }
    let carried = Carried { worker: Rc::clone(worker), endpoint, _permit: Rc::clone(permit) };
    let begun = Instant::now();
    let sent = match worker.shared.http.timeouts.per_try {
        None => Some(lease.send(request).await),
        Some(limit) => timeout(limit.as_duration(), lease.send(request)).await.ok(),
    };
    match sent {
        Some(Ok(response)) => {
            if let Some(flaw) = headers::flaw_of_answer(&response, None) {
                learn(worker, to, &key.address, outlier::Answer::Bad, begun);
                let refusal = Refusal::new(Fault::BadAnswer, format!("{}: {flaw}", key.address));
                return Try::Failed(refusal, Failure::NoAnswer);
            }
            let response = pass_back(response, lease, carried);
            learn(worker, to, &key.address, outlier_answer(&response), begun);
            Try::Answered(Answer { response, from: key.address })
        }
        Some(Err(Lost::Unsent(back))) => {
            let refusal = Refusal::new(Fault::Reset, format!("{}: it closed its connection", key.address));
            Try::Unsent(back, refusal)
        }
        Some(Err(Lost::Sent(_))) if body_broke.get() => {
            Try::Final(Refusal::new(Fault::BadBody, "the request's body broke off or was framed wrongly"))
        }
        Some(Err(Lost::Sent(error))) => {
            learn(worker, to, &key.address, outlier::Answer::Bad, begun);
            let failure = if was_refused(&error) { Failure::NotProcessed } else { Failure::NoAnswer };
            Try::Failed(lost(&key.address, &error), failure)
        }
        None => {
            learn(worker, to, &key.address, outlier::Answer::Bad, begun);
            let why = format!("{}: no answer within the time for one try", key.address);
            Try::Failed(Refusal::new(Fault::Timeout, why), Failure::NoAnswer)
        }
    }
}

fn pass_back(response: ::http::Response<Incoming>, lease: Lease, carried: Carried) -> Response {
    let (mut parts, incoming) = response.into_parts();
    headers::end_hop_of_answer(&mut parts);
    let mut body = Body::streaming(incoming);
    body.hold(lease, carried);
    Response::from_parts(parts, body)
}

/// The next address to try.
fn next(worker: &Worker, to: &To<'_>, tried: &[Arc<str>]) -> Result<Key, Refusal> {
    match to {
        To::App(app, speaks) => Ok(Key { peer: None, address: Arc::clone(&app.address), speaks: *speaks }),
        To::Service(upstream) => {
            let picked = dial::pick(worker, &upstream.endpoints, tried)
                // All were tried: the first may have recovered.
                .or_else(|| dial::pick(worker, &upstream.endpoints, &[]));
            let address =
                picked.ok_or_else(|| Refusal::new(Fault::NoEndpoint, "the service has no endpoint"))?;
            Ok(Key { peer: Some(upstream.expected.clone()), address, speaks: Speaks::Mesh })
        }
    }
}

/// Takes one request out of a listener's rate.
pub fn within_rate(worker: &Worker, rate: Option<&RateLimit>) -> Result<(), Refusal> {
    let Some(rate) = rate else { return Ok(()) };
    let late = |after: Duration| {
        Refusal::new(Fault::RateLimited, format!("the next one passes in {} ms", after.as_millis()))
    };
    rate.take(worker.shared.uptime()).map_err(late)
}

/// Tells the balance how an endpoint did with a try begun at `begun`.
fn learn(worker: &Worker, to: &To<'_>, address: &Arc<str>, answer: outlier::Answer, begun: Instant) {
    let Some(upstream) = to.upstream() else { return };
    let (now, took) = (worker.uptime(), begun.elapsed());
    if worker.balance.borrow_mut().answered(address, &upstream.endpoints, answer, took, now) {
        worker.shared.telemetry.metrics.requests.ejections.inc();
        tracing::warn!(endpoint = &**address, service = &*upstream.name, "ejected after errors in a row");
    }
}

/// A gRPC error that comes without a message stands in the head; others are seen too late to matter here.
fn outlier_answer(response: &Response) -> outlier::Answer {
    let grpc = response.headers().get(&headers::GRPC_STATUS).and_then(|s| s.to_str().ok()?.parse().ok());
    match grpc {
        Some(status) if response.status() == StatusCode::OK => outlier::Answer::of_grpc(status),
        _ => outlier::Answer::of_status(response.status().as_u16()),
    }
}

/// The retry budget of an upstream at this worker.
fn spend(worker: &Worker, to: &To<'_>, act: impl FnOnce(&mut Budget, Duration) -> bool) -> bool {
    let mut budgets = worker.budgets.borrow_mut();
    if let Some(budget) = budgets.get_mut(to.name()) {
        return act(budget, worker.uptime());
    }
    let settings = &worker.shared.http.retries;
    let budget = Budget::new(settings.budget_percent, settings.min_per_second);
    act(budgets.entry(Arc::clone(to.name())).or_insert(budget), worker.uptime())
}

fn full(over: Full) -> Refusal {
    Refusal::new(Fault::Overload, over.to_string())
}

fn refusal(address: &str, miss: Miss) -> Refusal {
    match miss {
        Miss::Unreachable(why) => Refusal::new(Fault::Unreachable, format!("{address}: {why}")),
        Miss::Refused(failure) => {
            Refusal::new(Fault::Handshake, format!("{address}: {failure} ({})", failure.reason))
        }
        Miss::NoIdentity(failure) => Refusal::new(Fault::NotReady, failure.to_string()),
        Miss::Full(over) => full(over),
    }
}

fn lost(address: &str, error: &hyper::Error) -> Refusal {
    let fault = if error.is_parse() { Fault::BadAnswer } else { Fault::Reset };
    // The library's own text stops at "http2 error"; which one it is, and whose, its source says.
    let why = std::error::Error::source(error).map_or(String::new(), |source| format!(": {source}"));
    Refusal::new(fault, format!("{address}: {error}{why}"))
}

/// Whether the other side says that it has done nothing about the request: RFC 9113 §8.7, REFUSED_STREAM or a stream
/// beyond the last one of an orderly GOAWAY.
fn was_refused(error: &hyper::Error) -> bool {
    let h2 = std::error::Error::source(error).and_then(|e| e.downcast_ref::<h2::Error>());
    h2.is_some_and(|e| {
        e.is_remote()
            && (e.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR)))
    })
}

fn copy(request: &Request) -> Box<Request> {
    let mut copy = Box::new(Request::new(Body::default()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}
