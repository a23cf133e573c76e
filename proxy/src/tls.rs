//! TLS 1.3 as the mesh speaks it: which algorithms, whose certificate, who is believed. The only place that names rustls.
//!
//! A [`Tls`] is built once per process. Its configs never change: rotation swaps the [`Credentials`] that they resolve
//! to, a push swaps the trust that they verify against. A connection neither builds a config nor takes a lock.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use postern_config::id::SpiffeId;
use postern_config::svid::{Algorithms, Peer, Role, VerifyError};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::snapshot::Snapshots;

mod credentials;
pub mod enroll;
mod failure;
mod verify;

pub use credentials::{CredentialError, Credentials};
pub use failure::{Failure, received_alert};
use verify::PeerVerifier;

/// A TLS stream over TCP, either side.
pub type Stream = tokio_rustls::TlsStream<TcpStream>;

/// The protocol that two proxies agree on for relayed bytes.
pub const ALPN_TCP: &[u8] = b"postern-tcp/1";

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
    server: Arc<ServerConfig>,
    acceptor: TlsAcceptor,
    snapshots: Arc<Snapshots>,
}

/// The config of connections to one expected peer.
#[derive(Clone)]
pub struct Connector(Arc<ClientConfig>);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl Tls {
    /// Builds the inbound config.
    pub fn new(snapshots: Arc<Snapshots>) -> Result<Self, rustls::Error> {
        let verifier = PeerVerifier::new(Arc::clone(&snapshots), Role::Client, None);
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verify::Adapter(verifier)))
            .with_cert_resolver(Arc::new(credentials::Resolver(Arc::clone(&snapshots))));
        // Resumption never runs the verifier, so an expired or revoked peer would come back on a ticket.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.alpn_protocols = vec![ALPN_TCP.to_vec()];
        let server = Arc::new(config);
        Ok(Self { acceptor: TlsAcceptor::from(Arc::clone(&server)), server, snapshots })
    }

    /// The inbound config itself: for benches, which run the handshake without a socket.
    pub fn server_config(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// Builds the outbound config for peers that must be exactly `expected`; once per service, not per connection.
    pub fn connector(&self, expected: SpiffeId) -> Result<Connector, rustls::Error> {
        let verifier = PeerVerifier::new(Arc::clone(&self.snapshots), Role::Server, Some(expected));
        connector(&self.snapshots, verifier, ALPN_TCP)
    }

    /// Accepts: the peer's proven identity, or why not.
    pub async fn accept(&self, tcp: TcpStream) -> Result<(Stream, Peer), Failure> {
        let (result, verified) = verify::capture(self.acceptor.accept(tcp)).await;
        conclude(result.map(Stream::from), verified)
    }

    /// The config of connections to the control plane, over HTTP/2, with this proxy's own certificate.
    pub fn control_connector(&self, control_plane: SpiffeId) -> Result<Connector, rustls::Error> {
        let verifier = PeerVerifier::new(Arc::clone(&self.snapshots), Role::Server, Some(control_plane));
        connector(&self.snapshots, verifier.or_by_host_clock(), b"h2")
    }
}

impl Connector {
    /// Connects: the peer's proven identity is the expected one, or this fails.
    ///
    /// The address goes into no SNI: rustls sends none for an IP address.
    pub async fn connect(&self, to: IpAddr, tcp: TcpStream) -> Result<(Stream, Peer), Failure> {
        let name = ServerName::IpAddress(to.into());
        let connector = TlsConnector::from(Arc::clone(&self.0));
        let (result, verified) = verify::capture(connector.connect(name, tcp)).await;
        conclude(result.map(Stream::from), verified)
    }

    /// The outbound config itself: for benches, which run the handshake without a socket.
    pub fn client_config(&self) -> &Arc<ClientConfig> {
        &self.0
    }
}

fn connector(
    snapshots: &Arc<Snapshots>,
    verifier: PeerVerifier,
    alpn: &[u8],
) -> Result<Connector, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous_with(verify::Adapter(verifier))
        .with_client_cert_resolver(Arc::new(credentials::Resolver(Arc::clone(snapshots))));
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Connector(Arc::new(config)))
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
    verified: Option<Result<Peer, VerifyError>>,
) -> Result<(Stream, Peer), Failure> {
    match (result, verified) {
        (Ok(stream), Some(Ok(peer))) => Ok((stream, peer)),
        (Ok(_), _) => Err(Failure::internal("the handshake ended without a verified peer")),
        (Err(_), Some(Err(why))) => Err(Failure::from(why)),
        (Err(error), _) => Err(Failure::from(error)),
    }
}
