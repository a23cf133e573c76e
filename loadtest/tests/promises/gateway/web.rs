//! HTTP through the gateway: three hosts with three rules for clients, names, routes, redirects, resumption.

use std::net::SocketAddr;
use std::path::Path;

use postern_loadtest::app::App;
use postern_loadtest::mesh::{Mesh, Sidecar};

use super::edge::{Ca, Pair, Seen, curl, s_client, start};
use crate::support::SOON;

/// A gateway with three hosts in front of one service, and everybody's certificates.
pub(crate) struct Stage {
    gateway: Sidecar,
    /// CA of the servers' certificates, as a file.
    trust: String,
    clients: Ca,
    strangers: Ca,
    _shop: Sidecar,
    app: App,
    mesh: Mesh,
}

impl Stage {
    /// `further` are lines of the host `a.example`.
    pub(crate) fn new(further: &str) -> Self {
        let mesh = Mesh::start().unwrap();
        let dir = mesh.dir().to_owned();
        let app = App::http("hello").unwrap();
        let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).protocol("http");
        let shop = mesh.server_with(shop).unwrap();
        let (servers, clients, strangers) = (Ca::new("servers"), Ca::new("clients"), Ca::new("strangers"));
        let ca = clients.file(&dir);
        let certificate = |name: &str, names: &[&str]| {
            let Pair { chain, key } = servers.server(&dir.join(name), names);
            format!("certificate: {{ chain: {}, key: {} }}", chain.display(), key.display())
        };
        clients.crl(&dir.join("clients.crl"), &[66]);
        let gateway = start(
            &mesh,
            &format!(
                "  listeners:
    - {{ listen: '127.0.0.1:0', protocol: https }}
    - {{ listen: '127.0.0.1:0', protocol: http }}
  hosts:
    - names: [a.example, '*.w.example']
      {}
      hsts: {{ max_age: 1d, include_subdomains: true }}
      {further}
      routes: [{{ service: shop }}]
    - names: [b.example]
      {}
      client_certificate: {{ mode: optional, ca: [{ca}] }}
      min_tls: '1.2'
      routes: [{{ service: shop }}]
    - names: [c.example]
      {}
      client_certificate: {{ mode: required, ca: [{ca}], crl: [{crl}] }}
      plain: refuse
      routes: [{{ service: shop }}]",
                certificate("a", &["a.example", "*.w.example"]),
                certificate("b", &["b.example"]),
                certificate("c", &["c.example"]),
                ca = ca.display(),
                crl = dir.join("clients.crl").display(),
            ),
        );
        let trust = servers.file(&dir).display().to_string();
        Self { gateway, trust, clients, strangers, _shop: shop, app, mesh }
    }

    /// Where the hosts are, over TLS.
    pub(crate) fn edge(&self) -> SocketAddr {
        self.gateway.gateway()[0]
    }

    /// The CA of the hosts' certificates, as a file.
    pub(crate) fn trust(&self) -> &str {
        &self.trust
    }

    /// Waits until a handshake has failed for this reason.
    pub(crate) fn wait_for_failures(&self, reason: &str) {
        let labels = [("direction", "inbound"), ("reason", reason)];
        self.gateway.wait_for_metric(SOON, |m| m.count("postern_handshakes_total", &labels) > 0).unwrap();
    }

    /// A place for files.
    pub(crate) fn dir(&self) -> &Path {
        self.mesh.dir()
    }

    fn client(&self, ca: &Ca, name: &str, serial: u64) -> Pair {
        ca.client(&self.mesh.dir().join(format!("client-{name}")), name, serial)
    }

    /// GET `/` of a host over TLS.
    fn get(&self, host: &str, client: Option<&Pair>, args: &[&str]) -> Seen {
        self.fetch(&format!("https://{host}/"), client, args)
    }

    fn fetch(&self, url: &str, client: Option<&Pair>, args: &[&str]) -> Seen {
        let mut all = vec!["--cacert", &self.trust];
        if let Some(pair) = client {
            all.extend(["--cert", pair.chain.to_str().unwrap(), "--key", pair.key.to_str().unwrap()]);
        }
        all.extend(args);
        curl(self.gateway.gateway()[0], url, &all)
    }

    fn s_client(&self, args: &[&str], input: &str) -> String {
        s_client(self.gateway.gateway()[0], args, input)
    }
}

#[test]
fn three_hosts_have_three_rules_for_clients_and_each_its_own_certificate() {
    let stage = Stage::new("");
    let (good, stranger) =
        (stage.client(&stage.clients, "good", 1), stage.client(&stage.strangers, "stranger", 1));
    let revoked = stage.client(&stage.clients, "revoked", 66);
    let server_only = stage.clients.issue(
        &stage.mesh.dir().join("server-only"),
        &["x"],
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        2,
    );
    for (host, client, let_in) in [
        ("a.example", None, true),
        ("a.example", Some(&stranger), true),
        ("b.example", None, true),
        ("b.example", Some(&good), true),
        ("b.example", Some(&stranger), false),
        ("b.example", Some(&server_only), false),
        ("c.example", None, false),
        ("c.example", Some(&good), true),
        ("c.example", Some(&stranger), false),
        ("c.example", Some(&revoked), false),
        ("c.example", Some(&server_only), false),
    ] {
        for version in ["--http1.1", "--http2"] {
            let reached = stage.app.accepted();
            let seen = stage.get(host, client, &[version]);
            let whom = format!("{host} {version} {:?}: {seen:?}", client.map(|c| &c.chain));
            if let_in {
                assert_eq!((seen.exit, seen.status, seen.body.as_str()), (0, 200, "hello"), "{whom}");
            } else {
                assert_ne!(seen.exit, 0, "{whom}");
                assert_eq!(seen.status, 0, "{whom}");
                assert_eq!(stage.app.accepted(), reached, "{whom}");
            }
        }
        let shown =
            stage.s_client(&["-servername", host, "-CAfile", &stage.trust, "-verify_hostname", host], "");
        assert!(shown.contains("Verification: OK"), "openssl sees the certificate of {host}: {shown}");
        assert!(!shown.contains("CN = clients") && !shown.contains("CN=clients"), "no CA is named: {shown}");
    }
    for reason in ["no_certificate", "unknown_issuer", "revoked", "bad_certificate"] {
        stage.wait_for_failures(reason);
    }
}

#[test]
fn tls_12_is_spoken_where_it_is_asked_for_and_nothing_older_anywhere() {
    let stage = Stage::new("");
    let with = |host: &str, version: &str| stage.get(host, None, &["--tls-max", version, "--tlsv1.0"]);
    assert_eq!(with("b.example", "1.2").status, 200);
    let seen = with("a.example", "1.2");
    assert_eq!((seen.exit, seen.status), (35, 0), "{seen:?}");
    assert!(seen.errors.contains("protocol version"), "{seen:?}");
    for host in ["a.example", "b.example"] {
        let said = stage.s_client(&["-servername", host, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "");
        assert!(said.contains("alert protocol version"), "{host}: {said}");
    }
    for cipher in ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-CHACHA20-POLY1305", "AES128-GCM-SHA256"] {
        let said = stage.s_client(&["-servername", "b.example", "-tls1_2", "-cipher", cipher], "");
        assert!(said.contains("handshake failure"), "{cipher}: {said}");
    }
    for cipher in ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"] {
        let said = stage.s_client(&["-servername", "b.example", "-tls1_2", "-cipher", cipher], "");
        assert!(said.contains(&format!("Cipher is {cipher}")), "{cipher}: {said}");
    }
}

#[test]
fn a_request_is_for_the_name_that_tls_was_opened_for() {
    let stage = Stage::new("");
    for version in ["--http1.1", "--http2"] {
        let misdirected = |host: &str| {
            let header = format!("Host: {host}");
            stage.get("a.example", None, &[version, "-H", &header])
        };
        for host in ["b.example", "c.example", "x.w.example", "b.example:443", "unknown.example"] {
            let seen = misdirected(host);
            assert_eq!(seen.status, 421, "{version} {host}: {seen:?}");
        }
        for host in ["A.Example", "a.example.", "a.example:8443"] {
            assert_eq!(misdirected(host).status, 200, "{version} {host} is the same host");
        }
        assert_eq!(stage.get("x.w.example", None, &[version]).status, 200);
        let seen = stage.get("x.w.example", None, &[version, "-H", "Host: y.w.example"]);
        assert_eq!(seen.status, 421, "{version}: of one certificate, and still another name: {seen:?}");
    }
    // Two labels for one star: nobody's name.
    let said = stage.s_client(&["-servername", "x.y.w.example"], "");
    assert!(said.contains("unrecognized name"), "{said}");
    let seen = stage.get("a.example", None, &["-H", "x_y: 1"]);
    assert_eq!(seen.status, 400, "an underscore in a header's name: {seen:?}");
}

#[test]
fn plain_text_is_redirected_and_tls_says_that_it_is_to_stay() {
    let stage = Stage::new("redirect: { code: 308, port: 8443 }");
    let plain = stage.gateway.gateway()[1];
    let seen = curl(plain, "http://a.example/x/..//y?q=1", &["--path-as-is"]);
    assert_eq!(
        (seen.status, seen.header("location")),
        (308, Some("https://a.example:8443/y?q=1")),
        "{seen:?}"
    );
    assert_eq!(seen.header("strict-transport-security"), None, "not in plain text: {seen:?}");
    let seen = curl(plain, "http://b.example/", &[]);
    assert_eq!((seen.status, seen.header("location")), (308, Some("https://b.example/")), "{seen:?}");
    for (host, why) in [("c.example", "plain: refuse"), ("unknown.example", "nobody's name")] {
        assert_eq!(curl(plain, &format!("http://{host}/"), &[]).status, 404, "{why}");
    }
    assert_eq!(stage.app.accepted(), 0);
    let seen = stage.get("a.example", None, &[]);
    assert_eq!(
        seen.header("strict-transport-security"),
        Some("max-age=86400; includeSubDomains"),
        "{seen:?}"
    );
    assert_eq!(stage.get("b.example", None, &[]).header("strict-transport-security"), None);
}

#[test]
fn no_session_is_resumed_neither_on_its_own_host_nor_on_another() {
    let stage = Stage::new("");
    let session = stage.mesh.dir().join("session.pem");
    let session = session.to_str().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let request = "GET / HTTP/1.1\r\nhost: b.example\r\nconnection: close\r\n\r\n";
        let args = ["-servername", "b.example", version, "-ign_eof", "-sess_out", session];
        let first = stage.s_client(&args, request);
        assert!(first.contains("New, TLS"), "{first}");
        assert!(!first.contains("Post-Handshake New Session Ticket"), "no ticket is given: {first}");
        for host in ["b.example", "c.example"] {
            let second = stage.s_client(&["-servername", host, version, "-sess_in", session], "");
            assert!(!second.contains("Reused, TLS"), "{version} on {host}: {second}");
        }
    }
}
