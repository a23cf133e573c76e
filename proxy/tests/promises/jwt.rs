//! A JWT is believed only if its issuer signed it, for this audience, now; whatever else it says of itself.

use std::sync::Arc;
use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use postern_config::file::jwt::{JwtProvider, JwtRule};
use postern_config::jwt::keys::Keys;
use postern_proxy::jwt::metrics::JwtMetrics;
use postern_proxy::jwt::{Admitted, Jwt, Reason, Refusal, Rule};
use serde_json::{Value, json};

use crate::support::forge::now;
use crate::support::issuer::{self, AUDIENCE, ISSUER, Key, claims, claims_with, signed, token};

/// Making an RSA key takes long in a development build.
static RSA: LazyLock<Key> = LazyLock::new(Key::rsa);
static EC: LazyLock<Key> = LazyLock::new(Key::p256);

struct Scene {
    jwt: Jwt,
    rule: Rule,
}

impl Scene {
    /// One provider with these keys; `more` are further lines of its configuration.
    fn new(keys: &str, more: &str) -> Self {
        let scene = Self::without_keys(more, false);
        scene.jwt.providers()[0].publish(Keys::parse(keys.as_bytes(), now() * 1000).unwrap());
        scene
    }

    fn without_keys(more: &str, required: bool) -> Self {
        let yaml = format!(
            "name: one\nissuer: {ISSUER}\naudiences: [{AUDIENCE}, other]\njwks: {{ file: /k }}\n{more}"
        );
        let provider: JwtProvider = postern_config::file::parse(&yaml).unwrap();
        postern_config::file::jwt::check("jwt.providers", std::slice::from_ref(&provider)).unwrap();
        let metrics = JwtMetrics::register(&mut prometheus_client::registry::Registry::default());
        let jwt = Jwt::new(&[provider], &metrics);
        let rule = jwt.rule(&JwtRule { providers: vec!["one".to_owned()], required });
        Self { jwt, rule }
    }

    fn ask(&self, headers: &HeaderMap, query: Option<&str>) -> Result<Option<Admitted>, Refusal> {
        self.rule.admit(headers, query, now() * 1000)
    }

    /// What becomes of a bearer token: its subject, or the reason.
    fn bearer(&self, token: &str) -> Result<String, Reason> {
        let admitted = self.ask(&headers(&[("authorization", &format!("Bearer {token}"))]), None);
        admitted.map(|a| a.unwrap().token.subject).map_err(|refusal| refusal.reason)
    }
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines.iter().map(|(n, v)| (n.parse::<HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap())).collect()
}

/// A provider that knows both keys.
fn scene() -> Scene {
    Scene::new(&issuer::set(&[RSA.jwk("rsa"), EC.jwk("ec")]), "")
}

#[test]
fn every_asymmetric_algorithm_is_taken_with_its_own_kind_of_key() {
    let (p384, ed) = (Key::p384(), Key::ed25519());
    let keys = [("rsa", &*RSA), ("ec", &*EC), ("p384", &p384), ("ed", &ed)];
    let jwks: Vec<Value> = keys.iter().map(|(kid, key)| key.jwk(kid)).collect();
    let scene = Scene::new(&issuer::set(&jwks), "");
    for (kid, key) in keys {
        assert_eq!(scene.bearer(&token(key, kid, &claims())), Ok("alice".to_owned()), "{kid}");
        for (other, _) in keys.iter().filter(|(other, _)| *other != kid) {
            assert_eq!(
                scene.bearer(&token(key, other, &claims())),
                Err(Reason::UnknownKey),
                "{kid} as {other}"
            );
        }
    }
    let pss = signed(&RSA, &json!({ "alg": "PS256", "kid": "rsa" }), &claims().to_string());
    assert_eq!(scene.bearer(&pss), Ok("alice".to_owned()));
}

#[test]
fn a_verified_token_says_who_asks_for_policy() {
    let claims =
        claims_with(json!({ "aud": ["x", AUDIENCE], "azp": "app", "groups": ["a", "b"], "n": { "m": 1 } }));
    let authorization = headers(&[("authorization", &format!("bearer   {}", token(&EC, "ec", &claims)))]);
    let admitted = scene().ask(&authorization, None).unwrap().unwrap();
    assert_eq!((admitted.token.issuer.as_str(), admitted.token.subject.as_str()), (ISSUER, "alice"));
    assert_eq!(admitted.token.audiences, ["x", AUDIENCE]);
    assert_eq!(admitted.token.presenter.as_deref(), Some("app"));
    assert_eq!(Value::Object(admitted.token.claims), claims);
}

#[test]
fn no_token_is_no_principal_and_no_refusal_unless_one_is_required() {
    for other in [
        headers(&[]),
        headers(&[("authorization", "Basic eDp5")]),
        headers(&[("authorization", "Bearerx a.b.c")]),
    ] {
        assert!(scene().ask(&other, None).unwrap().is_none(), "{other:?}");
        let refusal = Scene::without_keys("", true).ask(&other, None).unwrap_err();
        assert_eq!((refusal.reason, refusal.status()), (Reason::Missing, StatusCode::UNAUTHORIZED));
        assert_eq!(refusal.challenge(), Some("Bearer"));
    }
}

#[test]
fn a_symmetric_signature_or_none_is_refused_whatever_it_was_made_with() {
    let scene = scene();
    for key in [&*RSA, &*EC] {
        for secret in key.public() {
            for kid in ["rsa", "ec", ""] {
                let forged = token(&Key::Secret(secret.clone()), kid, &claims());
                assert_eq!(scene.bearer(&forged), Err(Reason::Algorithm));
            }
        }
    }
    for name in ["none", "None", "NONE", "nOnE", "HS512", "RS1", "ES256K", "dir", ""] {
        let head = json!({ "alg": name, "kid": "rsa" });
        let parts =
            format!("{}.{}", issuer::base64url(head.to_string()), issuer::base64url(claims().to_string()));
        for signature in ["", "AAAA"] {
            assert_eq!(scene.bearer(&format!("{parts}.{signature}")), Err(Reason::Algorithm), "{name}");
        }
    }
}

#[test]
fn a_secret_among_the_keys_is_no_key() {
    let secret = Key::Secret(b"0123456789abcdef0123456789abcdef".to_vec());
    let scene = Scene::new(&issuer::set(&[secret.jwk("s"), EC.jwk("ec")]), "");
    assert_eq!(scene.bearer(&token(&secret, "s", &claims())), Err(Reason::Algorithm));
    assert_eq!(scene.bearer(&token(&EC, "ec", &claims())), Ok("alice".to_owned()));
}

#[test]
fn a_key_is_used_for_what_it_says_it_is_for() {
    let with = |name: &str, value: Value| {
        let mut jwk = RSA.jwk("k");
        jwk[name] = value;
        Scene::new(&issuer::set(&[jwk]), "").bearer(&token(&RSA, "k", &claims()))
    };
    for (name, value) in [("alg", json!("RS256")), ("use", json!("sig")), ("key_ops", json!(["verify"]))] {
        assert_eq!(with(name, value), Ok("alice".to_owned()), "{name}");
    }
    for (name, value) in [
        ("alg", json!("PS256")),
        ("alg", json!("RSA-OAEP")),
        ("alg", json!("HS256")),
        ("alg", json!("none")),
        ("use", json!("enc")),
        ("use", json!("jwt-svid")),
        ("key_ops", json!(["encrypt"])),
        ("key_ops", json!([])),
        ("kty", json!("EC")),
        ("n", json!(issuer::base64url([0xc5; 128]))),
        ("n", json!("!")),
    ] {
        assert_eq!(with(name, value.clone()), Err(Reason::UnknownKey), "{name}: {value}");
    }
}

#[test]
fn the_key_comes_from_the_issuer_and_never_from_the_token() {
    let scene = scene();
    let mallory = Key::p256();
    for head in [
        json!({ "kid": "ec", "jwk": mallory.jwk("ec") }),
        json!({ "jwk": mallory.jwk("") }),
        json!({ "kid": "ec", "jku": "https://mallory.test/keys" }),
        json!({ "kid": "ec", "x5u": "https://mallory.test/chain" }),
        json!({ "kid": "ec", "x5c": ["AAAA"] }),
    ] {
        let mut head = head;
        head["alg"] = json!("ES256");
        let forged = signed(&mallory, &head, &claims().to_string());
        assert_eq!(scene.bearer(&forged), Err(Reason::BadSignature), "{head}");
    }
    for kid in ["../../dev/null", "ec' OR '1'='1", "EC", "ec ", "\u{0}", &"k".repeat(4000)] {
        assert_eq!(scene.bearer(&token(&mallory, kid, &claims())), Err(Reason::UnknownKey), "{kid}");
    }
    for kid in [json!(1), json!(["ec"]), json!({})] {
        let head = json!({ "alg": "ES256", "kid": kid });
        assert_eq!(scene.bearer(&signed(&EC, &head, &claims().to_string())), Err(Reason::Malformed));
    }
}

#[test]
fn a_head_that_makes_demands_is_refused() {
    for (name, value) in
        [("crit", json!(["b64"])), ("crit", json!([])), ("b64", json!(false)), ("zip", json!("DEF"))]
    {
        let mut head = json!({ "alg": "ES256", "kid": "ec" });
        head[name] = value;
        assert_eq!(
            scene().bearer(&signed(&EC, &head, &claims().to_string())),
            Err(Reason::Malformed),
            "{name}"
        );
    }
}

#[test]
fn a_token_that_names_no_key_is_tried_with_each_that_fits_and_no_more_than_sixteen() {
    let strangers: Vec<Value> = (0..15).map(|n| Key::p256().jwk(&format!("s{n}"))).collect();
    let with = |before: &[Value]| {
        let keys = [before, &[EC.jwk("ec")]].concat();
        Scene::new(&issuer::set(&keys), "").bearer(&token(&EC, "", &claims()))
    };
    assert_eq!(with(&strangers), Ok("alice".to_owned()));
    assert_eq!(with(&[&strangers[..], &[Key::p256().jwk("one more")]].concat()), Err(Reason::BadSignature));
    assert_eq!(with(&[&strangers[..], &[RSA.jwk("another kind")]].concat()), Ok("alice".to_owned()));
    let nameless = Scene::new(&issuer::set(&[EC.jwk("")]), "");
    assert_eq!(
        nameless.bearer(&token(&EC, "any", &claims())),
        Ok("alice".to_owned()),
        "a key without an id may be any"
    );
}

#[test]
fn claims_are_checked_once_the_signature_is() {
    let scene = scene();
    let at = now();
    for (changes, expected) in [
        (json!({ "exp": at - 30 }), Ok(())),
        (json!({ "exp": at - 120 }), Err(Reason::Expired)),
        (json!({ "exp": at as f64 + 0.5 }), Ok(())),
        (json!({ "exp": -1 }), Err(Reason::Malformed)),
        (json!({ "exp": 0 }), Err(Reason::Expired)),
        (json!({ "exp": null }), Err(Reason::Malformed)),
        (json!({ "exp": "2099" }), Err(Reason::Malformed)),
        (json!({ "exp": u64::MAX }), Ok(())),
        (json!({ "nbf": at + 30 }), Ok(())),
        (json!({ "nbf": at + 120 }), Err(Reason::NotYetValid)),
        (json!({ "nbf": "soon" }), Err(Reason::Malformed)),
        (json!({ "aud": "other" }), Ok(())),
        (json!({ "aud": "elsewhere" }), Err(Reason::WrongAudience)),
        (json!({ "aud": ["elsewhere", "nowhere"] }), Err(Reason::WrongAudience)),
        (json!({ "aud": [] }), Err(Reason::WrongAudience)),
        (json!({ "aud": null }), Err(Reason::WrongAudience)),
        (json!({ "aud": [AUDIENCE, 1] }), Err(Reason::WrongAudience)),
        (json!({ "iss": "https://mallory.test/" }), Err(Reason::UnknownIssuer)),
        (json!({ "iss": "https://issuer.test" }), Err(Reason::UnknownIssuer)),
        (json!({ "iss": [ISSUER] }), Err(Reason::Malformed)),
        (json!({ "iss": null }), Err(Reason::UnknownIssuer)),
        (json!({ "sub": 1 }), Err(Reason::Malformed)),
        (json!({ "azp": ["a"] }), Err(Reason::Malformed)),
    ] {
        let result = scene.bearer(&token(&EC, "ec", &claims_with(changes.clone()))).map(drop);
        assert_eq!(result, expected, "{changes}");
    }
    let expired = token(&Key::p256(), "ec", &claims_with(json!({ "exp": 1, "aud": "x" })));
    assert_eq!(scene.bearer(&expired), Err(Reason::BadSignature), "a forger learns nothing of the claims");
    let twice = format!("{{\"iss\":\"{ISSUER}\",\"aud\":\"{AUDIENCE}\",\"exp\":1,\"exp\":99999999999}}");
    let head = json!({ "alg": "ES256", "kid": "ec" });
    assert_eq!(scene.bearer(&signed(&EC, &head, &twice)), Err(Reason::Malformed), "a claim that comes twice");
}

#[test]
fn what_is_no_token_is_malformed_however_large_or_deep() {
    let scene = scene();
    let good = token(&EC, "ec", &claims());
    let head = json!({ "alg": "ES256", "kid": "ec" });
    let deep =
        |depth: usize| format!("{{\"iss\":\"{ISSUER}\",\"x\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
    let huge = token(&EC, "ec", &claims_with(json!({ "x": "y".repeat(9000) })));
    for bad in [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        &good[1..],
        &format!("{good}="),
        &format!("{good}.x"),
        &format!("{good}, Bearer {good}"),
        &good.replace('.', " "),
        &signed(&EC, &head, "[]"),
        &signed(&EC, &head, "not json"),
        &signed(&EC, &head, &deep(1000)),
        &huge,
    ] {
        assert_eq!(scene.bearer(bad), Err(Reason::Malformed), "{}", &bad[..bad.len().min(80)]);
    }
    // In a head that is deep, too, and in a set of keys (hostile-inputs 61).
    let deep_head = format!("{{\"alg\":\"ES256\",\"x\":{}{}}}", "[".repeat(2000), "]".repeat(2000));
    let forged = format!("{}.{}.AAAA", issuer::base64url(deep_head), issuer::base64url(claims().to_string()));
    assert_eq!(scene.bearer(&forged), Err(Reason::Malformed));
    for keys in [
        format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("{{\"keys\":{}", "[".repeat(100_000)),
    ] {
        assert!(Keys::parse(keys.as_bytes(), 0).is_err());
    }
    let many: Vec<Value> = std::iter::repeat_n(EC.jwk("k"), 101).collect();
    assert!(Keys::parse(issuer::set(&many).as_bytes(), 0).unwrap_err().to_string().contains("more than 100"));
}

#[test]
fn without_keys_or_with_keys_that_are_too_old_nobody_is_believed() {
    let good = token(&EC, "ec", &claims());
    let ask = |scene: &Scene| scene.ask(&headers(&[("authorization", &format!("Bearer {good}"))]), None);
    let scene = Scene::without_keys("", false);
    let refusal = ask(&scene).unwrap_err();
    assert_eq!(
        (refusal.reason, refusal.status()),
        (Reason::KeysUnavailable, StatusCode::SERVICE_UNAVAILABLE)
    );
    let keys = issuer::set(&[EC.jwk("ec")]);
    let publish = |age_s: i64| {
        scene.jwt.providers()[0].publish(Keys::parse(keys.as_bytes(), (now() - age_s) * 1000).unwrap());
    };
    publish(24 * 3600 - 60);
    assert!(ask(&scene).unwrap().is_some());
    publish(24 * 3600 + 60);
    assert_eq!(ask(&scene).unwrap_err().reason, Reason::KeysUnavailable);
    let stranger = token(&EC, "ec", &claims_with(json!({ "iss": "https://mallory.test/" })));
    assert_eq!(scene.bearer(&stranger), Err(Reason::UnknownIssuer), "an outage makes no issuer");
    publish(0);
    scene.jwt.providers()[0].publish(Keys::parse(b"{\"keys\":[]}", now() * 1000).unwrap());
    assert_eq!(ask(&scene).unwrap_err().reason, Reason::UnknownKey, "an issuer may take back every key");
}

#[test]
fn a_token_stands_where_its_provider_says_and_nowhere_else() {
    let more = "from: [{ cookie: session }, { query: access_token }, { header: x-token }]";
    let scene = Scene::new(&issuer::set(&[EC.jwk("ec")]), more);
    let good = token(&EC, "ec", &claims());
    let subject = |lines: &[(&str, &str)], query: Option<&str>| {
        let admitted = scene.ask(&headers(lines), query).map_err(|r| r.reason)?;
        Ok(admitted.map(|a| a.token.subject))
    };
    let alice = Ok(Some("alice".to_owned()));
    for cookie in
        [format!("session={good}"), format!("a=b; session=\"{good}\"; c"), format!("é=1;session={good}")]
    {
        assert_eq!(subject(&[("cookie", &cookie)], None), alice, "{cookie}");
    }
    assert_eq!(subject(&[("x-token", &good)], None), alice);
    assert_eq!(subject(&[], Some(&format!("a=1&access_token={good}&b"))), alice);
    assert_eq!(subject(&[], Some(&format!("access%5ftoken={good}"))), alice, "as the app reads the name");
    assert_eq!(subject(&[("authorization", &format!("Bearer {good}"))], None), Ok(None));
    assert_eq!(subject(&[("cookie", &format!("sessions={good}"))], Some("access_tokens=a")), Ok(None));
    assert_eq!(subject(&[("cookie", "session=")], None), Err(Reason::Malformed));
    let both = Err(Reason::Several);
    assert_eq!(subject(&[("x-token", &good), ("x-token", &good)], None), both);
    assert_eq!(subject(&[("cookie", &format!("session={good}; session=x"))], None), both);
    assert_eq!(subject(&[("cookie", &format!("session={good}"))], Some("access_token=x")), both);
    assert_eq!(subject(&[("x-token", "ä")], None), Err(Reason::Malformed));
}

#[test]
fn a_token_goes_no_further_unless_it_is_forwarded() {
    let more = "from: [{ header: authorization, prefix: Bearer }, { cookie: s }, { query: t }]";
    let good = token(&EC, "ec", &claims());
    let keys = issuer::set(&[EC.jwk("ec")]);
    let pass = |more: &str, lines: &[(&str, &str)], target: &str| {
        let (mut headers, mut uri) = (headers(lines), target.parse::<Uri>().unwrap());
        let admitted = Scene::new(&keys, more).ask(&headers, uri.query()).unwrap().unwrap();
        admitted.strip(&mut headers, &mut uri);
        let lines: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        (lines.join("\n"), uri.to_string())
    };
    let nothing = String::new();
    assert_eq!(
        pass(more, &[("authorization", &format!("Bearer {good}"))], "/a?b=1"),
        (nothing.clone(), "/a?b=1".to_owned())
    );
    let cookie = format!("a=1;s={good} ; b=2");
    assert_eq!(pass(more, &[("cookie", &cookie)], "/a"), ("cookie: a=1; b=2".to_owned(), "/a".to_owned()));
    assert_eq!(pass(more, &[("cookie", &format!("s={good}"))], "/a"), (nothing.clone(), "/a".to_owned()));
    assert_eq!(pass(more, &[], &format!("/a?x=1&t={good}&y=2")), (nothing.clone(), "/a?x=1&y=2".to_owned()));
    assert_eq!(
        pass(more, &[], &format!("https://h.test/a?t={good}")),
        (nothing, "https://h.test/a".to_owned())
    );
    let kept = pass("forward: true", &[("authorization", &format!("Bearer {good}"))], "/a");
    assert_eq!(kept.0, format!("authorization: Bearer {good}"));
}

#[test]
fn refusals_and_good_tokens_are_counted_by_provider() {
    let mut registry = prometheus_client::registry::Registry::with_prefix("postern");
    let provider: JwtProvider = postern_config::file::parse(&format!(
        "name: one\nissuer: {ISSUER}\naudiences: [{AUDIENCE}]\njwks: {{ file: /k }}"
    ))
    .unwrap();
    let jwt = Arc::new(Jwt::new(&[provider], &JwtMetrics::register(&mut registry)));
    let rule = jwt.rule(&JwtRule { providers: vec!["one".to_owned()], required: false });
    let text = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    };
    assert!(!text().contains("postern_jwks_age_seconds{"));
    jwt.providers()[0]
        .publish(Keys::parse(issuer::set(&[EC.jwk("ec")]).as_bytes(), (now() - 100) * 1000).unwrap());
    let send = |token: &str| {
        let refused =
            rule.admit(&headers(&[("authorization", &format!("Bearer {token}"))]), None, now() * 1000);
        refused.map(drop).map_err(|r| r.challenge().unwrap())
    };
    assert_eq!(send(&token(&EC, "ec", &claims())), Ok(()));
    for bad in [token(&Key::p256(), "ec", &claims()), "x".to_owned()] {
        assert_eq!(send(&bad), Err("Bearer error=\"invalid_token\""));
    }
    let text = text();
    for line in [
        "postern_jwt_total{provider=\"one\",result=\"ok\"} 1",
        "postern_jwt_total{provider=\"one\",result=\"bad_signature\"} 1",
        "postern_jwt_total{provider=\"\",result=\"malformed\"} 1",
        "postern_jwks_fetches_total{provider=\"one\",result=\"failed\"} 0",
        "postern_jwks_age_seconds{provider=\"one\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
