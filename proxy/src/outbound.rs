//! The app's own connections, out over mTLS: which endpoint, is it exactly the expected peer, then bytes.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

use crate::discover::Upstream;
use crate::finish;
use crate::relay::relay;
use crate::telemetry::{Direction, Outcome, Record};
use crate::tls::{Alpn, Failure, Stream, received_alert};
use crate::worker::open::{Counting, Open, Subject};
use crate::worker::{Job, Worker};

/// How many endpoints one connection may try: a dead one must not fail it, a dead service must not hold it.
const MAX_TRIES: usize = 4;

/// Carries one connection of the app to its end.
pub async fn serve(
    worker: &Worker,
    open: &Open,
    job: Job,
    service: &Arc<str>,
    upstream: Option<Arc<Upstream>>,
) {
    let mut record = Record::new(Direction::Outbound, job.source, Arc::clone(service));
    let metrics = Arc::clone(&worker.shared.telemetry.metrics);
    metrics.open(Direction::Outbound).inc();
    let accepted = job.accepted;
    let _held = job.connection;
    record.outcome = match TcpStream::from_std(job.tcp) {
        Err(_) => finish::refused(&mut record, &Failure::internal("the socket cannot be registered")),
        Ok(app) => {
            let connecting = connect(worker, open, upstream.as_deref(), &mut record);
            match open.unless_closed(connecting).await.unwrap_or_else(|cause| Err(cause.into())) {
                Err(outcome) => {
                    finish::reset(&app);
                    outcome
                }
                Ok((tls, endpoint)) => {
                    let outcome = carry(worker, open, app, tls, &mut record).await;
                    worker.balance.borrow_mut().closed(&endpoint);
                    outcome
                }
            }
        }
    };
    (record.bytes_up, record.bytes_down) = open.bytes();
    record.duration = accepted.elapsed();
    metrics.open(Direction::Outbound).dec();
    worker.shared.telemetry.finish(record);
}

/// Finds an endpoint that answers and proves the expected identity; skips those that do not.
async fn connect(
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
        let picked = worker
            .balance
            .borrow()
            .pick(&upstream.endpoints, &tried, worker.uptime(), rand::random())
            .cloned();
        let Some(endpoint) = picked else { break };
        if worker.shared.snapshots.usable_credentials().is_none() {
            // No endpoint is to blame.
            let failure = Failure::no_identity();
            worker.shared.telemetry.metrics.handshake_failed(Direction::Outbound, failure.reason);
            return Err(finish::refused(record, &failure));
        }
        record.target = Arc::clone(&endpoint);
        let begun = Instant::now();
        match secure(worker, open, upstream, &endpoint).await {
            Ok((tls, subject)) => {
                let took = begun.elapsed();
                worker.shared.telemetry.metrics.handshake_ok(Direction::Outbound, took);
                worker.balance.borrow_mut().opened(&endpoint);
                record.handshake = Some(took);
                record.peer = Some(subject.peer.id.clone());
                open.note(|about| about.target = Arc::clone(&endpoint));
                // What an endpoint before this one failed by is in the metrics; this connection did not.
                (record.reason, record.detail) = (None, None);
                return Ok((tls, endpoint));
            }
            Err(Unreachable(why)) => {
                record.detail = Some(format!("{endpoint}: {why}"));
                worker.balance.borrow_mut().failed(&endpoint, worker.uptime());
            }
            Err(Refused(failure)) => {
                worker.shared.telemetry.metrics.handshake_failed(Direction::Outbound, failure.reason);
                outcome = finish::refused(record, &failure);
                worker.balance.borrow_mut().failed(&endpoint, worker.uptime());
            }
        }
        tried.push(endpoint);
    }
    if record.detail.is_none() {
        record.detail = Some("the service has no endpoint".to_owned());
    }
    Err(outcome)
}

/// Why one endpoint could not be used.
enum Miss {
    /// No TCP connection.
    Unreachable(String),
    /// A TCP connection, but not to the expected peer.
    Refused(Failure),
}
use Miss::{Refused, Unreachable};

async fn secure(
    worker: &Worker,
    open: &Open,
    upstream: &Upstream,
    endpoint: &str,
) -> Result<(Stream, Rc<Subject>), Miss> {
    let limits = &worker.shared.limits;
    let tcp = match timeout(limits.connect_timeout.as_duration(), TcpStream::connect(endpoint)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(Unreachable(error.to_string())),
        Err(_) => return Err(Unreachable("no answer within the connect timeout".to_owned())),
    };
    finish::tune(&tcp);
    let peer_ip = tcp.peer_addr().map_err(|e| Unreachable(e.to_string()))?.ip();
    let deadline = Instant::now() + limits.handshake_timeout.as_duration();
    let connecting = timeout_at(deadline.into(), upstream.connector.connect(peer_ip, tcp, Alpn::Tcp)).await;
    let (tls, peer) = connecting.unwrap_or_else(|_| Err(Failure::timeout())).map_err(Refused)?;
    let subject = Rc::new(Subject { peer, facts: None });
    worker.prove(open, &subject).map_err(Refused)?;
    Ok((tls, subject))
}

async fn carry(
    worker: &Worker,
    open: &Open,
    mut app: TcpStream,
    mut tls: Stream,
    record: &mut Record,
) -> Outcome {
    let metrics = &worker.shared.telemetry.metrics;
    let progress = Counting { open, counters: metrics.bytes(Direction::Outbound) };
    tokio::select! {
        biased;
        cause = open.closed() => {
            finish::reset_both(&tls, &app);
            cause.into()
        }
        end = relay(&mut app, &mut tls, &progress) => match refusal(&end, open) {
            Some(failure) => {
                metrics.handshake_failed(Direction::Outbound, failure.reason);
                finish::reset_both(&tls, &app);
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
