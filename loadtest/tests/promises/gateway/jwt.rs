//! JWTs at the gateway: what a request without one, with a good one and with a bad one gets, and what the service sees.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_loadtest::app::App;
use postern_loadtest::mesh::{Mesh, Process, Sidecar, until};
use serde_json::{Value, json};

use super::edge::{Ca, Seen, curl, start};
use crate::programs::program;
use crate::support::SOON;

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn key() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

fn jwks(key: &EcdsaKeyPair) -> String {
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    let (x, y) = (base64url(x), base64url(y));
    json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k", "x": x, "y": y }] }).to_string()
}

fn token(key: &EcdsaKeyPair, changes: Value) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut claims = json!({ "iss": "https://issuer.test", "aud": "shop", "sub": "alice", "exp": now + 600 });
    claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let head = base64url(json!({ "alg": "ES256", "kid": "k" }).to_string());
    let message = format!("{head}.{}", base64url(claims.to_string()));
    let signature = key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    format!("{message}.{}", base64url(signature))
}

/// Answers with the head of the request, so that a test sees what an app sees.
fn mirror(mut tcp: TcpStream) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && tcp.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    write!(tcp, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", head.len())?;
    tcp.write_all(&head)
}

/// A gateway in front of [`mirror`]: `a.example` takes tokens, `b.example` wants one.
struct Stage {
    gateway: Sidecar,
    trust: String,
    _app: App,
    _shop: Sidecar,
    mesh: Mesh,
}

impl Stage {
    fn new(jwks: impl Fn(&Path) -> String) -> Self {
        let mesh = Mesh::start().unwrap();
        let app = App::start(mirror).unwrap();
        let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).protocol("http");
        let shop = mesh.server_with(shop).unwrap();
        let ca = Ca::new("servers");
        let pair = ca.server(&mesh.dir().join("server"), &["a.example", "b.example"]);
        let certificate =
            format!("certificate: {{ chain: {}, key: {} }}", pair.chain.display(), pair.key.display());
        let gateway = start(
            &mesh,
            &format!(
                "  listeners: [{{ listen: '127.0.0.1:0', protocol: https }}]
  jwt:
    - name: one
      issuer: https://issuer.test
      audiences: [shop]
      jwks: {}
      from: [{{ header: authorization, prefix: Bearer }}, {{ cookie: session }}]
  hosts:
    - names: [a.example]
      {certificate}
      jwt: {{ providers: [one] }}
      routes: [{{ service: shop }}]
    - names: [b.example]
      {certificate}
      jwt: {{ providers: [one], required: true }}
      routes: [{{ service: shop }}]",
                jwks(mesh.dir())
            ),
        );
        let trust = ca.file(mesh.dir()).display().to_string();
        Self { gateway, trust, _app: app, _shop: shop, mesh }
    }

    fn get(&self, url: &str, headers: &[&str]) -> Seen {
        let mut args = vec!["--cacert", &self.trust];
        headers.iter().for_each(|header| args.extend(["--header", header]));
        curl(self.gateway.gateway()[0], url, &args)
    }

    fn bearer(&self, url: &str, token: &str) -> Seen {
        self.get(url, &[&format!("Authorization: Bearer {token}")])
    }

    fn apply(&self, rule: Value) {
        let policy = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "tokens", "namespace": "demo" },
            "spec": { "action": "DENY", "rules": [rule] },
        });
        let generation = self.mesh.control.apply_policy(&policy.to_string()).unwrap();
        self.gateway.wait_for_generation(generation, SOON).unwrap();
    }
}

fn in_file(key: &EcdsaKeyPair) -> impl Fn(&Path) -> String {
    let keys = jwks(key);
    move |dir| {
        let path = dir.join("keys.json");
        std::fs::write(&path, &keys).unwrap();
        format!("{{ file: {} }}", path.display())
    }
}

#[test]
fn a_token_that_is_there_must_hold_and_then_policy_knows_who_asks() {
    let key = key();
    let stage = Stage::new(in_file(&key));
    let good = token(&key, json!({ "groups": ["staff", "admins"] }));
    until(SOON, || (stage.bearer("https://a.example/", &good).status == 200).then_some(())).unwrap();
    // At the gateway alone: the service is asked for no SNI.
    stage.apply(json!({
        "from": [{ "source": { "notRequestPrincipals": ["https://issuer.test/alice"] } }],
        "to": [{ "operation": { "paths": ["/private*"] } }],
        "when": [{ "key": "connection.sni", "values": ["a.example"] }],
    }));
    for (path, headers, status) in [
        ("/", vec![], 200),
        ("/private", vec![], 403),
        ("/private", vec![format!("Authorization: Bearer {good}")], 200),
        ("/private", vec![format!("Cookie: a=1; session={good}")], 200),
        ("/private", vec![format!("Authorization: Bearer {}", token(&key, json!({ "sub": "bob" })))], 403),
        ("/private", vec!["Authorization: Basic YTpi".to_owned()], 403),
    ] {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let seen = stage.get(&format!("https://a.example{path}"), &headers);
        assert_eq!((seen.exit, seen.status), (0, status), "{path} {headers:?}: {seen:?}");
        assert!(!seen.body.to_lowercase().contains("bearer") && !seen.body.contains("session="), "{seen:?}");
    }
    stage.apply(json!({
        "to": [{ "operation": { "paths": ["/admin"] } }],
        "when": [
            { "key": "request.auth.claims[groups]", "notValues": ["admins"] },
            { "key": "connection.sni", "values": ["a.example"] },
        ],
    }));
    assert_eq!(stage.bearer("https://a.example/admin", &good).status, 200);
    let staff = token(&key, json!({ "groups": ["staff"] }));
    assert_eq!(stage.bearer("https://a.example/admin", &staff).status, 403);
}

#[test]
fn a_token_that_does_not_hold_ends_the_request_whatever_policy_says() {
    let key = key();
    let stage = Stage::new(in_file(&key));
    let good = token(&key, json!({}));
    until(SOON, || (stage.bearer("https://a.example/", &good).status == 200).then_some(())).unwrap();
    let (_, payload) = good.split_once('.').unwrap();
    let unsigned = format!("{}.{}.", base64url("{\"alg\":\"none\"}"), payload.split_once('.').unwrap().0);
    let bad = [
        (token(&self::key(), json!({})), "bad_signature"),
        (token(&key, json!({ "exp": 1 })), "expired"),
        (token(&key, json!({ "aud": "else" })), "wrong_audience"),
        (token(&key, json!({ "iss": "https://mallory.test" })), "unknown_issuer"),
        (unsigned, "bad_algorithm"),
        ("opaque".to_owned(), "malformed"),
    ];
    for (token, reason) in &bad {
        for url in ["https://a.example/", "https://b.example/"] {
            let seen = stage.bearer(url, token);
            assert_eq!((seen.exit, seen.status), (0, 401), "{reason}: {seen:?}");
            assert_eq!(seen.header("www-authenticate"), Some("Bearer error=\"invalid_token\""), "{reason}");
            assert_eq!(seen.body, "unauthenticated\n", "the caller learns no more");
        }
        let labels = [("result", *reason)];
        stage.gateway.wait_for_metric(SOON, |m| m.count("postern_jwt_total", &labels) == 2).unwrap();
    }
    let logged = stage.gateway.wait_for_log(SOON, |l| l["reason"] == "unauthenticated").unwrap();
    assert_eq!(logged["detail"], "JWT: bad_signature (provider one)", "{logged}");
    let seen = stage.get("https://b.example/", &[]);
    assert_eq!((seen.status, seen.header("www-authenticate")), (401, Some("Bearer")), "{seen:?}");
    assert_eq!(stage.bearer("https://b.example/", &good).status, 200);
    let log = std::fs::read_to_string(stage.gateway.log_path()).unwrap();
    assert!(!log.contains(&good[good.len() - 40..]), "a token is a secret");
}

#[test]
fn an_issuer_that_is_down_opens_no_door() {
    let key = key();
    let origin_ca = Ca::new("issuer");
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = reserved.local_addr().unwrap().port();
    let stage = Stage::new(|dir| {
        let ca = origin_ca.file(dir);
        format!("{{ url: 'https://localhost:{port}/keys.json', ca: {}, allow_loopback: true }}", ca.display())
    });
    let good = token(&key, json!({}));
    let seen = stage.bearer("https://a.example/", &good);
    assert_eq!((seen.status, seen.body.as_str()), (503, "keys_unavailable\n"), "{seen:?}");
    assert_eq!(stage.get("https://a.example/", &[]).status, 200, "who brings no token needs no issuer");
    let failed = [("provider", "one"), ("result", "failed")];
    stage.gateway.wait_for_metric(SOON, |m| m.count("postern_jwks_fetches_total", &failed) > 0).unwrap();

    // A server that is neither ours nor rustls, which serves the files of its directory.
    let dir = stage.mesh.dir().join("issuer");
    let pair = origin_ca.server(&dir, &["localhost"]);
    std::fs::write(dir.join("keys.json"), jwks(&key)).unwrap();
    drop(reserved);
    let mut command = Command::new(program("openssl", "openssl"));
    command.args(["s_server", "-WWW", "-accept", &format!("127.0.0.1:{port}")]).current_dir(&dir);
    command.arg("-cert").arg(&pair.chain).arg("-key").arg(&pair.key);
    let mut origin = Process::spawn("issuer", command, stage.mesh.dir()).unwrap();
    until(SOON, || (stage.bearer("https://a.example/", &good).status == 200).then_some(())).unwrap();
    origin.kill9();
    assert_eq!(stage.bearer("https://a.example/", &good).status, 200, "the last good keys stay");
    let metrics = stage.gateway.metrics().unwrap();
    assert!(metrics.has("postern_jwks_age_seconds", &[("provider", "one")]));
}
