//! Foreign servers under the rig's engine: mutual TLS by OpenSSL and by nginx.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use postern_loadtest::drive::{self, Load, Outcome, Plan, Reason, Tls};
use postern_loadtest::mesh::{Directory, Process, free_port, until};
use postern_loadtest::scenario::{Protocol, Scenario};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::support::SOON;

/// A CA with a server's and a client's certificate, as files.
pub(super) struct Pki {
    dir: PathBuf,
}

impl Pki {
    pub(super) fn new(dir: &Path) -> Self {
        let pki = Self { dir: dir.to_owned() };
        for ca in ["ca", "other"] {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.distinguished_name.push(DnType::CommonName, ca);
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            fs::write(pki.path(&format!("{ca}.pem")), certificate.pem()).unwrap();
            let issuer = Issuer::new(params, key);
            for leaf in ["server", "client"] {
                let mut params = CertificateParams::new([format!("{leaf}.test")]).unwrap();
                params.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
                let key = KeyPair::generate().unwrap();
                let certificate = params.signed_by(&key, &issuer).unwrap();
                fs::write(pki.path(&format!("{ca}-{leaf}.pem")), certificate.pem()).unwrap();
                fs::write(pki.path(&format!("{ca}-{leaf}.key")), key.serialize_pem()).unwrap();
            }
        }
        pki
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What the rig shows and believes, as servers are compared.
    pub(super) fn client(&self) -> Tls {
        Tls::new(self.path("ca.pem"))
            .with_identity(self.path("ca-client.pem"), self.path("ca-client.key"))
            .expecting_name("server.test")
            .fair()
    }
}

pub(super) fn listens(address: SocketAddr) {
    until(SOON, || TcpStream::connect(address).ok()).expect("it listens");
}

/// `openssl s_server` that wants a certificate and answers HTTP with a page of its own, one connection at a time.
pub(super) fn openssl(pki: &Pki, more: &[&str]) -> (Process, SocketAddr) {
    let address = free_port().unwrap();
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-tls1_3", "-www", "-Verify", "2", "-verify_return_error"]);
    command.args(["-accept", &address.to_string()]).args(more);
    for (flag, file) in [("-cert", "ca-server.pem"), ("-key", "ca-server.key"), ("-CAfile", "ca.pem")] {
        command.arg(flag).arg(pki.path(file));
    }
    let process = Process::spawn("openssl", command, &pki.dir).unwrap();
    listens(address);
    (process, address)
}

/// nginx with two workers that wants a certificate and answers with ten bytes.
pub(super) fn nginx(pki: &Pki) -> (Process, SocketAddr) {
    let address = free_port().unwrap();
    let dir = pki.dir.display();
    let config = format!(
        "daemon off; worker_processes 2; pid {dir}/nginx.pid; error_log {dir}/nginx.err;
         events {{ worker_connections 512; }}
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
           uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
           server {{ listen {address} ssl http2; ssl_certificate {dir}/ca-server.pem; ssl_certificate_key {dir}/ca-server.key;
             ssl_client_certificate {dir}/ca.pem; ssl_verify_client on; ssl_protocols TLSv1.3; ssl_session_tickets off;
             location = /missing {{ return 404; }}
             location / {{ return 200 0123456789; }} }} }}"
    );
    fs::write(pki.path("nginx.conf"), config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(pki.path("nginx.conf")).arg("-p").arg(&pki.dir);
    let process = Process::spawn("nginx", command, &pki.dir).unwrap();
    listens(address);
    (process, address)
}

/// A short closed loop.
pub(super) fn short(target: SocketAddr, tls: Option<Tls>, scenario: Scenario) -> Plan {
    let mut plan = Plan::new(target, tls, scenario);
    plan.load = Load::Closed { clients: 4 };
    (plan.warm_up, plan.duration) = (Duration::from_millis(100), Duration::from_millis(500));
    // Nothing here asks how fast this machine is.
    plan.deadline = Duration::from_secs(20);
    plan.threads = Some(2);
    plan
}

pub(super) fn run(plan: &Plan) -> Outcome {
    let outcome = drive::run(plan, |_| {}).unwrap();
    let sum: u64 = outcome.over_time.iter().map(|b| b.succeeded + b.failed).sum();
    assert_eq!(sum, outcome.due, "no operation is lost between two stretches: {outcome:?}");
    assert_eq!(outcome.due, outcome.succeeded + outcome.failed());
    assert_eq!(outcome.latency.count, outcome.succeeded);
    let back: Outcome = serde_json::from_str(&serde_json::to_string(&outcome).unwrap()).unwrap();
    assert_eq!(
        (back.due, &back.failures, back.latency.count),
        (outcome.due, &outcome.failures, outcome.latency.count)
    );
    outcome
}

#[test]
fn handshakes_and_requests_against_openssl() {
    let dir = Directory::new().unwrap();
    let pki = Pki::new(dir.path());
    let (server, address) = openssl(&pki, &["-num_tickets", "0"]);
    let mut plan = short(address, Some(pki.client()), Scenario::ConnectRequest);
    plan.server_pids = vec![server.pid()];
    let outcome = run(&plan);
    assert!(outcome.succeeded > 0 && outcome.failed() == 0, "{:?} {:?}", outcome.failures, outcome.examples);
    assert_eq!(outcome.negotiated.version, "TLSv1_3");
    assert_eq!(outcome.negotiated.suite, "TLS13_AES_128_GCM_SHA256");
    assert_eq!(outcome.negotiated.kx, "X25519");
    assert_eq!(
        (outcome.handshakes, outcome.resumed),
        (outcome.requests, 0),
        "no handshake is saved unless asked"
    );
    let cost = outcome.cost.unwrap();
    assert!(cost.cpu_us_per_request.unwrap() > 0.0 && cost.rss_peak > 0 && cost.fds_peak > 0, "{cost:?}");

    let refused =
        run(&short(address, Some(Tls { cert: None, key: None, ..pki.client() }), Scenario::Handshake));
    assert_eq!(refused.succeeded, 0, "in TLS 1.3 it learns of the refusal after its own Finished");
    assert_eq!(refused.failures.keys().collect::<Vec<_>>(), [&Reason::Alert], "{:?}", refused.examples);
}

#[test]
fn every_protocol_against_nginx_with_the_cost_of_its_workers() {
    let dir = Directory::new().unwrap();
    let pki = Pki::new(dir.path());
    let (server, address) = nginx(&pki);
    let plan = |scenario| {
        let mut plan = short(address, Some(pki.client()), scenario);
        plan.server_pids = vec![server.pid()];
        plan
    };
    let handshakes = run(&plan(Scenario::Handshake));
    assert_eq!(handshakes.failed(), 0, "{:?}", handshakes.examples);
    let cost = handshakes.cost.unwrap();
    assert_eq!(cost.processes, 3, "the workers are the master's children");
    assert!(cost.cpu_us_per_handshake.unwrap() > 0.0, "{cost:?}");
    for (protocol, streams) in [(Protocol::H1, 1), (Protocol::H2, 1), (Protocol::H2, 4)] {
        let mut plan = plan(Scenario::Requests);
        (plan.protocol, plan.streams) = (protocol, streams);
        let outcome = run(&plan);
        assert!(outcome.succeeded > 10 && outcome.failed() == 0, "{protocol:?}: {:?}", outcome.examples);
        assert!(outcome.handshakes <= 8, "{protocol:?} keeps its connections: {}", outcome.handshakes);
        assert_eq!(outcome.bytes_received, outcome.requests * 10);
        let connect = run(&Plan { scenario: Scenario::ConnectRequest, ..plan });
        assert!(connect.succeeded > 0 && connect.failed() == 0, "{protocol:?}: {:?}", connect.examples);
        assert_eq!(connect.handshakes, connect.requests);
    }
    let mut open = plan(Scenario::Requests);
    (open.load, open.connections) = (Load::Open { rate: 400.0 }, 4);
    let outcome = run(&open);
    assert_eq!(
        (outcome.due, outcome.failed()),
        (200, 0),
        "400 a second for half a second: {:?}",
        outcome.examples
    );
}

#[test]
fn each_failure_has_its_word() {
    let dir = Directory::new().unwrap();
    let pki = Pki::new(dir.path());
    let (_server, address) = nginx(&pki);
    let words = |tls: Tls, target, scenario| {
        let outcome = run(&short(target, Some(tls), scenario));
        assert_eq!(outcome.succeeded, 0);
        assert!(outcome.examples.keys().eq(outcome.failures.keys()));
        outcome.failures.into_keys().collect::<Vec<_>>()
    };
    let good = || pki.client();
    let nobody = free_port().unwrap();
    assert_eq!(words(good(), nobody, Scenario::Handshake), [Reason::Refused]);
    let other_ca = Tls { ca: pki.path("other.pem"), ..good() };
    assert_eq!(words(other_ca, address, Scenario::Handshake), [Reason::UnknownIssuer]);
    assert_eq!(
        words(good().expecting_name("client.test"), address, Scenario::Handshake),
        [Reason::WrongIdentity]
    );
    let stranger = good().with_identity(pki.path("other-client.pem"), pki.path("other-client.key"));
    // nginx takes any certificate in the handshake and refuses the request.
    assert_eq!(words(stranger, address, Scenario::Requests), [Reason::Status]);
    let mut missing = short(address, Some(good()), Scenario::Requests);
    missing.path = "/missing".to_owned();
    let outcome = run(&missing);
    assert_eq!(outcome.failures.into_keys().collect::<Vec<_>>(), [Reason::Status]);
    assert_eq!(outcome.examples[&Reason::Status], "404");
}
