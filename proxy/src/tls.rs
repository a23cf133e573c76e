//! TLS 1.3 as the mesh speaks it: which algorithms, whose certificate, who is believed. The only place that names rustls.
//!
//! A [`Tls`] is built once per process. Its configs never change: rotation swaps the [`Credentials`] that they resolve
//! to, a push swaps the trust that they verify against. A connection neither builds a config nor takes a lock.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use postern_config::id::SpiffeId;
use postern_config::svid::{Algorithms, Peer, Role};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::ahead::ReadAhead;
use crate::prefixed::Prefixed;
use crate::snapshot::Snapshots;

pub mod acme;
mod chains;
mod credentials;
pub mod edge;
pub mod enroll;
mod failure;
mod verify;
pub mod web;

pub use chains::ChainCounters;
pub use credentials::{CredentialError, Credentials, Standing};
pub use failure::{Failure, received_alert};
use verify::PeerVerifier;

/// A TCP stream, of which some bytes may have been looked at already.
pub type Tcp = Prefixed<TcpStream>;

/// A TLS stream over TCP, either side. Boxed: what carries it on moves a pointer, and holds no second copy of its state.
pub type Stream = Box<tokio_rustls::TlsStream<ReadAhead<Tcp>>>;

fn boxed(stream: impl Into<tokio_rustls::TlsStream<ReadAhead<Tcp>>>) -> Stream {
    Box::new(stream.into())
}

/// The protocol that two proxies agree on for relayed bytes.
pub const ALPN_TCP: &[u8] = b"postern-tcp/1";
/// HTTP/2 (RFC 9113 §3.2).
pub const ALPN_H2: &[u8] = b"h2";
/// HTTP/1.1 (RFC 7301 §6).
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Which application protocols one side of a handshake offers or takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// Relayed bytes alone.
    Tcp,
    /// HTTP/2, else HTTP/1.1.
    Http,
    /// HTTP/2 alone: for the control plane.
    Http2,
    /// HTTP/1.1 alone: for a connection that is to be upgraded.
    Http1,
    /// HTTP, else relayed bytes.
    Any,
}

impl Alpn {
    const ALL: [Self; 5] = [Self::Tcp, Self::Http, Self::Http2, Self::Http1, Self::Any];

    /// In order of preference.
    fn protocols(self) -> Vec<Vec<u8>> {
        let names: &[&[u8]] = match self {
            Self::Tcp => &[ALPN_TCP],
            Self::Http => &[ALPN_H2, ALPN_HTTP1],
            Self::Http2 => &[ALPN_H2],
            Self::Http1 => &[ALPN_HTTP1],
            Self::Any => &[ALPN_H2, ALPN_HTTP1, ALPN_TCP],
        };
        names.iter().map(|n| n.to_vec()).collect()
    }
}

/// AES-128-GCM first: SHA-384 costs more CPU than it gains here. A post-quantum hybrid first: what is recorded today
/// must not be readable later.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::{cipher_suite as suite, kx_group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
});

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}

fn algorithms() -> Algorithms<'static> {
    Algorithms { signatures: PROVIDER.signature_verification_algorithms.all, sha256 }
}

/// The proxy's TLS configs.
#[derive(Clone)]
pub struct Tls {
    /// One by each [`Alpn`].
    acceptors: [TlsAcceptor; Alpn::ALL.len()],
    snapshots: Arc<Snapshots>,
    /// How many verified chains each worker remembers.
    remembers: usize,
    chains: ChainCounters,
}

/// The configs of connections to one expected peer, one by each [`Alpn`].
#[derive(Clone)]
pub struct Connector([Arc<ClientConfig>; Alpn::ALL.len()]);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl Tls {
    /// Builds the inbound config. Each worker remembers `remembers` chains that it has verified; 0 verifies every one anew.
    pub fn new(
        snapshots: Arc<Snapshots>,
        remembers: usize,
        chains: ChainCounters,
    ) -> Result<Self, rustls::Error> {
        let verifier = PeerVerifier::new(Arc::clone(&snapshots), Role::Client, None)
            .remembering(remembers, chains.clone());
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verify::Adapter(verifier)))
            .with_cert_resolver(Arc::new(credentials::Resolver(Arc::clone(&snapshots))));
        // Resumption never runs the verifier, so an expired or revoked peer would come back on a ticket.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let acceptor = |alpn: Alpn| {
            let mut config = config.clone();
            config.alpn_protocols = alpn.protocols();
            TlsAcceptor::from(Arc::new(config))
        };
        Ok(Self { acceptors: Alpn::ALL.map(acceptor), snapshots, remembers, chains })
    }

    /// The inbound config itself: for benches, which run the handshake without a socket.
    pub fn server_config(&self, alpn: Alpn) -> &Arc<ServerConfig> {
        self.acceptors[alpn as usize].config()
    }

    /// Builds the outbound config for peers that must be exactly `expected`; once per service, not per connection.
    pub fn connector(&self, expected: SpiffeId) -> Result<Connector, rustls::Error> {
        let verifier = PeerVerifier::new(Arc::clone(&self.snapshots), Role::Server, Some(expected))
            .remembering(self.remembers, self.chains.clone());
        connector(&self.snapshots, verifier)
    }

    /// Accepts: the peer's proven identity, or why not.
    pub async fn accept(&self, tcp: Tcp, alpn: Alpn) -> Result<(Stream, Arc<Peer>), Failure> {
        let (result, verified) =
            verify::capture(self.acceptors[alpn as usize].accept(ReadAhead::from(tcp))).await;
        conclude(result.map(boxed), verified)
    }

    /// The config of connections to the control plane, with this proxy's own certificate.
    pub fn control_connector(&self, control_plane: SpiffeId) -> Result<Connector, rustls::Error> {
        let verifier = PeerVerifier::new(Arc::clone(&self.snapshots), Role::Server, Some(control_plane));
        connector(&self.snapshots, verifier.or_by_host_clock())
    }
}

impl Connector {
    /// Connects: the peer's proven identity is the expected one, or this fails.
    ///
    /// The address goes into no SNI: rustls sends none for an IP address.
    pub async fn connect(
        &self,
        to: IpAddr,
        tcp: TcpStream,
        alpn: Alpn,
    ) -> Result<(Stream, Arc<Peer>), Failure> {
        let name = ServerName::IpAddress(to.into());
        let connector = TlsConnector::from(Arc::clone(self.client_config(alpn)));
        let (result, verified) =
            verify::capture(connector.connect(name, ReadAhead::from(Tcp::from(tcp)))).await;
        conclude(result.map(boxed), verified)
    }

    /// The outbound config itself: for benches, which run the handshake without a socket.
    pub fn client_config(&self, alpn: Alpn) -> &Arc<ClientConfig> {
        &self.0[alpn as usize]
    }
}

/// Ends a handshake that a bench has run by hand through these configs, in memory: its chain is remembered from now on.
pub fn finished_in_memory() -> Option<Arc<Peer>> {
    verify::last_found()?.ok().map(verify::Believed::finished)
}

/// The application protocol that a handshake agreed on; none where the peer offered none.
pub fn agreed(stream: &Stream) -> Option<&[u8]> {
    stream.get_ref().1.alpn_protocol()
}

fn connector(snapshots: &Arc<Snapshots>, verifier: PeerVerifier) -> Result<Connector, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous_with(verify::Adapter(verifier))
        .with_client_cert_resolver(Arc::new(credentials::Resolver(Arc::clone(snapshots))));
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(Connector(Alpn::ALL.map(|alpn| {
        let mut config = config.clone();
        config.alpn_protocols = alpn.protocols();
        Arc::new(config)
    })))
}

/// Names what `dangerous()` is used for, once: our verifier checks more than the stock one, not less.
trait WithPeerVerifier {
    fn dangerous_with(
        self,
        verifier: impl rustls::client::danger::ServerCertVerifier + 'static,
    ) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;
}

impl WithPeerVerifier for rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    fn dangerous_with(
        self,
        verifier: impl rustls::client::danger::ServerCertVerifier + 'static,
    ) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        self.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    }
}

fn conclude(
    result: io::Result<Stream>,
    verified: Option<verify::Found>,
) -> Result<(Stream, Arc<Peer>), Failure> {
    match (result, verified) {
        (Ok(stream), Some(Ok(believed))) => Ok((stream, believed.finished())),
        (Ok(_), _) => Err(Failure::internal("the handshake ended without a verified peer")),
        (Err(_), Some(Err(why))) => Err(Failure::from(why)),
        (Err(error), _) => Err(Failure::from(error)),
    }
}
