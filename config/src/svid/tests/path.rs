//! Who may have signed it: paths, issuers, anchors, and the bundle that the leaf's own trust domain selects.

use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

use super::forge::{
    Authority, BASIC, CERT_SIGN, CLIENT_AUTH, CODE_SIGNING, DIGITAL_SIGNATURE, ECDSA_SHA1, EXTENDED_USAGE,
    KEY_USAGE, NAME_CONSTRAINTS, Spec, ca, dns, extended, sequence, tlv, uri, usage,
};
use super::{BundleSet, Flaw, ID, Mesh, Reason, TrustBundle, VerifyError, believe, bundles, refused};

type Change = fn(Spec) -> Spec;

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

#[test]
fn an_unknown_ca_is_refused() {
    let mesh = Mesh::new();
    let stranger = Authority::root("stranger");
    let direct = [stranger.sign(&Spec::leaf(ID))];
    refused(believe(&direct, &mesh.bundles()), Reason::UnknownIssuer);
    let with_its_root = [stranger.sign(&Spec::leaf(ID)), stranger.der];
    refused(believe(&with_its_root, &mesh.bundles()), Reason::UnknownIssuer);
    refused(believe(&[mesh.issuing.sign(&Spec::leaf(ID))], &mesh.bundles()), Reason::UnknownIssuer);
    refused(believe(&mesh.chain(&Spec::leaf(ID)), &bundles(&[])), Reason::UnknownIssuer);
}

/// The same name and the same key identifier on another key.
#[test]
fn a_ca_that_only_looks_like_ours_is_refused() {
    let mesh = Mesh::new();
    let twin = Authority::root("root");
    let copied = twin.renewed(|spec| Spec { key: mesh.root.spec.key.clone(), ..spec });
    for fake in [&twin, &copied] {
        let direct = [fake.sign(&Spec::leaf(ID))];
        refused(believe(&direct, &mesh.bundles()), Reason::BadSignature);
        let issuing = fake.issuing("issuing");
        let chain = [issuing.sign(&Spec::leaf(ID)), issuing.der, fake.der.clone()];
        refused(believe(&chain, &mesh.bundles()), Reason::BadSignature);
    }
}

#[test]
fn a_self_signed_leaf_is_refused() {
    let own = Authority::root_as("own", key(), |_| Spec::leaf(ID));
    refused(believe(&[own.der], &Mesh::new().bundles()), Reason::UnknownIssuer);
}

#[test]
fn a_leaf_is_no_issuer() {
    let mesh = Mesh::new();
    let pay = mesh.issuing.issuing_as("pay", key(), |named| Spec {
        key: named.key.clone(),
        subject: named.subject,
        ..Spec::leaf(ID)
    });
    let forged = pay.sign(&Spec::leaf("spiffe://corp.example/ns/shop/sa/admin"));
    let chain = [forged, pay.der, mesh.issuing.der.clone()];
    let error = refused(believe(&chain, &mesh.bundles()), Reason::BadCertificate);
    assert_eq!(error, VerifyError::Flaw(Flaw::Path("a leaf certificate was used as an issuer")));
}

/// the peer's own trust domain selects the bundle, and nothing else does.
#[test]
fn another_trust_domains_root_cannot_speak_for_ours() {
    let (ours, theirs) = (Mesh::new(), Mesh::new());
    let bundle =
        |td: &str, root: &Authority| TrustBundle::new(td.parse().unwrap(), 1, [root.der.clone()]).unwrap();
    let both: BundleSet =
        [bundle("corp.example", &ours.root), bundle("partner.example", &theirs.root)].into_iter().collect();
    let partner = "spiffe://partner.example/ns/shop/sa/pay";
    refused(believe(&theirs.chain(&Spec::leaf(ID)), &both), Reason::BadSignature);
    refused(believe(&ours.chain(&Spec::leaf(partner)), &both), Reason::BadSignature);
    assert_eq!(believe(&theirs.chain(&Spec::leaf(partner)), &both).unwrap().id.as_str(), partner);
    let error =
        refused(believe(&ours.chain(&Spec::leaf(partner)), &ours.bundles()), Reason::WrongTrustDomain);
    assert_eq!(error, VerifyError::WrongTrustDomain { presented: "partner.example".parse().unwrap() });
    refused(believe(&ours.chain(&Spec::leaf(ID)), &BundleSet::default()), Reason::WrongTrustDomain);
}

#[test]
fn path_lengths_are_kept_the_anchors_too() {
    let exceeded = VerifyError::Flaw(Flaw::Path("an issuer's path length is exceeded"));
    let none_below = |spec: Spec| spec.with(BASIC, true, ca(Some(0)));
    let mesh = Mesh::new();
    let upper = mesh.root.issuing_as("upper", key(), none_below);
    let lower = upper.issuing("lower");
    let chain = [lower.sign(&Spec::leaf(ID)), lower.der, upper.der.clone()];
    assert_eq!(refused(believe(&chain, &mesh.bundles()), Reason::BadCertificate), exceeded);
    assert!(believe(&[upper.sign(&Spec::leaf(ID)), upper.der], &mesh.bundles()).is_ok());

    let root = Authority::root_as("root", key(), none_below);
    let issuing = root.issuing("issuing");
    let chain = [issuing.sign(&Spec::leaf(ID)), issuing.der];
    assert_eq!(refused(believe(&chain, &bundles(&[&root])), Reason::BadCertificate), exceeded);
    assert!(believe(&[root.sign(&Spec::leaf(ID))], &bundles(&[&root])).is_ok());
}

/// An issuing CA in the bundle is an anchor of its own.
#[test]
fn an_issuing_ca_may_be_an_anchor() {
    let mesh = Mesh::new();
    let peer = believe(&mesh.chain(&Spec::leaf(ID)), &bundles(&[&mesh.issuing])).unwrap();
    assert_eq!(peer.anchor.der(), mesh.issuing.der.as_ref());
    assert_eq!(peer.spkis.len(), 2);
}

#[test]
fn an_issuing_ca_keeps_the_profile() {
    let mesh = Mesh::new();
    let under = |change: Change| {
        let issuing = mesh.root.issuing_as("changed", key(), change);
        believe(&[issuing.sign(&Spec::leaf(ID)), issuing.der], &mesh.bundles())
    };
    let refusals: [(Change, Flaw); 12] = [
        (|s| s.without(BASIC), Flaw::Path("a leaf certificate was used as an issuer")),
        (|s| s.with(BASIC, true, sequence(&[])), Flaw::Path("a leaf certificate was used as an issuer")),
        (|s| s.without(KEY_USAGE), Flaw::NoKeyUsage),
        (|s| s.with(KEY_USAGE, false, usage(CERT_SIGN)), Flaw::KeyUsageNotCritical),
        (|s| s.with(KEY_USAGE, true, usage(DIGITAL_SIGNATURE)), Flaw::IssuerMayNotSign),
        (|s| s.names(&[uri(ID.as_bytes())]), Flaw::IssuerName),
        (|s| s.names(&[uri(b"spiffe://partner.example")]), Flaw::IssuerName),
        (|s| s.names(&[uri(b"https://corp.example")]), Flaw::IssuerName),
        (|s| s.names(&[uri(b"\xff")]), Flaw::Unreadable),
        (|s| s.with(99, true, vec![5, 0]), Flaw::Path("an unknown extension is marked critical")),
        (|s| s.with(EXTENDED_USAGE, false, extended(&[CODE_SIGNING])), Flaw::ExtendedKeyUsage),
        (|s| Spec { key: super::forge::rsa_key(1024), ..s }, Flaw::RsaKeySize),
    ];
    for (i, (change, flaw)) in refusals.into_iter().enumerate() {
        let error = refused(under(change), Reason::BadCertificate);
        assert_eq!(error, VerifyError::Flaw(flaw), "case {i}");
    }
    // Half of the usages serves half of the roles.
    let issuing =
        mesh.root.issuing_as("c", key(), |s| s.with(EXTENDED_USAGE, false, extended(&[CLIENT_AUTH])));
    let chain = [issuing.sign(&Spec::leaf(ID)), issuing.der];
    let judge = |role| {
        let none = super::Revocations::default();
        super::verify(&chain, &mesh.bundles(), &none, role, super::at(super::NOW), super::brought())
    };
    assert!(judge(super::Role::Client).is_ok());
    refused(judge(super::Role::Server), Reason::BadCertificate);

    // Allowed beside what is needed: an own name without a path, and usages that the profile does not forbid.
    let good: [Change; 2] = [
        |s| s.names(&[uri(b"spiffe://corp.example"), dns("ca.corp.example")]),
        |s| s.with(KEY_USAGE, true, usage(CERT_SIGN | DIGITAL_SIGNATURE)),
    ];
    for change in good {
        assert_eq!(under(change).unwrap().id.as_str(), ID);
    }
}

/// webpki knows no URI constraints and refuses them all, those that would permit the leaf too: such an
/// issuing CA cannot serve here. Constraints on other kinds of names are honoured.
#[test]
fn uri_name_constraints_are_refused_whatever_they_say() {
    let mesh = Mesh::new();
    let under = |list: u8, subtree: Vec<u8>, leaf: &Spec| {
        let constraints = sequence(&[&tlv(list, &sequence(&[&subtree]))]);
        let issuing = mesh.root.issuing_as("c", key(), |s| s.with(NAME_CONSTRAINTS, true, constraints));
        believe(&[issuing.sign(leaf), issuing.der], &mesh.bundles())
    };
    let (permitted, excluded) = (0xa0, 0xa1);
    let flaw = Flaw::Path("a name constraint excludes it, or is of a kind that is not supported");
    for list in [permitted, excluded] {
        for host in [&b"corp.example"[..], b"other.example"] {
            let error = refused(under(list, uri(host), &Spec::leaf(ID)), Reason::BadCertificate);
            assert_eq!(error, VerifyError::Flaw(flaw));
        }
    }
    let with_host = |host: &str| Spec::leaf(ID).names(&[uri(ID.as_bytes()), dns(host)]);
    assert!(under(permitted, dns("corp.example"), &with_host("pay.corp.example")).is_ok());
    refused(under(permitted, dns("corp.example"), &with_host("pay.other.example")), Reason::BadCertificate);
    refused(under(excluded, dns("corp.example"), &with_host("pay.corp.example")), Reason::BadCertificate);
}

#[test]
fn signatures_of_unwanted_kinds_are_refused() {
    let mesh = Mesh::new();
    let flaw = VerifyError::Flaw(Flaw::Path("a signature algorithm or key type is not accepted here"));
    let sha1 = mesh.root.sign_as(&Spec::leaf(ID), ECDSA_SHA1);
    assert_eq!(refused(believe(&[sha1], &mesh.bundles()), Reason::BadCertificate), flaw);
    let ed25519 = Authority::root_as("root", KeyPair::generate_for(&PKCS_ED25519).unwrap(), |s| s);
    let chain = [ed25519.sign(&Spec::leaf(ID))];
    assert_eq!(refused(believe(&chain, &bundles(&[&ed25519])), Reason::BadCertificate), flaw);
    let p384 = Authority::root_as("root", KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), |s| s);
    assert!(believe(&[p384.sign(&Spec::leaf(ID))], &bundles(&[&p384])).is_ok());
}

/// Go's verifier once gave up where many roots shared one name.
#[test]
fn a_full_bundle_of_roots_with_one_name_still_finds_the_right_one() {
    let mut roots: Vec<Authority> =
        (0..crate::bundle::MAX_AUTHORITIES).map(|_| Authority::root("root")).collect();
    let issuing = roots[0].issuing("issuing");
    let chain = [issuing.sign(&Spec::leaf(ID)), issuing.der];
    for _ in 0..2 {
        let peer = believe(&chain, &bundles(&roots.iter().collect::<Vec<_>>())).unwrap();
        assert_eq!(peer.id.as_str(), ID);
        roots.reverse();
    }
}
