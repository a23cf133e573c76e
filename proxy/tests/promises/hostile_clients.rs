//! Clients that speak something else, speak too slowly or not at all, or break the rules of TLS before or after the
//! handshake.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use crate::support::client::{Client, End, config, read_to_end, tcp};
use crate::support::eventually;
use crate::support::mesh::{Mesh, Presented};
use crate::support::scene::{MARK, Scene};
use crate::support::sealed::{ALERT, DATA, HANDSHAKE, Sealed, record};

/// As short as can be without refusing honest clients on a busy machine.
const SHORT: &str = "limits: { handshake_timeout: 2s }";

/// A ClientHello as a client of today sends it.
fn hello() -> Vec<u8> {
    let mut client = Client::prepare(TcpStream::from(socket()), config(Some(&Mesh::new().honest())));
    let mut bytes = Vec::new();
    client.tls.write_tls(&mut bytes).unwrap();
    bytes
}

/// A socket that goes nowhere.
fn socket() -> socket2::Socket {
    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap()
}

/// A ClientHello from the time before TLS 1.3.
fn old_hello(version: [u8; 2]) -> Vec<u8> {
    let random = [7; 32];
    // ECDHE-ECDSA-AES128-GCM-SHA256 and AES128-SHA; X25519 and P-256; ECDSA and RSA with SHA-256.
    let groups = [0, 10, 0, 6, 0, 4, 0, 0x1d, 0, 0x17];
    let signatures = [0, 13, 0, 6, 0, 4, 4, 3, 4, 1];
    let extensions = [&groups[..], &signatures].concat();
    let body = [
        &version[..],
        &random,
        &[0, 0, 4, 0xc0, 0x2b, 0, 0x2f, 1, 0, 0, extensions.len() as u8],
        &extensions,
    ]
    .concat();
    record(HANDSHAKE, &[&[1, 0, 0, body.len() as u8], &body[..]].concat())
}

/// Says this and reads to the end: the last alert, if there was one.
fn say(to: SocketAddr, bytes: &[u8]) -> (SocketAddr, Option<u8>) {
    let mut tcp = tcp(to);
    // The proxy may end it at the first byte.
    let _ = tcp.write_all(bytes);
    let (answer, _) = raw_end(&mut tcp);
    // In clear: kind, version, length, level, description.
    let alert = answer.rchunks_exact(7).next().filter(|a| a[0] == ALERT && a[3..=5] == [0, 2, 2]);
    (tcp.local_addr().unwrap(), alert.map(|a| a[6]))
}

/// Reads a socket to its end, whichever it is.
fn raw_end(tcp: &mut TcpStream) -> (Vec<u8>, End) {
    let (bytes, end) = read_to_end(tcp);
    (bytes, if end == End::Clean { End::Eof } else { end })
}

#[test]
fn what_is_no_tls_13_is_refused() {
    const DECODE_ERROR: u8 = 50;
    const PROTOCOL_VERSION: u8 = 70;
    const UNEXPECTED_MESSAGE: u8 = 10;
    let scene = Scene::new();
    let http = format!("GET /{MARK} HTTP/1.1\r\nHost: {MARK}\r\n\r\n").into_bytes();
    let sslv2 = [&[0x80, 46, 1, 0, 2, 0, 21, 0, 0, 0, 16][..], &[5; 37]].concat();
    let finished = record(HANDSHAKE, &[&[20, 0, 0, 32][..], &[0; 32]].concat());
    let cases: Vec<(&str, Vec<u8>, &str, Option<u8>)> = vec![
        ("TLS 1.2", old_hello([3, 3]), "protocol_version", Some(PROTOCOL_VERSION)),
        ("TLS 1.1", old_hello([3, 2]), "protocol_version", Some(PROTOCOL_VERSION)),
        ("TLS 1.0", old_hello([3, 1]), "protocol_version", Some(PROTOCOL_VERSION)),
        ("SSL 3", old_hello([3, 0]), "protocol_version", Some(PROTOCOL_VERSION)),
        // Older than the record layer that TLS kept: there is no version to name.
        ("SSL 2", sslv2, "not_tls", Some(DECODE_ERROR)),
        ("HTTP", http, "not_tls", Some(DECODE_ERROR)),
        ("the mark", MARK.as_bytes().to_vec(), "not_tls", Some(DECODE_ERROR)),
        ("noise", vec![0xa5; 20_000], "not_tls", Some(DECODE_ERROR)),
        ("zeros", vec![0; 64], "not_tls", Some(DECODE_ERROR)),
        ("a record that is too long", [&[22, 3, 1, 0xff, 0xff][..], &[1; 70_000]].concat(), "not_tls", None),
        ("an empty handshake record", record(HANDSHAKE, &[]), "not_tls", None),
        ("a ClientHello without contents", record(HANDSHAKE, &[1, 0, 0, 0]), "not_tls", Some(DECODE_ERROR)),
        ("a Finished first", finished.clone(), "not_tls", Some(UNEXPECTED_MESSAGE)),
        ("data first", record(DATA, MARK.as_bytes()), "not_tls", None),
        ("a heartbeat first", record(24, &[1, 0x40, 0]), "not_tls", None),
        ("an alert first", record(ALERT, &[2, 80]), "reset", None),
        ("a Finished after the ClientHello", [hello(), finished].concat(), "not_tls", None),
        ("data after the ClientHello", [hello(), record(DATA, &[9; 64])].concat(), "not_tls", None),
        ("two ClientHellos", [hello(), hello()].concat(), "not_tls", None),
    ];
    for (name, bytes, reason, alert) in cases {
        eprintln!("{name}");
        scene.refuses_client(reason, |to| {
            let (source, seen) = say(to, &bytes);
            assert!(alert.is_none() || alert == seen, "{name}: {seen:?}");
            source
        });
    }
}

#[test]
fn a_client_that_goes_away_is_a_reset() {
    let scene = Scene::new();
    let close_notify = record(ALERT, &[1, 0]);
    let cases = [
        ("nothing", vec![]),
        ("half a ClientHello", hello()[..40].to_vec()),
        ("a ClientHello", hello()),
        ("a ClientHello and close_notify", [hello(), close_notify].concat()),
    ];
    for (name, bytes) in cases {
        for abrupt in [false, true] {
            eprintln!("{name}, {}", if abrupt { "RST" } else { "FIN" });
            scene.refuses_client("reset", |to| {
                let mut tcp = tcp(to);
                tcp.write_all(&bytes).unwrap();
                let source = tcp.local_addr().unwrap();
                if abrupt {
                    SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
                } else {
                    tcp.shutdown(Shutdown::Write).unwrap();
                    raw_end(&mut tcp);
                }
                source
            });
        }
    }
}

#[test]
fn a_handshake_has_a_deadline() {
    let scene = Scene::with(|options| options.yaml(SHORT));
    scene.refuses_client("timeout", |to| {
        let mut silent = tcp(to);
        raw_end(&mut silent);
        silent.local_addr().unwrap()
    });
    // Whatever moves, the deadline does not.
    scene.refuses_client("timeout", |to| {
        let mut slow = tcp(to);
        slow.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        for byte in hello() {
            if slow.write_all(&[byte]).is_err() || !matches!(slow.read(&mut [0]), Err(e) if open_still(&e)) {
                break;
            }
        }
        slow.local_addr().unwrap()
    });
    scene.refuses_client("timeout", |to| {
        let mut half = tcp(to);
        half.write_all(&hello()).unwrap();
        // The server's half: ServerHello and what follows it.
        let (flight, _) = raw_end(&mut half);
        assert_eq!(flight[0], HANDSHAKE);
        half.local_addr().unwrap()
    });
}

fn open_still(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

#[test]
fn a_client_that_sends_byte_by_byte_gets_in() {
    let scene = Scene::new();
    let mut client = Client::prepare(tcp(scene.proxy.inbound), config(Some(&scene.mesh.honest())));
    let mut hello = Vec::new();
    client.tls.write_tls(&mut hello).unwrap();
    hello.iter().for_each(|byte| client.tcp.write_all(&[*byte]).unwrap());
    client.handshake().unwrap();
    scene.echoes(client, b"slowly");
}

#[test]
fn an_unknown_application_protocol_is_refused() {
    let scene = Scene::new();
    for protocols in [vec![b"h2".to_vec()], vec![MARK.into(), b"postern-tcp/2".to_vec()]] {
        scene.refuses_client("alpn", |to| {
            let mut config = config(Some(&scene.mesh.honest()));
            config.alpn_protocols = protocols;
            let mut client = Client::prepare(tcp(to), config);
            let end = client.handshake().unwrap_err();
            assert_eq!(end, End::Alert(rustls::AlertDescription::NoApplicationProtocol));
            client.source()
        });
    }
}

/// The name is no credential: it neither helps nor harms.
#[test]
fn a_server_name_changes_nothing() {
    use rustls_pki_types::ServerName;
    let scene = Scene::new();
    let stranger = Mesh::new();
    for name in ["evilmark.example", "proxy.corp.example", "127.0.0.1", "::1", "localhost"] {
        eprintln!("{name}");
        let connect = |presented: &Presented| {
            let mut client = Client::prepare(tcp(scene.proxy.inbound), config(Some(presented)));
            let name = ServerName::try_from(name).unwrap().to_owned();
            client.tls = rustls::ClientConnection::new(config(Some(presented)).into(), name).unwrap();
            client.handshake().unwrap();
            client
        };
        let honest = connect(&scene.mesh.honest());
        scene.echoes(honest, b"hello");
        scene.refuses_client("bad_signature", |_| {
            let mut hostile = connect(&stranger.honest());
            assert_eq!(read_to_end(&mut hostile.stream()).0, b"");
            hostile.source()
        });
    }
}

#[test]
fn keys_may_be_updated() {
    let scene = Scene::new();
    let mut client = Client::connect(scene.proxy.inbound, config(Some(&scene.mesh.honest()))).unwrap();
    for _ in 0..3 {
        client.send(b"old").unwrap();
        client.tls.refresh_traffic_keys().unwrap();
        client.send(b"new").unwrap();
        assert_eq!(client.receive(6), b"oldnew");
    }
    scene.echoes(client, b"");
}

/// After the handshake too: the connection ends with a reset to the app, and counts as broken, not as a failed handshake.
#[test]
fn a_client_that_breaks_the_rules_later_is_cut_off() {
    let scene = Scene::new();
    let renegotiation = &hello()[5..];
    let certificate = [11, 0, 0, 4, 0, 0, 0, 0];
    let ticket = [4, 0, 0, 13, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    type Break<'a> = Box<dyn Fn(&mut Sealed) -> Vec<u8> + 'a>;
    let sealed = |kind: u8, body: &'static [u8]| -> Break<'static> { Box::new(move |s| s.seal(kind, body)) };
    let cases: Vec<(&str, Break<'_>)> = vec![
        ("renegotiation", Box::new(|s| s.seal(HANDSHAKE, renegotiation))),
        ("a certificate that nobody asked for", Box::new(|s| s.seal(HANDSHAKE, &certificate))),
        ("a session ticket", Box::new(|s| s.seal(HANDSHAKE, &ticket))),
        ("a Finished", sealed(HANDSHAKE, &[20, 0, 0, 1, 0])),
        ("an unknown handshake message", sealed(HANDSHAKE, &[99, 0, 0, 1, 0])),
        ("a KeyUpdate of a kind that does not exist", sealed(HANDSHAKE, &[24, 0, 0, 1, 7])),
        ("a record of an unknown kind", sealed(99, &[1, 2, 3])),
        ("a record without a kind", sealed(0, &[0; 32])),
        ("plain text", Box::new(|_| record(DATA, MARK.as_bytes()))),
        ("a plain alert", Box::new(|_| record(ALERT, &[2, 80]))),
        ("change_cipher_spec", Box::new(|_| record(20, &[1]))),
        ("the same record twice", Box::new(|s| s.seal(DATA, b"x").repeat(2))),
        (
            "a changed record",
            Box::new(|s| {
                let mut record = s.seal(DATA, MARK.as_bytes());
                record[8] ^= 1;
                record
            }),
        ),
        // What a fatal alert says is the peer's word: no handshake failed.
        ("certificate_expired as an alert", sealed(ALERT, &[2, 45])),
        ("access_denied as an alert", sealed(ALERT, &[2, 49])),
    ];
    for (name, break_rules) in cases {
        eprintln!("{name}");
        let before = scene.proxy.metrics();
        let apps = scene.app.seen.ends.lock().unwrap().len();
        let mut client = Sealed::connect(scene.proxy.inbound, config(Some(&scene.mesh.honest())));
        let bytes = break_rules(&mut client);
        client.send(&bytes);
        raw_end(&mut client.tcp);
        let record = scene.proxy.record(client.source());
        assert_eq!(
            (&record["outcome"], &record["reason"]),
            (&"broken".into(), &().into()),
            "{name}: {record}"
        );
        let end = eventually("the app's end", || scene.app.seen.ends.lock().unwrap().get(apps).copied());
        assert_eq!(end, End::Reset, "{name}: the app must not take this for an orderly end");
        let moved = scene.proxy.metrics().moved_since(&before);
        assert!(!moved.keys().any(|series| series.contains("failed")), "{name}: {moved:?}");
        scene.inbound_works();
        scene.nothing_is_left();
    }
    assert!(!scene.proxy.log().concat().contains(MARK));
}
