//! The servers that ours is compared with: each starts by itself, answers through mutual TLS, and lets nobody in without it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use postern_loadtest::http;
use postern_loadtest::peers::{Identity, Kind, Mode, Pki, Place, SERVER, Server, Setting, Table, Upstream};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, StreamOwned};

const SOON: Duration = Duration::from_secs(10);
/// What the app is asked for, by its length.
const BODY: usize = 300_000;

/// Asks through one connection of mutual TLS; `postern` proves an identity in place of a name.
fn ask(
    server: &Server,
    pki: &Pki,
    identity: Option<Identity>,
) -> std::io::Result<(ProtocolVersion, Vec<u8>)> {
    let mut roots = RootCertStore::empty();
    roots.add(pki.root().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = match &server.spiffe {
        None => builder.with_root_certificates(roots),
        Some(_) => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody)),
    };
    let config = match identity {
        Some(Identity { chain, key }) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(server.front)?;
    tcp.set_read_timeout(Some(SOON))?;
    let client = ClientConnection::new(Arc::new(config), SERVER.try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, tcp);
    stream.write_all(http::request(server.front, &format!("/{BODY}")).as_bytes())?;
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer)
        && answer.is_empty()
    {
        return Err(error);
    }
    assert_ne!(stream.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    Ok((stream.conn.protocol_version().unwrap(), answer))
}

fn try_all(kind: Kind) {
    let (pki, app) = (Pki::new().unwrap(), Upstream::start().unwrap());
    let key = rcgen::KeyPair::generate().unwrap();
    for mode in [Mode::Http, Mode::Tcp].into_iter().filter(|mode| kind.carries(*mode)) {
        if let Err(missing) = kind.available(mode) {
            assert_eq!(kind, Kind::Envoy, "{missing}");
            eprintln!("skipped: {missing}");
            return;
        }
        for (table, place) in [
            (Table::Fair, Place::Hop),
            (Table::Defaults, Place::Hop),
            (Table::Fair, Place::Pair),
            (Table::Defaults, Place::Pair),
        ] {
            let setting =
                Setting { mode, place, table, http2_between: false, app: app.address(), cpus: None };
            let server = Server::start(kind, &setting, &pki).unwrap();
            assert_eq!(server.pids.len(), if place == Place::Hop { 1 } else { 2 }, "{server:?}");
            assert!(!server.version.is_empty());
            if !server.tls {
                let answer = http::get(server.front, &format!("/{BODY}"), SOON).unwrap();
                assert_eq!((answer.status, answer.body.len()), (200, BODY), "{server:?}");
                continue;
            }
            let (version, answer) = ask(&server, &pki, Some(pki.client(1, &key).unwrap())).unwrap();
            let answer = http::parse(&answer).unwrap();
            assert_eq!((answer.status, answer.body.len()), (200, BODY), "{server:?}");
            assert_eq!(version, ProtocolVersion::TLSv1_3);
            let other = Pki::new().unwrap().client(1, &key).unwrap();
            for stranger in [None, Some(other)] {
                let refused = ask(&server, &pki, stranger).map(|(_, answer)| answer);
                let answered = refused.as_ref().is_ok_and(|a| a.starts_with(b"HTTP/1.1 200"));
                assert!(!answered, "{kind:?} {setting:?}: a stranger was answered");
            }
        }
    }
}

#[test]
fn nginx() {
    try_all(Kind::Nginx);
}

#[test]
fn haproxy() {
    try_all(Kind::Haproxy);
}

#[test]
fn stunnel() {
    try_all(Kind::Stunnel);
}

#[test]
fn envoy_where_it_is_installed() {
    try_all(Kind::Envoy);
}

#[test]
fn postern() {
    try_all(Kind::Postern);
}

#[test]
fn a_plain_copy() {
    try_all(Kind::Copy);
}

/// Ours proves a SPIFFE ID, which is no matter here.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
