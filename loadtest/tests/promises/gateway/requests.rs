//! Requests on their way through the gateway: routes, what the service is told of the client, policy, tunnels.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use postern_loadtest::app::App;
use postern_loadtest::mesh::{Mesh, Sidecar};

use super::edge::{Ca, Pair, Seen, curl, s_client, start};
use crate::support::{REQUEST, SOON};

/// An app that answers with its name and the head of the request, as it came; it agrees to every upgrade and echoes then.
fn mirror(name: &'static str) -> App {
    App::start(move |mut stream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        if text.to_ascii_lowercase().contains("\r\nupgrade: ") {
            stream.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
            )?;
            std::io::copy(&mut &stream, &mut &stream)?;
            return stream.shutdown(Shutdown::Write);
        }
        let body = format!("{name}\r\n{text}");
        let length = body.len();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")?;
        stream.shutdown(Shutdown::Write)
    })
    .unwrap()
}

struct Stage {
    gateway: Sidecar,
    trust: String,
    clients: Ca,
    _sidecars: Vec<Sidecar>,
    _apps: Vec<App>,
    mesh: Mesh,
}

const ROUTES: &str = "routes:
        - { service: web }
        - { service: api, path: { prefix: /api }, rewrite_prefix: /v1 }
        - { service: api, path: { prefix: /api/admin }, method: GET }
        - { service: web, path: { exact: /api/web } }
        - { service: api, headers: { x-to: api } }
        - { service: nobody, path: { prefix: /nobody } }";

impl Stage {
    fn new(further: &str) -> Self {
        let mesh = Mesh::start().unwrap();
        let (mut sidecars, mut apps) = (Vec::new(), Vec::new());
        for name in ["web", "api"] {
            let app = mirror(name);
            let options = mesh.options(name).unwrap().inbound(app.address(), Some(name)).protocol("http");
            let options = options.config("http: { xfcc: { mode: append_forward } }\n");
            sidecars.push(mesh.server_with(options).unwrap());
            apps.push(app);
        }
        let (servers, clients) = (Ca::new("servers"), Ca::new("clients"));
        let Pair { chain, key } = servers.server(&mesh.dir().join("a"), &["a.example"]);
        let gateway = start(
            &mesh,
            &format!(
                "  {further}
  listeners:
    - {{ listen: '127.0.0.1:0', protocol: https }}
    - {{ listen: '127.0.0.1:0', protocol: http }}
    - {{ listen: '127.0.0.1:0', protocol: https, proxy_protocol: {{ trusted: [127.0.0.1] }} }}
  hosts:
    - names: [a.example]
      certificate: {{ chain: {}, key: {} }}
      client_certificate: {{ mode: optional, ca: [{}] }}
      {ROUTES}
    - names: [plain.example]
      plain: serve
      routes: [{{ service: web }}]
    - names: [mesh.example]
      certificate: {{ identity: true }}
      routes: [{{ service: web }}]",
                chain.display(),
                key.display(),
                clients.file(mesh.dir()).display(),
            ),
        );
        let trust = servers.file(mesh.dir()).display().to_string();
        Self { gateway, trust, clients, _sidecars: sidecars, _apps: apps, mesh }
    }

    fn get(&self, path: &str, args: &[&str]) -> Seen {
        self.get_at(self.gateway.gateway()[0], path, args)
    }

    fn get_at(&self, edge: SocketAddr, path: &str, args: &[&str]) -> Seen {
        let url = format!("https://a.example{path}");
        curl(edge, &url, &[&["--cacert", &self.trust, "--path-as-is"], args].concat())
    }

    fn deny(&self, rule: serde_json::Value) {
        let policy = serde_json::json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "at-the-edge", "namespace": "demo" },
            "spec": { "action": "DENY", "rules": [rule] },
        });
        let generation = self.mesh.control.apply_policy(&policy.to_string()).unwrap();
        self.gateway.wait_for_generation(generation, SOON).unwrap();
    }
}

/// Who answered, and the request line that it saw.
fn answered(seen: &Seen) -> (&str, &str) {
    let mut lines = seen.body.lines();
    (lines.next().unwrap_or(""), lines.next().unwrap_or(""))
}

/// Every value of a header as the app saw it.
fn told<'a>(seen: &'a Seen, name: &str) -> Vec<&'a str> {
    let value =
        |line: &'a str| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v);
    seen.body.lines().filter_map(value).collect()
}

#[test]
fn each_request_takes_its_route_on_both_versions() {
    let stage = Stage::new("");
    for version in ["--http1.1", "--http2"] {
        for (path, args, who, line) in [
            ("/", &[][..], "web", "GET / HTTP/1.1"),
            ("/apis?x=1", &[], "web", "GET /apis?x=1 HTTP/1.1"),
            ("/api", &[], "api", "GET /v1 HTTP/1.1"),
            ("/api/x?y=/api", &[], "api", "GET /v1/x?y=/api HTTP/1.1"),
            ("/api/admin/z", &[], "api", "GET /api/admin/z HTTP/1.1"),
            ("/api/admin/z", &["-X", "POST"], "api", "POST /v1/admin/z HTTP/1.1"),
            ("/api/web", &[], "web", "GET /api/web HTTP/1.1"),
            ("//api/./x/../%61", &[], "api", "GET /v1/a HTTP/1.1"),
            ("/x", &["-H", "x-to: api"], "api", "GET /x HTTP/1.1"),
            ("/x", &["-H", "x-to: api", "-H", "x-to: api"], "web", "GET /x HTTP/1.1"),
        ] {
            let seen = stage.get(path, &[&[version], args].concat());
            assert_eq!(
                (seen.status, answered(&seen)),
                (200, (who, line)),
                "{version} {path} {args:?}: {seen:?}"
            );
            assert_eq!(told(&seen, "host"), ["a.example"]);
        }
        for (path, status) in [("/api%2fadmin", 400), ("/a%5cb", 400), ("/%00", 400), ("/nobody", 503)] {
            assert_eq!(stage.get(path, &[version]).status, status, "{version} {path}");
        }
    }
    let plain = stage.gateway.gateway()[1];
    assert_eq!(answered(&curl(plain, "http://plain.example/x", &[])), ("web", "GET /x HTTP/1.1"));
    assert_ne!(curl(plain, "http://plain.example/", &["--http2-prior-knowledge"]).exit, 0);
}

#[test]
fn what_a_client_says_of_itself_is_replaced_by_what_is_known() {
    let stage = Stage::new("");
    let spoof = [
        "-H",
        "x-forwarded-for: 6.6.6.6",
        "-H",
        "x-forwarded-proto: http",
        "-H",
        "forwarded: for=6.6.6.6",
        "-H",
        "x-forwarded-client-cert: Hash=0;Subject=\"CN=admin\"",
        "-H",
        "x-envoy-original-path: /admin",
        "-H",
        "x-postern-denial: x",
        "-H",
        "connection: x-forwarded-client-cert, x-forwarded-for",
        "-H",
        "x-request-id: mine",
    ];
    for version in ["--http1.1", "--http2"] {
        // HTTP/2 has no Connection header.
        let count = if version == "--http2" { spoof.len() - 4 } else { spoof.len() };
        let seen = stage.get("/", &[&[version], &spoof[..count]].concat());
        assert_eq!(seen.status, 200, "{version}: {seen:?}");
        assert_eq!(told(&seen, "x-forwarded-for"), ["127.0.0.1"], "{seen:?}");
        assert_eq!(told(&seen, "x-forwarded-proto"), ["https"]);
        for gone in ["forwarded", "x-envoy-original-path", "x-postern-denial"] {
            assert!(told(&seen, gone).is_empty(), "{gone}: {seen:?}");
        }
        assert_ne!(told(&seen, "x-request-id"), ["mine"]);
        // The service's own sidecar tells of the gateway, and of nobody else.
        let xfcc = told(&seen, "x-forwarded-client-cert");
        assert!(xfcc.len() == 1 && xfcc[0].contains("sa/edge") && !xfcc[0].contains("admin"), "{xfcc:?}");
    }
}

#[test]
fn trusted_hops_and_the_proxy_protocol_say_who_the_client_is() {
    let stage = Stage::new("trusted_hops: 1");
    let [edge, _, balanced] = *stage.gateway.gateway() else { panic!("three listeners") };
    stage.deny(serde_json::json!({ "from": [{ "source": { "remoteIpBlocks": ["203.0.113.0/24"] } }] }));
    let forwarded = |value: &str| stage.get_at(edge, "/", &["-H", &format!("x-forwarded-for: {value}")]);
    let good = forwarded("203.0.113.9, 198.51.100.1");
    assert_eq!(
        (good.status, told(&good, "x-forwarded-for")),
        (200, vec!["203.0.113.9, 198.51.100.1, 127.0.0.1"])
    );
    let denied = forwarded("198.51.100.1, 203.0.113.9");
    assert_eq!(denied.status, 403, "the last hop's word: {denied:?}");
    assert!(denied.header("x-postern-denial").is_some_and(|id| id.len() == 26), "{denied:?}");
    assert_eq!(forwarded("203.0.113.9, nonsense").status, 400);
    assert_eq!(stage.get_at(edge, "/", &[]).status, 200, "nobody in between");
    // curl sends a PROXY line of version 1 with its own addresses.
    let proxied = stage.get_at(balanced, "/", &["--haproxy-protocol"]);
    assert_eq!((proxied.status, told(&proxied, "x-forwarded-for")), (200, vec!["127.0.0.1"]), "{proxied:?}");
    let denied = behind(balanced, b"PROXY TCP4 203.0.113.7 10.0.0.1 40000 443\r\n", 7, |edge| {
        stage.get_at(edge, "/", &[])
    });
    assert_eq!(denied.status, 403, "the address in the PROXY header: {denied:?}");
    assert_ne!(stage.get_at(balanced, "/", &[]).exit, 0, "a trusted balancer always says for whom");
}

/// Runs a client through a relay that writes `head` first and then passes on what the client sends in segments of `size`.
fn behind<T>(to: SocketAddr, head: &'static [u8], size: usize, client: impl FnOnce(SocketAddr) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (near, _) = listener.accept().unwrap();
            let far = TcpStream::connect(to).unwrap();
            far.set_nodelay(true).unwrap();
            (&far).write_all(head).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = std::io::copy(&mut &far, &mut &near);
                    let _ = near.shutdown(Shutdown::Write);
                });
                let mut buffer = vec![0; size];
                while let Ok(got @ 1..) = (&near).read(&mut buffer) {
                    if (&far).write_all(&buffer[..got]).is_err() {
                        break;
                    }
                }
                let _ = far.shutdown(Shutdown::Write);
            });
        });
        client(address)
    })
}

#[test]
fn a_handshake_in_single_bytes_is_a_handshake() {
    let stage = Stage::new("");
    for version in ["1.2", "1.3"] {
        let seen = behind(stage.gateway.gateway()[0], b"", 1, |edge| {
            stage.get_at(edge, "/", &["--tls-max", version, "--curves", "X25519:P-256"])
        });
        let good = version == "1.3";
        assert_eq!(seen.status == 200, good, "the same decision as in one piece, {version}: {seen:?}");
    }
}

#[test]
fn a_clients_certificate_is_told_and_the_proxys_identity_serves_those_who_know_it() {
    let stage = Stage::new("");
    let client = stage.clients.client(&stage.mesh.dir().join("client"), "partner", 1);
    let certified = ["--cert", client.chain.to_str().unwrap(), "--key", client.key.to_str().unwrap()];
    let seen = stage.get("/", &[&certified[..], &["-H", "x-forwarded-client-cert: Hash=0"]].concat());
    let xfcc = told(&seen, "x-forwarded-client-cert").concat();
    let (client, gateway) = xfcc.split_once(',').unwrap_or_else(|| panic!("two elements: {seen:?}"));
    assert!(client.starts_with("By=spiffe://mesh.test/ns/demo/sa/edge;Hash="), "{xfcc}");
    assert!(client.contains("Subject=\"CN=partner\"") && client.contains("DNS=partner"), "{xfcc}");
    assert!(
        gateway.contains("URI=spiffe://mesh.test/ns/demo/sa/edge") && !xfcc.contains("Hash=0;"),
        "{xfcc}"
    );
    let shown = s_client(stage.gateway.gateway()[0], &["-servername", "mesh.example", "-showcerts"], "");
    assert!(shown.contains("BEGIN CERTIFICATE"), "{shown}");
    let leaf = stage.mesh.dir().join("leaf.pem");
    let end = shown.find("-----END CERTIFICATE-----").unwrap() + "-----END CERTIFICATE-----\n".len();
    std::fs::write(&leaf, &shown[shown.find("-----BEGIN CERTIFICATE-----").unwrap()..end]).unwrap();
    let mut openssl = std::process::Command::new(crate::programs::program("openssl", "openssl"));
    openssl.args(["x509", "-noout", "-ext", "subjectAltName", "-in"]).arg(&leaf);
    let names = crate::programs::run(&mut openssl);
    assert!(names.contains(&format!("URI:{}", stage.gateway.id())), "{names}");
}

#[test]
fn policy_judges_each_request_and_a_push_ends_a_tunnel() {
    let stage = Stage::new("");
    let plain = stage.gateway.gateway()[1];
    let mut tunnel = TcpStream::connect(plain).unwrap();
    tunnel.set_read_timeout(Some(REQUEST)).unwrap();
    tunnel
        .write_all(b"GET /admin/chat HTTP/1.1\r\nhost: plain.example\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        tunnel.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
    tunnel.write_all(b"ping").unwrap();
    let mut pong = [0; 4];
    tunnel.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"ping");
    assert_eq!(stage.get("/admin", &[]).status, 200);

    stage.deny(serde_json::json!({ "to": [{ "operation": { "paths": ["/admin*"] } }] }));
    assert!(tunnel.read(&mut pong).map_or(true, |n| n == 0), "the tunnel is closed");
    for version in ["--http1.1", "--http2"] {
        for path in ["/admin", "//admin", "/x/../admin", "/%61dmin", "/admin?x"] {
            let seen = stage.get(path, &[version]);
            assert_eq!(seen.status, 403, "{version} {path}: {seen:?}");
        }
        assert_eq!(stage.get("/other", &[version]).status, 200);
    }
    let logged = stage.gateway.wait_for_log(SOON, |l| l["status"] == 403).unwrap();
    assert_eq!(logged["policy"], "demo/at-the-edge", "{logged}");
}

#[test]
fn a_listener_takes_no_more_requests_than_its_rate() {
    let mesh = Mesh::start().unwrap();
    let gateway = start(
        &mesh,
        "  listeners: [{ listen: '127.0.0.1:0', protocol: http }]
  hosts: [{ names: [a.example], plain: serve, routes: [{ service: nobody }] }]
http: { rate_limit: { requests_per_second: 1, burst: 2 } }",
    );
    let urls = ["http://a.example/"; 8];
    let seen = curl(gateway.gateway()[0], urls[0], &urls[1..]);
    assert!(seen.head.starts_with("HTTP/1.1 503"), "nobody is there: {seen:?}");
    assert!(seen.body.contains("HTTP/1.1 429"), "and then there were too many: {seen:?}");
}
