//! The stored chains that fuzzing starts from are judged as they were when they were stored.
//!
//! `UPDATE_CORPUS=1 cargo test -p postern-config --lib corpus` forges new ones.

use std::path::{Path, PathBuf};

use super::forge::{
    ALT_NAME, Authority, BASIC, HOUR, KEY_USAGE, NAME_CONSTRAINTS, NOW, Spec, ca, dns, sequence, tlv, uri,
    usage,
};
use super::{CertificateDer, ID, Reason, believe, bundles};
use crate::bundle::TrustBundle;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

const STORED: [(&str, Option<Reason>); 9] = [
    ("good", None),
    ("direct", None),
    ("other_names", None),
    ("expired", Some(Reason::Expired)),
    ("two_uris", Some(Reason::BadSpiffeId)),
    ("foreign_root", Some(Reason::BadSignature)),
    ("ca_as_leaf", Some(Reason::BadCertificate)),
    ("uri_constraint", Some(Reason::BadCertificate)),
    ("cert_sign", Some(Reason::BadCertificate)),
];

fn forged(name: &str, root: &Authority) -> Vec<CertificateDer<'static>> {
    let issuing = root.issuing("issuing");
    let leaf = Spec::leaf(ID);
    let under = |leaf: &Spec| vec![issuing.sign(leaf), issuing.der.clone()];
    match name {
        "good" => under(&leaf),
        "direct" => vec![root.sign(&leaf)],
        "other_names" => {
            under(&leaf.names(&[dns("pay.example"), uri(ID.as_bytes()), tlv(0x87, &[10, 0, 0, 1])]))
        }
        "expired" => under(&leaf.dates(NOW - HOUR, NOW - 1)),
        "two_uris" => under(&leaf.names(&[uri(ID.as_bytes()), uri(b"spiffe://corp.example/other")])),
        "foreign_root" => vec![Authority::root("root").sign(&leaf)],
        "ca_as_leaf" => under(&leaf.with(BASIC, true, ca(None))),
        "cert_sign" => under(&leaf.with(KEY_USAGE, true, usage(0x84))),
        "uri_constraint" => {
            let constraint = sequence(&[&tlv(0xa0, &sequence(&[&uri(b"corp.example")]))]);
            let change = |spec: Spec| spec.with(NAME_CONSTRAINTS, true, constraint).without(ALT_NAME);
            let issuing = root.issuing_as("issuing", rcgen::KeyPair::generate().unwrap(), change);
            vec![issuing.sign(&leaf), issuing.der]
        }
        other => panic!("{other}"),
    }
}

fn update() {
    let root = Authority::root("root");
    std::fs::write(folder().join("fixture/root.der"), &root.der).unwrap();
    for (name, _) in STORED {
        let bytes = forged(name, &root).iter().map(|c| c.as_ref()).collect::<Vec<_>>().concat();
        std::fs::write(folder().join("corpus/chain").join(name), bytes).unwrap();
    }
}

#[test]
fn stored_chains_are_judged_as_ever() {
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        update();
    }
    let root = CertificateDer::from(std::fs::read(folder().join("fixture/root.der")).unwrap());
    let bundle = TrustBundle::new("corp.example".parse().unwrap(), 1, [root]).unwrap();
    let set = [bundle].into_iter().collect();
    for (name, reason) in STORED {
        let bytes = std::fs::read(folder().join("corpus/chain").join(name)).unwrap();
        let mut rest = bytes.as_slice();
        let mut chain: Vec<CertificateDer<'_>> = Vec::new();
        while let [0x30, 0x82, high, low, ..] = rest {
            let (certificate, after) = rest.split_at(4 + usize::from(u16::from_be_bytes([*high, *low])));
            chain.push(certificate.into());
            rest = after;
        }
        let found = believe(&chain, &set);
        assert_eq!(found.as_ref().err().map(|e| e.reason()), reason, "{name}");
        assert!(believe(&chain, &bundles(&[&Authority::root("root")])).is_err(), "{name} under another root");
    }
}
