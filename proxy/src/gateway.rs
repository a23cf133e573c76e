//! The edge gateway: connections from outside, told apart by the name that they call, led to services of the mesh.
//!
//! # The life of a connection
//!
//! 1. [`arrive`]: the PROXY header, where the peer is a trusted load balancer; the ClientHello, read whole before anything is
//!    decided; the host of its name, or none. All of it under the handshake's deadline.
//! 2. The host's [`Way`]: TLS ends here with the host's own prebuilt config, or it is passed through ([`passthrough`]).
//! 3. Policy judges with the gateway as the workload, before anything is connected to.
//!
//! Hosts and routes are built once from the configuration; a host's TLS is replaced when its files change ([`files`]).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use postern_config::file::gateway::{self as config, EdgeProtocol, Network};
use postern_config::file::http::Http;
use postern_config::file::jwt::JwtProvider;
use postern_config::http::proxy_protocol::{self, Parsed};
use postern_config::reason::Reason;
use postern_config::svid::Names;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use crate::acme::storage::StorageError;
use crate::acme::{self, Acme, Challenges, Wanted};
use crate::finish::{self, Socketed as _};
use crate::http::Version;
use crate::http::introduce::Introduction;
use crate::jwt::Jwt;
use crate::jwt::refresh::{self, Pace};
use crate::snapshot::Snapshots;
use crate::sockets::rate_limit;
use crate::telemetry::{Direction, Metrics, Outcome, Record};
use crate::tls::edge::{self, ClientChain, Hello};
use crate::tls::{self, Failure, Stream, Tcp};
use crate::upstream::rate::RateLimit;
use crate::worker::open::{Anonymous, Facts, Open};
use crate::worker::{Job, Worker};

mod client;
mod files;
mod hosts;
mod passthrough;
mod requests;
mod route;

use client::Certificate;
pub use files::FilesError;
use files::{Files, Keeper};
pub use hosts::{Host, Hosts, Way};
use requests::Visitor;
pub use route::{Route, Routes};

/// The gateway of one configuration, loaded.
pub struct Gateway {
    /// Each listener's address and what is done there.
    pub fronts: Vec<(SocketAddr, Arc<Front>)>,
    keeper: Keeper,
    jwt: Jwt,
    providers: Vec<JwtProvider>,
    acme: Acme,
    snapshots: Arc<Snapshots>,
}

/// One listener: what is spoken there, and to whom it leads.
#[derive(Debug)]
pub struct Front {
    /// Its address, for the log, as long as a connection has no host.
    pub label: Arc<str>,
    /// What is spoken.
    pub protocol: EdgeProtocol,
    /// Networks whose connections begin with a PROXY header.
    trusted: Vec<Network>,
    /// For clients without SNI: the name that they are taken to have called, and its host.
    default: Option<(Arc<str>, Arc<Host>)>,
    hosts: Arc<Hosts>,
    /// Proxies whose entries in `X-Forwarded-For` are believed.
    pub trusted_hops: u8,
    /// How many requests it takes.
    pub rate: Option<Arc<RateLimit>>,
    /// Answers to ACME's questions.
    challenges: Arc<Challenges>,
}

impl Front {
    /// Whether connections from `ip` are a load balancer's, which says for whom it connects.
    pub fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(ip))
    }

    /// The host of a ClientHello, with the name that it was called by.
    fn called<'a>(&'a self, name: Option<&'a str>) -> Option<(&'a str, &'a Arc<Host>)> {
        let (name, host) = match name {
            Some(name) => (name, self.hosts.find(name)?),
            None => self.default.as_ref().map(|(name, host)| (&**name, host))?,
        };
        let served = match host.way {
            Way::Terminate(_) => self.protocol == EdgeProtocol::Https,
            Way::Service(_) | Way::Address(_) => true,
            Way::Plain => false,
        };
        served.then_some((name, host))
    }
}

impl Gateway {
    /// Reads every file and builds every host; nothing is listened on yet.
    pub fn load(
        config: &config::Gateway,
        http: &Http,
        snapshots: &Arc<Snapshots>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, LoadError> {
        let acme = Acme::new(&config.acme, &wanted(config), &metrics.acme, acme::Pace::default())?;
        let challenges = acme.challenges();
        let jwt = Jwt::new(&config.jwt, &metrics.jwt);
        let (mut hosts, mut kept) = (Hosts::default(), Vec::new());
        for host in &config.hosts {
            let loaded = host
                .certificate
                .is_some()
                .then(|| Files::load(host, issued(config, host), snapshots))
                .transpose()?;
            let (files, server) = loaded.unzip();
            let built = Arc::new(Host::new(host, server, jwt.rule(&host.jwt)));
            host.names.iter().for_each(|name| hosts.insert(name, Arc::clone(&built)));
            kept.extend(files.map(|files| (built, files)));
        }
        let hosts = Arc::new(hosts);
        let front = |listener: &config::EdgeListener| {
            let default = listener.default_host.as_ref().map(config::HostName::as_str);
            let front = Front {
                label: listener.listen.to_string().into(),
                protocol: listener.protocol,
                trusted: listener.proxy_protocol.iter().flat_map(|p| p.trusted.iter().copied()).collect(),
                default: default.and_then(|n| hosts.find(n).map(|h| (n.into(), Arc::clone(h)))),
                hosts: Arc::clone(&hosts),
                trusted_hops: config.trusted_hops,
                rate: rate_limit(http),
                challenges: Arc::clone(&challenges),
            };
            (listener.listen, Arc::new(front))
        };
        let fronts = config.listeners.iter().map(front).collect();
        let keeper = Keeper::new(kept, Arc::clone(snapshots), Arc::clone(metrics));
        let (providers, snapshots) = (config.jwt.clone(), Arc::clone(snapshots));
        Ok(Self { fronts, keeper, jwt, providers, acme, snapshots })
    }

    /// Takes changes of files into use, renews certificates and keeps issuers' keys fresh until `stop`; a future for a thread of its own.
    pub async fn keep(self, stop: tokio_util::sync::CancellationToken) -> std::io::Result<()> {
        let keys = refresh::run(&self.jwt, &self.providers, Pace::default(), &self.snapshots, stop.clone());
        let certificates = self.acme.run(&self.snapshots, stop.clone());
        let (kept, (), ()) = tokio::join!(self.keeper.run(stop), keys, certificates);
        kept
    }
}

/// Why a gateway cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A host's files are not good.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// What is kept of ACME cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The certificates that are ordered.
fn wanted(config: &config::Gateway) -> Vec<Wanted> {
    let of = |host: &config::Host| {
        let issuer = host.certificate.as_ref()?.acme.clone()?;
        Some(Wanted { issuer, names: host.names.iter().map(|name| name.as_str().to_owned()).collect() })
    };
    config.hosts.iter().filter_map(of).collect()
}

/// Where ACME keeps a host's certificate.
fn issued(config: &config::Gateway, host: &config::Host) -> Option<PathBuf> {
    let name = host.certificate.as_ref()?.acme.as_ref()?;
    let issuer = config.acme.iter().find(|issuer| issuer.name == *name)?;
    Some(acme::file(issuer, host.names.first()?.as_str()))
}

/// A connection with its host known, or with no need of one yet.
enum Arrival {
    /// TLS ended here.
    Secure(Box<Secured>),
    /// TLS that goes on: every byte that came, the name and its host.
    Through(Tcp, Arc<str>, Arc<Host>),
    /// Plain HTTP.
    Plain(Tcp),
    /// An ACME server that has got its answer.
    Answered,
}

/// A connection whose TLS ended here.
struct Secured {
    stream: Stream,
    /// The name that was called.
    name: Arc<str>,
    host: Arc<Host>,
    /// The host's TLS that took part in the handshake.
    server: Arc<edge::Server>,
}

/// Carries one accepted connection to its end.
pub async fn serve(worker: &Rc<Worker>, open: &Open, job: Box<Job>, front: &Arc<Front>) {
    let mut record = Record::new(Direction::Inbound, job.source, Arc::clone(&front.label));
    let metrics = Arc::clone(&worker.shared.telemetry.metrics);
    metrics.open(Direction::Inbound).inc();
    let accepted = job.accepted;
    let _held = job.connection;
    // Boxed: the handshake's state is large and gone once the connection carries data.
    let arriving = worker.turns.take(Box::pin(arrive(job.tcp, job.source, front)));
    let arrived = open.unless_closed(pin!(within_deadline(worker, accepted, arriving))).await;
    drop(job.handshake);
    record.outcome = match arrived {
        Err(cause) => cause.into(),
        Ok(Err(failure)) => {
            metrics.handshake_failed(Direction::Inbound, failure.reason);
            finish::refused(&mut record, &failure)
        }
        Ok(Ok((client, arrival))) => {
            let took = accepted.elapsed();
            if let Arrival::Secure(_) = arrival {
                metrics.handshake_ok(Direction::Inbound, took);
                record.handshake = Some(took);
            }
            onward(worker, open, arrival, (client, front), &mut record).await
        }
    };
    (record.bytes_up, record.bytes_down) = open.bytes();
    record.duration = accepted.elapsed();
    metrics.open(Direction::Inbound).dec();
    worker.shared.telemetry.finish(record);
}

/// Everything up to the host, under the handshake's deadline.
async fn within_deadline<T>(
    worker: &Worker,
    accepted: Instant,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let deadline = accepted + worker.shared.limits.handshake_timeout.as_duration();
    timeout_at(deadline.into(), work).await.unwrap_or_else(|_| Err(Failure::timeout()))
}

/// Reads what is needed to know the host: the client's address as trusted load balancers tell it, and the arrival.
async fn arrive(
    tcp: std::net::TcpStream,
    source: SocketAddr,
    front: &Front,
) -> Result<(SocketAddr, Arrival), Failure> {
    let mut tcp =
        TcpStream::from_std(tcp).map_err(|_| Failure::internal("the socket cannot be registered"))?;
    let (client, seen) = match front.trusts(source.ip()) {
        true => told(&mut tcp, source).await?,
        false => (source, Bytes::new()),
    };
    if front.protocol == EdgeProtocol::Http {
        return Ok((client, Arrival::Plain(Tcp::new(seen, tcp))));
    }
    let hello = Hello::read(tcp, &seen).await?;
    // A challenge that is not ours is a host's that is passed through, or nobody's.
    let challenge = hello.challenged().and_then(|name| front.challenges.tls_alpn(&name));
    if let Some(answer) = challenge {
        hello.answer(&answer).await?;
        return Ok((client, Arrival::Answered));
    }
    let Some((name, host)) = front.called(hello.server_name()) else {
        hello.refuse_name().await;
        return Err(Failure::new(
            Reason::UnknownHost,
            "no host of this gateway has the name that the client calls",
        ));
    };
    let (name, host) = (Arc::from(name), Arc::clone(host));
    let arrival = match &host.way {
        Way::Terminate(server) => {
            let server = server.load_full();
            let stream = hello.accept(&server).await?;
            Arrival::Secure(Box::new(Secured { stream, name, host, server }))
        }
        _ => Arrival::Through(hello.into_tcp(), name, host),
    };
    Ok((client, arrival))
}

/// A load balancer's header: for whom it connects, and what has been read behind it.
async fn told(tcp: &mut TcpStream, source: SocketAddr) -> Result<(SocketAddr, Bytes), Failure> {
    let mut bytes = BytesMut::new();
    loop {
        match proxy_protocol::parse(&bytes) {
            Ok(Parsed::Complete(header)) => {
                let rest = bytes.split_off(header.len).freeze();
                return Ok((header.addresses.map_or(source, |a| a.source), rest));
            }
            Ok(Parsed::Incomplete) => {}
            Err(why) => return Err(Failure::new(Reason::ProxyProtocol, why.to_string())),
        }
        // The parser refuses a header before it grows past a few kilobytes.
        if tcp.read_buf(&mut bytes).await? == 0 {
            return Err(Failure::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
        }
    }
}

/// Leads a connection on, now that its host is known.
async fn onward(
    worker: &Rc<Worker>,
    open: &Open,
    arrival: Arrival,
    (client, front): (SocketAddr, &Arc<Front>),
    record: &mut Record,
) -> Outcome {
    let peer = record.source.ip();
    record.source = client;
    let facts = |stream: &TcpStream, name: Option<&str>| {
        let local = stream.local_addr().ok()?;
        Some(Facts {
            source_ip: peer,
            remote_ip: client.ip(),
            destination_ip: local.ip(),
            destination_port: local.port(),
            // Whether the client needs a certificate its host has decided, by the handshake.
            anonymous: Anonymous::Always,
            sni: name.map(str::to_owned),
        })
    };
    // Boxed, each: a connection needs room for what it is, and no more.
    match arrival {
        Arrival::Answered => Outcome::Completed,
        Arrival::Through(tcp, name, host) => {
            record.host = Some(Arc::clone(&host.label));
            match facts(tcp.socket(), Some(&name)) {
                Some(facts) => Box::pin(passthrough::serve(worker, open, tcp, facts, &host, record)).await,
                None => Outcome::Broken,
            }
        }
        Arrival::Secure(secured) => {
            let Secured { stream, name, host, server } = *secured;
            record.host = Some(Arc::clone(&host.label));
            let Some(facts) = facts(stream.socket(), Some(&name)) else { return Outcome::Broken };
            let version = match tls::agreed(&stream) {
                Some(tls::ALPN_H2) => Version::Http2,
                _ => Version::Http1,
            };
            let chain = ClientChain::of(&stream);
            let own = worker.shared.snapshots.credentials.load();
            let leaf = chain.as_ref().map_or(&[][..], ClientChain::leaf);
            let names = || Names::of(leaf);
            let shown = chain.as_ref().map(|_| (tls::sha256(leaf), &names as _));
            let visitor = Visitor {
                front: Arc::clone(front),
                called: Some((name, host)),
                facts,
                source: client,
                introduction: worker.introduce(own.as_ref().map(|c| c.id()), shown),
                certificate: chain.map(|chain| Certificate::new(chain, server)),
            };
            Box::pin(requests::serve(worker, open, stream, version, visitor, record)).await
        }
        Arrival::Plain(tcp) => {
            let Some(facts) = facts(tcp.socket(), None) else { return Outcome::Broken };
            let visitor = Visitor {
                front: Arc::clone(front),
                called: None,
                facts,
                source: client,
                introduction: Introduction::default(),
                certificate: None,
            };
            Box::pin(requests::serve(worker, open, tcp, Version::Http1, visitor, record)).await
        }
    }
}
