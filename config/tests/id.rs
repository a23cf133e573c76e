//! SPIFFE IDs and trust domains: every line of SPIFFE-ID §2, properties, and a comparison with the `spiffe` crate.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what a test asserts may fail in a helper")]

use postern_config::id::{IdError, MAX_ID, MAX_TRUST_DOMAIN, SpiffeId, TrustDomain, check_segment};
use proptest::prelude::*;

#[track_caller]
fn rejects(error: IdError, ids: &[&str]) {
    for id in ids {
        assert_eq!(id.parse::<SpiffeId>(), Err(error), "{id:?}");
    }
}

#[track_caller]
fn accepts(ids: &[&str]) {
    for id in ids {
        let parsed: SpiffeId = id.parse().unwrap_or_else(|e| panic!("{id:?}: {e}"));
        assert_eq!(parsed.as_str(), *id);
    }
}

#[test]
fn id_1_the_scheme_is_spiffe() {
    rejects(
        IdError::Scheme,
        &[
            "http://a/b",
            "spiffe:/a/b",
            "//a/b",
            "",
            "spiffe",
            "spiffe:",
            "SPIFFE://a/b",
            " spiffe://a/b",
            "spiffe:a/b",
        ],
    );
}

#[test]
fn id_2_no_query_no_fragment() {
    rejects(
        IdError::QueryOrFragment,
        &[
            "spiffe://a/b?x",
            "spiffe://a/b#x",
            "spiffe://a/b?",
            "spiffe://a/b#",
            "spiffe://a?x",
            "spiffe://?",
            "spiffe://#/b",
        ],
    );
}

#[test]
fn id_3_the_trust_domain_is_not_empty() {
    rejects(IdError::EmptyTrustDomain, &["spiffe:///b", "spiffe://", "spiffe:///"]);
    assert_eq!("".parse::<TrustDomain>(), Err(IdError::EmptyTrustDomain));
}

#[test]
fn id_4_no_userinfo_no_port() {
    rejects(
        IdError::UserInfoOrPort,
        &[
            "spiffe://u@a/b",
            "spiffe://u:p@a/b",
            "spiffe://a:80/b",
            "spiffe://a:/b",
            "spiffe://@a/b",
            "spiffe://:@a/b",
        ],
    );
}

#[test]
fn id_5_the_trust_domains_bytes() {
    rejects(
        IdError::TrustDomainByte,
        &[
            "spiffe://A/b",
            "spiffe://a%2e/b",
            "spiffe://é/b",
            "spiffe://a b/c",
            "spiffe://a,b/c",
            "spiffe://a\0/b",
            "spiffe://a\\b/c",
        ],
    );
    // An IPv6 address holds colons before anything else.
    rejects(IdError::UserInfoOrPort, &["spiffe://[::1]/b"]);
    accepts(&["spiffe://10.1.2.3/x", "spiffe://a_b.c-d/x", "spiffe://0/x"]);
}

#[test]
fn id_6_names_that_look_like_hosts_get_no_special_treatment() {
    accepts(&[
        "spiffe://..a/x",
        "spiffe://-a/x",
        "spiffe://./x",
        "spiffe://../x",
        "spiffe://a./x",
        "spiffe://999.999.999.999/x",
    ]);
}

#[test]
fn id_7_the_paths_bytes() {
    rejects(
        IdError::PathByte,
        &[
            "spiffe://a/b%20c",
            "spiffe://a/b c",
            "spiffe://a/b:c",
            "spiffe://a/b@c",
            "spiffe://a/bé",
            "spiffe://a/b\0",
            "spiffe://a/b,c",
            "spiffe://a/b;c",
            "spiffe://a/b\n",
            "spiffe://a/b\\c",
            "spiffe://a/~b",
            "spiffe://a/*",
        ],
    );
    accepts(&["spiffe://a/B", "spiffe://a/aZ0.-_"]);
    let (lower, upper): (SpiffeId, SpiffeId) =
        ("spiffe://a/b".parse().unwrap(), "spiffe://a/B".parse().unwrap());
    assert_ne!(lower, upper, "paths are case-sensitive");
}

#[test]
fn id_8_no_empty_and_no_dot_segments() {
    rejects(IdError::TrailingSlash, &["spiffe://a/", "spiffe://a/b/", "spiffe://a//", "spiffe://a/./"]);
    rejects(IdError::EmptySegment, &["spiffe://a//b", "spiffe://a/b//c"]);
    rejects(IdError::DotSegment, &["spiffe://a/./b", "spiffe://a/../b", "spiffe://a/b/..", "spiffe://a/."]);
    accepts(&["spiffe://a/...", "spiffe://a/.b", "spiffe://a/b..", "spiffe://a/b/.../c"]);
}

#[test]
fn id_9_2048_bytes_and_255_of_them_for_the_trust_domain() {
    let of_length = |n: usize| format!("spiffe://a/{}", "b".repeat(n - 11));
    assert_eq!(of_length(MAX_ID).len(), 2048);
    accepts(&[&of_length(MAX_ID)]);
    rejects(IdError::TooLong, &[&of_length(MAX_ID + 1)]);
    let domain = |n: usize| "d".repeat(n);
    accepts(&[&format!("spiffe://{}/b", domain(MAX_TRUST_DOMAIN))]);
    rejects(IdError::TrustDomainTooLong, &[&format!("spiffe://{}/b", domain(256))]);
    assert!(domain(255).parse::<TrustDomain>().is_ok());
    assert_eq!(domain(256).parse::<TrustDomain>(), Err(IdError::TrustDomainTooLong));
}

#[test]
fn id_10_nothing_is_normalised() {
    rejects(IdError::TrustDomainByte, &["spiffe://Corp.example/b"]);
    rejects(IdError::Scheme, &["Spiffe://corp.example/b"]);
    let parse = |text: &str| text.parse::<SpiffeId>().unwrap();
    assert_eq!(parse("spiffe://a/b"), parse("spiffe://a/b"));
    assert_ne!(parse("spiffe://a./b"), parse("spiffe://a/b"));
}

#[test]
fn id_11_a_workload_has_a_path_and_a_trust_domain_has_none() {
    rejects(IdError::EmptyPath, &["spiffe://a", "spiffe://corp.example"]);
    let domain: TrustDomain = "corp.example".parse().unwrap();
    assert_eq!(domain.id_string(), "spiffe://corp.example");
    assert_eq!("corp.example/b".parse::<TrustDomain>(), Err(IdError::TrustDomainByte));
    assert_eq!("spiffe://corp.example".parse::<TrustDomain>(), Err(IdError::UserInfoOrPort));
}

#[test]
fn id_12_the_control_planes_part_is_told_apart() {
    let reserved = |id: &str| id.parse::<SpiffeId>().unwrap().is_reserved();
    let domain: TrustDomain = "corp.example".parse().unwrap();
    assert_eq!(domain.control_plane().as_str(), "spiffe://corp.example/postern/control");
    assert!(domain.control_plane().is_reserved());
    assert!(reserved("spiffe://a/postern"));
    assert!(!reserved("spiffe://a/postern2/control"));
    assert!(!reserved("spiffe://a/Postern/control"));
    assert!(!reserved("spiffe://a/ns/postern"));
    assert!(!reserved("spiffe://postern/x"));
}

#[test]
fn id_13_attested_data_is_checked_segment_by_segment() {
    for bad in ["", ".", "..", "a/b", "../x", "a%2fb", "a b", "é", "a\0"] {
        assert!(check_segment(bad).is_err(), "{bad:?}");
    }
    for good in ["a", "...", "pod-7f_x.y", "A"] {
        assert_eq!(check_segment(good), Ok(()));
    }
}

#[test]
fn the_parts_of_an_id() {
    let id: SpiffeId = "spiffe://corp.example/ns/shop/sa/pay".parse().unwrap();
    assert_eq!(id.trust_domain().as_str(), "corp.example");
    assert_eq!(id.trust_domain_str(), "corp.example");
    assert_eq!(id.path(), "/ns/shop/sa/pay");
    assert_eq!(id.principal(), "corp.example/ns/shop/sa/pay");
    assert_eq!(id.segments().collect::<Vec<_>>(), ["ns", "shop", "sa", "pay"]);
    assert_eq!((id.namespace(), id.service_account()), (Some("shop"), Some("pay")));
    for other in ["ns/shop/sa", "ns/shop/sa/pay/x", "ns/shop/SA/pay", "x/ns/shop/sa/pay", "sa/pay/ns/shop"] {
        let id: SpiffeId = format!("spiffe://corp.example/{other}").parse().unwrap();
        assert_eq!((id.namespace(), id.service_account()), (None, None), "{other}");
    }
}

#[test]
fn json_holds_the_text_and_refuses_what_the_parser_refuses() {
    let id: SpiffeId = serde_json::from_str("\"spiffe://a/b\"").unwrap();
    assert_eq!(serde_json::to_string(&id).unwrap(), "\"spiffe://a/b\"");
    let error = serde_json::from_str::<SpiffeId>("\"spiffe://a/b/\"").unwrap_err().to_string();
    assert!(error.contains("is not a SPIFFE ID: the path ends in `/`  (SPIFFE-ID §2.2)"), "{error}");
    assert!(serde_json::from_str::<TrustDomain>("\"A\"").is_err());
}

/// Strings around the edge of the grammar: parts that are valid, and parts that break one rule.
fn nearly() -> impl Strategy<Value = String> {
    let scheme = prop_oneof![
        8 => Just("spiffe://"), 1 => Just("SPIFFE://"), 1 => Just("spiffe:/"), 1 => Just("http://"), 1 => Just("")
    ];
    let domain = prop_oneof![6 => "[a-z0-9._-]{1,12}", 1 => "[a-zA-Z0-9._:@%-]{0,12}", 1 => "[a-z]{250,260}"];
    let segment = prop_oneof![8 => "[a-zA-Z0-9._-]{1,8}", 1 => "[ -~]{0,4}", 1 => Just(String::from("..")), 1 => "\\PC{0,3}"];
    let path = prop::collection::vec(segment, 0..5);
    (scheme, domain, path, prop_oneof![6 => Just(""), 1 => Just("/"), 1 => Just("?"), 1 => Just("#")])
        .prop_map(|(scheme, domain, path, tail)| {
            let path: String = path.iter().map(|s| format!("/{s}")).collect();
            format!("{scheme}{domain}{path}{tail}")
        })
}

fn valid() -> impl Strategy<Value = String> {
    ("[a-z0-9._-]{1,40}", prop::collection::vec("[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,30}", 1..8))
        .prop_map(|(domain, path)| format!("spiffe://{domain}/{}", path.join("/")))
}

fn well_formed(id: &SpiffeId) -> bool {
    let domain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    let segment =
        |s: &str| !matches!(s, "" | "." | "..") && s.bytes().all(|b| domain(b) || b.is_ascii_uppercase());
    (1..=255).contains(&id.trust_domain_str().len())
        && id.trust_domain_str().bytes().all(domain)
        && id.segments().count() > 0
        && id.segments().all(segment)
        && id.as_str().len() <= 2048
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_valid_id_is_accepted_and_printed_as_it_was(text in valid()) {
        let id: SpiffeId = text.parse().unwrap();
        prop_assert_eq!(id.to_string(), text.clone());
        prop_assert_eq!(format!("{}{}", id.trust_domain().id_string(), id.path()), text);
    }

    #[test]
    fn whatever_is_accepted_is_well_formed_and_unchanged(text in prop_oneof![nearly(), "\\PC{0,40}"]) {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert!(well_formed(&id), "{}", text);
            prop_assert_eq!(id.as_str(), text);
        }
    }

    #[test]
    fn a_changed_id_is_refused_or_another_well_formed_one(
        text in valid(),
        at in any::<prop::sample::Index>(),
        with in any::<char>(),
    ) {
        let mut chars: Vec<char> = text.chars().collect();
        let at = at.index(chars.len());
        prop_assume!(chars[at] != with);
        chars[at] = with;
        let changed: String = chars.into_iter().collect();
        if let Ok(id) = changed.parse::<SpiffeId>() {
            prop_assert!(well_formed(&id));
            prop_assert_ne!(id, text.parse::<SpiffeId>().unwrap());
        }
    }
}

/// How the `spiffe` crate may differ on `text`: the ways in which it is laxer, each with its reason.
fn allowed_difference(text: &str, theirs: &spiffe::SpiffeId) -> Option<&'static str> {
    let ours = text.parse::<SpiffeId>().unwrap_err();
    let scheme = text.split("://").next().unwrap_or_default();
    match ours {
        // §2.4 calls scheme and trust domain case-insensitive when parsing and §2.1 wants them in lower case. The
        // crate lower-cases; go-spiffe and SPIRE refuse, and so does Postern: one spelling for each identity (ID-10).
        IdError::Scheme if scheme.eq_ignore_ascii_case("spiffe") => Some("lower-cases the scheme"),
        IdError::TrustDomainByte if text[9..].starts_with(|c: char| c != '/') => {
            let lower = text.to_ascii_lowercase();
            let domain = lower[9..].split('/').next().unwrap_or_default();
            (domain == theirs.trust_domain_name()).then_some("lower-cases the trust domain")
        }
        // X509-SVID §3.1: a workload's identity has a path. The crate's type stands for trust domains too.
        IdError::EmptyPath if theirs.path().is_empty() => Some("takes an ID without a path"),
        // §2.3: 2048 bytes must be supported, more should not be generated. The crate limits only what it builds.
        IdError::TooLong if text.len() > 2048 => Some("has no limit when it parses"),
        _ => None,
    }
}

#[track_caller]
fn compare(text: &str) {
    match (text.parse::<SpiffeId>(), spiffe::SpiffeId::new(text)) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(ours.as_str(), theirs.to_string());
            assert_eq!(ours.path(), theirs.path());
            assert_eq!(ours.trust_domain_str(), theirs.trust_domain_name());
        }
        (Err(_), Err(_)) => {}
        (Err(error), Ok(theirs)) => assert!(
            allowed_difference(text, &theirs).is_some(),
            "{text:?}: refused here ({error}), {theirs} there"
        ),
        (Ok(_), Err(error)) => panic!("{text:?}: accepted here, there: {error}"),
    }
}

#[test]
fn the_spiffe_crate_differs_only_where_it_is_laxer_and_we_know_why() {
    for (text, difference) in [
        ("SPIFFE://a/b", "lower-cases the scheme"),
        ("spiffe://A/b", "lower-cases the trust domain"),
        ("spiffe://a", "takes an ID without a path"),
        (&format!("spiffe://a/{}", "b".repeat(2038)), "has no limit when it parses"),
    ] {
        let theirs = spiffe::SpiffeId::new(text).unwrap();
        assert_eq!(allowed_difference(text, &theirs), Some(difference), "{text}");
    }
    for text in [
        "spiffe://a/b",
        "spiffe://a/",
        "spiffe://a//b",
        "spiffe://a/./b",
        "spiffe://a/...",
        "spiffe://a:1/b",
        "spiffe://u@a/b",
        "spiffe://a/b?c",
        "spiffe://a/b#c",
        "spiffe://..a/x",
        "spiffe://é/b",
        "spiffe://a/é",
        "spiffe:///b",
        "spiffe://",
        "",
        "spiffe://[::1]/b",
        "spiffe://a%2e/b",
        "spiffe://a\0/b",
        "http://a/b",
        "spiffe://spiffe://a/b",
        "spiffe://a/b/spiffe://c",
        "spiffe://İ/b",
        "spiffe://K/b",
    ] {
        compare(text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn generated_ids_are_judged_as_the_spiffe_crate_does(text in prop_oneof![nearly(), valid(), "\\PC{0,40}"]) {
        compare(&text);
    }
}
