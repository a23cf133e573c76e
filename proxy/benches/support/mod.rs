//! What the benches measure with: an identity as the control plane issues it, and a handshake without a socket.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a part of benches, which have nothing to measure where this fails"
)]

use std::sync::Arc;

use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::id::SpiffeId;
use postern_config::revocation::Revocations;
use postern_proxy::snapshot::{Snapshots, Trust};
use postern_proxy::tls::{Alpn, ChainCounters, Connector, Credentials, Tcp, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};

/// Who everybody is.
pub const ID: &str = "spiffe://bench.example/ns/a/sa/b";
/// For rustls' own verifier of servers, which wants a name of DNS.
pub const HOST: &str = "bench.example";

/// A leaf under a root, with or without an issuing CA between.
pub struct Chain {
    /// What a peer believes.
    pub bundles: BundleSet,
    /// The root alone.
    pub root: CertificateDer<'static>,
    /// Leaf first.
    pub presented: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivatePkcs8KeyDer<'static>,
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Issues one; all keys are P-256.
pub fn chain(intermediate: bool) -> Chain {
    let root = CertifiedIssuer::self_signed(ca("root"), KeyPair::generate().unwrap()).unwrap();
    let issuing = CertifiedIssuer::signed_by(ca("issuing"), KeyPair::generate().unwrap(), &root).unwrap();
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.subject_alt_names =
        vec![SanType::URI(ID.try_into().unwrap()), SanType::DnsName(HOST.try_into().unwrap())];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, if intermediate { &issuing } else { &root }).unwrap();
    let bundle = TrustBundle::new("bench.example".parse().unwrap(), 1, [root.der().clone()]).unwrap();
    let mut presented = vec![leaf.der().clone()];
    presented.extend(intermediate.then(|| issuing.der().clone()));
    Chain {
        bundles: [bundle].into_iter().collect(),
        root: root.der().clone(),
        presented,
        key: PrivatePkcs8KeyDer::from(key.serialize_der()),
    }
}

/// The proxy's own TLS, which presents this chain and believes its root.
pub fn tls(chain: &Chain) -> (Arc<Snapshots>, Tls, Connector) {
    let snapshots = Arc::new(Snapshots::default());
    let trust = Trust { bundles: chain.bundles.clone(), revoked: Revocations::default() };
    snapshots.trust.store(Arc::new(trust));
    let now = snapshots.clock.unix_time();
    let credentials = Credentials::new(chain.presented.clone(), &chain.key, &chain.bundles, now).unwrap();
    snapshots.credentials.store(Some(Arc::new(credentials)));
    let tls = Tls::new(Arc::clone(&snapshots), 1024, ChainCounters::default()).unwrap();
    let connector = tls.connector(ID.parse::<SpiffeId>().unwrap()).unwrap();
    (snapshots, tls, connector)
}

/// Lets both sides remember each other's chain on this thread, as after any handshake that went to its end.
pub fn acquaint(tls: &Tls, connector: &Connector) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let accepting = async {
            let (tcp, _) = listener.accept().await.unwrap();
            tls.accept(Tcp::from(tcp), Alpn::Tcp).await
        };
        let connecting = async {
            let tcp = tokio::net::TcpStream::connect(to).await.unwrap();
            connector.connect(to.ip(), tcp, Alpn::Tcp).await
        };
        let (accepted, connected) = tokio::join!(accepting, connecting);
        assert!(accepted.is_ok() && connected.is_ok());
    });
}

/// A full handshake in memory. Each step of each side runs through `timed`, which is told whether it is the server's.
pub fn handshake(
    server: &Arc<rustls::ServerConfig>,
    client: &Arc<rustls::ClientConfig>,
    mut timed: impl FnMut(bool, &mut dyn FnMut()),
) -> (ClientConnection, ServerConnection) {
    let name = ServerName::try_from(HOST).unwrap();
    let (mut to_server, mut to_client) = (Vec::with_capacity(8192), Vec::with_capacity(8192));
    let (mut near, mut far) = (None, None);
    timed(false, &mut || near = ClientConnection::new(Arc::clone(client), name.clone()).ok());
    timed(true, &mut || far = ServerConnection::new(Arc::clone(server)).ok());
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    while near.is_handshaking() || far.is_handshaking() {
        timed(false, &mut || {
            while near.wants_write() {
                near.write_tls(&mut to_server).unwrap();
            }
        });
        timed(true, &mut || {
            let mut read = to_server.as_slice();
            while !read.is_empty() {
                far.read_tls(&mut read).unwrap();
                far.process_new_packets().unwrap();
            }
            while far.wants_write() {
                far.write_tls(&mut to_client).unwrap();
            }
        });
        timed(false, &mut || {
            let mut read = to_client.as_slice();
            while !read.is_empty() {
                near.read_tls(&mut read).unwrap();
                near.process_new_packets().unwrap();
            }
        });
        to_server.clear();
        to_client.clear();
    }
    (near, far)
}

/// How the library is set without us.
pub struct Shape {
    /// X25519 alone; else the library's own list, in which a post-quantum hybrid is first.
    pub x25519: bool,
    /// AES-128-GCM alone; else the library's own list.
    pub aes_128: bool,
    /// Whether the server gives tickets.
    pub tickets: bool,
}

impl Shape {
    /// As the library comes, with the hybrid first.
    pub const DEFAULTS: Self = Self { x25519: false, aes_128: false, tickets: true };
}

/// Both sides of the library with this chain, its root and its own verifiers.
pub fn library(chain: &Chain, shape: &Shape) -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = match shape.x25519 {
        true => vec![kx_group::X25519],
        false => vec![kx_group::X25519MLKEM768, kx_group::X25519],
    };
    if shape.aes_128 {
        provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    }
    let provider = Arc::new(provider);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain.root.clone()).unwrap();
    let roots = Arc::new(roots);
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::clone(&roots),
        Arc::clone(&provider),
    )
    .build()
    .unwrap();
    let versions = &[&rustls::version::TLS13];
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain.presented.clone(), chain.key.clone_key().into())
        .unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.presented.clone(), chain.key.clone_key().into())
        .unwrap();
    // A full handshake is what is measured, so the client never comes back on a ticket that it was given.
    client.resumption = rustls::client::Resumption::disabled();
    if !shape.tickets {
        server.send_tls13_tickets = 0;
    }
    (Arc::new(server), Arc::new(client))
}
