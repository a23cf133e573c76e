//! ACME where no server of others can be asked: who is shown the answer to a challenge, and renewal when the issuer asks.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_config::file::acme::AcmeIssuer;
use postern_proxy::acme::metrics::AcmeMetrics;
use postern_proxy::acme::{Acme, Armed, Challenges, Pace, Wanted, file};
use postern_proxy::snapshot::Snapshots;
use postern_proxy::tls::acme::{Answer, challenged, read_pair};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::server::Acceptor;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::client::provider;
use crate::support::eventually;
use crate::support::mesh::Directory;
use crate::support::web::{Web, answer};

/// The name that a ClientHello with these protocols asks a proof for.
fn asked(name: &str, protocols: &[&[u8]]) -> Option<String> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let (mut hello, mut acceptor) = (Vec::new(), Acceptor::default());
    client.write_tls(&mut hello).unwrap();
    acceptor.read_tls(&mut hello.as_slice()).unwrap();
    let accepted = acceptor.accept().unwrap().unwrap();
    challenged(&accepted.client_hello()).map(str::to_owned)
}

#[test]
fn only_who_offers_the_challenges_protocol_and_nothing_else_asks_for_a_proof() {
    assert_eq!(asked("a.test", &[b"acme-tls/1"]).as_deref(), Some("a.test"));
    let others: [&[&[u8]]; 6] = [
        &[],
        &[b"h2"],
        &[b"h2", b"acme-tls/1"],
        &[b"acme-tls/1", b"h2"],
        &[b"acme-tls/1", b"acme-tls/1"],
        &[b"ACME-TLS/1"],
    ];
    for protocols in others {
        assert_eq!(asked("a.test", protocols), None, "{protocols:?}");
    }
    assert_eq!(asked("127.0.0.1", &[b"acme-tls/1"]), None, "an address has no name");
}

#[test]
fn a_challenge_is_answered_while_its_order_is_open_and_under_its_name_alone() {
    let challenges = Arc::<Challenges>::default();
    let proof = Answer::new("a.test", &[7; 32]).unwrap();
    let mut armed = Armed::new(&challenges);
    armed.tls_alpn("a.test", &proof);
    armed.http("token", "token.thumbprint");
    let mut other = Armed::new(&challenges);
    other.http("second", "second.thumbprint");
    assert!(challenges.tls_alpn("a.test").is_some());
    assert!(challenges.tls_alpn("b.test").is_none());
    let page = |path: &str| challenges.http(path).map(|page| page.to_string());
    assert_eq!(page("/.well-known/acme-challenge/token").as_deref(), Some("token.thumbprint"));
    for path in [
        "/token",
        "/.well-known/acme-challenge/",
        "/.well-known/acme-challenge/token/",
        "/.well-known/acme-challenge/x",
    ] {
        assert_eq!(page(path), None, "{path}");
    }
    drop(armed);
    assert!(challenges.tls_alpn("a.test").is_none());
    assert_eq!(page("/.well-known/acme-challenge/token"), None);
    assert_eq!(page("/.well-known/acme-challenge/second").as_deref(), Some("second.thumbprint"));
}

/// A certificate that lasts for millennia, with its key, as it is kept.
fn kept(name: &str) -> String {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new([]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    format!("{}{}", key.serialize_pem(), leaf.pem())
}

#[test]
fn what_is_kept_goes_together_or_is_refused() {
    let (one, two) = (kept("a.test"), kept("b.test"));
    assert_eq!(read_pair(one.as_bytes()).unwrap().names, ["a.test"]);
    let cut = |pem: &str| pem.find("-----BEGIN CERTIFICATE").unwrap();
    let mixed = format!("{}{}", &one[..cut(&one)], &two[cut(&two)..]);
    let reversed = format!("{}{}", &one[cut(&one)..], &one[..cut(&one)]);
    assert!(read_pair(reversed.as_bytes()).is_ok());
    for bad in [
        mixed.as_str(),
        &one[..cut(&one)],
        &one[cut(&one)..],
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        assert!(read_pair(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn a_certificate_is_ordered_anew_when_its_issuer_asks_for_that() {
    let web = Web::start(|_| answer("404 Not Found", "", b"{}"));
    let base = format!("https://localhost:{}", web.address().port());
    let directory = json!({
        "newNonce": format!("{base}/nonce"), "newAccount": format!("{base}/account"),
        "newOrder": format!("{base}/order"), "renewalInfo": format!("{base}/ari"),
    });
    web.answer(move |head| match head.split(' ').nth(1).unwrap() {
        "/dir" => answer("200 OK", "", directory.to_string().as_bytes()),
        "/nonce" => answer("200 OK", "Replay-Nonce: n\r\n", b""),
        path if path.starts_with("/ari/") => {
            let window = json!({ "start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z" });
            let body = json!({ "suggestedWindow": window }).to_string();
            answer("200 OK", "Retry-After: 21600\r\n", body.as_bytes())
        }
        _ => answer("500 Internal Server Error", "", b"{\"detail\":\"not today\"}"),
    });
    let dir = Directory::new();
    let yaml = format!(
        "{{ name: le, directory: '{base}/dir', ca: {}, terms_of_service_agreed: true, storage: {}, allow_loopback: true }}",
        web.ca().display(),
        dir.path().display()
    );
    let issuer: AcmeIssuer = postern_config::file::parse(&yaml).unwrap();
    let pkcs8 = URL_SAFE_NO_PAD.encode(KeyPair::generate().unwrap().serialize_der());
    let account =
        json!({ "id": format!("{base}/me"), "key_pkcs8": pkcs8, "directory": format!("{base}/dir") });
    dir.write("account.json", &account.to_string());
    let pem = kept("a.test");
    dir.write("a.test.pem", &pem);
    assert_eq!(file(&issuer, "a.test"), dir.path().join("a.test.pem"));

    let mut registry = Registry::default();
    let wanted = Wanted { issuer: "le".to_owned(), names: vec!["a.test".to_owned()] };
    let metrics = AcmeMetrics::register(&mut registry);
    let acme = Acme::new(std::slice::from_ref(&issuer), &[wanted], &metrics, Pace::default()).unwrap();
    let (snapshots, stop) = (Arc::new(Snapshots::default()), CancellationToken::new());
    let thread = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(acme.run(&snapshots, stop));
        }
    });
    let failures = dir.path().join("a.test.failures.json");
    eventually("the order that fails", || failures.exists().then_some(()));
    stop.cancel();
    thread.join().unwrap();
    let asked = web.requests();
    let at = |start: &str| asked.iter().position(|head| head.starts_with(start));
    assert!(at("GET /ari/").unwrap() < at("POST /order").unwrap(), "{asked:?}");
    assert_eq!(std::fs::read_to_string(file(&issuer, "a.test")).unwrap(), pem, "the old one stays");
}
