//! mTLS in: who is it, may it, then its bytes to the app. Read [`serve`] top-down; this is the whole way of a connection.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use postern_config::svid::Peer;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use crate::finish;
use crate::relay::relay;
use crate::telemetry::{Direction, Outcome, Record};
use crate::tls::{Failure, Stream};
use crate::worker::open::{Counting, Facts, Open, Subject};
use crate::worker::{Job, Worker};

/// Carries one accepted connection to its end.
pub async fn serve(worker: &Worker, open: &Open, job: Job, app: &Arc<str>, app_port: u16) {
    let mut record = Record::new(Direction::Inbound, job.source, Arc::clone(app));
    let gauge = worker.shared.telemetry.metrics.open(Direction::Inbound);
    gauge.inc();
    let accepted = job.accepted;
    let source = job.source;
    let _held = job.connection;
    let secured = secure(worker, job.tcp, accepted).await;
    drop(job.handshake);
    record.outcome = match secured {
        Err(failure) => {
            worker.shared.telemetry.metrics.handshake_failed(Direction::Inbound, failure.reason);
            finish::refused(&mut record, &failure)
        }
        Ok((tls, peer)) => {
            let took = accepted.elapsed();
            worker.shared.telemetry.metrics.handshake_ok(Direction::Inbound, took);
            record.handshake = Some(took);
            record.peer = Some(peer.id.clone());
            admit(worker, open, tls, peer, source, app, app_port, &mut record).await
        }
    };
    (record.bytes_up, record.bytes_down) = open.bytes();
    record.duration = accepted.elapsed();
    gauge.dec();
    worker.shared.telemetry.finish(record);
}

/// The handshake, under its deadline.
async fn secure(
    worker: &Worker,
    tcp: std::net::TcpStream,
    accepted: Instant,
) -> Result<(Stream, Peer), Failure> {
    if worker.shared.snapshots.usable_credentials().is_none() {
        return Err(Failure::no_identity());
    }
    let tcp = TcpStream::from_std(tcp).map_err(|_| Failure::internal("the socket cannot be registered"))?;
    let deadline = accepted + worker.shared.limits.handshake_timeout.as_duration();
    match timeout_at(deadline.into(), worker.shared.tls.accept(tcp)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::timeout()),
    }
}

/// Registers the connection, asks policy about it, and relays. Registered first: a push between the two would otherwise
/// miss it.
#[expect(clippy::too_many_arguments, reason = "the facts of one connection, each named")]
async fn admit(
    worker: &Worker,
    open: &Open,
    mut tls: Stream,
    peer: Peer,
    source: SocketAddr,
    app: &str,
    app_port: u16,
    record: &mut Record,
) -> Outcome {
    let local_ip = tls.get_ref().0.local_addr().map_or(source.ip(), |a| a.ip());
    let facts = Facts { source_ip: source.ip(), destination_ip: local_ip, destination_port: app_port };
    let question = facts.clone();
    let id = peer.id.clone();
    open.prove(Rc::new(Subject { peer, facts: Some(facts) }));
    let policy = worker.shared.snapshots.policy.load_full();
    let Some(policy) = policy else {
        finish::reset_tls(&tls);
        record.denial = Some(ulid::Ulid::new().to_string());
        record.detail = Some("no policy is held yet".to_owned());
        return Outcome::Denied;
    };
    let verdict = policy.decide(&question.of(&id));
    record.policy = policy.decider(&verdict);
    record.audit = policy.auditor(&verdict);
    if !verdict.allow {
        finish::reset_tls(&tls);
        record.denial = Some(ulid::Ulid::new().to_string());
        record.detail = Some(policy.policy().explain(&verdict));
        return Outcome::Denied;
    }
    let connect = TcpStream::connect(app);
    let mut plain =
        match tokio::time::timeout(worker.shared.limits.connect_timeout.as_duration(), connect).await {
            Ok(Ok(plain)) => plain,
            failed => {
                finish::reset_tls(&tls);
                let why = failed.map_or_else(
                    |_| "timed out".to_owned(),
                    |r| r.map_or_else(|e| e.to_string(), |_| String::new()),
                );
                record.detail = Some(format!("the app at {app} does not answer: {why}"));
                return Outcome::AppUnreachable;
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
