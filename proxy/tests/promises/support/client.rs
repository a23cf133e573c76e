//! A TLS client that presents what it is told to, believes whatever it is shown, and says how a connection ended.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, ClientConnection, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use socket2::{Domain, Socket, Type};

use super::PATIENCE;
use super::mesh::Presented;

/// The mesh's application protocol.
pub(crate) const ALPN: &[u8] = b"postern-tcp/1";

/// The cipher suite that proxies agree on first, then those of everybody.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.insert(0, aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// How a connection ended, seen from the test's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A fatal alert.
    Alert(AlertDescription),
    /// An orderly end.
    Clean,
    /// The TCP connection was closed without a word.
    Eof,
    /// The TCP connection was reset.
    Reset,
    /// The test's own TLS would not go on.
    Own,
}

impl End {
    pub(crate) fn of(error: &io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
            return match tls {
                Error::AlertReceived(alert) => Self::Alert(*alert),
                _ => Self::Own,
            };
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Eof,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            kind => panic!("still open after {PATIENCE:?}, or: {kind}: {error}"),
        }
    }
}

/// Reads to the end: what came, and how it ended.
pub(crate) fn read_to_end(stream: &mut impl Read) -> (Vec<u8>, End) {
    let mut all = Vec::new();
    let mut some = [0; 4096];
    loop {
        match stream.read(&mut some) {
            Ok(0) => return (all, End::Clean),
            Ok(n) => all.extend_from_slice(&some[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (all, End::of(&e)),
        }
    }
}

/// A TCP connection from this loopback address.
pub(crate) fn tcp_from(source: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    // Without a timeout of its own, which would already show a reset that is due to the first use.
    socket.connect(&to.into()).unwrap();
    let tcp = TcpStream::from(socket);
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.set_write_timeout(Some(PATIENCE)).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// A TCP connection from an address that no other has: the system gives ports out again, and a log line is found by its
/// source.
pub(crate) fn tcp(to: SocketAddr) -> TcpStream {
    static NEXT: AtomicU32 = AtomicU32::new(0x7f01_0001);
    tcp_from(Ipv4Addr::from_bits(NEXT.fetch_add(1, Ordering::Relaxed)).into(), to)
}

/// A client of the mesh that presents this, or nothing.
pub(crate) fn config(presented: Option<&Presented>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match presented {
        Some(presented) => builder.with_client_cert_resolver(Arc::new(Always(presented.certified()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// A TLS client on a socket.
pub(crate) struct Client {
    pub(crate) tls: ClientConnection,
    pub(crate) tcp: TcpStream,
}

impl Client {
    /// Connects TCP and prepares TLS; nothing is sent yet.
    pub(crate) fn prepare(tcp: TcpStream, config: impl Into<Arc<ClientConfig>>) -> Self {
        let name = ServerName::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST).into());
        Self { tls: ClientConnection::new(config.into(), name).unwrap(), tcp }
    }

    /// Connects and goes through the handshake, as far as a client can tell.
    pub(crate) fn connect(to: SocketAddr, config: impl Into<Arc<ClientConfig>>) -> Result<Self, End> {
        let mut client = Self::prepare(tcp(to), config);
        client.handshake()?;
        Ok(client)
    }

    pub(crate) fn handshake(&mut self) -> Result<(), End> {
        while self.tls.is_handshaking() || self.tls.wants_write() {
            self.tls.complete_io(&mut self.tcp).map_err(|e| End::of(&e))?;
        }
        Ok(())
    }

    pub(crate) fn source(&self) -> SocketAddr {
        self.tcp.local_addr().unwrap()
    }

    pub(crate) fn stream(&mut self) -> rustls::Stream<'_, ClientConnection, TcpStream> {
        rustls::Stream::new(&mut self.tls, &mut self.tcp)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream().write_all(bytes)?;
        self.stream().flush()
    }

    pub(crate) fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream().read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Says that no more will come.
    pub(crate) fn finish(&mut self) {
        self.tls.send_close_notify();
        self.stream().flush().unwrap();
    }

    /// Sends this, expects it back, ends in order.
    pub(crate) fn echo(mut self, bytes: &[u8]) -> (Vec<u8>, End) {
        self.send(bytes).unwrap();
        self.finish();
        read_to_end(&mut self.stream())
    }
}

/// Presents one chain, whatever is asked for.
#[derive(Debug)]
pub(crate) struct Always(pub(crate) Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What a verifier of the tests answers besides its verdict on a chain: TLS 1.3 signatures are checked, TLS 1.2 is not spoken.
macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.2".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &rustls::pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let supported = crate::support::client::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, &supported)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            crate::support::client::provider().signature_verification_algorithms.supported_schemes()
        }
    };
}
pub(crate) use handshake_signatures;

/// Believes any server.
#[derive(Debug)]
pub(crate) struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!();
}
