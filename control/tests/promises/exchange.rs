//! Token exchange: a good token for a shorter one that rules allow, and for nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use postern_control::fetch::{Fetcher, Trust};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::harness::{Control, TD, failed, serve};
use crate::jwt::{fetch, judge, now, workload};
use crate::public::Web;

const AUDIENCE: &str = "https://tokens.corp.example";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// A control plane that exchanges, a client for it, and an issuer of its own whose keys lie in a file.
struct Scene {
    control: Control,
    client: Fetcher,
    url: String,
    ci: EncodingKey,
    _web: Web,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let (web, key, dir) = (Web::new(), KeyPair::generate().unwrap(), tempfile::tempdir().unwrap());
        let (x, y) = key.public_key_raw()[1..].split_at(32);
        let field = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk =
            json!({ "kty": "EC", "crv": "P-256", "kid": "ci", "use": "sig", "x": field(x), "y": field(y) });
        let keys = dir.path().join("keys.json");
        std::fs::write(&keys, json!({ "keys": [jwk] }).to_string()).unwrap();
        let exchange = format!(
            "exchange:
  audience: {AUDIENCE}
  issuers:
    - issuer: https://ci.example
      audience: https://corp.example
      algorithms: [ES256]
      jwks: {{ file: '{}' }}
      rules:
        - match: {{ oidc.repository: corp/shop, oidc.ref: refs/heads/main }}
          id: spiffe://{TD}/ci/shop
          max_ttl: 1m
  rules:
    - for: spiffe://{TD}/ns/shop/*
      audiences: [sts.example, https://warehouse.example]
    - for: spiffe://{TD}/ci/shop
      audiences: [sts.example]
",
            keys.display()
        );
        let control = Control::configured(&web.config(&exchange));
        let port = control.ready["public"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
        Self {
            client: Fetcher::new(Trust::from_pem_file(&web.ca).unwrap()).unwrap(),
            url: format!("https://localhost:{port}/token"),
            ci: EncodingKey::from_ec_der(&key.serialize_der()),
            control,
            _web: web,
            _dir: dir,
        }
    }

    async fn post(&self, body: &str) -> Response<Bytes> {
        let request = Request::post(&self.url).header("content-type", "application/x-www-form-urlencoded");
        self.client.send(request.body(Bytes::copy_from_slice(body.as_bytes())).unwrap()).await.unwrap()
    }

    /// What comes of asking for these audiences: the answer, or the word of the refusal.
    async fn exchange(&self, token: &str, audiences: &[&str]) -> Result<Value, String> {
        let audiences: String = audiences.iter().map(|a| format!("&audience={a}")).collect();
        let body = format!("grant_type={GRANT}&subject_token={token}&subject_token_type={JWT}{audiences}");
        let answer = self.post(&body).await;
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let said: Value = serde_json::from_slice(answer.body()).unwrap();
        match answer.status().as_u16() {
            200 => Ok(said),
            _ => Err(format!("{} {}", answer.status().as_u16(), said["error"].as_str().unwrap())),
        }
    }

    fn ci_token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = json!({
            "iss": "https://ci.example", "aud": "https://corp.example", "sub": "repo:corp/shop:ref:refs/heads/main",
            "repository": "corp/shop", "ref": "refs/heads/main", "iat": now(), "exp": now() + 600,
        });
        change(&mut claims);
        let header = Header { kid: Some("ci".into()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, &self.ci).unwrap()
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, String>, why: &str) {
    assert_eq!(result.unwrap_err(), why);
}

#[tokio::test]
async fn a_jwt_svid_becomes_one_for_an_audience_that_a_rule_allows() {
    let scene = Scene::new();
    let (mut web, bundle) = workload(&scene.control, "/ns/shop/sa/web").await;
    let subject = fetch(&mut web, &[AUDIENCE], 60_000).await.unwrap().token;
    let answer = scene.exchange(&subject, &["sts.example", "https://warehouse.example"]).await.unwrap();
    assert_eq!(
        (answer["token_type"].as_str(), answer["issued_token_type"].as_str()),
        (Some("Bearer"), Some(JWT))
    );
    let token = answer["access_token"].as_str().unwrap();
    let svid = judge(token, "sts.example", &bundle).unwrap();
    assert_eq!(svid.id.as_str(), format!("spiffe://{TD}/ns/shop/sa/web"));
    assert_eq!(svid.audiences, ["sts.example", "https://warehouse.example"]);
    assert!(answer["expires_in"].as_i64().unwrap() <= 60, "no longer than what was given for it: {answer}");

    // What was exchanged is not exchanged again, and no rule makes it so.
    refused(scene.exchange(token, &["sts.example"]).await, "400 invalid_request");
    refused(scene.exchange(&subject, &[AUDIENCE]).await, "400 invalid_target");
    refused(scene.exchange(&subject, &["other.example"]).await, "400 invalid_target");
    refused(scene.exchange(&subject, &["sts.example", "other.example"]).await, "400 invalid_target");
    refused(scene.exchange(&subject, &[]).await, "400 invalid_target");
    // Tokens for others, of nobody, changed on the way.
    let for_others = fetch(&mut web, &["sts.example"], 0).await.unwrap().token;
    let (signed, _) = subject.rsplit_once('.').unwrap();
    let flipped = format!("{signed}.{}", URL_SAFE_NO_PAD.encode([7; 64]));
    for bad in [for_others.as_str(), &flipped, signed, "", "a.b.c", "eyJhbGciOiJub25lIn0.e30.AA"] {
        refused(scene.exchange(bad, &["sts.example"]).await, "400 invalid_request");
    }
    // Another workload has no rule.
    let (mut ledger, _) = workload(&scene.control, "/ns/bank/sa/ledger").await;
    let other = fetch(&mut ledger, &[AUDIENCE], 0).await.unwrap().token;
    refused(scene.exchange(&other, &["sts.example"]).await, "400 invalid_target");

    assert_eq!(scene.control.issued("exchange"), 1);
    let reasons = scene.control.refusals("exchange");
    for reason in ["audience", "bad_signature", "malformed", "algorithm", "no_rule"] {
        assert!(reasons.iter().any(|r| r == reason), "{reason} is not in {reasons:?}");
    }
    let records = scene.control.json(&["audit", "--last", "1000"]).to_string();
    assert!(!records.contains("eyJ"), "no token stands in a record");
    // A revoked identity gets nothing, although its token has not ended.
    scene.control.json(&["revoke", &format!("spiffe://{TD}/ns/shop/sa/web")]);
    refused(scene.exchange(&subject, &["sts.example"]).await, "400 invalid_request");
}

#[tokio::test]
async fn a_token_of_a_configured_issuer_becomes_what_its_rule_says() {
    let scene = Scene::new();
    let (_, bundle) = workload(&scene.control, "/a").await;
    let answer = scene.exchange(&scene.ci_token(|_| {}), &["sts.example"]).await.unwrap();
    let svid = judge(answer["access_token"].as_str().unwrap(), "sts.example", &bundle).unwrap();
    assert_eq!(svid.id.as_str(), format!("spiffe://{TD}/ci/shop"));
    assert!(answer["expires_in"].as_i64().unwrap() <= 60, "its rule's bound: {answer}");
    let records = scene.control.json(&["audit", "--last", "5"]);
    let record = records.as_array().unwrap().iter().find(|r| r["action"] == "exchange").unwrap();
    assert_eq!(record["actor"], "https://ci.example repo:corp/shop:ref:refs/heads/main");

    refused(
        scene.exchange(&scene.ci_token(|_| {}), &["https://warehouse.example"]).await,
        "400 invalid_target",
    );
    type Change = fn(&mut Value);
    let changes: [Change; 7] = [
        |c| c["repository"] = "corp/other".into(),
        |c| c["ref"] = "refs/heads/feature".into(),
        |c| c["aud"] = "https://elsewhere.example".into(),
        |c| c["exp"] = (now() - 100).into(),
        |c| drop(c.as_object_mut().unwrap().remove("exp")),
        |c| c["iss"] = "https://unknown.example".into(),
        |c| c["exp"] = (now() + 86_400).into(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let result = scene.exchange(&scene.ci_token(change), &["sts.example"]).await;
        assert_eq!(result.unwrap_err(), "400 invalid_request", "{number}");
    }
    // Its issuer cannot speak for a workload of the mesh, whatever `sub` it writes.
    let posing = scene.ci_token(|c| c["sub"] = format!("spiffe://{TD}/ns/shop/sa/web").into());
    let answer = scene.exchange(&posing, &["sts.example"]).await.unwrap();
    let svid = judge(answer["access_token"].as_str().unwrap(), "sts.example", &bundle).unwrap();
    assert_eq!(svid.id.as_str(), format!("spiffe://{TD}/ci/shop"));
}

#[tokio::test]
async fn a_flood_is_refused_and_does_not_fill_the_records() {
    let scene = Scene::new();
    // HTTP's own mistakes.
    let get = scene.client.get(&scene.url).await.unwrap();
    assert_eq!((get.status().as_u16(), get.headers()["allow"].to_str().unwrap()), (405, "POST"));
    let json =
        Request::post(&scene.url).header("content-type", "application/json").body(Bytes::new()).unwrap();
    assert_eq!(scene.client.send(json).await.unwrap().status(), 400);
    let large = format!("subject_token={}", "a".repeat(20_000));
    assert_eq!(scene.post(&large).await.status(), 400);

    // Sixteen callers of one address, each until it is told to come back later.
    let scene = std::sync::Arc::new(scene);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let scene = std::sync::Arc::clone(&scene);
        callers.spawn(async move {
            for tries in 1..500 {
                match scene.exchange("a.b.c", &["sts.example"]).await.unwrap_err().as_str() {
                    "400 invalid_request" => {}
                    "429 temporarily_unavailable" => return tries,
                    other => panic!("{other}"),
                }
            }
            panic!("nobody stops it");
        });
    }
    let tries = callers.join_all().await;
    assert!(tries.iter().sum::<i32>() > 100, "and not before: {tries:?}");
}

#[test]
fn a_rule_that_could_renew_tokens_for_ever_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("control.yaml");
    let start = |rest: &str, why: &str| {
        let yaml = format!("public: {{ listen: '127.0.0.1:0' }}\nexchange: {{ audience: us, {rest} }}\n");
        std::fs::write(&config, yaml).unwrap();
        let more = ["--trust-domain", TD, "--config", config.to_str().unwrap()];
        failed(&serve(dir.path(), &more).output().unwrap(), 1, why);
    };
    start("rules: [ { for: 'spiffe://corp.example/a', audiences: [a, us] } ]", "for ever");
    start("rules: [ { for: 'spiffe://other.example/a', audiences: [a] } ]", "outside of corp.example");
    start("rules: [ { for: 'spiffe://corp.example.evil/a', audiences: [a] } ]", "outside of corp.example");
    start("rules: [ { for: 'spiffe://corp.example/a*', audiences: [a] } ]", "exchange.rules[0]");
    start("rules: [ { for: 'spiffe://corp.example/a', audiences: [] } ]", "audiences");
    start("max_ttl: 2h, rules: [ { for: 'spiffe://corp.example/*', audiences: [a] } ]", "max_ttl");
}

#[tokio::test]
async fn a_tainted_key_leaves_the_jwks_and_tokens_under_it_are_refused() {
    let scene = Scene::new();
    let (mut web, bundle) = workload(&scene.control, "/ns/shop/sa/web").await;
    let subject = fetch(&mut web, &[AUDIENCE], 60_000).await.unwrap().token;
    scene.exchange(&subject, &["sts.example"]).await.unwrap();
    let kid = bundle.jwt_keys()[0].kid().to_owned();
    failed(&scene.control.cli(&["jwt", "taint", "nobody"]), 1, "postern jwt list");
    assert_eq!(scene.control.json(&["jwt", "list"])[0]["state"], "signs");

    let published = scene.control.json(&["jwt", "rotate"]);
    assert_eq!((published.as_array().unwrap().len(), &published[1]["state"]), (2, &json!("published")));
    // The next key has not been published for long enough to sign, so the one in use goes on.
    let again = fetch(&mut web, &[AUDIENCE], 60_000).await.unwrap().token;
    scene.exchange(&again, &["sts.example"]).await.unwrap();

    assert_eq!(scene.control.json(&["jwt", "taint", &kid])["key_id"], *kid);
    refused(scene.exchange(&subject, &["sts.example"]).await, "400 invalid_request");
    let keys = scene.control.json(&["jwt", "list"]);
    assert!(keys.as_array().unwrap().iter().all(|key| key["kid"] != *kid), "{keys}");
    assert!(
        !scene.control.data().join("jwt").join(&kid).with_extension("pem").exists(),
        "the private half is gone"
    );
    let jwks = scene.url.replace("/token", "/keys");
    let request = Request::get(jwks).body(Bytes::new()).unwrap();
    let answer = scene.client.send(request).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert!(!String::from_utf8_lossy(answer.body()).contains(&kid));
    // And tokens go on.
    let next = fetch(&mut web, &[AUDIENCE], 60_000).await.unwrap().token;
    scene.exchange(&next, &["sts.example"]).await.unwrap();
}
