//! TLS that is passed through by its SNI: to an address, to a service of the mesh, or to nobody.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;

use postern_loadtest::app::App;
use postern_loadtest::mesh::{Mesh, Sidecar};

use super::edge::{Ca, Pair, curl, s_client, start};
use super::hello::{client_hello, in_records};
use crate::programs::{Server, program};
use crate::support::{REQUEST, SOON};

/// The alert that names no host, as it stands on the wire (RFC 6066 §3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// An HTTPS server that is neither ours nor rustls.
fn origin(dir: &std::path::Path, pair: &Pair) -> Server {
    let command = |port: u16| {
        let mut command = Command::new(program("openssl", "openssl"));
        command.args(["s_server", "-www", "-accept", &format!("127.0.0.1:{port}")]);
        command.arg("-cert").arg(&pair.chain).arg("-key").arg(&pair.key);
        command
    };
    Server::start("s_server", command, dir)
}

fn connect(to: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(to).unwrap();
    tcp.set_read_timeout(Some(REQUEST)).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// Everything until the end; an error ends it, too.
fn rest(tcp: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = tcp.read_to_end(&mut bytes);
    bytes
}

#[test]
fn tls_goes_through_by_its_name_to_an_address_and_to_a_service() {
    let mesh = Mesh::start().unwrap();
    let ca = Ca::new("origin");
    let pair = ca.server(&mesh.dir().join("origin"), &["a.example", "x.b.example"]);
    let trust = ca.file(mesh.dir());
    let origin = origin(mesh.dir(), &pair);
    let db = mesh.server("db", origin.address).unwrap();
    let gateway = start(
        &mesh,
        &format!(
            "  listeners: [{{ listen: '127.0.0.1:0', protocol: tls }}]
  hosts:
    - names: [a.example]
      passthrough: {{ address: '{}' }}
    - names: ['*.b.example']
      passthrough: {{ service: db }}",
            origin.address
        ),
    );
    let edge = gateway.gateway()[0];
    let trusted = ["--cacert", trust.to_str().unwrap()];
    for name in ["a.example", "x.b.example"] {
        let seen = curl(edge, &format!("https://{name}/"), &trusted);
        assert_eq!((seen.exit, seen.status), (0, 200), "{name}: {seen:?}");
        assert!(seen.body.contains("s_server"), "the origin itself answers: {seen:?}");
    }
    let inbound = db.wait_for_log(SOON, |l| l["direction"] == "inbound").unwrap();
    assert_eq!(inbound["peer"], gateway.id(), "the mesh sees the gateway");
    let logged = gateway.wait_for_log(SOON, |l| l["host"] == "*.b.example").unwrap();
    assert_eq!((&logged["outcome"], &logged["peer"]), (&"completed".into(), &db.id().into()));

    for (name, why) in [
        ("c.example", "a name that nobody has"),
        ("y.x.b.example", "two labels for one star"),
        ("b.example", "no label for the star"),
    ] {
        let said = s_client(edge, &["-servername", name], "");
        assert!(said.contains("unrecognized name") && !said.contains("BEGIN CERTIFICATE"), "{why}: {said}");
    }
    let said = s_client(edge, &["-noservername"], "");
    assert!(said.contains("unrecognized name"), "no name: {said}");
    let refused = |m: &postern_loadtest::mesh::Metrics| {
        m.count("postern_handshakes_total", &[("direction", "inbound"), ("reason", "unknown_host")])
    };
    gateway.wait_for_metric(SOON, |m| refused(m) == 4).unwrap();
}

/// A gateway that leads `a.example` to `app`, in plain bytes behind the ClientHello.
fn to_app(mesh: &Mesh, app: SocketAddr) -> Sidecar {
    start(
        mesh,
        &format!(
            "  listeners: [{{ listen: '127.0.0.1:0', protocol: tls, default_host: a.example }}]
  hosts: [{{ names: [a.example], passthrough: {{ address: '{app}' }} }}]"
        ),
    )
}

#[test]
fn every_byte_arrives_however_the_hello_is_cut_and_one_side_may_end_first() {
    let mesh = Mesh::start().unwrap();
    let app = App::echo().unwrap();
    let gateway = to_app(&mesh, app.address());
    let edge = gateway.gateway()[0];
    for hello in [
        client_hello(Some("a.example")),
        client_hello(Some("A.Example")),
        client_hello(None),
        in_records(Some("a.example"), 60),
        in_records(Some("a.example"), 1),
    ] {
        let mut tcp = connect(edge);
        for byte in &hello {
            tcp.write_all(&[*byte]).unwrap();
        }
        tcp.write_all(b"and more").unwrap();
        tcp.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut tcp), [&hello[..], b"and more"].concat());
    }
    let seen = app.accepted();
    let mut tcp = connect(edge);
    tcp.write_all(&in_records(Some("b.example"), 1)).unwrap();
    assert_eq!(rest(&mut tcp), UNRECOGNIZED_NAME);
    let mut tcp = connect(edge);
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    rest(&mut tcp);
    gateway.wait_for_log(SOON, |l| l["reason"] == "not_tls").unwrap();
    assert_eq!(app.accepted(), seen, "nobody behind it was bothered");
}

#[test]
fn policy_judges_by_name_and_address_and_a_push_closes_what_is_open() {
    let mesh = Mesh::start().unwrap();
    let app = App::echo().unwrap();
    let gateway = to_app(&mesh, app.address());
    let edge = gateway.gateway()[0];
    let hello = client_hello(Some("a.example"));
    let mut open = connect(edge);
    open.write_all(&hello).unwrap();
    let mut echoed = vec![0; hello.len()];
    open.read_exact(&mut echoed).unwrap();

    let deny = serde_json::json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "no-a", "namespace": "demo" },
        "spec": { "action": "DENY", "rules": [{
            "from": [{ "source": { "remoteIpBlocks": ["127.0.0.0/8"] } }],
            "when": [{ "key": "connection.sni", "values": ["a.example"] }],
        }] },
    });
    let generation = mesh.control.apply_policy(&deny.to_string()).unwrap();
    gateway.wait_for_generation(generation, SOON).unwrap();
    assert!(open.read(&mut echoed).map_or(true, |n| n == 0), "it was closed");
    gateway.wait_for_log(SOON, |l| l["outcome"] == "policy_changed").unwrap();

    let seen = app.accepted();
    let mut tcp = connect(edge);
    tcp.write_all(&hello).unwrap();
    assert_eq!(rest(&mut tcp), b"");
    let denied = gateway.wait_for_log(SOON, |l| l["outcome"] == "denied").unwrap();
    assert_eq!((&denied["policy"], &denied["rule"]), (&"demo/no-a".into(), &0.into()), "{denied}");
    assert_eq!(app.accepted(), seen);
}

#[test]
fn only_a_trusted_load_balancer_says_for_whom_it_connects() {
    let mesh = Mesh::start().unwrap();
    let app = App::echo().unwrap();
    let listener = |trusted: &str| {
        format!("{{ listen: '127.0.0.1:0', protocol: tls, proxy_protocol: {{ trusted: [{trusted}] }} }}")
    };
    let gateway = start(
        &mesh,
        &format!(
            "  listeners: [{}, {}]
  hosts: [{{ names: [a.example], passthrough: {{ address: '{}' }} }}]",
            listener("127.0.0.0/8"),
            listener("10.0.0.0/8"),
            app.address()
        ),
    );
    let [trusting, wary] = gateway.gateway() else { panic!("two listeners") };
    let hello = client_hello(Some("a.example"));
    let v1 = b"PROXY TCP4 203.0.113.7 10.0.0.1 40000 443\r\n".to_vec();
    let v2 = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24"[..],
        &"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        &"2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        &[0x9c, 0x41, 1, 0xbb],
    ]
    .concat();
    for (header, source) in [(&v1, "203.0.113.7:40000"), (&v2, "[2001:db8::7]:40001")] {
        let mut tcp = connect(*trusting);
        for byte in header.iter().chain(&hello) {
            tcp.write_all(&[*byte]).unwrap();
        }
        tcp.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut tcp), hello, "the header ends at the gateway");
        gateway.wait_for_log(SOON, |l| l["source"] == source && l["outcome"] == "completed").unwrap();
    }
    let seen = app.accepted();
    // From a trusted one without a header, with a broken one; from others with one.
    for (to, bytes, reason) in [
        (trusting, hello.clone(), "proxy_protocol"),
        (trusting, [&b"PROXY TCP4 203.0.113.7\r\n"[..], &hello].concat(), "proxy_protocol"),
        (wary, [&v1[..], &hello].concat(), "not_tls"),
        (wary, [&v2[..], &hello].concat(), "not_tls"),
    ] {
        let mut tcp = connect(*to);
        let own = tcp.local_addr().unwrap().to_string();
        let _ = tcp.write_all(&bytes);
        rest(&mut tcp);
        let logged = gateway.wait_for_log(SOON, |l| l["source"] == own.as_str()).unwrap();
        assert_eq!(logged["reason"], reason, "{logged}");
    }
    assert_eq!(app.accepted(), seen);
    let mut tcp = connect(*wary);
    tcp.write_all(&hello).unwrap();
    tcp.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut tcp), hello, "others need none");
}
