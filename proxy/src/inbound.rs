//! mTLS in: who is it, what does it speak, may it. Read [`serve`] top-down; this is the whole way of a connection.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use postern_config::file::http as http_config;
use postern_config::file::proxy::Protocol;
use postern_config::policy::MtlsMode;
use postern_config::reason::Reason;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use crate::dial::{self, Miss};
use crate::finish::{self, Socketed};
use crate::http::introduce::Introduction;
use crate::http::{self, Version, sniff};
use crate::relay::relay;
use crate::telemetry::{Direction, Outcome, Record};
use crate::tls::{self, Alpn, Failure, Stream, Tcp};
use crate::upstream::circuit::Circuit;
use crate::upstream::rate::RateLimit;
use crate::worker::open::{Anonymous, Counting, Facts, Judged, Open, Subject};
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
    /// Its own choice of what peers speak to it; a pushed PeerAuthentication goes before.
    pub mtls: MtlsMode,
    /// How much it is asked to do at once.
    pub circuit: Arc<Circuit>,
    /// How many requests it takes.
    pub rate: Option<Arc<RateLimit>>,
}

impl App {
    /// An app behind a strict listener, without a limit on its rate.
    pub fn new(address: &str, protocol: Protocol, circuit: &http_config::Circuit) -> Self {
        let port = address.rsplit_once(':').and_then(|(_, p)| p.parse().ok()).unwrap_or_default();
        let (circuit, mtls) = (Circuit::new(circuit), MtlsMode::Strict);
        Self { address: address.into(), port, protocol, mtls, circuit, rate: None }
    }
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Bytes,
    Http(Version),
    /// Nobody has agreed on anything: the first bytes tell.
    Untold,
}

/// A connection that may go on.
enum Entered {
    Secured(Stream, Box<Caller>, Speech),
    Plain(TcpStream, Box<Caller>, Speech),
}

/// Who is at the other end, and what policy is asked about it.
pub struct Caller {
    /// As the register of open connections has it.
    pub subject: Rc<Subject>,
    /// What policy is asked besides.
    pub facts: Facts,
    /// Where it comes from.
    pub source: SocketAddr,
    /// What the app is told of it.
    pub introduction: Introduction,
}

/// Carries one accepted connection to its end.
pub async fn serve(worker: &Rc<Worker>, open: &Open, job: Box<Job>, app: &App) {
    let mut record = Record::new(Direction::Inbound, job.source, Arc::clone(&app.address));
    let metrics = Arc::clone(&worker.shared.telemetry.metrics);
    let gauge = metrics.open(Direction::Inbound);
    gauge.inc();
    let accepted = job.accepted;
    let _held = job.connection;
    // Boxed: the handshake's state is large and gone once the connection carries data.
    let entering = Box::pin(enter(worker, open, job.tcp, job.source, app, accepted));
    let entered = open.unless_closed(entering).await;
    drop(job.handshake);
    record.outcome = match entered {
        Err(cause) => cause.into(),
        Ok(Err(failure)) => {
            metrics.handshake_failed(Direction::Inbound, failure.reason);
            finish::refused(&mut record, &failure)
        }
        Ok(Ok(Entered::Plain(tcp, caller, speech))) => {
            metrics.plaintext_connections.inc();
            converse(worker, open, tcp, caller, speech, app, &mut record).await
        }
        Ok(Ok(Entered::Secured(tls, caller, speech))) => {
            let took = accepted.elapsed();
            metrics.handshake_ok(Direction::Inbound, took);
            record.handshake = Some(took);
            record.peer = caller.subject.id().cloned();
            converse(worker, open, tls, caller, speech, app, &mut record).await
        }
    };
    (record.bytes_up, record.bytes_down) = open.bytes();
    record.duration = accepted.elapsed();
    gauge.dec();
    worker.shared.telemetry.finish(record);
}

/// Who is it: a handshake under its deadline, or plain text where the port takes that.
async fn enter(
    worker: &Worker,
    open: &Open,
    tcp: std::net::TcpStream,
    source: SocketAddr,
    app: &App,
    accepted: Instant,
) -> Result<Entered, Failure> {
    let tcp = TcpStream::from_std(tcp).map_err(|_| Failure::internal("the socket cannot be registered"))?;
    let local = tcp.local_addr().map_err(|_| Failure::internal("the socket does not know its address"))?;
    let facts = Facts {
        source_ip: source.ip(),
        remote_ip: source.ip(),
        destination_ip: local.ip(),
        destination_port: app.port,
        anonymous: Anonymous::Never,
        sni: None,
    };
    let mode = worker
        .shared
        .snapshots
        .policy
        .load()
        .as_ref()
        .map_or(app.mtls, |p| p.mtls_mode_or(app.port, app.mtls));
    let deadline = accepted + worker.shared.limits.handshake_timeout.as_duration();
    if mode != MtlsMode::Strict && is_plain(worker, &tcp, mode, app, deadline).await? {
        let facts = Facts { anonymous: Anonymous::WherePlainText(app.mtls), ..facts };
        let speech = if app.protocol == Protocol::Tcp { Speech::Bytes } else { Speech::Untold };
        let subject = Rc::new(Subject { peer: None, judged: judged(speech, &facts) });
        open.prove(Rc::clone(&subject));
        let introduction = worker.introduce(None, None);
        let caller = Box::new(Caller { subject, facts, source, introduction });
        return Ok(Entered::Plain(tcp, caller, speech));
    }
    if worker.shared.snapshots.usable_credentials().is_none() {
        return Err(Failure::no_identity());
    }
    let alpn = match app.protocol {
        Protocol::Tcp => Alpn::Tcp,
        Protocol::Http | Protocol::Grpc => Alpn::Http,
        Protocol::Auto => Alpn::Any,
    };
    let accepting = pin!(worker.shared.tls.accept(Tcp::from(tcp), alpn));
    let accepting = timeout_at(deadline.into(), worker.turns.take(accepting)).await;
    let (tls, peer) = accepting.unwrap_or_else(|_| Err(Failure::timeout()))?;
    let speech = match (tls::agreed(&tls), app.protocol) {
        (Some(tls::ALPN_H2), _) => Speech::Http(Version::Http2),
        (Some(tls::ALPN_HTTP1), _) => Speech::Http(Version::Http1),
        (Some(_), _) | (None, Protocol::Tcp) => Speech::Bytes,
        (None, _) => Speech::Untold,
    };
    let subject = Rc::new(Subject { peer: Some(peer), judged: judged(speech, &facts) });
    worker.prove(open, &subject).inspect_err(|_| tls.reset())?;
    let introduction = introduce(worker, &subject, speech);
    Ok(Entered::Secured(tls, Box::new(Caller { subject, facts, source, introduction }), speech))
}

/// Whether a peer of a port that takes plain text speaks it. TLS begins with the byte of a handshake record; a peer that
/// waits for the server to speak first speaks no TLS.
async fn is_plain(
    worker: &Worker,
    tcp: &TcpStream,
    mode: MtlsMode,
    app: &App,
    deadline: Instant,
) -> Result<bool, Failure> {
    /// RFC 8446 §5.1.
    const HANDSHAKE: u8 = 22;
    if mode == MtlsMode::Disable {
        return Ok(true);
    }
    let mut first = [0];
    let waits = matches!(app.protocol, Protocol::Tcp | Protocol::Auto);
    let patience = Instant::now() + worker.shared.limits.detect_timeout.as_duration();
    let until = if waits { deadline.min(patience) } else { deadline };
    match timeout_at(until.into(), tcp.peek(&mut first)).await {
        Ok(Ok(0)) => Err(Failure::new(Reason::Reset, "the connection was closed before its first byte")),
        Ok(peeked) => Ok(peeked.map_err(Failure::from)? > 0 && first != [HANDSHAKE]),
        Err(_) if waits => {
            worker.shared.telemetry.metrics.detect_timeouts.inc();
            Ok(true)
        }
        Err(_) => Err(Failure::timeout()),
    }
}

fn judged(speech: Speech, facts: &Facts) -> Judged {
    match speech {
        Speech::Bytes => Judged::Connection(facts.clone()),
        Speech::Http(_) | Speech::Untold => Judged::ByRequest(facts.clone()),
    }
}

/// Does what the connection is for.
async fn converse(
    worker: &Rc<Worker>,
    open: &Open,
    stream: impl Socketed + 'static,
    caller: Box<Caller>,
    speech: Speech,
    app: &App,
    record: &mut Record,
) -> Outcome {
    match speech {
        // Boxed, each: a connection needs room for what it is, and no more.
        Speech::Bytes => Box::pin(admit(worker, open, stream, &caller, app, record)).await,
        Speech::Http(version) => {
            Box::pin(http::inbound::serve(worker, open, stream, version, caller, app, record)).await
        }
        Speech::Untold => untold(worker, open, stream, caller, app, record).await,
    }
}

fn introduce(worker: &Worker, subject: &Subject, speech: Speech) -> Introduction {
    if speech == Speech::Bytes {
        return Introduction::default();
    }
    let own = worker.shared.snapshots.credentials.load();
    let names = || subject.peer.as_ref().map(|peer| peer.names.clone());
    let shown = subject.peer.as_ref().map(|peer| (peer.fingerprint, &names as _));
    worker.introduce(own.as_ref().map(|c| c.id()), shown)
}

/// A peer that agreed on no protocol: on an `http` listener it speaks HTTP of some version, on an `auto` one perhaps.
async fn untold(
    worker: &Rc<Worker>,
    open: &Open,
    stream: impl Socketed + 'static,
    mut caller: Box<Caller>,
    app: &App,
    record: &mut Record,
) -> Outcome {
    let limits = &worker.shared.limits;
    let limit = match app.protocol {
        Protocol::Auto => limits.detect_timeout,
        _ => limits.head_timeout,
    };
    let looked = open.unless_closed(pin!(sniff::look(stream, limit.as_duration()))).await;
    let (stream, guess) = match looked {
        Err(cause) => return cause.into(),
        Ok(Err(error)) => {
            record.detail = Some(format!("broken off: {}", error.kind()));
            return Outcome::Broken;
        }
        Ok(Ok(looked)) => looked,
    };
    match (guess, app.protocol) {
        (sniff::Guess::Http(version), _) => {
            Box::pin(http::inbound::serve(worker, open, stream, version, caller, app, record)).await
        }
        (_, Protocol::Auto) => {
            if guess == sniff::Guess::Unknown {
                worker.shared.telemetry.metrics.detect_timeouts.inc();
            }
            let judged = Judged::Connection(caller.facts.clone());
            let peer = caller.subject.peer.clone();
            caller.subject = Rc::new(Subject { peer, judged });
            open.prove(Rc::clone(&caller.subject));
            Box::pin(admit(worker, open, stream, &caller, app, record)).await
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
    mut stream: impl Socketed,
    caller: &Caller,
    app: &App,
    record: &mut Record,
) -> Outcome {
    if !worker.admits(&caller.facts, caller.subject.id(), record) {
        stream.reset();
        return Outcome::Denied;
    }
    open.note(|about| about.policy.clone_from(&record.policy));
    let dialled = open.unless_closed(pin!(dial::plain(worker, &app.address))).await;
    let mut plain = match dialled {
        Ok(Ok(plain)) => plain,
        Ok(Err(miss)) => {
            stream.reset();
            let (Miss::Unreachable(why), address) = (miss, &app.address) else {
                return Outcome::AppUnreachable;
            };
            record.detail = Some(format!("the app at {address} does not answer: {why}"));
            return Outcome::AppUnreachable;
        }
        Err(cause) => {
            stream.reset();
            return cause.into();
        }
    };
    let metrics = &worker.shared.telemetry.metrics;
    let progress = Counting { open, counters: metrics.bytes(Direction::Inbound) };
    tokio::select! {
        // The wish to close goes first: a busy connection must not outrun it.
        biased;
        cause = open.closed() => {
            stream.reset();
            finish::reset(&plain);
            cause.into()
        }
        end = relay(&mut stream, &mut plain, &progress) => finish::ended(end, &stream, &plain, record),
    }
}
