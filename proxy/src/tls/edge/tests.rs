//! What files may hold, and the ClientHello however it is cut.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::tls::Failure;

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str, from: i32, to: i32) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    fn leaf(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, Zeroizing<Vec<u8>>) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2100, 1, 1));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        (leaf.pem().into_bytes(), Zeroizing::new(key.serialize_pem().into_bytes()))
    }

    fn crl(&self, next: i32) -> Vec<u8> {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(next, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap().into_bytes()
    }
}

fn build(chain: &[u8], key: &Zeroizing<Vec<u8>>, clients: Option<[&[Vec<u8>]; 2]>) -> Result<Server, String> {
    let recipe = Recipe {
        proof: Proof::Files { chain, key },
        clients: clients.map(|[ca, crl]| ClientRule { required: true, ca, crl }),
        tls12: false,
        names: &["a.example", "*.b.example"],
    };
    Server::build(&recipe, &Arc::default()).map_err(|e| e.to_string())
}

#[test]
fn a_chain_or_key_that_clients_would_refuse_is_refused_here() {
    let ca = Ca::new("ca", 2020, 2100);
    let (chain, key) = ca.leaf("a.example", |_| {});
    let (other_chain, other_key) = ca.leaf("a.example", |_| {});
    let good = build(&chain, &key, None).unwrap();
    assert_eq!(good.not_after, Some(4_102_444_800));
    assert_eq!(good.warnings.len(), 1, "*.b.example is not covered: {:?}", good.warnings);

    let ends = |to| ca.leaf("a.example", |p: &mut CertificateParams| p.not_after = date_time_ymd(to, 1, 1));
    let (expired, expired_key) = ends(2021);
    let (early, early_key) = ca.leaf("a.example", |p| p.not_before = date_time_ymd(2099, 1, 1));
    let purpose = ExtendedKeyUsagePurpose::ClientAuth;
    let (client, client_key) = ca.leaf("a.example", |p| p.extended_key_usages = vec![purpose]);
    let (authority, authority_key) =
        ca.leaf("a.example", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let wrong_order = [ca.pem(), chain.clone()].concat();
    let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec();
    let none = Zeroizing::new(Vec::new());
    for (chain, key, words) in [
        (&chain, &other_key, "key: is not the key of the chain's first certificate"),
        (&other_chain, &key, "key: is not the key of the chain's first certificate"),
        (&expired, &expired_key, "chain: the certificate expired at"),
        (&early, &early_key, "chain: the certificate is not valid before"),
        (&client, &client_key, "chain: the certificate is not for TLS servers"),
        (&authority, &authority_key, "chain: its first certificate is a CA's"),
        (&wrong_order, &key, "chain: its first certificate is a CA's"),
        (&Vec::new(), &key, "chain: holds no certificate"),
        (&broken, &key, "chain: holds something that is no X.509 certificate"),
        (&chain, &none, "key: holds no private key in PEM"),
    ] {
        let error = build(chain, key, None).unwrap_err();
        assert!(error.starts_with(words), "{error}, not: {words}");
    }
}

#[test]
fn client_cas_are_cas_in_date_and_revocation_lists_are_lists() {
    let ca = Ca::new("server", 2020, 2100);
    let (chain, key) = ca.leaf("a.example", |_| {});
    let (good, expired, future) =
        (Ca::new("good", 2020, 2100), Ca::new("expired", 2020, 2021), Ca::new("future", 2099, 2100));
    let with = |ca: Vec<Vec<u8>>, crl: Vec<Vec<u8>>| build(&chain, &key, Some([&ca, &crl]));

    let server = with(vec![[good.pem(), expired.pem(), future.pem()].concat()], vec![]).unwrap();
    assert!(server.warnings.iter().any(|w| w.contains("CN=expired has expired")), "{:?}", server.warnings);
    assert_eq!(server.rebuild_at, Some(4_070_908_800), "when the future one begins");
    let server = with(vec![good.pem()], vec![good.crl(2021)]).unwrap();
    assert!(server.warnings.iter().any(|w| w.contains("past its next update")), "{:?}", server.warnings);
    assert!(with(vec![good.pem()], vec![good.crl(2100)]).is_ok());

    for (ca, crl, words) in [
        (vec![expired.pem()], vec![], "client CA: none is in date"),
        (vec![vec![]], vec![], "client CA: holds no certificate"),
        (vec![chain.clone()], vec![], "client CA: CN=rcgen self signed cert is not a CA's certificate"),
        (vec![good.pem()], vec![vec![]], "revocation list: holds no X509 CRL in PEM"),
        (vec![good.pem()], vec![good.pem()], "revocation list: holds no X509 CRL in PEM"),
        (
            vec![good.pem()],
            vec![b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".to_vec()],
            "revocation list: is no X.509 revocation list",
        ),
    ] {
        let error = with(ca, crl).unwrap_err();
        assert!(error.starts_with(words), "{error}, not: {words}");
    }
}

/// A ClientHello as rustls sends it, in one record.
fn client_hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::clone(&TLS13))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

/// The same handshake message in records of `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 1], &length[..], part].concat()
    };
    hello[5..].chunks(size).flat_map(record).collect()
}

/// What is read when `bytes` arrive in segments of `size`.
async fn read(bytes: Vec<u8>, size: usize) -> Result<Hello, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let writing = async {
        for part in bytes.chunks(size) {
            if client.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Open until the other side has decided.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = writing => unreachable!(),
        read = tokio::time::timeout(Duration::from_secs(10), Hello::read(server, b"")) => read.unwrap(),
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_hello_is_the_same_however_it_is_cut() {
    let whole = client_hello("Shop.Example.COM");
    assert!(whole.len() > 1200, "it holds a post-quantum key share");
    for bytes in [whole.clone(), in_records(&whole, 100), in_records(&whole, 1)] {
        for segment in [1, 7, 4096] {
            let hello = read(bytes.clone(), segment).await.unwrap();
            assert_eq!(hello.server_name(), Some("shop.example.com"));
            assert_eq!(hello.bytes, bytes, "whoever goes on without us gets every byte");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_no_hello_is_refused_at_once_and_with_bounds() {
    use postern_config::reason::Reason;
    let whole = client_hello("a.example");
    let mut huge = whole.clone();
    // A handshake message that claims 60 KiB, in records that never end.
    huge[6..9].copy_from_slice(&[0, 0xf0, 0]);
    let endless: Vec<u8> = in_records(&[&huge[..], &[0; 60_000]].concat(), 16_000);
    for (bytes, reason) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Reason::NotTls),
        (vec![0; 64], Reason::NotTls),
        (vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10], Reason::NotTls),
        (endless, Reason::NotTls),
    ] {
        let failure = read(bytes, 4096).await.err().unwrap();
        assert_eq!(failure.reason, reason, "{failure}");
    }
}
