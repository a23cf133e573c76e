//! mTLS in: who is it, what does it speak, may it. Read [`serve`] top-down; this is the whole way of a connection.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use postern_config::file::proxy::Protocol;
use postern_config::http::xfcc::Mode;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use crate::dial::{self, Miss};
use crate::finish;
use crate::http::introduce::Introduction;
use crate::http::{self, Version, sniff};
use crate::relay::relay;
use crate::telemetry::{Direction, Outcome, Record};
use crate::tls::{self, Alpn, Failure, Stream, Tcp};
use crate::worker::open::{Counting, Facts, Judged, Open, Subject};
use crate::worker::{Job, Worker};

/// The app behind an inbound listener.
#[derive(Debug, Clone)]
pub struct App {
    /// Where it listens, `host:port`.
    pub address: Arc<str>,
    /// The port among it, of which policies speak.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
}

/// What a secured connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Bytes,
    Http(Version),
    /// The peer agreed on nothing: its first bytes tell.
    Untold,
}

/// Carries one accepted connection to its end.
pub async fn serve(worker: &Rc<Worker>, open: &Open, job: Job, app: &App) {
    let mut record = Record::new(Direction::Inbound, job.source, Arc::clone(&app.address));
    let metrics = Arc::clone(&worker.shared.telemetry.metrics);
    let gauge = metrics.open(Direction::Inbound);
    gauge.inc();
    let accepted = job.accepted;
    let _held = job.connection;
    let secured = open.unless_closed(secure(worker, open, job.tcp, job.source, app, accepted)).await;
    drop(job.handshake);
    record.outcome = match secured {
        Err(cause) => cause.into(),
        Ok(Err(failure)) => {
            metrics.handshake_failed(Direction::Inbound, failure.reason);
            finish::refused(&mut record, &failure)
        }
        Ok(Ok((tls, caller, speech))) => {
            let took = accepted.elapsed();
            metrics.handshake_ok(Direction::Inbound, took);
            record.handshake = Some(took);
            record.peer = caller.subject.id().cloned();
            match speech {
                Speech::Bytes => admit(worker, open, tls, caller, app, &mut record).await,
                Speech::Http(version) => {
                    http::inbound::serve(worker, open, tls, version, caller, app, &mut record).await
                }
                Speech::Untold => untold(worker, open, tls, caller, app, &mut record).await,
            }
        }
    };
    (record.bytes_up, record.bytes_down) = open.bytes();
    record.duration = accepted.elapsed();
    gauge.dec();
    worker.shared.telemetry.finish(record);
}

/// Who is at the other end, and what policy is asked about it.
pub struct Caller {
    /// As the register of open connections has it.
    pub subject: Rc<Subject>,
    /// What policy is asked besides.
    pub facts: Facts,
    /// Where it comes from.
    pub source: std::net::SocketAddr,
    /// What the app is told of it.
    pub introduction: Introduction,
}

/// The handshake, under its deadline; whom it proves is registered with the facts that policy is asked about.
async fn secure(
    worker: &Worker,
    open: &Open,
    tcp: std::net::TcpStream,
    source: std::net::SocketAddr,
    app: &App,
    accepted: Instant,
) -> Result<(Stream, Caller, Speech), Failure> {
    if worker.shared.snapshots.usable_credentials().is_none() {
        return Err(Failure::no_identity());
    }
    let tcp = TcpStream::from_std(tcp).map_err(|_| Failure::internal("the socket cannot be registered"))?;
    let deadline = accepted + worker.shared.limits.handshake_timeout.as_duration();
    let local = tcp.local_addr().map_err(|_| Failure::internal("the socket does not know its address"))?;
    let alpn = match app.protocol {
        Protocol::Tcp => Alpn::Tcp,
        Protocol::Http | Protocol::Grpc => Alpn::Http,
        Protocol::Auto => Alpn::Any,
    };
    let accepting = timeout_at(deadline.into(), worker.shared.tls.accept(Tcp::from(tcp), alpn)).await;
    let (tls, peer) = accepting.unwrap_or_else(|_| Err(Failure::timeout()))?;
    let speech = match (tls::agreed(&tls), app.protocol) {
        (Some(tls::ALPN_H2), _) => Speech::Http(Version::Http2),
        (Some(tls::ALPN_HTTP1), _) => Speech::Http(Version::Http1),
        (Some(_), _) | (None, Protocol::Tcp) => Speech::Bytes,
        (None, _) => Speech::Untold,
    };
    let facts = Facts {
        source_ip: source.ip(),
        remote_ip: source.ip(),
        destination_ip: local.ip(),
        destination_port: app.port,
        admits_anonymous: false,
        sni: None,
    };
    let judged = match speech {
        Speech::Bytes => Judged::Connection(facts.clone()),
        Speech::Http(_) | Speech::Untold => Judged::ByRequest,
    };
    let subject = Rc::new(Subject { peer: Some(peer), judged });
    worker.prove(open, &subject).inspect_err(|_| finish::Socketed::reset(&tls))?;
    let introduction = match speech {
        Speech::Bytes => Introduction::default(),
        Speech::Http(_) | Speech::Untold => introduce(worker, &tls, &subject),
    };
    Ok((tls, Caller { subject, facts, source, introduction }, speech))
}

fn introduce(worker: &Worker, tls: &Stream, subject: &Subject) -> Introduction {
    let own = worker.shared.snapshots.credentials.load();
    let leaf = tls::peer_leaf(tls).zip(subject.peer.as_ref().map(|p| p.fingerprint));
    Introduction::new(Mode::SanitizeSet, own.as_ref().map(|c| c.id()), leaf)
}

/// A peer that agreed on no protocol: on an `http` listener it speaks HTTP of some version, on an `auto` one perhaps.
async fn untold(
    worker: &Rc<Worker>,
    open: &Open,
    tls: Stream,
    caller: Caller,
    app: &App,
    record: &mut Record,
) -> Outcome {
    let limits = &worker.shared.limits;
    let limit = match app.protocol {
        Protocol::Auto => limits.detect_timeout,
        _ => limits.head_timeout,
    };
    let looked = open.unless_closed(sniff::look(tls, limit.as_duration())).await;
    let (tls, guess) = match looked {
        Err(cause) => return cause.into(),
        Ok(Err(error)) => {
            record.detail = Some(format!("broken off: {}", error.kind()));
            return Outcome::Broken;
        }
        Ok(Ok(looked)) => looked,
    };
    match (guess, app.protocol) {
        (sniff::Guess::Http(version), _) => {
            http::inbound::serve(worker, open, tls, version, caller, app, record).await
        }
        (_, Protocol::Auto) => {
            if guess == sniff::Guess::Unknown {
                worker.shared.telemetry.metrics.detect_timeouts.inc();
            }
            let judged = Judged::Connection(caller.facts.clone());
            let peer = caller.subject.peer.clone();
            let caller = Caller { subject: Rc::new(Subject { peer, judged }), ..caller };
            open.prove(Rc::clone(&caller.subject));
            admit(worker, open, tls, caller, app, record).await
        }
        _ => {
            record.detail = Some("neither HTTP/1 nor HTTP/2, on a listener for HTTP".to_owned());
            Outcome::BadRequest
        }
    }
}

/// Asks policy about a connection that is registered, and relays. Registered first: a push between the two would
/// otherwise miss it.
async fn admit(
    worker: &Worker,
    open: &Open,
    mut tls: impl finish::Socketed,
    caller: Caller,
    app: &App,
    record: &mut Record,
) -> Outcome {
    let policy = worker.shared.snapshots.policy.load_full();
    let Some(policy) = policy else {
        tls.reset();
        record.denial = Some(ulid::Ulid::new().to_string());
        record.detail = Some("no policy is held yet".to_owned());
        return Outcome::Denied;
    };
    let verdict = policy.decide(&caller.facts.of(caller.subject.id()));
    record.policy = policy.decider(&verdict);
    record.audit = policy.auditor(&verdict);
    if !verdict.allow {
        tls.reset();
        record.denial = Some(ulid::Ulid::new().to_string());
        record.detail = Some(policy.policy().explain(&verdict));
        return Outcome::Denied;
    }
    open.note(|about| about.policy.clone_from(&record.policy));
    let mut plain = match open.unless_closed(dial::plain(worker, &app.address)).await {
        Ok(Ok(plain)) => plain,
        Ok(Err(miss)) => {
            tls.reset();
            let (Miss::Unreachable(why), address) = (miss, &app.address) else {
                return Outcome::AppUnreachable;
            };
            record.detail = Some(format!("the app at {address} does not answer: {why}"));
            return Outcome::AppUnreachable;
        }
        Err(cause) => {
            tls.reset();
            return cause.into();
        }
    };
    let metrics = &worker.shared.telemetry.metrics;
    let progress = Counting { open, counters: metrics.bytes(Direction::Inbound) };
    tokio::select! {
        // The wish to close goes first: a busy connection must not outrun it.
        biased;
        cause = open.closed() => {
            tls.reset();
            finish::reset(&plain);
            cause.into()
        }
        end = relay(&mut tls, &mut plain, &progress) => finish::ended(end, &tls, &plain, record),
    }
}
