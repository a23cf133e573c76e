//! The full mutual handshake through the proxy's own TLS configs, in memory, and the SPIFFE verifier alone.
//!
//! `cargo bench -p postern-proxy` prints wall time on one thread; with nothing else running that is CPU time. The ratio of
//! the two figures says which part of a handshake the verifier is.

#![expect(clippy::unwrap_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::id::SpiffeId;
use postern_config::revocation::Revocations;
use postern_config::svid::{self, Algorithms, Role};
use postern_proxy::snapshot::{Snapshots, Trust};
use postern_proxy::tls::{Alpn, ChainCounters, Credentials, Tls, sha256};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

const ID: &str = "spiffe://bench.example/ns/a/sa/b";

/// A root, an issuing CA and a leaf, as the control plane issues them.
struct Chain {
    bundles: BundleSet,
    presented: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn chain() -> Chain {
    let root = CertifiedIssuer::self_signed(ca("root"), KeyPair::generate().unwrap()).unwrap();
    let issuing = CertifiedIssuer::signed_by(ca("issuing"), KeyPair::generate().unwrap(), &root).unwrap();
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, &issuing).unwrap();
    let bundle = TrustBundle::new("bench.example".parse().unwrap(), 1, [root.der().clone()]).unwrap();
    Chain {
        bundles: [bundle].into_iter().collect(),
        presented: vec![leaf.der().clone(), issuing.der().clone()],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()),
    }
}

fn handshake(tls: &Tls, client: &Arc<rustls::ClientConfig>) {
    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(tls.server_config(Alpn::Tcp))).unwrap();
    let mut wire = Vec::with_capacity(8192);
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut read = wire.as_slice();
        while !read.is_empty() {
            server.read_tls(&mut read).unwrap();
            server.process_new_packets().unwrap();
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut read = wire.as_slice();
        while !read.is_empty() {
            client.read_tls(&mut read).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    black_box(server.peer_certificates());
}

fn benches(c: &mut Criterion) {
    let chain = chain();
    let snapshots = Arc::new(Snapshots::default());
    snapshots
        .trust
        .store(Arc::new(Trust { bundles: chain.bundles.clone(), revoked: Revocations::default() }));
    let now = snapshots.clock.unix_time();
    let credentials = Credentials::new(chain.presented.clone(), &chain.key, &chain.bundles, now).unwrap();
    snapshots.credentials.store(Some(Arc::new(credentials)));
    let tls = Tls::new(Arc::clone(&snapshots), 1024, ChainCounters::default()).unwrap();
    let connector = tls.connector(ID.parse::<SpiffeId>().unwrap()).unwrap();
    c.bench_function("mutual handshake, both sides, one intermediate", |b| {
        b.iter(|| handshake(&tls, connector.client_config(Alpn::Tcp)));
    });

    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let algorithms = Algorithms { signatures: provider.signature_verification_algorithms.all, sha256 };
    let revoked = Revocations::default();
    c.bench_function("verifier alone, one intermediate", |b| {
        b.iter(|| {
            let now = UnixTime::now();
            svid::verify(black_box(&chain.presented), &chain.bundles, &revoked, Role::Client, now, algorithms)
        });
    });
    // The same without signatures shows what the SPIFFE rules themselves cost.
    let untrusted = chain.presented[..1].to_vec();
    c.bench_function("verifier refusing a leaf without its issuer", |b| {
        b.iter(|| {
            svid::verify(
                black_box(&untrusted),
                &chain.bundles,
                &revoked,
                Role::Client,
                UnixTime::now(),
                algorithms,
            )
        });
    });
}

criterion_group!(group, benches);
criterion_main!(group);
