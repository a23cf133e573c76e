//! Trust bundles in SPIFFE form: what is read leniently, what is written strictly, what trusts nobody.

#![expect(clippy::unwrap_used, reason = "what a test prepares must succeed")]

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use postern_config::bundle::{
    AnchorError, BundleError, BundleSet, MAX_AUTHORITIES, MAX_DOCUMENT, TrustBundle,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SignatureAlgorithm};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

fn certificate(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    params.self_signed(key).unwrap().der().clone()
}

fn root() -> CertificateDer<'static> {
    certificate(&KeyPair::generate().unwrap(), |_| {})
}

fn bundle(roots: &[CertificateDer<'static>]) -> Result<TrustBundle, BundleError> {
    TrustBundle::new("corp.example".parse().unwrap(), 7, roots.to_vec())
}

fn parse(document: &Value) -> Result<TrustBundle, BundleError> {
    TrustBundle::parse("corp.example".parse().unwrap(), &document.to_string())
}

fn jwk(der: &[u8]) -> Value {
    json!({ "kty": "EC", "use": "x509-svid", "crv": "P-256", "x": "AA", "y": "AA", "x5c": [STANDARD.encode(der)] })
}

fn ders(bundle: &TrustBundle) -> Vec<&[u8]> {
    bundle.anchors().iter().map(|a| a.der()).collect()
}

#[test]
fn a_document_reads_back_as_it_was_written() {
    let roots = [root(), root(), root()];
    let written = bundle(&roots).unwrap();
    let read = TrustBundle::parse("corp.example".parse().unwrap(), &written.to_document()).unwrap();
    assert_eq!(read, written);
    assert_eq!(ders(&read), roots.iter().map(|r| r.as_ref()).collect::<Vec<_>>());
    assert_eq!(read.sequence(), 7);
    assert_eq!(read.to_document(), written.to_document());
}

/// `use`, one padded standard base64 certificate, no `kid`, and the key repeated as its kind asks.
#[test]
fn what_is_written_is_a_jwk_of_each_kind() {
    let of = |algorithm: &'static SignatureAlgorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let der = certificate(&key, |_| {});
        let document: Value =
            serde_json::from_str(&bundle(std::slice::from_ref(&der)).unwrap().to_document()).unwrap();
        let jwk = document["keys"][0].clone();
        assert_eq!(jwk["use"], "x509-svid");
        assert_eq!(jwk.get("kid"), None);
        assert_eq!(jwk["x5c"], json!([STANDARD.encode(&der)]));
        (jwk, key)
    };
    let field = |jwk: &Value, name: &str| {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap()
    };
    for (algorithm, curve) in
        [(&rcgen::PKCS_ECDSA_P256_SHA256, "P-256"), (&rcgen::PKCS_ECDSA_P384_SHA384, "P-384")]
    {
        let (jwk, key) = of(algorithm);
        assert_eq!((jwk["kty"].as_str(), jwk["crv"].as_str()), (Some("EC"), Some(curve)));
        let point = [vec![4], field(&jwk, "x"), field(&jwk, "y")].concat();
        assert_eq!(point, key.public_key_raw());
    }
    let (jwk, key) = of(&rcgen::PKCS_ED25519);
    assert_eq!((jwk["kty"].as_str(), jwk["crv"].as_str()), (Some("OKP"), Some("Ed25519")));
    assert_eq!(field(&jwk, "x"), key.public_key_raw());
    let (jwk, _) = of(&rcgen::PKCS_RSA_SHA256);
    assert_eq!(jwk["kty"], "RSA");
    assert_eq!(field(&jwk, "n").len(), 256);
    assert_eq!(field(&jwk, "e"), [1, 0, 1]);
}

/// B-1.
#[test]
fn keys_must_be_there_and_none_of_them_trust_nobody() {
    assert!(matches!(parse(&json!({})), Err(BundleError::Json(_))));
    assert!(matches!(parse(&json!({ "keys": null })), Err(BundleError::Json(_))));
    assert!(matches!(parse(&json!({ "keys": {} })), Err(BundleError::Json(_))));
    assert!(matches!(parse(&json!([])), Err(BundleError::Json(_))));
    assert!(parse(&json!({ "keys": [] })).unwrap().anchors().is_empty());
    let tolerated = json!({ "keys": [jwk(&root())], "spiffe_future": { "a": [1] } });
    assert_eq!(parse(&tolerated).unwrap().anchors().len(), 1);
    for text in ["", "{", "{\"keys\":[]}x", "{\"keys\":[],\"keys\":[]}", "\u{feff}{\"keys\":[]}"] {
        assert!(TrustBundle::parse("corp.example".parse().unwrap(), text).is_err(), "{text:?}");
    }
}

/// B-2: a sequence beyond what a double can hold.
#[test]
fn sequences_keep_every_bit() {
    for sequence in [0, (1 << 53) + 1, u64::MAX] {
        let read = parse(&json!({ "keys": [], "spiffe_sequence": sequence })).unwrap();
        assert_eq!(read.sequence(), sequence);
        let text = format!("\"spiffe_sequence\":{sequence}");
        assert!(read.to_document().contains(&text), "{}", read.to_document());
    }
    for bad in [json!(-1), json!(1.5), json!("7"), json!([7])] {
        let document = json!({ "keys": [], "spiffe_sequence": bad });
        assert!(matches!(parse(&document), Err(BundleError::Json(_))), "{bad}");
    }
}

/// B-3.
#[test]
fn the_refresh_hint_is_kept() {
    let read = parse(&json!({ "keys": [], "spiffe_refresh_hint": 300 })).unwrap();
    assert!(read.to_document().contains("\"spiffe_refresh_hint\":300"));
    assert!(!parse(&json!({ "keys": [] })).unwrap().to_document().contains("refresh_hint"));
    assert!(parse(&json!({ "keys": [], "spiffe_refresh_hint": -5 })).is_err());
}

/// B-4, X-13: what is not understood is passed over, one key at a time.
#[test]
fn keys_of_unknown_kind_or_use_are_ignored_alone() {
    let good = root();
    let with = |name: &str, value: Value| {
        let mut key = jwk(&root());
        key[name] = value;
        key
    };
    let without = |name: &str| {
        let mut key = jwk(&root());
        key.as_object_mut().unwrap().remove(name);
        key
    };
    let ignored = [
        with("kty", json!("XX")),
        with("kty", json!("ec")),
        with("kty", json!(1)),
        without("kty"),
        with("use", json!("wit-svid")),
        with("use", json!("X509-SVID")),
        with("use", json!("sig")),
        without("use"),
        without("x5c"),
        with("x5c", json!([])),
        json!("text"),
        json!(null),
    ];
    for key in &ignored {
        let read = parse(&json!({ "keys": [key, jwk(&good)] })).unwrap();
        assert_eq!(ders(&read), [good.as_ref()], "{key}");
    }
    let unknown_only = parse(&json!({ "keys": ignored })).unwrap();
    assert!(unknown_only.anchors().is_empty());
}

#[test]
fn of_several_certificates_only_the_first_counts() {
    let (first, second) = (root(), root());
    let mut key = jwk(&first);
    key["x5c"] = json!([STANDARD.encode(&first), STANDARD.encode(&second), "no base64 at all"]);
    assert_eq!(ders(&parse(&json!({ "keys": [key] })).unwrap()), [first.as_ref()]);
}

#[test]
fn a_certificate_that_cannot_be_read_refuses_the_bundle() {
    let der = root();
    // Enough certificates that one differs between the two alphabets or needs padding.
    let url_safe: String =
        std::iter::repeat_with(|| URL_SAFE.encode(root())).find(|text| text.contains(['-', '_'])).unwrap();
    let unpadded: String =
        std::iter::repeat_with(|| STANDARD.encode(root())).find(|text| text.ends_with('=')).unwrap();
    let cases = [
        url_safe,
        unpadded.trim_end_matches('=').to_owned(),
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(&der)),
        STANDARD.encode([der.as_ref(), &[0]].concat()),
        STANDARD.encode(&der[..der.len() - 1]),
        String::new(),
    ];
    for text in cases {
        let mut key = jwk(&der);
        key["x5c"] = json!([text]);
        let error = parse(&json!({ "keys": [jwk(&root()), key] })).unwrap_err();
        assert!(
            matches!(error, BundleError::Authority { index: 1, why: AnchorError::Unreadable }),
            "{text}: {error}"
        );
    }
}

#[test]
fn an_authority_that_is_no_ca_is_refused() {
    let key = KeyPair::generate().unwrap();
    let why = |change: fn(&mut CertificateParams)| {
        let der = certificate(&key, change);
        let read = parse(&json!({ "keys": [jwk(&der)] })).unwrap_err();
        let made = bundle(&[der]).unwrap_err();
        assert_eq!(read.to_string(), made.to_string());
        match read {
            BundleError::Authority { index: 0, why } => why,
            other => panic!("{other}"),
        }
    };
    assert_eq!(why(|p| p.is_ca = IsCa::ExplicitNoCa), AnchorError::NotACa);
    assert_eq!(why(|p| p.is_ca = IsCa::NoCa), AnchorError::NotACa);
    assert_eq!(why(|p| p.key_usages.clear()), AnchorError::NoCertSign);
    assert_eq!(why(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]), AnchorError::NoCertSign);
}

#[test]
fn the_same_authority_twice_counts_once() {
    let (a, b) = (root(), root());
    let made = bundle(&[a.clone(), b.clone(), a.clone()]).unwrap();
    assert_eq!(ders(&made), [a.as_ref(), b.as_ref()]);
    assert_eq!(parse(&json!({ "keys": [jwk(&a), jwk(&a)] })).unwrap().anchors().len(), 1);
}

#[test]
fn sizes_are_bounded() {
    let roots: Vec<_> = (0..=MAX_AUTHORITIES).map(|_| root()).collect();
    assert_eq!(bundle(&roots[1..]).unwrap().anchors().len(), MAX_AUTHORITIES);
    assert!(matches!(bundle(&roots), Err(BundleError::TooMany)));
    let keys: Vec<Value> = roots.iter().map(|r| jwk(r)).collect();
    assert!(matches!(parse(&json!({ "keys": keys })), Err(BundleError::TooMany)));

    let padded = |n: usize| {
        let text = "{\"keys\":[]}";
        format!("{text}{}", " ".repeat(n - text.len()))
    };
    let read = |n: usize| TrustBundle::parse("corp.example".parse().unwrap(), &padded(n));
    assert!(read(MAX_DOCUMENT).is_ok());
    assert!(matches!(read(MAX_DOCUMENT + 1), Err(BundleError::TooLarge)));
    let deep = format!("{{\"keys\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(TrustBundle::parse("a".parse().unwrap(), &deep), Err(BundleError::Json(_))));
}

#[test]
fn a_set_selects_by_the_whole_name() {
    let of = |name: &str| TrustBundle::new(name.parse().unwrap(), 1, [root()]).unwrap();
    let set: BundleSet = [of("corp.example"), of("partner.example")].into_iter().collect();
    assert_eq!(set.of("corp.example").unwrap().trust_domain().as_str(), "corp.example");
    for other in ["corp", "corp.example.", "example", "", "CORP.EXAMPLE"] {
        assert!(set.of(other).is_none(), "{other}");
    }
    assert_eq!(set.iter().count(), 2);
}
