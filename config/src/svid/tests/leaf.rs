//! What a leaf must look like (X509-SVID §2–§4, §5.2): each broken rule with its own reason.

use super::forge::{
    ALT_NAME, ANY_USAGE, Authority, BASIC, CERT_SIGN, CLIENT_AUTH, CODE_SIGNING, CRL_SIGN, DIGITAL_SIGNATURE,
    EXTENDED_USAGE, KEY_USAGE, NOW, SERVER_AUTH, Spec, ca, dns, extended, name, p192_key, rsa_key, sequence,
    tlv, uri, usage,
};
use super::{Flaw, ID, Mesh, Reason, VerifyError, bundles, refused};

#[track_caller]
fn flawed(leaf: &Spec, flaw: Flaw) {
    let error = refused(Mesh::new().present(leaf), Reason::BadCertificate);
    assert_eq!(error, VerifyError::Flaw(flaw));
}

fn leaf() -> Spec {
    Spec::leaf(ID)
}

#[test]
fn one_uri_name_exactly() {
    let mesh = Mesh::new();
    let second = |other: &[u8]| leaf().names(&[uri(ID.as_bytes()), uri(other)]);
    for other in
        [&b"spiffe://corp.example/ns/shop/sa/admin"[..], b"https://corp.example/", ID.as_bytes(), b""]
    {
        assert_eq!(refused(mesh.present(&second(other)), Reason::BadSpiffeId), VerifyError::ManyUriNames);
    }
    let none = [
        leaf().without(ALT_NAME),
        leaf().names(&[]),
        leaf().names(&[dns("pay.corp.example")]),
        // CN only.
        Spec { subject: name(ID), ..leaf() }.without(ALT_NAME),
    ];
    for spec in none {
        let error = mesh.present(&spec).unwrap_err();
        // An empty list of names is no valid extension to begin with (RFC 5280 §4.2.1.6).
        assert!(matches!(error, VerifyError::NoUriName | VerifyError::Flaw(Flaw::Unreadable)), "{error}");
    }
    assert_eq!(
        refused(mesh.present(&leaf().names(&[dns("pay.corp.example")])), Reason::BadSpiffeId),
        VerifyError::NoUriName
    );
}

/// Both parsers underneath skip a URI name that is no UTF-8: it must not hide as the second of two.
#[test]
fn an_unreadable_uri_name_beside_a_good_one_is_refused() {
    for hidden in [&b"spiffe://corp.example/\xff"[..], b"\x80"] {
        flawed(&leaf().names(&[uri(ID.as_bytes()), uri(hidden)]), Flaw::Unreadable);
        flawed(&leaf().names(&[uri(hidden), uri(ID.as_bytes())]), Flaw::Unreadable);
        flawed(&leaf().names(&[uri(hidden)]), Flaw::Unreadable);
    }
}

#[test]
fn two_name_extensions_are_refused() {
    let other = tlv(0x30, &uri(b"spiffe://corp.example/ns/shop/sa/admin"));
    flawed(&leaf().twice(ALT_NAME, true, other), Flaw::Unreadable);
}

/// `[6]` constructed is a URI for one parser and nothing for the other.
#[test]
fn a_name_that_two_parsers_read_differently_is_refused() {
    flawed(&leaf().names(&[tlv(0xa6, ID.as_bytes())]), Flaw::Ambiguous);
}

#[test]
fn other_names_are_allowed_and_never_matter() {
    let email = tlv(0x81, b"root@evil.example");
    let ip = tlv(0x87, &[10, 0, 0, 1]);
    let spec = leaf().names(&[dns("admin.corp.example"), email, uri(ID.as_bytes()), ip]);
    let spec = Spec { subject: name("spiffe://corp.example/ns/shop/sa/admin"), ..spec };
    assert_eq!(Mesh::new().present(&spec).unwrap().id.as_str(), ID);
}

/// negative-cases.md row 19: refused, never normalised into an identity.
#[test]
fn an_id_that_breaks_a_rule_is_no_identity() {
    let mesh = Mesh::new();
    let domain = format!("spiffe://{}/a", "d".repeat(256));
    let long = format!("spiffe://corp.example/{}", "a".repeat(2049 - 22));
    assert_eq!(long.len(), 2049);
    let longer = format!("spiffe://corp.example/{}", "a".repeat(3020 - 22));
    let bad: &[&[u8]] = &[
        b"SPIFFE://corp.example/a",
        b"spiffe://Corp.example/a",
        b"spiffe://corp.example/%78",
        b"spiffe://corp.example/a/../b",
        b"spiffe://corp.example/a/./b",
        b"spiffe://corp.example/a//b",
        b"spiffe://corp.example/a/",
        b"spiffe://corp.example:443/a",
        b"spiffe://user@corp.example/a",
        b"spiffe://corp.example/a?b=c",
        b"spiffe://corp.example/a#b",
        b"spiffe://corp.example/a b",
        b"spiffe://corp.example/a\0b",
        b"spiffe://corp.example/ns/shop/sa/pay\0",
        "spiffe://corp.example/é".as_bytes(),
        b"spiffe://corp.example/a,b",
        b"spiffe://corp.example/a;URI=spiffe:",
        b"spiffe://corp.example",
        b"spiffe://corp.example/",
        b"spiffe:///a",
        b"https://corp.example/a",
        b"",
        domain.as_bytes(),
        long.as_bytes(),
        longer.as_bytes(),
    ];
    for id in bad {
        let error = refused(mesh.present(&leaf().names(&[uri(id)])), Reason::BadSpiffeId);
        assert!(matches!(error, VerifyError::BadSpiffeId(_)), "{}: {error}", id.escape_ascii());
    }
    assert_eq!(mesh.present(&Spec::leaf(&long[..2048])).unwrap().id.as_str(), &long[..2048]);
}

#[test]
fn no_subject_asks_for_critical_names() {
    let san = |critical| leaf().with(ALT_NAME, critical, tlv(0x30, &uri(ID.as_bytes())));
    flawed(&san(false), Flaw::SanNotCritical);
    // One RDN without an attribute is as empty as none.
    flawed(&Spec { subject: sequence(&[&tlv(0x31, &[])]), ..san(false) }, Flaw::SanNotCritical);
    let named = Spec { subject: name("pay"), ..san(false) };
    assert_eq!(Mesh::new().present(&named).unwrap().id.as_str(), ID);
}

#[test]
fn a_leaf_is_no_ca() {
    flawed(&leaf().without(BASIC), Flaw::NoBasicConstraints);
    flawed(&leaf().with(BASIC, true, ca(None)), Flaw::CaAsLeaf);
    flawed(&leaf().with(BASIC, false, ca(Some(0))), Flaw::CaAsLeaf);
    let both = leaf().with(BASIC, true, ca(None)).with(KEY_USAGE, true, usage(CERT_SIGN));
    flawed(&both, Flaw::CaAsLeaf);
}

/// X509-SVID §3.2: signing certificates must not authenticate.
#[test]
fn a_signing_certificate_presented_as_a_leaf_is_refused() {
    let mesh = Mesh::new();
    let workload = |spec: Spec| spec.names(&[uri(ID.as_bytes())]);
    for path_len in [None, Some(0)] {
        let key = rcgen::KeyPair::generate().unwrap();
        let with_length = |spec: Spec| workload(spec).with(BASIC, true, ca(path_len));
        let authority = mesh.root.issuing_as("issuing", key, with_length);
        let error = refused(super::believe(&[authority.der], &mesh.bundles()), Reason::BadCertificate);
        assert_eq!(error, VerifyError::Flaw(Flaw::CaAsLeaf));
    }
    let plain = mesh.root.issuing("issuing");
    refused(super::believe(&[plain.der], &mesh.bundles()), Reason::BadSpiffeId);
    let root = Authority::root_as("root", rcgen::KeyPair::generate().unwrap(), workload);
    let error =
        refused(super::believe(std::slice::from_ref(&root.der), &bundles(&[&root])), Reason::BadCertificate);
    assert_eq!(error, VerifyError::Flaw(Flaw::CaAsLeaf));
}

#[test]
fn key_usage_is_there_critical_and_for_signatures_alone() {
    flawed(&leaf().without(KEY_USAGE), Flaw::NoKeyUsage);
    flawed(&leaf().with(KEY_USAGE, false, usage(DIGITAL_SIGNATURE)), Flaw::KeyUsageNotCritical);
    for bits in [
        DIGITAL_SIGNATURE | CERT_SIGN,
        DIGITAL_SIGNATURE | CRL_SIGN,
        CERT_SIGN,
        CRL_SIGN,
        // keyEncipherment and keyAgreement, without digitalSignature.
        0x20,
        0x08,
    ] {
        flawed(&leaf().with(KEY_USAGE, true, usage(bits)), Flaw::LeafKeyUsage);
    }
    flawed(&leaf().with(KEY_USAGE, true, tlv(3, &[0])), Flaw::LeafKeyUsage);
    flawed(&leaf().twice(KEY_USAGE, true, usage(CERT_SIGN)), Flaw::Unreadable);
    let more = leaf().with(KEY_USAGE, true, usage(DIGITAL_SIGNATURE | 0x20 | 0x08));
    assert_eq!(Mesh::new().present(&more).unwrap().id.as_str(), ID);
}

#[test]
fn extended_key_usage_holds_both_or_is_absent() {
    for wrong in [&[SERVER_AUTH][..], &[CLIENT_AUTH], &[CODE_SIGNING], &[ANY_USAGE], &[]] {
        let error = Mesh::new().present(&leaf().with(EXTENDED_USAGE, false, extended(wrong)));
        let error = refused(error, Reason::BadCertificate);
        assert_eq!(error, VerifyError::Flaw(Flaw::ExtendedKeyUsage));
    }
    let more = leaf().with(EXTENDED_USAGE, true, extended(&[CODE_SIGNING, CLIENT_AUTH, SERVER_AUTH]));
    for good in [leaf().without(EXTENDED_USAGE), more] {
        assert_eq!(Mesh::new().present(&good).unwrap().id.as_str(), ID);
    }
}

#[test]
fn an_unknown_extension_may_not_be_critical() {
    let unknown = |critical| leaf().with(99, critical, vec![5, 0]);
    flawed(&unknown(true), Flaw::Path("an unknown extension is marked critical"));
    assert_eq!(Mesh::new().present(&unknown(false)).unwrap().id.as_str(), ID);
}

#[test]
fn a_weak_or_unwanted_key_is_refused_before_the_handshake_uses_it() {
    use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PublicKeyData};
    let with = |key: Vec<u8>| Spec { key, ..leaf() };
    flawed(&with(rsa_key(1024)), Flaw::RsaKeySize);
    flawed(&with(rsa_key(2040)), Flaw::RsaKeySize);
    flawed(&with(rsa_key(4104)), Flaw::RsaKeySize);
    flawed(&with(rsa_key(8192)), Flaw::RsaKeySize);
    flawed(&with(p192_key()), Flaw::KeyKind);
    for kind in [&PKCS_ED25519, &PKCS_ECDSA_P521_SHA512] {
        let key = KeyPair::generate_for(kind).unwrap();
        flawed(&with(key.subject_public_key_info()), Flaw::KeyKind);
    }
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap().subject_public_key_info();
    for good in [p384, rsa_key(2048), rsa_key(4096)] {
        assert_eq!(Mesh::new().present(&with(good)).unwrap().id.as_str(), ID);
    }
}

#[test]
fn a_serial_is_reported_as_it_stands() {
    let spec = Spec { serial: vec![0x91; 16], ..leaf() };
    let peer = Mesh::new().present(&spec).unwrap();
    assert_eq!(peer.serial, [&[0][..], &[0x91; 16]].concat());
    assert!(peer.not_after > NOW);
}
