use std::sync::atomic::{AtomicUsize, Ordering};

use http::Request;
use postern_config::bundle::TrustBundle;
use postern_config::id::SpiffeId;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A CA of one's own.
struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn trust(&self) -> Trust {
        Trust::Pem(vec![self.certificate.clone()])
    }

    fn server(&self, name: SanType, version: &'static rustls::SupportedProtocolVersion) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.distinguished_name = rcgen::DistinguishedName::new();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config =
            ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![leaf], key)
                .unwrap();
        TlsAcceptor::from(std::sync::Arc::new(config))
    }
}

fn localhost() -> SanType {
    SanType::DnsName("localhost".try_into().unwrap())
}

fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().unwrap())
}

/// Answers every request with these bytes, and says where it listens and how many heads it has read. With `hold` it never
/// ends an answer by closing.
async fn serve(acceptor: TlsAcceptor, answer: impl AsRef<[u8]>, hold: bool) -> (u16, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Heads::default();
    let (seen, answer) = (heads.clone(), answer.as_ref().to_vec());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            seen.0.fetch_add(1, Ordering::SeqCst);
            *seen.1.lock().unwrap() = String::from_utf8(head).unwrap();
            let _ = stream.write_all(&answer).await;
            let _ = stream.flush().await;
            if hold {
                tokio::spawn(async move { stream.read_u8().await });
            } else {
                let _ = stream.shutdown().await;
            }
        }
    });
    (port, heads)
}

#[derive(Clone, Default)]
struct Heads(std::sync::Arc<AtomicUsize>, std::sync::Arc<std::sync::Mutex<String>>);

impl Heads {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn last(&self) -> String {
        self.1.lock().unwrap().clone()
    }
}

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

#[tokio::test]
async fn an_answer_comes_whole_over_both_versions_of_tls() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let authority = Authority::new();
        let (port, heads) = serve(authority.server(localhost(), version), HELLO, false).await;
        let fetcher = Fetcher::new(authority.trust()).unwrap();
        let answer = fetcher.get(&format!("https://localhost:{port}/keys?v=1")).await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.body()[..]), (200, &b"hello"[..]));
        let head = heads.last().to_ascii_lowercase();
        assert!(head.starts_with("get /keys?v=1 http/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nhost: localhost:{port}\r\n")), "{head}");
        assert!(head.contains("\r\naccept-encoding: identity\r\n"), "{head}");
    }
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused_however_it_is_announced() {
    let authority = Authority::new();
    let announced = "HTTP/1.1 200 OK\r\ncontent-length: 1048577\r\n\r\n";
    let long = "HTTP/1.1 200 OK\r\n\r\n".to_owned() + &"x".repeat(MAX_BODY + 1);
    for (answer, hold) in [(announced.to_owned(), true), (long, false)] {
        let server = authority.server(localhost(), &rustls::version::TLS13);
        let (port, _) = serve(server, answer, hold).await;
        let fetcher = Fetcher::new(authority.trust()).unwrap();
        let refused = fetcher.get(&format!("https://localhost:{port}/")).await.unwrap_err();
        assert_eq!(refused.reason(), "too_large", "{refused}");
    }
    // Exactly the bound is taken.
    let server = authority.server(localhost(), &rustls::version::TLS13);
    let (port, _) = serve(server, HELLO, false).await;
    let fetcher = Fetcher::new(authority.trust()).unwrap().max_body(5);
    assert_eq!(&fetcher.get(&format!("https://localhost:{port}/")).await.unwrap().body()[..], b"hello");
}

#[tokio::test]
async fn a_server_that_never_ends_meets_the_deadline() {
    let authority = Authority::new();
    for answer in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello"] {
        let server = authority.server(localhost(), &rustls::version::TLS13);
        let (port, _) = serve(server, answer, true).await;
        let fetcher = Fetcher::new(authority.trust()).unwrap().deadline(Duration::from_millis(300));
        let refused = fetcher.get(&format!("https://localhost:{port}/")).await.unwrap_err();
        assert_eq!(refused.reason(), "timeout", "{answer:?}: {refused}");
    }
    // So does one that does not even greet.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", silent.local_addr().unwrap().port());
    let fetcher = Fetcher::new(authority.trust()).unwrap().deadline(Duration::from_millis(300));
    assert_eq!(fetcher.get(&url).await.unwrap_err().reason(), "timeout");
}

#[tokio::test]
async fn a_compressed_or_broken_answer_is_none() {
    let authority = Authority::new();
    for (answer, reason) in [
        ("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello", "compressed"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello", "http"),
        ("hello\r\n\r\n", "http"),
    ] {
        let server = authority.server(localhost(), &rustls::version::TLS13);
        let (port, _) = serve(server, answer, false).await;
        let fetcher = Fetcher::new(authority.trust()).unwrap();
        let refused = fetcher.get(&format!("https://localhost:{port}/")).await.unwrap_err();
        assert_eq!(refused.reason(), reason, "{refused}");
    }
}

#[tokio::test]
async fn a_stranger_learns_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = authority.server(localhost(), &rustls::version::TLS13);
    let (port, heads) = serve(server, HELLO, false).await;
    let wrong_ca = Fetcher::new(other.trust()).unwrap().get(&format!("https://localhost:{port}/")).await;
    let wrong_name =
        Fetcher::new(authority.trust()).unwrap().get(&format!("https://127.0.0.1:{port}/")).await;
    for refused in [wrong_ca, wrong_name] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.reason(), "tls", "{refused}");
    }
    assert_eq!(heads.count(), 0);
}

#[tokio::test]
async fn a_url_that_is_not_https_without_password_is_not_fetched() {
    let fetcher = Fetcher::new(Authority::new().trust()).unwrap();
    for url in [
        "http://localhost:1/",
        "http://127.0.0.1:1/",
        "https://user@localhost:1/",
        "https://user:password@localhost:1/",
        "https://localhost:x/",
        "https:///path",
        "ftp://localhost/",
        "spiffe://localhost/a",
        "/path",
        "localhost",
        "",
    ] {
        let refused = fetcher.get(url).await.unwrap_err();
        assert_eq!(refused.reason(), "bad_url", "{url}: {refused}");
    }
    // Plain HTTP is for addresses of this host alone, and for who asks for it.
    let plain = fetcher.plain_loopback();
    for url in ["http://localhost:1/", "http://10.0.0.1:1/", "http://u@127.0.0.1:1/"] {
        assert_eq!(plain.get(url).await.unwrap_err().reason(), "bad_url", "{url}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(plain.get(&format!("http://{closed}/")).await.unwrap_err().reason(), "unreachable");
}

#[tokio::test]
async fn metadata_services_are_not_asked() {
    let fetcher = Fetcher::new(Authority::new().trust()).unwrap();
    for host in ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "0.0.0.0", "[fe80::1]"] {
        let refused = fetcher.get(&format!("https://{host}/")).await.unwrap_err();
        assert_eq!(refused.reason(), "forbidden_address", "{host}: {refused}");
    }
    assert_eq!(address::forbidden("127.0.0.1".parse().unwrap(), true), None);
    for host in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"] {
        assert!(address::forbidden(host.parse().unwrap(), false).is_some(), "{host}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_where_asked_for_and_only_to_what_would_be_fetched_anyway() {
    let authority = Authority::new();
    let server = || authority.server(localhost(), &rustls::version::TLS13);
    let (end, heads) = serve(server(), HELLO, false).await;
    let to =
        |location: &str| format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    let fetch = Fetcher::new(authority.trust()).unwrap();
    let follow = fetch.clone().redirects(2);
    let (good, _) = serve(server(), to(&format!("https://localhost:{end}/there#x")), false).await;
    let url = format!("https://localhost:{good}/");

    assert_eq!(fetch.get(&url).await.unwrap().status(), 302, "nothing is followed unasked");
    let post = Request::post(&url).body(Bytes::new()).unwrap();
    assert_eq!(follow.send(post).await.unwrap().status(), 302, "what changes something is not sent on");
    assert_eq!(heads.count(), 0);
    let request = Request::get(&url).header("authorization", "Bearer secret").header("accept", "a/b");
    let answer = follow.send(request.body(Bytes::new()).unwrap()).await.unwrap();
    assert_eq!(&answer.body()[..], b"hello");
    assert!(heads.last().starts_with("GET /there HTTP/1.1\r\n") && heads.last().contains("a/b"));
    assert!(!heads.last().contains("secret"), "credentials were for the first server");

    for (location, reason) in [
        (format!("http://localhost:{end}/"), "bad_url"),
        (format!("https://user@localhost:{end}/"), "bad_url"),
        ("https://169.254.169.254/latest".to_owned(), "forbidden_address"),
        (format!("https://127.0.0.1:{end}/"), "tls"),
        ("there".to_owned(), "bad_url"),
        ("//".to_owned(), "bad_url"),
    ] {
        let (port, _) = serve(server(), to(&location), false).await;
        let refused = follow.get(&format!("https://localhost:{port}/")).await.unwrap_err();
        assert_eq!(refused.reason(), reason, "{location}: {refused}");
    }
    assert_eq!(heads.count(), 1);
    // In a circle, by a path alone.
    let (circle, seen) = serve(server(), to("/again"), false).await;
    let refused = follow.get(&format!("https://localhost:{circle}/")).await.unwrap_err();
    assert_eq!((refused.reason(), seen.count()), ("redirects", 3));
}

#[tokio::test]
async fn a_spiffe_endpoint_is_known_by_its_identity_and_not_by_its_name() {
    let (authority, other) = (Authority::new(), Authority::new());
    let bundle = |authority: &Authority, domain: &str| {
        let authorities = [authority.certificate.clone()];
        Box::new(TrustBundle::new(domain.parse().unwrap(), 1, authorities).unwrap())
    };
    let id: SpiffeId = "spiffe://b.example/endpoint".parse().unwrap();
    let cases = [
        ("spiffe://b.example/endpoint", bundle(&authority, "b.example"), true),
        ("spiffe://b.example/another", bundle(&authority, "b.example"), false),
        ("spiffe://b.example/endpoint", bundle(&other, "b.example"), false),
        // A bundle speaks for its own trust domain alone.
        ("spiffe://b.example/endpoint", bundle(&authority, "a.example"), false),
        ("spiffe://a.example/endpoint", bundle(&authority, "a.example"), false),
    ];
    for (presented, bundle, good) in cases {
        let server = authority.server(uri(presented), &rustls::version::TLS13);
        let (port, heads) = serve(server, HELLO, false).await;
        let fetcher = Fetcher::new(Trust::Spiffe(id.clone(), bundle)).unwrap();
        let answer = fetcher.get(&format!("https://127.0.0.1:{port}/")).await;
        assert_eq!(answer.is_ok(), good, "{presented}: {answer:?}");
        assert_eq!(heads.count(), usize::from(good));
    }
    // A certificate of the web is no identity.
    let (port, _) = serve(authority.server(localhost(), &rustls::version::TLS13), HELLO, false).await;
    let fetcher = Fetcher::new(Trust::Spiffe(id, bundle(&authority, "b.example"))).unwrap();
    assert!(fetcher.get(&format!("https://localhost:{port}/")).await.is_err());
}
