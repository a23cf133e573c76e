//! The app's own connections, out over mTLS: what do they speak, which endpoint, is it exactly the expected peer.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use postern_config::file::proxy::Protocol;
use tokio::net::TcpStream;

use crate::dial::{self, Miss};
use crate::discover::Upstream;
use crate::finish::{self, Socketed};
use crate::http::{self, sniff};
use crate::relay::relay;
use crate::telemetry::{Direction, Outcome, Record};
use crate::tls::{Alpn, Failure, Stream, received_alert};
use crate::upstream::rate::RateLimit;
use crate::worker::open::{Counting, Open};
use crate::worker::{Job, Worker};

/// How many endpoints one connection may try: a dead one must not fail it, a dead service must not hold it.
const MAX_TRIES: usize = 4;

/// The way out that an outbound listener is.
#[derive(Debug)]
pub struct Exit {
    /// Whom it is for.
    pub to: Destination,
    /// What the app speaks.
    pub protocol: Protocol,
    /// How many requests it takes.
    pub rate: Option<Arc<RateLimit>>,
}

/// Whom an outbound listener is for.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A service by name; the control plane says where it is.
    Service(Arc<str>),
    /// A fixed upstream.
    Fixed(Arc<Upstream>),
}

impl Destination {
    /// What it is called.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Service(name) => name,
            Self::Fixed(upstream) => &upstream.name,
        }
    }

    /// Its endpoints and expected identity as they are now.
    pub fn upstream(&self, worker: &Worker) -> Option<Arc<Upstream>> {
        match self {
            Self::Service(name) => worker.shared.snapshots.services.load().of(name).cloned(),
            Self::Fixed(upstream) => Some(Arc::clone(upstream)),
        }
    }
}

/// Carries one connection of the app to its end.
pub async fn serve(worker: &Rc<Worker>, open: &Open, job: Box<Job>, exit: &Exit) {
    let mut record = Record::new(Direction::Outbound, job.source, Arc::clone(exit.to.name()));
    let metrics = Arc::clone(&worker.shared.telemetry.metrics);
    metrics.open(Direction::Outbound).inc();
    let accepted = job.accepted;
    let _held = job.connection;
    record.outcome = match TcpStream::from_std(job.tcp) {
        Err(_) => finish::refused(&mut record, &Failure::internal("the socket cannot be registered")),
        // Boxed, each: a connection needs room for what it is, and no more.
        Ok(app) if exit.protocol == Protocol::Tcp => {
            Box::pin(bytes(worker, open, app, &exit.to, &mut record)).await
        }
        Ok(app) => look(worker, open, app, exit, &mut record).await,
    };
    (record.bytes_up, record.bytes_down) = open.bytes();
    record.duration = accepted.elapsed();
    metrics.open(Direction::Outbound).dec();
    worker.shared.telemetry.finish(record);
}

/// Tells by the first bytes what the app speaks.
async fn look(worker: &Rc<Worker>, open: &Open, app: TcpStream, exit: &Exit, record: &mut Record) -> Outcome {
    let limits = &worker.shared.limits;
    let limit = if exit.protocol == Protocol::Auto { limits.detect_timeout } else { limits.keep_alive };
    let looked = open.unless_closed(pin!(sniff::look(app, limit.as_duration()))).await;
    let (app, guess) = match looked {
        Err(cause) => return cause.into(),
        Ok(Err(error)) => {
            record.detail = Some(format!("broken off: {}", error.kind()));
            return Outcome::Broken;
        }
        Ok(Ok(looked)) => looked,
    };
    match (guess, exit.protocol) {
        (sniff::Guess::Http(version), _) => {
            Box::pin(http::outbound::serve(worker, open, app, version, exit, record)).await
        }
        (_, Protocol::Auto) => {
            if guess == sniff::Guess::Unknown {
                worker.shared.telemetry.metrics.detect_timeouts.inc();
            }
            Box::pin(bytes(worker, open, app, &exit.to, record)).await
        }
        // The library's own answer to what is no HTTP is the right one: 400.
        (sniff::Guess::Other, _) => {
            Box::pin(http::outbound::serve(worker, open, app, http::Version::Http1, exit, record)).await
        }
        (sniff::Guess::Unknown, _) => Outcome::IdleTimeout,
    }
}

/// Relays the app's bytes to an endpoint.
async fn bytes(
    worker: &Worker,
    open: &Open,
    app: impl Socketed,
    to: &Destination,
    record: &mut Record,
) -> Outcome {
    let upstream = to.upstream(worker);
    let connecting = connect(worker, open, upstream.as_deref(), record);
    let connected = open.unless_closed(pin!(connecting)).await;
    match connected.unwrap_or_else(|cause| Err(cause.into())) {
        Err(outcome) => {
            app.reset();
            outcome
        }
        Ok((tls, endpoint)) => {
            open.note(|about| about.target = Arc::clone(&endpoint));
            let outcome = carry(worker, open, app, tls, record).await;
            worker.balance.borrow_mut().closed(&endpoint);
            outcome
        }
    }
}

/// Finds an endpoint that answers and proves the expected identity; skips those that do not.
pub(crate) async fn connect(
    worker: &Worker,
    open: &Open,
    upstream: Option<&Upstream>,
    record: &mut Record,
) -> Result<(Stream, Arc<str>), Outcome> {
    let Some(upstream) = upstream else {
        record.detail = Some("the control plane knows no service of this name".to_owned());
        return Err(Outcome::NoEndpoint);
    };
    let mut tried: Vec<Arc<str>> = Vec::new();
    let mut outcome = Outcome::NoEndpoint;
    while tried.len() < MAX_TRIES {
        let Some(endpoint) = dial::pick(worker, &upstream.endpoints, &tried) else { break };
        record.target = Arc::clone(&endpoint);
        match dial::peer(worker, open, upstream, &endpoint, Alpn::Tcp).await {
            Ok(secured) => {
                worker.balance.borrow_mut().opened(&endpoint);
                record.handshake = Some(secured.took);
                record.peer = secured.subject.id().cloned();
                // What an endpoint before this one failed by is in the metrics; this connection did not.
                (record.reason, record.detail) = (None, None);
                return Ok((secured.tls, endpoint));
            }
            // No endpoint is to blame.
            Err(Miss::NoIdentity(failure)) => return Err(finish::refused(record, &failure)),
            Err(Miss::Unreachable(why)) => record.detail = Some(format!("{endpoint}: {why}")),
            Err(Miss::Full(over)) => record.detail = Some(over.to_string()),
            Err(Miss::Refused(failure)) => outcome = finish::refused(record, &failure),
        }
        worker.balance.borrow_mut().failed(&endpoint, worker.uptime());
        tried.push(endpoint);
    }
    if record.detail.is_none() {
        record.detail = Some("the service has no endpoint".to_owned());
    }
    Err(outcome)
}

async fn carry(
    worker: &Worker,
    open: &Open,
    mut app: impl Socketed,
    mut tls: Stream,
    record: &mut Record,
) -> Outcome {
    let metrics = &worker.shared.telemetry.metrics;
    let progress = Counting { open, counters: metrics.bytes(Direction::Outbound) };
    tokio::select! {
        biased;
        cause = open.closed() => {
            tls.reset();
            app.reset();
            cause.into()
        }
        end = relay(&mut app, &mut tls, &progress) => match refusal(&end, open) {
            Some(failure) => {
                metrics.handshake_failed(Direction::Outbound, failure.reason);
                tls.reset();
                app.reset();
                finish::refused(record, &failure)
            }
            None => finish::ended(end, &tls, &app, record),
        },
    }
}

/// The server's refusal of our certificate. In TLS 1.3 it arrives after our side of the handshake, in place of the first
/// data; an alert behind data is something else.
fn refusal(end: &io::Result<()>, open: &Open) -> Option<Failure> {
    let (_, answered) = open.bytes();
    end.as_ref().err().filter(|_| answered == 0).and_then(received_alert)
}
