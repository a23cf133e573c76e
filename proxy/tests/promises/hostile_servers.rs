//! Upstreams that speak something else or nothing, to a proxy that must never fall back to plain text.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DistinguishedName, Error, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, UnixTime};
use socket2::SockRef;

use crate::support::client::{ALPN, End, handshake_signatures, provider, read_to_end, tcp};
use crate::support::metrics::{ended, failed, ok};
use crate::support::scene::{MARK, Scene};
use crate::support::sealed::{ALERT, DATA, HANDSHAKE, record};
use crate::support::server::{Always, Seen, listen, server_config, tls};

/// Answers with these bytes and reads to the end.
fn answer(bytes: Vec<u8>) -> impl Fn(TcpStream, &Seen) + Send + Sync + 'static {
    move |mut tcp, seen| {
        // The proxy may have gone after the first of them.
        let _ = tcp.write_all(&bytes);
        listen(tcp, seen);
    }
}

/// A ServerHello that chooses TLS 1.2.
fn old_server_hello() -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], &[0, 0xc0, 0x2b, 0, 0, 0]].concat();
    record(HANDSHAKE, &[&[2, 0, 0, body.len() as u8], &body[..]].concat())
}

#[test]
fn what_is_no_tls_13_is_refused() {
    let scene = Scene::new();
    let http = format!("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{MARK}").into_bytes();
    let cases = [
        ("HTTP", http, "not_tls"),
        ("noise", vec![0xa5; 20_000], "not_tls"),
        ("TLS 1.2", old_server_hello(), "protocol_version"),
        ("data first", record(DATA, MARK.as_bytes()), "not_tls"),
        ("a ServerHello without contents", record(HANDSHAKE, &[2, 0, 0, 0]), "not_tls"),
        ("a ClientHello", record(HANDSHAKE, &[1, 0, 0, 0]), "not_tls"),
        ("protocol_version", record(ALERT, &[2, 70]), "protocol_version"),
        ("certificate_required", record(ALERT, &[2, 116]), "no_certificate"),
        ("an alert that nobody knows", record(ALERT, &[2, 213]), "reset"),
    ];
    for (name, bytes, reason) in cases {
        eprintln!("{name}");
        scene.upstream.behave(answer(bytes));
        scene.refuses_server(reason);
    }
}

#[test]
fn a_server_that_goes_away_is_a_reset() {
    let scene = Scene::new();
    scene.upstream.behave(|tcp: TcpStream, _: &Seen| drop(tcp));
    scene.refuses_server("reset");
    scene.upstream.behave(|tcp: TcpStream, seen: &Seen| {
        tcp.shutdown(Shutdown::Write).unwrap();
        listen(tcp, seen);
    });
    scene.refuses_server("reset");
    scene.upstream.behave(|tcp: TcpStream, _: &Seen| {
        SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    });
    scene.refuses_server("reset");
    scene.upstream.behave(|mut tcp: TcpStream, seen: &Seen| {
        tcp.write_all(&record(ALERT, &[1, 0])).unwrap();
        tcp.shutdown(Shutdown::Write).unwrap();
        listen(tcp, seen);
    });
    scene.refuses_server("reset");
}

#[test]
fn a_server_that_stays_silent_is_cut_off() {
    let scene = Scene::with(|options| options.yaml("limits: { handshake_timeout: 2s }"));
    scene.upstream.behave(listen);
    scene.refuses_server("timeout");
    // Half a record, and no more.
    scene.upstream.behave(answer(vec![HANDSHAKE, 3, 3, 0x40, 0, 2]));
    scene.refuses_server("timeout");
}

#[test]
fn an_unknown_application_protocol_is_refused() {
    let scene = Scene::new();
    let mut config = server_config(&scene.mesh.honest());
    config.alpn_protocols = vec![b"h2".to_vec()];
    scene.upstream.behave(tls(config));
    scene.refuses_server("alpn");
}

/// In TLS 1.3 the client's handshake ends before the server has looked at its certificate: the refusal comes as the first
/// answer, and is one word in log and metric.
#[test]
fn an_upstream_that_refuses_us_is_a_failed_handshake() {
    let scene = Scene::new();
    for (error, reason) in [
        (CertificateError::Expired, "expired"),
        (CertificateError::UnknownIssuer, "unknown_issuer"),
        (CertificateError::Revoked, "revoked"),
        (CertificateError::BadEncoding, "bad_certificate"),
    ] {
        let honest = scene.mesh.honest();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(Refuses(error)))
            .with_cert_resolver(Arc::new(Always(honest.certified())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        scene.upstream.behave(tls(config));
        let before = scene.proxy.metrics();
        let mut app = tcp(scene.proxy.outbound);
        assert_eq!(read_to_end(&mut app), (vec![], End::Reset));
        let record = scene.proxy.record(app.local_addr().unwrap());
        let said = ["outcome", "reason"].map(|field| record[field].as_str().unwrap_or_default());
        assert_eq!(said, ["handshake_failed", reason], "{record}");
        let expected = [ok("outbound"), failed("outbound", reason), ended("outbound", "handshake_failed")];
        assert_eq!(scene.proxy.metrics().moved_since(&before), expected.map(|series| (series, 1)).into());
        scene.outbound_works();
        scene.nothing_is_left();
    }
}

/// Once data has come back, we were let in: whatever ends the connection later is no failed handshake.
#[test]
fn an_alert_after_data_is_a_broken_connection() {
    let scene = Scene::new();
    let config = Arc::new(server_config(&scene.mesh.honest()));
    scene.upstream.behave(move |mut tcp: TcpStream, _: &Seen| {
        let mut tls = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        stream.write_all(b"hello").unwrap();
        // Once that has arrived: a damaged record has the server send a fatal alert.
        stream.read_exact(&mut [0; 6]).unwrap();
        tls.read_tls(&mut &record(DATA, &[0; 64])[..]).unwrap();
        tls.process_new_packets().unwrap_err();
        tls.write_tls(&mut tcp).unwrap();
        let _ = tcp.read(&mut [0]);
    });
    let before = scene.proxy.metrics();
    let mut app = tcp(scene.proxy.outbound);
    let mut hello = [0; 5];
    app.write_all(b"hello").unwrap();
    app.read_exact(&mut hello).unwrap();
    app.write_all(b".").unwrap();
    assert_eq!(read_to_end(&mut app), (vec![], End::Reset));
    let record = scene.proxy.record(app.local_addr().unwrap());
    assert_eq!((&record["outcome"], &record["reason"]), (&"broken".into(), &().into()), "{record}");
    let moved = scene.proxy.metrics().moved_since(&before);
    assert!(!moved.keys().any(|series| series.contains("failed")), "{moved:?}");
}

/// Refuses every client, for one reason.
#[derive(Debug)]
struct Refuses(CertificateError);

impl ClientCertVerifier for Refuses {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Err(self.0.clone().into())
    }

    handshake_signatures!();
}
