//! The public port: the bundle in both profiles, keys and discovery for verifiers that know nothing of SPIFFE.

use std::path::PathBuf;

use bytes::Bytes;
use http::{Request, Response};
use postern_config::bundle::TrustBundle;
use postern_control::fetch::{Fetcher, Trust};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::Value;

use crate::harness::{Connection, Control, TD, enrolled, failed, serve};
use crate::jwt::fetch;

/// A certificate of the web for `localhost`, as files, and its CA.
pub(crate) struct Web {
    _dir: tempfile::TempDir,
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Web {
    pub(crate) fn new() -> Self {
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = params.self_signed(&ca_key).unwrap();
        let leaf = CertificateParams::new(vec!["localhost".into(), "*.web.test".into()]).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(params, ca_key)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        Self {
            ca: write("ca.pem", ca.pem()),
            certificate: write("leaf.pem", leaf.pem()),
            key: write("key.pem", key.serialize_pem()),
            _dir: dir,
        }
    }

    fn trust(&self) -> Trust {
        Trust::from_pem_file(&self.ca).unwrap()
    }

    pub(crate) fn config(&self, more: &str) -> String {
        format!(
            "public: {{ listen: '127.0.0.1:0', certificate_file: '{}', key_file: '{}', refresh_hint: 7s }}\n{more}",
            self.certificate.display(),
            self.key.display()
        )
    }
}

fn port(control: &Control) -> u16 {
    control.ready["public"].as_str().unwrap().parse::<std::net::SocketAddr>().unwrap().port()
}

/// What an operator of another trust domain would carry there by hand.
fn bootstrap(control: &Control) -> TrustBundle {
    let root = std::fs::read(control.data().join("ca/root.pem")).unwrap();
    let root = x509_parser::pem::parse_x509_pem(&root).unwrap().1.contents;
    TrustBundle::new(TD.parse().unwrap(), 0, [root.into()]).unwrap()
}

fn document(answer: &Response<Bytes>) -> Value {
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.headers()["cache-control"], "public, max-age=7");
    serde_json::from_slice(answer.body()).unwrap()
}

/// F-1, F-4, F-5: one endpoint, two profiles, no client certificate.
#[tokio::test]
async fn the_bundle_is_served_in_both_profiles() {
    let web = Web::new();
    let control = Control::configured(&web.config(""));
    let port = port(&control);
    let by_web = Fetcher::new(web.trust()).unwrap();
    let id = format!("spiffe://{TD}/postern/control").parse().unwrap();
    let by_spiffe = Fetcher::new(Trust::Spiffe(id, Box::new(bootstrap(&control)))).unwrap();

    let first = by_web.get(&format!("https://localhost:{port}/bundle")).await.unwrap();
    let second = by_spiffe.get(&format!("https://127.0.0.1:{port}/bundle")).await.unwrap();
    assert_eq!(first.body(), second.body());
    let document = document(&first);
    assert_eq!(document["spiffe_refresh_hint"], 7);
    let text = std::str::from_utf8(first.body()).unwrap();
    let bundle = TrustBundle::parse(TD.parse().unwrap(), text).unwrap();
    assert_eq!(bundle.anchors(), bootstrap(&control).anchors());
    assert_eq!(bundle.jwt_keys().len(), 1);
    assert!(bundle.sequence() > 0);
    // Each profile is believed for what it proves and for nothing else.
    by_spiffe.get(&format!("https://localhost:{port}/bundle")).await.unwrap_err();
    by_web.get(&format!("https://127.0.0.1:{port}/bundle")).await.unwrap_err();
}

#[tokio::test]
async fn a_verifier_that_knows_openid_connect_verifies_tokens() {
    let web = Web::new();
    let control = Control::configured(&web.config("jwt: { issuer: 'https://localhost/tenant' }\n"));
    let port = port(&control);
    let client = Fetcher::new(web.trust()).unwrap();
    let get = async |path: &str| client.get(&format!("https://localhost:{port}{path}")).await.unwrap();
    let discovery = document(&get("/tenant/.well-known/openid-configuration").await);
    assert_eq!(discovery["issuer"], "https://localhost/tenant");
    assert_eq!(discovery["jwks_uri"], "https://localhost/tenant/keys");
    assert_eq!(discovery["id_token_signing_alg_values_supported"], serde_json::json!(["ES256"]));
    for path in
        ["/.well-known/openid-configuration", "/keys", "/", "/bundle/", "/tenant", "/tenant/keys/../x"]
    {
        assert_eq!(get(path).await.status(), 404, "{path}");
    }

    let keys = document(&get("/tenant/keys").await);
    let names: Vec<&String> = keys.as_object().unwrap().keys().collect();
    assert_eq!(names, ["keys"], "nothing of SPIFFE in it");
    let key = &keys["keys"][0];
    assert_eq!((key["use"].as_str(), key["alg"].as_str()), (Some("sig"), Some("ES256")));

    // Another implementation, with what it found there.
    let (join, svid) = enrolled(&control, "/ns/shop/sa/web", &[]).await;
    let token = fetch(&mut Connection::to(&control, &join, Some(&svid)).await, &["sts.example"], 0)
        .await
        .unwrap()
        .token;
    let header = jsonwebtoken::decode_header(&token).unwrap();
    let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(keys).unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(set.find(&header.kid.unwrap()).unwrap()).unwrap();
    let mut wanted = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    wanted.set_audience(&["sts.example"]);
    wanted.set_issuer(&["https://localhost/tenant"]);
    wanted.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    wanted.leeway = 0;
    let claims = jsonwebtoken::decode::<Value>(&token, &key, &wanted).unwrap().claims;
    assert_eq!(claims["sub"], format!("spiffe://{TD}/ns/shop/sa/web"));
    wanted.set_audience(&["other.example"]);
    jsonwebtoken::decode::<Value>(&token, &key, &wanted).unwrap_err();
}

#[tokio::test]
async fn nothing_but_reading_is_possible() {
    let web = Web::new();
    let control = Control::configured(&web.config(""));
    let url = format!("https://localhost:{}/bundle", port(&control));
    let client = Fetcher::new(web.trust()).unwrap();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let request = Request::builder().method(method).uri(&url).body(Bytes::new()).unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["allow"].to_str().unwrap()),
            (405, "GET, HEAD")
        );
    }
    let head = client.send(Request::head(&url).body(Bytes::new()).unwrap()).await.unwrap();
    assert!(head.status() == 200 && head.body().is_empty());
    let large = Request::get(&url).header("x", "a".repeat(20_000)).body(Bytes::new()).unwrap();
    assert!(client.send(large).await.is_ok_and(|answer| answer.status() == 431));
    // Without an issuer there is no discovery; keys there are.
    let base = url.strip_suffix("/bundle").unwrap();
    assert_eq!(client.get(&format!("{base}/.well-known/openid-configuration")).await.unwrap().status(), 404);
    assert_eq!(client.get(&format!("{base}/keys")).await.unwrap().status(), 200);
}

#[test]
fn a_certificate_that_cannot_be_shown_ends_the_start() {
    let (web, other) = (Web::new(), Web::new());
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("control.yaml");
    let start = |yaml: &str, why: &str| {
        std::fs::write(&config, yaml).unwrap();
        let more = ["--trust-domain", TD, "--config", config.to_str().unwrap()];
        failed(&serve(dir.path(), &more).output().unwrap(), 1, why);
    };
    start(&Web { key: other.key.clone(), ..Web::new() }.config(""), "does not fit");
    start(&Web { key: web.certificate.clone(), ..Web::new() }.config(""), "no usable private key");
    start(&Web { certificate: "/nowhere.pem".into(), ..Web::new() }.config(""), "/nowhere.pem");
    start("public: { listen: '127.0.0.1:0', key_file: /x }\n", "go together");
}

#[tokio::test]
async fn without_the_section_there_is_no_such_port() {
    let control = Control::start();
    assert!(control.ready["public"].is_null());
}
