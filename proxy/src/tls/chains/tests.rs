//! What the cache must not do: believe longer than the verifier would, or remember whom nobody proved to be.

use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::revocation::Revocations;
use postern_config::svid::{self, VerifyError};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, ServerConnection};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

use super::super::{Alpn, Credentials, PROVIDER, Tls, algorithms};
use super::*;
use crate::snapshot::Snapshots;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A root, an issuing CA, and the trust that follows from the root.
struct Authority {
    root: Issuer,
    issuing: Issuer,
}

impl Authority {
    fn new() -> Self {
        let root = CertifiedIssuer::self_signed(ca("root"), KeyPair::generate().unwrap()).unwrap();
        let issuing = CertifiedIssuer::signed_by(ca("issuing"), KeyPair::generate().unwrap(), &root).unwrap();
        Self { root, issuing }
    }

    fn leaf(&self, name: &str) -> (Vec<CertificateDer<'static>>, KeyPair) {
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = DistinguishedName::new();
        leaf.is_ca = IsCa::ExplicitNoCa;
        let id = format!("spiffe://chains.example/{name}");
        leaf.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&key, &self.issuing).unwrap();
        (vec![leaf.der().clone(), self.issuing.der().clone()], key)
    }

    fn bundles(&self, sequence: u64) -> BundleSet {
        let td = "chains.example".parse().unwrap();
        [TrustBundle::new(td, sequence, [self.root.der().clone()]).unwrap()].into_iter().collect()
    }

    fn trust(&self) -> Trust {
        Trust { bundles: self.bundles(1), revoked: Revocations::default() }
    }

    fn verify(&self, chain: &[CertificateDer<'_>]) -> Arc<Peer> {
        let none = Revocations::default();
        Arc::new(
            svid::verify(chain, &self.bundles(1), &none, Role::Client, UnixTime::now(), algorithms())
                .unwrap(),
        )
    }
}

/// An entry that has just been made, and the peer that it is for.
fn remembered(authority: &Authority) -> (Chains, Key, Arc<Peer>) {
    let (chain, _) = authority.leaf("a");
    let (mut chains, peer) = (Chains::default(), authority.verify(&chain));
    let key = Key::of(&chain, Role::Client).unwrap();
    chains.insert(key, Arc::clone(&peer), 10);
    (chains, key, peer)
}

#[test]
fn dates_bundles_and_revocations_are_asked_at_every_hit() {
    let authority = Authority::new();
    let good = authority.trust();
    let (_, _, any) = remembered(&authority);
    let now = any.not_before + 60;
    let revoking = |revoked| (Trust { bundles: authority.bundles(1), revoked }, now);
    let check = |what: &str, change: &dyn Fn(&Peer) -> (Trust, i64), holds: bool| {
        let (mut chains, key, peer) = remembered(&authority);
        assert!(chains.find(&key, &good, now).is_some(), "{what}: it was remembered");
        let (trust, at) = change(&peer);
        assert_eq!(chains.find(&key, &trust, at).is_some(), holds, "{what}");
        // What did not hold is gone for good: only the verifier may bring it back.
        assert_eq!(chains.find(&key, &good, now).is_some(), holds, "{what}: afterwards");
        assert_eq!(
            (chains.entries.len(), chains.by_identity.len()),
            (usize::from(holds), usize::from(holds))
        );
    };
    check("nothing changed", &|_| (authority.trust(), now), true);
    check(
        "a new bundle with the same root",
        &|_| (Trust { bundles: authority.bundles(9), ..authority.trust() }, now),
        true,
    );
    check("its last second", &|peer| (authority.trust(), peer.not_after), true);
    check("after its end", &|peer| (authority.trust(), peer.not_after + 1), false);
    check("a clock that was turned back", &|peer| (authority.trust(), peer.not_before - 61), false);
    check("another root", &|_| (Authority::new().trust(), now), false);
    check("no bundle of its trust domain", &|_| (Trust::default(), now), false);
    let serial = |peer: &Peer| (peer.issuer_key_id.clone(), peer.serial.clone());
    check(
        "its serial number",
        &|peer| revoking(Revocations { serials: [serial(peer)].into(), ..Revocations::default() }),
        false,
    );
    check(
        "its issuer's serial number",
        &|peer| revoking(Revocations { serials: [peer.issuers[0].clone()].into(), ..Revocations::default() }),
        false,
    );
    check(
        "its identity, for certificates until now",
        &|peer| {
            let identities = [(peer.id.clone(), peer.issued + 1)].into();
            revoking(Revocations { identities, ..Revocations::default() })
        },
        false,
    );
    check(
        "its identity, for older certificates",
        &|peer| {
            let identities = [(peer.id.clone(), peer.issued)].into();
            revoking(Revocations { identities, ..Revocations::default() })
        },
        true,
    );
    for member in 0..3 {
        check(
            "a tainted key on its path",
            &|peer| revoking(Revocations { spkis: [peer.spkis[member]].into(), ..Revocations::default() }),
            false,
        );
    }
}

#[test]
fn a_key_is_of_one_chain_in_one_role() {
    let authority = Authority::new();
    let (chain, _) = authority.leaf("a");
    let of = |chain: &[CertificateDer<'_>]| Key::of(chain, Role::Client).unwrap();
    assert_eq!(of(&chain), of(&chain.clone()));
    assert_ne!(of(&chain), Key::of(&chain, Role::Server).unwrap());
    assert_ne!(of(&chain), of(&chain[..1]));
    // The same bytes, cut elsewhere.
    let joined = [chain[0].as_ref(), chain[1].as_ref()].concat();
    let (one, other) = joined.split_at(100);
    assert_ne!(of(&chain), of(&[CertificateDer::from(one), CertificateDer::from(other)]));
    // What the verifier refuses unread is not even hashed.
    assert!(Key::of(&[], Role::Client).is_none());
    assert!(Key::of(&vec![chain[0].clone(); MAX_CHAIN + 1], Role::Client).is_none());
    assert!(Key::of(&[CertificateDer::from(vec![0; MAX_CHAIN_BYTES + 1])], Role::Client).is_none());
}

/// How many there are by each account.
fn counts(chains: &Chains) -> [usize; 3] {
    [chains.entries.len(), chains.by_age.len(), chains.by_identity.values().map(Ages::len).sum()]
}

#[test]
fn it_is_bounded_no_identity_fills_it_and_what_is_in_use_stays() {
    const MOST: usize = 8;
    let authority = Authority::new();
    let mut chains = Chains::default();
    let trust = authority.trust();
    let add = |chains: &mut Chains, name: &str| {
        let (chain, _) = authority.leaf(name);
        let (key, peer) = (Key::of(&chain, Role::Client).unwrap(), authority.verify(&chain));
        let now = peer.not_before + 60;
        chains.insert(key, peer, MOST);
        (key, now)
    };
    let (in_use, now) = add(&mut chains, "in-use");
    // An identity that comes with ever new certificates displaces none but its own.
    for _ in 0..20 {
        add(&mut chains, "greedy");
    }
    assert_eq!(chains.entries.len(), 1 + MOST / SHARES);
    for number in 0..20 {
        assert!(chains.find(&in_use, &trust, now).is_some(), "what is in use stays");
        add(&mut chains, &format!("other-{number}"));
    }
    assert_eq!(counts(&chains), [MOST; 3]);
    // Twice the same is one.
    let (again, peer) = chains.entries.iter().map(|(k, e)| (*k, Arc::clone(&e.peer))).next().unwrap();
    chains.insert(again, peer, MOST);
    assert_eq!(counts(&chains), [MOST; 3]);
    // None at all where none is wanted.
    let mut none = Chains::default();
    let (chain, _) = authority.leaf("a");
    none.insert(Key::of(&chain, Role::Client).unwrap(), authority.verify(&chain), 0);
    assert!(none.entries.is_empty());
}

/// A server with a cache, in memory.
struct Server {
    snapshots: Arc<Snapshots>,
    tls: Tls,
    counters: ChainCounters,
}

impl Server {
    fn new(authority: &Authority) -> Self {
        let snapshots = Arc::new(Snapshots::default());
        snapshots.trust.store(Arc::new(authority.trust()));
        let (chain, key) = authority.leaf("server");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let now = snapshots.clock.unix_time();
        let own = Credentials::new(chain, &key, &authority.bundles(1), now).unwrap();
        snapshots.credentials.store(Some(Arc::new(own)));
        let counters = ChainCounters::default();
        let tls = Tls::new(Arc::clone(&snapshots), 16, counters.clone()).unwrap();
        Self { snapshots, tls, counters }
    }

    /// One handshake with a client that presents this chain and signs with this key; what its server found.
    fn meet(&self, chain: &[CertificateDer<'static>], key: &KeyPair) -> Result<Arc<Peer>, String> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = PROVIDER.key_provider.load_private_key(key).unwrap();
        let connector = self.tls.connector("spiffe://chains.example/server".parse().unwrap()).unwrap();
        let mut config = ClientConfig::clone(connector.client_config(Alpn::Tcp));
        let certified = CertifiedKey::new(chain.to_vec(), key);
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut server = ServerConnection::new(Arc::clone(self.tls.server_config(Alpn::Tcp))).unwrap();
        let mut found = None;
        while server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut read = wire.as_slice();
            while !read.is_empty() {
                server.read_tls(&mut read).unwrap();
                let stepped = server.process_new_packets();
                found = super::super::verify::last_found().or(found);
                stepped.map_err(|e| e.to_string())?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut read = wire.as_slice();
            while !read.is_empty() {
                client.read_tls(&mut read).unwrap();
                client.process_new_packets().map_err(|e| e.to_string())?;
                // The client verifies on the same thread; its finding is not the server's.
                super::super::verify::last_found();
            }
        }
        Ok(found.unwrap().unwrap().finished())
    }

    fn hits(&self) -> u64 {
        self.counters.hits.get()
    }
}

#[test]
fn a_peer_that_comes_again_is_known_and_one_that_cannot_prove_the_key_never_was() {
    let authority = Authority::new();
    let server = Server::new(&authority);
    let ((chain, key), (_, wrong)) = (authority.leaf("client"), authority.leaf("client"));
    // A chain is public; whoever presents it without its key gets neither in nor into the cache.
    for _ in 0..3 {
        let refused = server.meet(&chain, &wrong).unwrap_err();
        assert!(refused.contains("BadSignature"), "{refused}");
    }
    let known = |server: &Server| {
        let before = server.hits();
        let peer = server.meet(&chain, &key);
        (peer.map(|p| p.id.to_string()), server.hits() - before)
    };
    let id = "spiffe://chains.example/client".to_owned();
    assert_eq!(known(&server), (Ok(id.clone()), 0), "the three before did not make it known");
    assert_eq!(known(&server), (Ok(id.clone()), 1));
    // Known, and without its key still nobody.
    assert!(server.meet(&chain, &wrong).unwrap_err().contains("BadSignature"));
    assert_eq!(known(&server), (Ok(id.clone()), 1));

    // A push that no longer believes it.
    let serial = authority.verify(&chain);
    let revoked =
        Revocations { identities: [(serial.id.clone(), serial.issued + 1)].into(), ..Revocations::default() };
    server.snapshots.trust.store(Arc::new(Trust { bundles: authority.bundles(1), revoked }));
    let before = server.hits();
    assert!(server.meet(&chain, &key).unwrap_err().contains("Revoked"));
    assert_eq!(server.hits(), before);
    // Taken back: the verifier is asked once, then it is known.
    server.snapshots.trust.store(Arc::new(authority.trust()));
    assert_eq!(known(&server), (Ok(id.clone()), 0));
    assert_eq!(known(&server), (Ok(id), 1));
    server.snapshots.trust.store(Arc::new(Authority::new().trust()));
    assert!(server.meet(&chain, &key).is_err());
}

#[test]
fn the_expected_identity_is_asked_of_a_known_chain_too() {
    let authority = Authority::new();
    let (chain, _) = authority.leaf("a");
    let snapshots = Arc::new(Snapshots::default());
    snapshots.trust.store(Arc::new(authority.trust()));
    let counters = ChainCounters::default();
    let judge = |expected: &str| {
        let expected = Some(expected.parse().unwrap());
        super::super::verify::PeerVerifier::new(Arc::clone(&snapshots), Role::Server, expected)
            .remembering(16, counters.clone())
    };
    use super::super::verify::Judge as _;
    judge("spiffe://chains.example/a").judge(&chain).unwrap().finished();
    judge("spiffe://chains.example/a").judge(&chain).unwrap();
    assert_eq!(counters.hits.get(), 1);
    let refused = judge("spiffe://chains.example/b").judge(&chain).unwrap_err();
    assert!(matches!(refused, VerifyError::WrongIdentity { .. }), "{refused}");
    assert_eq!(counters.hits.get(), 2, "it was known, and is still not who was expected");
}
