use proptest::prelude::*;

use crate::http::xfcc::{Caller, Element, Key, Mode, Pair, XfccError, outgoing, parse};
use crate::id::SpiffeId;
use crate::policy::Principal;
use crate::svid::Names;

const BY: &[&str] = &["spiffe://td.local/ns/default/sa/server"];

/// What Envoy 1.40 writes.
#[test]
fn envoys_vectors() {
    let hash: [u8; 32] = std::array::from_fn(|i| match i {
        0 => 0x19,
        1 => 0x1d,
        30 => 0x13,
        31 => 0x2d,
        i => i as u8,
    });
    let digits: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    let head = format!("By=spiffe://td.local/ns/default/sa/server;Hash={digits};");
    let client = ["spiffe://td.local/ns/default/sa/client"];
    let element = Element { by: BY, hash, uris: &client, ..Element::default() };
    assert_eq!(element.to_text(), format!("{head}Subject=\"\";URI=spiffe://td.local/ns/default/sa/client"));

    let full = Element {
        subject: r#"CN=Test Client,O=Ac\"me\, Inc\; x=y,C=US"#,
        uris: &["spiffe://td.local/ns/default/sa/full"],
        dns: &["a.example.com", "b.example.com"],
        ..element
    };
    assert_eq!(
        full.to_text(),
        format!(
            r#"{head}Subject="CN=Test Client,O=Ac\"me\, Inc\; x=y,C=US";URI=spiffe://td.local/ns/default/sa/full;DNS=a.example.com;DNS=b.example.com"#
        )
    );

    let two = Element {
        uris: &["spiffe://td.local/ns/default/sa/one", "spiffe://td.local/ns/default/sa/two"],
        ..element
    };
    assert_eq!(
        two.to_text(),
        format!(
            r#"{head}Subject="";URI=spiffe://td.local/ns/default/sa/one;URI=spiffe://td.local/ns/default/sa/two"#
        )
    );

    let pem = Element { cert: Some("-----BEGIN C-----\nab+/=\n"), chain: Some("x y"), ..element };
    assert_eq!(
        pem.to_text(),
        format!(
            r#"{head}Cert="-----BEGIN%20C-----%0Aab%2B%2F%3D%0A";Chain="x%20y";Subject="";URI=spiffe://td.local/ns/default/sa/client"#
        )
    );
}

/// authorization.md §2: one row a mode; the columns are mTLS with a header, mTLS without, plain text with one.
#[test]
fn the_modes() {
    let id: SpiffeId = "spiffe://td.local/ns/default/sa/client".parse().unwrap();
    let caller = Some(Caller { id: Some(&id), element: "URI=own" });
    let theirs = ["Hash=x"];
    for (mode, with, without, plain) in [
        (Mode::Sanitize, None, None, None),
        (Mode::ForwardOnly, Some("Hash=x"), None, None),
        (Mode::AppendForward, Some("Hash=x,URI=own"), Some("URI=own"), None),
        (Mode::SanitizeSet, Some("URI=own"), Some("URI=own"), None),
        (Mode::AlwaysForwardOnly, Some("Hash=x"), None, Some("Hash=x")),
    ] {
        assert_eq!(outgoing(mode, None, caller, &theirs).as_deref(), with, "{mode:?}");
        assert_eq!(outgoing(mode, None, caller, &[]).as_deref(), without, "{mode:?}");
        assert_eq!(outgoing(mode, None, None, &theirs).as_deref(), plain, "{mode:?}");
        assert_eq!(outgoing(mode, None, None, &[]).as_deref(), None, "{mode:?}");
    }
    let lines = ["A=1", "B=2"];
    assert_eq!(outgoing(Mode::AppendForward, None, caller, &lines).as_deref(), Some("A=1,B=2,URI=own"));
    assert_eq!(outgoing(Mode::ForwardOnly, None, caller, &lines).as_deref(), Some("A=1,B=2"));
}

#[test]
fn mode_names() {
    for (name, mode) in [
        ("sanitize", Mode::Sanitize),
        ("forward_only", Mode::ForwardOnly),
        ("append_forward", Mode::AppendForward),
        ("sanitize_set", Mode::SanitizeSet),
        ("always_forward_only", Mode::AlwaysForwardOnly),
    ] {
        assert_eq!(serde_json::to_value(mode).unwrap(), name);
    }
    assert_eq!(Mode::default(), Mode::Sanitize);
}

#[test]
fn append_if_appends_for_those_alone() {
    let trusted: Vec<Principal> = serde_json::from_str(r#"["td.local/ns/edge/*"]"#).unwrap();
    for (id, value) in [
        ("spiffe://td.local/ns/edge/sa/gate", "Hash=x,URI=own"),
        ("spiffe://td.local/ns/edgy/sa/gate", "URI=own"),
        ("spiffe://other.local/ns/edge/sa/gate", "URI=own"),
    ] {
        let id: SpiffeId = id.parse().unwrap();
        let caller = Some(Caller { id: Some(&id), element: "URI=own" });
        let sent = outgoing(Mode::AppendForward, Some(&trusted), caller, &["Hash=x"]);
        assert_eq!(sent.as_deref(), Some(value), "{id}");
        let sent = outgoing(Mode::AppendForward, Some(&[]), caller, &["Hash=x"]);
        assert_eq!(sent.as_deref(), Some("URI=own"), "an empty list trusts nobody");
    }
    let nameless = Some(Caller { id: None, element: "Hash=own" });
    assert_eq!(
        outgoing(Mode::AppendForward, Some(&trusted), nameless, &["Hash=x"]).as_deref(),
        Some("Hash=own")
    );
}

#[test]
fn no_line_hides_what_is_appended() {
    let caller = Some(Caller { id: None, element: "URI=own" });
    for line in ["URI=\"", "Subject=\"x", "URI=a;", "URI=a,", "", ",", "x", "URI=\"a\\", "Subject=\"a\\\\\""]
    {
        let sent = outgoing(Mode::AppendForward, None, caller, &[line]);
        assert_eq!(sent.as_deref(), Some("URI=own"), "{line:?}");
        let sent = outgoing(Mode::AppendForward, None, caller, &["Hash=1", line]);
        assert_eq!(sent.as_deref(), Some("URI=own"), "{line:?}");
        assert_eq!(outgoing(Mode::ForwardOnly, None, caller, &[line]), None, "{line:?}");
    }
}

#[test]
fn reading() {
    let text = "by=spiffe://a/b;HASH=00;Subject=\"CN=\\\"x\\\", y\\, z;\";uri=u , DNS=d;DNS=;Cert=\"\"";
    let pair = |key, value: &'static str| Pair { key, value: value.into() };
    assert_eq!(
        parse(text).unwrap(),
        [
            vec![
                pair(Key::By, "spiffe://a/b"),
                pair(Key::Hash, "00"),
                pair(Key::Subject, "CN=\"x\", y\\, z;"),
                pair(Key::Uri, "u"),
            ],
            vec![pair(Key::Dns, "d"), pair(Key::Dns, ""), pair(Key::Cert, "")],
        ]
    );
    assert_eq!(parse("x5t=1").unwrap(), [[pair(Key::Other("x5t"), "1")]]);
}

#[test]
fn what_is_no_xfcc_is_refused() {
    for (text, error) in [
        ("", XfccError::Key),
        ("URI", XfccError::Key),
        ("=x", XfccError::Key),
        ("URI=a;", XfccError::Key),
        ("URI=a,", XfccError::Key),
        (",URI=a", XfccError::Key),
        ("URI=a;;DNS=b", XfccError::Key),
        ("URI=a; DNS=b", XfccError::Key),
        ("U RI=a", XfccError::Key),
        ("URI =a", XfccError::Key),
        ("URI=a=b", XfccError::Value),
        ("URI=a\"b\"", XfccError::Value),
        ("URI=a\\b", XfccError::Value),
        ("URI=a\u{e9}", XfccError::Value),
        ("Subject=\"\u{e9}\"", XfccError::Value),
        ("Subject=\"a\tb\"", XfccError::Value),
        ("Subject=\"a\\\\b\"", XfccError::Value),
        ("Subject=\"a", XfccError::Open),
        ("Subject=\"a\\\"", XfccError::Open),
        ("Subject=\"a\"b", XfccError::BehindQuote),
        ("Subject=\"a\"\"b\"", XfccError::BehindQuote),
        ("URI=a b", XfccError::BehindQuote),
        ("URI=a ;DNS=b", XfccError::BehindQuote),
    ] {
        assert_eq!(parse(text), Err(error), "{text:?}");
    }
}

proptest! {
    /// Whatever a certificate holds, one element comes out, with the keys that were put in and nothing else.
    #[test]
    fn no_value_adds_a_pair(subject in ".*", uri in ".*", dns in "[ -~]*", by in "[,;=\"\\\\a]*", pem in proptest::option::of(".*")) {
        let element = Element {
            by: &[&by],
            hash: [7; 32],
            cert: pem.as_deref(),
            chain: None,
            subject: &subject,
            uris: &[&uri, "b"],
            dns: &[&dns],
        };
        let text = element.to_text();
        prop_assert!(text.bytes().all(|b| (0x20..=0x7e).contains(&b)), "{text}");
        let read = parse(&text).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
        prop_assert_eq!(read.len(), 1);
        let keys: Vec<_> = read[0].iter().map(|p| p.key).collect();
        let mut expected = vec![Key::By, Key::Hash, Key::Cert, Key::Subject, Key::Uri, Key::Uri, Key::Dns];
        expected.retain(|k| *k != Key::Cert || pem.is_some());
        prop_assert_eq!(keys, expected, "{}", text);
    }

    /// Values without marks and backslashes come back as they were.
    #[test]
    fn plain_values_come_back(uri in "[ !#-\\[\\]-~]*") {
        let text = Element { uris: &[&uri], ..Element::default() }.to_text();
        let read = parse(&text).unwrap();
        prop_assert_eq!(&read[0][2], &Pair { key: Key::Uri, value: uri.as_str().into() });
    }

    /// Two texts that can be read, joined, are read as the one's elements and then the other's.
    #[test]
    fn joining_keeps_the_elements_apart(a in "[A-Za=\",; \\\\]{0,12}", b in "[A-Za=\",; \\\\]{0,12}") {
        if let (Ok(first), Ok(second)) = (parse(&a), parse(&b)) {
            let both = format!("{a},{b}");
            prop_assert_eq!(parse(&both).unwrap(), [first, second].concat());
        }
    }

    #[test]
    fn nothing_panics(text in ".*") {
        let _ = parse(&text);
    }
}

/// A certificate with these subject attributes, in the order of the certificate.
fn certificate(subject: &[(rcgen::DnType, rcgen::DnValue)], names: &[rcgen::SanType]) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    subject.iter().for_each(|(kind, value)| params.distinguished_name.push(kind.clone(), value.clone()));
    params.subject_alt_names = names.to_vec();
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

#[test]
fn a_leaf_is_told_as_openssl_tells_it() {
    use rcgen::{DnType, DnValue, SanType};
    let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());
    let names = [
        SanType::DnsName("a.example.com".try_into().unwrap()),
        SanType::URI("spiffe://td.local/ns/default/sa/full".try_into().unwrap()),
        SanType::DnsName("b.example.com".try_into().unwrap()),
        SanType::IpAddress([10, 0, 0, 1].into()),
    ];
    let subject = [
        (DnType::CountryName, DnValue::PrintableString("US".try_into().unwrap())),
        (DnType::OrganizationName, utf8("Ac\"me, Inc; x=y")),
        (DnType::CommonName, utf8("Test Client")),
    ];
    let leaf = Names::of(&certificate(&subject, &names)).unwrap();
    assert_eq!(leaf.subject, r#"CN=Test Client,O=Ac\"me\, Inc\; x=y,C=US"#);
    assert_eq!(leaf.uris, ["spiffe://td.local/ns/default/sa/full"]);
    assert_eq!(leaf.dns, ["a.example.com", "b.example.com"]);

    let odd = [
        (DnType::CommonName, utf8("#1\\ Zoë\n ")),
        (DnType::OrganizationName, utf8(" <a>+b")),
        (DnType::CustomDnType(vec![1, 2, 3, 4]), utf8("x")),
    ];
    let leaf = Names::of(&certificate(&odd, &[])).unwrap();
    assert_eq!(leaf.subject, r"1.2.3.4=#0C0178,O=\ \<a\>\+b,CN=\#1\\ Zo\C3\AB\0A\ ");

    assert_eq!(Names::of(&certificate(&[], &[])), Some(Names::default()));
    assert_eq!(Names::of(b"no certificate"), None);
}
