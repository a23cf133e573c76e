//! Each rule of JWT-SVID, by tokens that break it and nothing else.

use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_RSA_SHA256,
    SignatureAlgorithm, SigningKey as _,
};
use webpki::aws_lc_rs as web;

use super::*;
use crate::bundle::{BundleError, JwtKeyError, TrustBundle};

const NOW: i64 = 1_800_000_000;
const ID: &str = "spiffe://corp.example/ns/shop/sa/web";
const AUDIENCE: &str = "https://api.corp.example";

static ALL: [&dyn SignatureVerificationAlgorithm; 6] = [
    web::ECDSA_P256_SHA256,
    web::ECDSA_P384_SHA384,
    web::ECDSA_P521_SHA512,
    web::RSA_PKCS1_2048_8192_SHA256,
    web::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    web::ED25519,
];

/// A key pair with its JWK.
struct Signer(KeyPair, Value);

impl Signer {
    fn new(kid: &str) -> Self {
        Self::of(kid, &PKCS_ECDSA_P256_SHA256, "P-256")
    }

    fn of(kid: &str, kind: &'static SignatureAlgorithm, curve: &str) -> Self {
        let key = KeyPair::generate_for(kind).unwrap();
        let raw = key.public_key_raw();
        let field = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = if curve.is_empty() {
            let (_, rsa) = x509_parser::asn1_rs::Sequence::from_der(raw).unwrap();
            let (rest, n) = x509_parser::asn1_rs::Integer::from_der(&rsa.content).unwrap();
            let (_, e) = x509_parser::asn1_rs::Integer::from_der(rest).unwrap();
            let trimmed = |number: &[u8]| field(number.strip_prefix(&[0]).unwrap_or(number));
            json!({ "kty": "RSA", "kid": kid, "use": "jwt-svid", "n": trimmed(n.as_ref()), "e": trimmed(e.as_ref()) })
        } else {
            let (x, y) = raw[1..].split_at(raw.len() / 2);
            json!({ "kty": "EC", "kid": kid, "use": "jwt-svid", "crv": curve, "x": field(x), "y": field(y) })
        };
        Self(key, jwk)
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        self.sign_raw(&format!("{}.{}", part(header), part(claims)))
    }

    fn sign_raw(&self, input: &str) -> String {
        let signature = self.0.sign(input.as_bytes()).unwrap();
        let size = match self.1["crv"].as_str() {
            Some("P-256") => 32,
            Some("P-384") => 48,
            Some("P-521") => 66,
            _ => return format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)),
        };
        let (_, both) = x509_parser::asn1_rs::Sequence::from_der(&signature).unwrap();
        let (rest, r) = x509_parser::asn1_rs::Integer::from_der(&both.content).unwrap();
        let (_, s) = x509_parser::asn1_rs::Integer::from_der(rest).unwrap();
        let fixed = |number: &[u8]| {
            let number = number.strip_prefix(&[0]).unwrap_or(number);
            [vec![0; size - number.len()], number.to_vec()].concat()
        };
        format!("{input}.{}", URL_SAFE_NO_PAD.encode([fixed(r.as_ref()), fixed(s.as_ref())].concat()))
    }

    fn kid(&self) -> &str {
        self.1["kid"].as_str().unwrap()
    }
}

use x509_parser::prelude::FromDer as _;

fn bundle(domain: &str, keys: &[&Value]) -> Result<TrustBundle, BundleError> {
    let document = json!({ "keys": keys, "spiffe_sequence": 1 }).to_string();
    TrustBundle::parse(domain.parse().unwrap(), &document)
}

fn bundles(keys: &[&Value]) -> BundleSet {
    [bundle("corp.example", keys).unwrap()].into_iter().collect()
}

fn claims() -> Value {
    json!({ "sub": ID, "aud": [AUDIENCE], "exp": NOW + 300, "iat": NOW })
}

fn header(kid: &str) -> Value {
    json!({ "alg": "ES256", "kid": kid, "typ": "JWT" })
}

fn judge(token: &str, bundles: &BundleSet) -> Result<JwtSvid, JwtSvidError> {
    validate(token, AUDIENCE, bundles, NOW, &ALL)
}

/// The error for a token whose header and claims were changed in these members; `null` removes one.
fn changed(in_header: Value, in_claims: Value) -> Result<JwtSvid, JwtSvidError> {
    let signer = Signer::new("k");
    let apply = |mut to: Value, from: Value| {
        for (name, value) in from.as_object().unwrap() {
            match value.is_null() {
                true => drop(to.as_object_mut().unwrap().remove(name)),
                false => to[name] = value.clone(),
            }
        }
        to
    };
    let token = signer.sign(&apply(header("k"), in_header), &apply(claims(), in_claims));
    judge(&token, &bundles(&[&signer.1]))
}

#[test]
fn what_is_written_is_read_and_says_no_more_than_it_should() {
    let signer = Signer::new("k");
    let (id, audiences) = (ID.parse().unwrap(), [AUDIENCE.to_owned(), "other".to_owned()]);
    let mut statement = Statement {
        id: &id,
        audiences: &audiences,
        issued: NOW,
        expires: NOW + 300,
        issuer: None,
        jti: None,
    };
    let input = signing_input("k", &statement);
    let parts: Vec<Value> = input
        .split('.')
        .map(|p| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(p).unwrap()).unwrap())
        .collect();
    assert_eq!(parts[0], json!({ "alg": "ES256", "kid": "k", "typ": "JWT" }));
    assert_eq!(parts[1], json!({ "sub": ID, "aud": audiences, "iat": NOW, "exp": NOW + 300 }));
    // Integers, and not 1.8e9: some verifiers refuse that.
    assert!(
        String::from_utf8(URL_SAFE_NO_PAD.decode(input.split('.').nth(1).unwrap()).unwrap())
            .unwrap()
            .contains("\"exp\":1800000300")
    );
    let svid = judge(&signer.sign_raw(&input), &bundles(&[&signer.1])).unwrap();
    assert_eq!((svid.id, svid.expires, svid.issued), (id.clone(), NOW + 300, Some(NOW)));
    assert_eq!(svid.audiences, audiences);

    (statement.issuer, statement.jti) = (Some("https://corp.example"), Some("01J"));
    let svid = judge(&signer.sign_raw(&signing_input("k", &statement)), &bundles(&[&signer.1])).unwrap();
    assert_eq!((&svid.claims["iss"], &svid.claims["jti"]), (&json!("https://corp.example"), &json!("01J")));
}

/// J-1: compact serialization alone.
#[test]
fn nothing_but_three_parts_of_base64url() {
    let signer = Signer::new("k");
    let good = signer.sign(&header("k"), &claims());
    let known = bundles(&[&signer.1]);
    judge(&good, &known).unwrap();
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (head, payload) = signed.split_once('.').unwrap();
    let as_json = json!({ "payload": payload, "protected": head, "signature": signature }).to_string();
    for bad in [
        as_json,
        signed.to_owned(),
        format!("{signed}."),
        format!("{good}.x"),
        format!("{head}.{head}.{payload}.{payload}.{signature}"),
        format!(".{payload}.{signature}"),
        format!("{head}..{signature}"),
        format!("{good}="),
        format!("{good} "),
        format!("{good}\n"),
        format!("{}+.{payload}.{signature}", &head[1..]),
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "é.é.é".to_owned(),
    ] {
        assert_eq!(judge(&bad, &known), Err(JwtSvidError::Malformed), "{bad:?}");
    }
    assert_eq!(judge(&"a".repeat(MAX_TOKEN + 1), &known), Err(JwtSvidError::TooLarge));
    // A member that stands twice means two things.
    for (head, body) in [
        (r#"{"alg":"ES256","kid":"k","kid":"k"}"#.to_owned(), claims().to_string()),
        (
            header("k").to_string(),
            format!(r#"{{"sub":"{ID}","sub":"{ID}","aud":"{AUDIENCE}","exp":{}}}"#, NOW + 9),
        ),
        (header("k").to_string(), format!("[{}]", claims())),
    ] {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let token = signer.sign_raw(&format!("{}.{}", part(&head), part(&body)));
        assert_eq!(judge(&token, &known), Err(JwtSvidError::Malformed));
    }
}

/// J-2, J-4, J-5: the header.
#[test]
fn the_header_chooses_nothing_but_the_name_of_a_key() {
    for name in ["crit", "b64", "zip", "enc"] {
        assert_eq!(changed(json!({ name: ["exp"] }), json!({})), Err(JwtSvidError::Critical), "{name}");
    }
    for typ in [json!("JWT"), json!("JOSE"), Value::Null] {
        changed(json!({ "typ": typ }), json!({})).unwrap();
    }
    for typ in [json!("jwt"), json!("at+jwt"), json!(""), json!(1)] {
        assert_eq!(changed(json!({ "typ": typ }), json!({})), Err(JwtSvidError::Type), "{typ}");
    }
    for kid in [Value::Null, json!(""), json!(1)] {
        assert_eq!(changed(json!({ "kid": kid }), json!({})), Err(JwtSvidError::NoKid), "{kid}");
    }
    assert_eq!(changed(json!({ "kid": "other" }), json!({})), Err(JwtSvidError::UnknownKey));
    // A key that the token brings along is not looked at, whether it is the right one or the attacker's.
    let (known, attacker) = (Signer::new("k"), Signer::new("k"));
    for name in ["jwk", "jku", "x5u", "x5c"] {
        let mut head = header("k");
        head[name] = match name {
            "jwk" => attacker.1.clone(),
            _ => json!("https://attacker.example/keys"),
        };
        let bundles = bundles(&[&known.1]);
        assert_eq!(judge(&attacker.sign(&head, &claims()), &bundles), Err(JwtSvidError::Signature), "{name}");
        judge(&known.sign(&head, &claims()), &bundles).unwrap();
    }
}

/// J-3: nine algorithms, each with its kind of key, refused before any key is used.
#[test]
fn an_algorithm_goes_with_its_kind_of_key() {
    let kinds = [
        ("ES256", Signer::new("k")),
        ("ES384", Signer::of("k", &PKCS_ECDSA_P384_SHA384, "P-384")),
        ("ES512", Signer::of("k", &PKCS_ECDSA_P521_SHA512, "P-521")),
        ("RS256", Signer::of("k", &PKCS_RSA_SHA256, "")),
    ];
    for (of, signer) in &kinds {
        let bundles = bundles(&[&signer.1]);
        for named in
            ["ES256", "ES384", "ES512", "RS256", "RS384", "PS256", "HS256", "none", "None", "EdDSA", "es256"]
        {
            let mut head = header("k");
            head["alg"] = named.into();
            let judged = judge(&signer.sign(&head, &claims()), &bundles);
            let wanted = match (*of, named) {
                (of, named) if of == named => Ok(()),
                ("RS256", "PS256") => Err(JwtSvidError::Signature),
                _ => Err(JwtSvidError::Algorithm),
            };
            assert_eq!(judged.map(drop), wanted, "{of} signed, {named} named");
        }
        // Without a key of that name the same algorithms are refused: before any key is looked for.
        let mut head = header("another");
        head["alg"] = "HS256".into();
        assert_eq!(judge(&signer.sign(&head, &claims()), &bundles), Err(JwtSvidError::Algorithm));
    }
    for alg in [Value::Null, json!(""), json!(256)] {
        assert_eq!(changed(json!({ "alg": alg }), json!({})), Err(JwtSvidError::Algorithm));
    }
    // The public key as a shared secret, and a signature with one bit changed.
    let signer = Signer::new("k");
    let good = signer.sign(&header("k"), &claims());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut other = bytes.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(other));
        assert_eq!(judge(&token, &bundles(&[&signer.1])), Err(JwtSvidError::Signature));
    }
    for wrong in [vec![0; 64], vec![0; 63], vec![0xff; 65], vec![]] {
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(wrong));
        assert!(judge(&token, &bundles(&[&signer.1])).is_err());
    }
}

/// J-6: the subject.
#[test]
fn the_subject_is_a_workload() {
    for subject in [
        Value::Null,
        json!(1),
        json!(""),
        json!("web"),
        json!("spiffe://corp.example"),
        json!("spiffe://corp.example/"),
        json!("spiffe://corp.example/a/../b"),
        json!("https://corp.example/a"),
        json!("spiffe://CORP.example/a"),
    ] {
        let judged = changed(json!({}), json!({ "sub": subject }));
        assert!(matches!(judged, Err(JwtSvidError::Subject(_))), "{subject}: {judged:?}");
    }
}

/// J-7: the audience, which is asked for last.
#[test]
fn a_token_is_for_somebody() {
    for audience in [json!(AUDIENCE), json!([AUDIENCE]), json!(["other", AUDIENCE])] {
        changed(json!({}), json!({ "aud": audience })).unwrap();
    }
    for audience in [
        Value::Null,
        json!(""),
        json!([]),
        json!([""]),
        json!(["other"]),
        json!("https://api.corp.example/"),
        json!([AUDIENCE, 1]),
        json!({ "a": AUDIENCE }),
        json!(1),
    ] {
        assert_eq!(changed(json!({}), json!({ "aud": audience })), Err(JwtSvidError::Audience), "{audience}");
    }
    // A verifier that has forgotten who it is takes nothing.
    let signer = Signer::new("k");
    let mut nobody = claims();
    nobody["aud"] = json!([""]);
    let token = signer.sign(&header("k"), &nobody);
    assert_eq!(validate(&token, "", &bundles(&[&signer.1]), NOW, &ALL), Err(JwtSvidError::Audience));
}

/// J-8, J-9 and R-4: an end there must be, and there is no tolerance after it.
#[test]
fn a_token_has_an_end() {
    assert_eq!(changed(json!({}), json!({ "exp": null })), Err(JwtSvidError::NoExpiry));
    for exp in [json!("1900000000"), json!([NOW + 9]), json!(1e300), json!(true)] {
        assert_eq!(changed(json!({}), json!({ "exp": exp })), Err(JwtSvidError::Malformed), "{exp}");
    }
    for exp in [NOW, NOW - 1, 0, -1, i64::MIN] {
        assert_eq!(changed(json!({}), json!({ "exp": exp })), Err(JwtSvidError::Expired), "{exp}");
    }
    for exp in [json!(NOW + 1), json!(i64::MAX), json!(NOW as f64 + 1.5)] {
        changed(json!({}), json!({ "exp": exp })).unwrap();
    }
    assert_eq!(changed(json!({}), json!({ "exp": NOW as f64 + 0.5 })), Err(JwtSvidError::Expired));
    for nbf in [json!(NOW), json!(NOW + 60), json!(0)] {
        changed(json!({}), json!({ "nbf": nbf })).unwrap();
    }
    for nbf in [json!(NOW + 61), json!(i64::MAX)] {
        assert_eq!(changed(json!({}), json!({ "nbf": nbf })), Err(JwtSvidError::NotYetValid));
    }
    assert_eq!(changed(json!({}), json!({ "nbf": "now" })), Err(JwtSvidError::Malformed));
}

/// J-10, J-12: keys by their use and by the subject's trust domain.
#[test]
fn a_key_speaks_for_its_use_and_for_its_trust_domain() {
    let (signer, foreign) = (Signer::new("k"), Signer::new("k"));
    let token = signer.sign(&header("k"), &claims());
    for usage in [json!("x509-svid"), json!("wit-svid"), json!("sig"), json!("JWT-SVID"), Value::Null] {
        let mut jwk = signer.1.clone();
        jwk["use"] = usage.clone();
        assert_eq!(judge(&token, &bundles(&[&jwk])), Err(JwtSvidError::UnknownKey), "{usage}");
    }
    // Another trust domain's key of the same name does not help, nor does a token of a domain that is not known.
    let set: BundleSet =
        [bundle("corp.example", &[&signer.1]).unwrap(), bundle("other.example", &[&foreign.1]).unwrap()]
            .into_iter()
            .collect();
    judge(&token, &set).unwrap();
    assert_eq!(judge(&foreign.sign(&header("k"), &claims()), &set), Err(JwtSvidError::Signature));
    let mut stranger = claims();
    stranger["sub"] = "spiffe://unknown.example/a".into();
    assert_eq!(judge(&signer.sign(&header("k"), &stranger), &set), Err(JwtSvidError::UnknownTrustDomain));
    assert_eq!(judge(&token, &BundleSet::default()), Err(JwtSvidError::UnknownTrustDomain));
    assert_eq!(judge(&token, &bundles(&[])), Err(JwtSvidError::UnknownKey), "no keys: the domain is revoked");
}

/// J-11: of several mistakes, the first in this order is the answer.
#[test]
fn checks_have_an_order() {
    let signer = Signer::new("k");
    let known = bundles(&[&signer.1]);
    let all_wrong = |kid: &str, sub: &str, alg: &str| {
        let claims = json!({ "sub": sub, "aud": ["other"], "exp": NOW - 9, "nbf": NOW + 999 });
        Signer::new("k").sign(&json!({ "alg": alg, "kid": kid }), &claims)
    };
    let of = |token: &str| judge(token, &known).unwrap_err().reason();
    assert_eq!(of("x"), "malformed");
    assert_eq!(of(&all_wrong("no", "bad", "HS256")), "algorithm");
    assert_eq!(of(&all_wrong("", "bad", "ES256")), "no_kid");
    assert_eq!(of(&all_wrong("no", "bad", "ES256")), "subject");
    assert_eq!(of(&all_wrong("no", "spiffe://unknown.example/a", "ES256")), "unknown_trust_domain");
    assert_eq!(of(&all_wrong("no", ID, "ES256")), "unknown_key");
    assert_eq!(of(&all_wrong("k", ID, "ES256")), "bad_signature");
    let signed = |claims: Value| judge(&signer.sign(&header("k"), &claims), &known).unwrap_err().reason();
    assert_eq!(signed(json!({ "sub": ID, "exp": NOW - 9, "nbf": NOW + 999, "aud": "other" })), "expired");
    assert_eq!(
        signed(json!({ "sub": ID, "exp": NOW + 9, "nbf": NOW + 999, "aud": "other" })),
        "not_yet_valid"
    );
    assert_eq!(signed(json!({ "sub": ID, "exp": NOW + 9, "aud": "other" })), "audience");
}

/// B-5, B-7: keys in a bundle.
#[test]
fn keys_in_a_bundle_have_names_of_their_own() {
    let (one, two) = (Signer::new("one"), Signer::new("two"));
    let read = bundle("corp.example", &[&one.1, &two.1]).unwrap();
    assert_eq!(read.jwt_keys().iter().map(JwtKey::kid).collect::<Vec<_>>(), [one.kid(), two.kid()]);
    let again = TrustBundle::parse("corp.example".parse().unwrap(), &read.to_document()).unwrap();
    assert_eq!(again, read);
    let why = |keys: &[&Value]| match bundle("corp.example", keys) {
        Err(BundleError::JwtKey { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(&[&one.1, &Signer::new("one").1]), JwtKeyError::SameKid);
    for (name, value, wanted) in [
        ("kid", Value::Null, JwtKeyError::NoKid),
        ("kid", json!(""), JwtKeyError::NoKid),
        ("kid", json!("k".repeat(257)), JwtKeyError::NoKid),
        ("x", Value::Null, JwtKeyError::Unreadable),
        ("x", json!("AA"), JwtKeyError::Unreadable),
        ("y", json!("="), JwtKeyError::Unreadable),
    ] {
        let mut jwk = one.1.clone();
        jwk[name] = value;
        assert_eq!(why(&[&jwk]), wanted, "{jwk}");
    }
    // Kinds that nobody here knows are passed over alone.
    for (name, value) in [("kty", "OKP"), ("kty", "oct"), ("crv", "secp256k1"), ("kty", "")] {
        let mut jwk = one.1.clone();
        jwk[name] = value.into();
        assert_eq!(bundle("corp.example", &[&jwk, &two.1]).unwrap().jwt_keys().len(), 1, "{jwk}");
    }
    // A member twice, at any depth, refuses the whole document.
    let twice = json!({ "keys": [two.1] }).to_string().replace("\"kid\":", "\"kid\":\"one\",\"kid\":");
    assert!(TrustBundle::parse("corp.example".parse().unwrap(), &twice).is_err());
    let unknown = r#"{"keys":[],"future":{"a":1,"a":2}}"#;
    assert!(TrustBundle::parse("corp.example".parse().unwrap(), unknown).is_err());
}
