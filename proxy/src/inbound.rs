//! mTLS in: who is it, may it, then its bytes to the app. Read [`serve`] top-down; this is the whole way of a connection.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

use crate::finish;
use crate::relay::relay;
use crate::telemetry::{Direction, Outcome, Record};
use crate::tls::{Alpn, Failure, Stream};
use crate::worker::open::{Counting, Facts, Open, Subject};
use crate::worker::{Job, Worker};

/// Carries one accepted connection to its end.
pub async fn serve(worker: &Worker, open: &Open, job: Job, app: &Arc<str>, app_port: u16) {
    let mut record = Record::new(Direction::Inbound, job.source, Arc::clone(app));
    let gauge = worker.shared.telemetry.metrics.open(Direction::Inbound);
    gauge.inc();
    let accepted = job.accepted;
    let _held = job.connection;
    let handshake = secure(worker, open, job.tcp, job.source, app_port, accepted);
    let secured = open.unless_closed(handshake).await;
    drop(job.handshake);
    record.outcome = match secured {
        Err(cause) => cause.into(),
        Ok(Err(failure)) => {
            worker.shared.telemetry.metrics.handshake_failed(Direction::Inbound, failure.reason);
            finish::refused(&mut record, &failure)
        }
        Ok(Ok((tls, subject))) => {
            let took = accepted.elapsed();
            worker.shared.telemetry.metrics.handshake_ok(Direction::Inbound, took);
            record.handshake = Some(took);
            record.peer = Some(subject.peer.id.clone());
            admit(worker, open, tls, &subject, app, &mut record).await
        }
    };
    (record.bytes_up, record.bytes_down) = open.bytes();
    record.duration = accepted.elapsed();
    gauge.dec();
    worker.shared.telemetry.finish(record);
}

/// The handshake, under its deadline; whom it proves is registered with the facts that policy is asked about.
async fn secure(
    worker: &Worker,
    open: &Open,
    tcp: std::net::TcpStream,
    source: SocketAddr,
    destination_port: u16,
    accepted: Instant,
) -> Result<(Stream, Rc<Subject>), Failure> {
    if worker.shared.snapshots.usable_credentials().is_none() {
        return Err(Failure::no_identity());
    }
    let tcp = TcpStream::from_std(tcp).map_err(|_| Failure::internal("the socket cannot be registered"))?;
    let deadline = accepted + worker.shared.limits.handshake_timeout.as_duration();
    let local = tcp.local_addr().map_err(|_| Failure::internal("the socket does not know its address"))?;
    let facts = Facts { source_ip: source.ip(), destination_ip: local.ip(), destination_port };
    let accepting = timeout_at(deadline.into(), worker.shared.tls.accept(tcp.into(), Alpn::Tcp)).await;
    let (tls, peer) = accepting.unwrap_or_else(|_| Err(Failure::timeout()))?;
    let subject = Rc::new(Subject { peer, facts: Some(facts) });
    worker.prove(open, &subject).inspect_err(|_| finish::reset_tls(&tls))?;
    Ok((tls, subject))
}

/// Asks policy about a connection that is registered, and relays. Registered first: a push between the two would
/// otherwise miss it.
async fn admit(
    worker: &Worker,
    open: &Open,
    mut tls: Stream,
    subject: &Subject,
    app: &str,
    record: &mut Record,
) -> Outcome {
    let policy = worker.shared.snapshots.policy.load_full();
    let (Some(policy), Some(facts)) = (policy, &subject.facts) else {
        finish::reset_tls(&tls);
        record.denial = Some(ulid::Ulid::new().to_string());
        record.detail = Some("no policy is held yet".to_owned());
        return Outcome::Denied;
    };
    let verdict = policy.decide(&facts.of(&subject.peer.id));
    record.policy = policy.decider(&verdict);
    record.audit = policy.auditor(&verdict);
    open.note(|about| about.policy.clone_from(&record.policy));
    if !verdict.allow {
        finish::reset_tls(&tls);
        record.denial = Some(ulid::Ulid::new().to_string());
        record.detail = Some(policy.policy().explain(&verdict));
        return Outcome::Denied;
    }
    let connect = timeout(worker.shared.limits.connect_timeout.as_duration(), TcpStream::connect(app));
    let mut plain = match open.unless_closed(connect).await {
        Ok(Ok(Ok(plain))) => plain,
        Ok(failed) => {
            finish::reset_tls(&tls);
            let why = failed.map_or_else(
                |_| "timed out".to_owned(),
                |r| r.map_or_else(|e| e.to_string(), |_| String::new()),
            );
            record.detail = Some(format!("the app at {app} does not answer: {why}"));
            return Outcome::AppUnreachable;
        }
        Err(cause) => {
            finish::reset_tls(&tls);
            return cause.into();
        }
    };
    finish::tune(&plain);
    let metrics = &worker.shared.telemetry.metrics;
    let progress = Counting { open, counters: metrics.bytes(Direction::Inbound) };
    tokio::select! {
        // The wish to close goes first: a busy connection must not outrun it.
        biased;
        cause = open.closed() => {
            finish::reset_both(&tls, &plain);
            cause.into()
        }
        end = relay(&mut tls, &mut plain, &progress) => finish::ended(end, &tls, &plain, record),
    }
}
