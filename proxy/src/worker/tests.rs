//! A worker and its connections, over real sockets: what a peer that takes its time must not get.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::policy::{MtlsModes, Policy};
use postern_config::revocation::Revocations;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};

use super::*;
use crate::discover::Upstream;
use crate::listen::admission::Connections;
use crate::outbound::{Destination, Exit};
use crate::policy::CurrentPolicy;
use crate::snapshot::Trust;
use crate::telemetry::{self, Metrics};
use crate::tls::{ChainCounters, Credentials};

const ID: &str = "spiffe://worker.example/ns/a/sa/b";

/// One worker with an identity, a bundle and the default policy; peers use the same identity.
struct Rig {
    shared: Shared,
    kill: CancellationToken,
    handle: Handle,
    thread: std::thread::JoinHandle<()>,
    bundles: BundleSet,
}

fn rig() -> Rig {
    let mut root = CertificateParams::default();
    root.distinguished_name = DistinguishedName::new();
    root.distinguished_name.push(DnType::CommonName, "root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().unwrap();
    let chain = vec![leaf.signed_by(&key, &root).unwrap().der().clone()];
    let trust_domain: postern_config::id::TrustDomain = "worker.example".parse().unwrap();
    let bundle = TrustBundle::new(trust_domain.clone(), 1, [root.der().clone()]).unwrap();
    let bundles: BundleSet = [bundle].into_iter().collect();

    let snapshots = Arc::new(Snapshots::default());
    let limits = Limits::default();
    let metrics = Arc::new(Metrics::new(&snapshots, &Default::default()));
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let now = snapshots.clock.unix_time();
    let credentials = Credentials::new(chain, &key, &bundles, now).unwrap();
    snapshots.credentials.store(Some(Arc::new(credentials)));
    snapshots.trust.store(Arc::new(Trust { bundles: bundles.clone(), ..Trust::default() }));
    let policy = CurrentPolicy::new(Policy::compile(&[], trust_domain), MtlsModes::default(), &metrics);
    snapshots.policy.store(Some(Arc::new(policy)));
    let tls = Tls::new(Arc::clone(&snapshots), 1024, ChainCounters::default()).unwrap();
    let (telemetry, _) = telemetry::start(metrics, None).unwrap();
    let (drain, drain_outbound) = (CancellationToken::new(), CancellationToken::new());
    let shared = Shared {
        snapshots,
        tls,
        telemetry,
        limits: Arc::new(limits),
        http: Arc::default(),
        request_log: RequestLog::All,
        started: Instant::now(),
        drain,
        drain_outbound,
    };
    let kill = CancellationToken::new();
    let (handle, seat) = seat(0);
    let thread = seat.start(shared.clone(), kill.clone(), || std::future::ready(())).unwrap();
    Rig { shared, kill, handle, thread, bundles }
}

impl Rig {
    /// A connection for a worker, and its client's end.
    fn job(route: Route) -> (Job, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (tcp, source) = listener.accept().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let connections = Connections::new(10);
        let free = connections.free(route.direction());
        let connection = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(free);
        let accepted = Instant::now();
        (Job { tcp, source, route: Arc::new(route), accepted, connection, handshake: None }, client)
    }

    /// Hands the worker a connection; returns its client's end.
    fn connect(&self, route: Route) -> TcpStream {
        let (job, client) = Self::job(route);
        self.handle.send(job);
        client
    }

    /// Waits for the worker's end, which must not take long; returns the metrics.
    fn end(self) -> String {
        drop(self.handle);
        let begun = Instant::now();
        self.thread.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "the worker ended after {:?}", begun.elapsed());
        self.shared.telemetry.metrics.encode().unwrap()
    }
}

fn inbound(app: &TcpListener) -> Route {
    Route::Inbound(App::new(
        &app.local_addr().unwrap().to_string(),
        postern_config::file::proxy::Protocol::Tcp,
        &Default::default(),
    ))
}

/// A connection holds its future for as long as it lives: what is large and brief is boxed.
#[test]
fn the_future_of_a_connection_is_small() {
    let rig = rig();
    let worker = Rc::new(Worker::new(rig.shared.clone()));
    let open = worker.open.enter(None);
    let app = TcpListener::bind("127.0.0.1:0").unwrap();
    let (job, _client) = Rig::job(inbound(&app));
    let size = size_of_val(&along(worker, open, Box::new(job), Carried(Arc::default())));
    assert!(size <= 1280, "a connection takes {size} bytes");
    rig.end();
}

/// A certificate is verified when it comes, and the peer alone decides when it ends the handshake.
#[test]
fn a_revocation_that_comes_while_a_handshake_is_stalled_still_counts() {
    let rig = rig();
    let app = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut tcp = rig.connect(inbound(&app));
    let connector = rig.shared.tls.connector(ID.parse().unwrap()).unwrap();
    // Small records, so that certificate and end of handshake come apart.
    let mut config = ClientConfig::clone(connector.client_config(crate::tls::Alpn::Tcp));
    config.max_fragment_size = Some(64);
    let name = ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into());
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    client.write_tls(&mut tcp).unwrap();
    while client.is_handshaking() {
        while client.wants_write() {
            client.write_tls(&mut tcp).unwrap();
        }
        client.read_tls(&mut tcp).unwrap();
        client.process_new_packets().unwrap();
    }
    let mut last_flight = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut last_flight).unwrap();
    }
    let (most, rest) = last_flight.split_at(last_flight.len() - 1);
    tcp.write_all(most).unwrap();
    // Gives the worker time to verify. Where it takes longer, it meets the revocation then, and this proves less.
    let (_silent, never) = std::sync::mpsc::channel::<()>();
    let _ = never.recv_timeout(Duration::from_millis(200));
    let revoked =
        Revocations { identities: [(ID.parse().unwrap(), i64::MAX)].into(), ..Revocations::default() };
    rig.shared.snapshots.trust.store(Arc::new(Trust { bundles: rig.bundles.clone(), revoked }));
    rig.shared.snapshots.announce_change();
    tcp.write_all(rest).unwrap();
    let _ = tcp.read_to_end(&mut Vec::new());
    app.set_nonblocking(true).unwrap();
    assert!(app.accept().is_err(), "a revoked peer reached the app");
    drop(tcp);
    let metrics = rig.end();
    let counted = r#"postern_handshakes_total{direction="inbound",result="failed",reason="revoked"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[test]
fn the_end_of_the_drain_ends_handshakes_too() {
    let rig = rig();
    // It accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = silent.local_addr().unwrap().to_string();
    let endpoints = std::slice::from_ref(&upstream);
    let upstream =
        Upstream::new(&rig.shared.tls, &upstream, ID.parse().unwrap(), endpoints, &Default::default())
            .unwrap();
    let outward = rig.connect(Route::Outbound(Exit {
        to: Destination::Fixed(Arc::new(upstream)),
        protocol: postern_config::file::proxy::Protocol::Tcp,
        rate: None,
    }));
    drop(silent.accept().map(|(tcp, _)| std::mem::forget(tcp)));
    let inward = rig.connect(inbound(&silent));
    rig.kill.cancel();
    let metrics = rig.end();
    for direction in ["inbound", "outbound"] {
        let counted = format!(r#"postern_connections_total{{direction="{direction}",outcome="drained"}} 1"#);
        assert!(metrics.contains(&counted), "{metrics}");
    }
    drop((inward, outward));
}
