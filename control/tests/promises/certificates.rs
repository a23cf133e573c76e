//! Certificates are X.509-SVIDs to the letter: read back by two foreign parsers.

use std::process::Command;

use postern_config::svid::Role;
use x509_parser::prelude::*;

use crate::harness::{Control, TD, enrolled, verify};

#[tokio::test]
async fn a_leaf_says_exactly_what_the_standard_wants() {
    let control = Control::start();
    let (_, svid) = enrolled(&control, "/ns/shop/sa/payments", &[]).await;
    assert_eq!(svid.chain.len(), 2, "leaf and issuing CA; the root is left out");
    let (rest, leaf) = parse_x509_certificate(&svid.chain[0]).unwrap();
    let (_, issuing) = parse_x509_certificate(&svid.chain[1]).unwrap();
    assert!(rest.is_empty());

    assert_eq!(leaf.subject().iter().count(), 0, "the subject is empty");
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical, "so the SAN is critical");
    assert_eq!(san.value.general_names, [GeneralName::URI("spiffe://corp.example/ns/shop/sa/payments")]);
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature and nothing else");
    let extended = leaf.extended_key_usage().unwrap().unwrap();
    assert!(extended.value.server_auth && extended.value.client_auth);
    assert_eq!(leaf.raw_serial().len(), 16);
    assert!((0x40..0x80).contains(&leaf.raw_serial()[0]), "positive, of full length");

    let key_id = |c: &X509Certificate<'_>| {
        c.iter_extensions().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
    };
    let authority = leaf.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0.to_vec()),
        _ => None,
    });
    assert!(key_id(&leaf).is_some());
    assert_eq!(authority, key_id(&issuing));
    let (own, ca) = (leaf.validity(), issuing.validity());
    assert!(own.not_before >= ca.not_before && own.not_after <= ca.not_after);
    let life = own.not_after.timestamp() - own.not_before.timestamp();
    assert!((3890..=3902).contains(&life), "one hour and five minutes back: {life}");
}

#[tokio::test]
async fn an_issuing_ca_signs_leaves_alone() {
    let control = Control::start();
    let (_, svid) = enrolled(&control, "/a", &[]).await;
    let (_, issuing) = parse_x509_certificate(&svid.chain[1]).unwrap();
    let constraints = issuing.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = issuing.key_usage().unwrap().unwrap();
    assert!(
        usage.critical
            && usage.value.key_cert_sign()
            && usage.value.crl_sign()
            && !usage.value.digital_signature()
    );
    assert!(issuing.extended_key_usage().unwrap().is_none());
    assert!(issuing.name_constraints().unwrap().is_none());
    assert_ne!(issuing.subject(), issuing.issuer());
}

#[tokio::test]
async fn openssl_and_our_own_verifier_believe_the_chain() {
    let control = Control::start();
    let (_, svid) = enrolled(&control, "/ns/shop/sa/payments", &[]).await;
    let root = std::fs::read(control.data().join("ca/root.pem")).unwrap();
    let (_, root) = parse_x509_pem(&root).unwrap();
    for role in [Role::Client, Role::Server] {
        let peer = verify(&svid.chain, root.contents.clone().into(), role);
        assert_eq!(peer.id.as_str(), format!("spiffe://{TD}/ns/shop/sa/payments"));
    }
    let write = |name: &str, der: &[u8]| {
        let path = control.data().join(name);
        std::fs::write(&path, der).unwrap();
        path
    };
    let (leaf, issuing) = (write("leaf.der", &svid.chain[0]), write("issuing.der", &svid.chain[1]));
    let mut verify = Command::new("openssl");
    verify
        .args(["verify", "-x509_strict", "-purpose", "sslserver"])
        .arg("-CAfile")
        .arg(control.data().join("ca/root.pem"));
    let Ok(output) = verify.arg("-untrusted").arg(issuing).arg(leaf).output() else {
        eprintln!("no openssl on this machine");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_lifetime_stays_within_every_bound() {
    let control = Control::start();
    let life = async |more: &[&str], ttl_ms: u64| {
        let join = control.token("/a", more);
        let keys = crate::harness::Keys::new();
        let mut connection = crate::harness::Connection::to(&control, &join, None).await;
        let mut request = connection.request(&join, &keys);
        request.ttl_ms = ttl_ms;
        let chain = connection.client.enroll(request).await.unwrap().into_inner().svid.unwrap().chain;
        let (_, leaf) = parse_x509_certificate(&chain[0]).unwrap();
        leaf.validity().not_after.timestamp() - postern_control::clock::now_ms() / 1000
    };
    assert!((9..=11).contains(&life(&[], 10_000).await), "as asked for");
    assert!((86_390..=86_402).contains(&life(&[], u64::MAX).await), "max_ttl");
    assert!((58..=61).contains(&life(&["--svid-ttl", "60s"], 0).await), "the token's bound");
    assert!((0..=2).contains(&life(&[], 1).await), "min_ttl");
}
