//! The certificates themselves: what is wrong with each, and what must be said about it.

use std::sync::Arc;

use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384};
use rustls::AlertDescription::{self as Alert, BadCertificate, CertificateExpired, DecryptError, UnknownCA};
use rustls_pki_types::CertificateDer;

use crate::support::forge::{
    ALT_NAME, ANY_USAGE, Authority, BASIC, CERT_SIGN, CLIENT_AUTH, CODE_SIGNING, CRL_SIGN, DIGITAL_SIGNATURE,
    EXTENDED_USAGE, KEY_USAGE, NAME_CONSTRAINTS, SERVER_AUTH, Spec, ca, dns, extended, key, sequence, tlv,
    uri, usage,
};
use crate::support::mesh::{DOMAIN, Mesh, PARTNER, PEER, PROXY, Presented};
use crate::support::scene::MARK;

type Forge = Box<dyn Fn(&Mesh) -> Presented>;
type Change = fn(Spec) -> Spec;
type Make = fn(&Mesh) -> Presented;
/// What it is called, and how it is made.
type Named<T> = (&'static str, T);

/// A chain that must be refused.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) forge: Forge,
    pub(super) reason: &'static str,
    pub(super) alert: Alert,
}

fn case(
    name: impl Into<String>,
    reason: &'static str,
    alert: Alert,
    forge: impl Fn(&Mesh) -> Presented + 'static,
) -> Case {
    Case { name: name.into(), forge: Box::new(forge), reason, alert }
}

/// An honest peer's leaf with one change.
fn leaf(
    name: &str,
    reason: &'static str,
    alert: Alert,
    change: impl Fn(Spec) -> Spec + Copy + 'static,
) -> Case {
    case(name, reason, alert, move |mesh| mesh.leaf(PEER, change))
}

pub(super) fn refused() -> Vec<Case> {
    [issuers(), dates(), names(), ids(), usages(), keys(), damage()].into_iter().flatten().collect()
}

fn by(authority: &Authority, id: &str) -> Presented {
    let key = key();
    Presented { chain: vec![authority.sign(&Spec::leaf(id, &key))], key: Arc::new(key) }
}

fn with(mut presented: Presented, more: &[&CertificateDer<'static>]) -> Presented {
    presented.chain.extend(more.iter().map(|der| (*der).clone()));
    presented
}

fn own(authority: Authority) -> Presented {
    Presented { chain: vec![authority.der], key: Arc::new(authority.key) }
}

fn issuers() -> Vec<Case> {
    vec![
        case("a foreign CA", "unknown_issuer", UnknownCA, |_| by(&Authority::root("stranger"), PEER)),
        case("a foreign CA that brings its root along", "unknown_issuer", UnknownCA, |_| {
            let stranger = Authority::root(MARK);
            with(by(&stranger, PEER), &[&stranger.der])
        }),
        case("a foreign CA with our root's name and key id", "bad_signature", DecryptError, |mesh| {
            let twin = mesh.root.twin();
            with(by(&twin, PEER), &[&twin.der])
        }),
        case("a foreign CA with our issuing CA's name and key id", "bad_signature", DecryptError, |mesh| {
            with(by(&mesh.issuing.twin(), PEER), &[&mesh.issuing.der])
        }),
        case("our CA's certificate is left out", "unknown_issuer", UnknownCA, |mesh| by(&mesh.issuing, PEER)),
        case("our CA for a domain that nobody knows", "wrong_trust_domain", UnknownCA, |mesh| {
            mesh.leaf("spiffe://other.example/ns/shop/sa/peer", |spec| spec)
        }),
        case("our CA for the partner's domain", "unknown_issuer", UnknownCA, |mesh| {
            mesh.leaf(PARTNER, |spec| spec)
        }),
        case("the partner's CA for our domain", "unknown_issuer", UnknownCA, |mesh| by(&mesh.partner, PEER)),
        case("self-signed", "unknown_issuer", UnknownCA, |_| {
            let key = key();
            own(Authority::self_signed(Spec::leaf(PEER, &key), key))
        }),
        case("a leaf as issuer", "bad_certificate", BadCertificate, |mesh| {
            let key = key();
            let spec = Spec::leaf(PEER, &key).named("peer");
            let peer = mesh.issuing.under(spec, key);
            with(by(&peer, PEER), &[&peer.der, &mesh.issuing.der])
        }),
        constrained("a name constraint that excludes us", 0xa1),
        // Documented: webpki knows no URI constraints, so an issuing CA must not carry any.
        constrained("a name constraint that permits us", 0xa0),
        case("an issuing CA that may not sign", "bad_certificate", BadCertificate, |mesh| {
            let change = |spec: Spec| spec.with(KEY_USAGE, true, usage(DIGITAL_SIGNATURE));
            let issuing = mesh.root.issuing("c", change);
            with(by(&issuing, PEER), &[&issuing.der])
        }),
    ]
}

fn constrained(name: &str, list: u8) -> Case {
    case(name, "bad_certificate", BadCertificate, move |mesh| {
        let constraints = sequence(&[&tlv(list, &sequence(&[&uri(DOMAIN)]))]);
        let issuing = mesh.root.issuing("c", |spec| spec.with(NAME_CONSTRAINTS, true, constraints));
        with(by(&issuing, PEER), &[&issuing.der])
    })
}

fn dates() -> Vec<Case> {
    vec![
        leaf("expired a second ago", "expired", CertificateExpired, |s| s.valid(-3600, -1)),
        // A minute is tolerated; the rest is for a machine that is slow to try it.
        leaf("valid in a minute and a half", "not_yet_valid", CertificateExpired, |s| s.valid(90, 3600)),
        case("an expired issuing CA", "expired", CertificateExpired, |mesh| {
            let issuing = mesh.root.issuing("c", |spec| spec.valid(-3600, -1));
            with(by(&issuing, PEER), &[&issuing.der])
        }),
    ]
}

fn names() -> Vec<Case> {
    let bad = |name: &str, change| leaf(name, "bad_spiffe_id", BadCertificate, change);
    let changes: [Named<Change>; 6] = [
        ("two URI names", |s| s.names(&[uri(PEER), uri(PROXY)])),
        ("the same URI name twice", |s| s.names(&[uri(PEER), uri(PEER)])),
        ("a second URI name of another scheme", |s| s.names(&[uri(PEER), uri(format!("https://{MARK}"))])),
        ("a DNS name only", |s| s.names(&[dns(MARK)])),
        ("no name at all", |s| s.without(ALT_NAME)),
        ("a common name only", |s| s.without(ALT_NAME).named(PEER)),
    ];
    let names = changes.map(|(name, change)| bad(name, change));
    let hidden = leaf("a second URI name that is no text", "bad_certificate", BadCertificate, |s| {
        s.names(&[uri(PEER), uri(b"\xff\xfe")])
    });
    let uncritical =
        leaf("an empty subject beside names that may be ignored", "bad_certificate", BadCertificate, |s| {
            s.with(ALT_NAME, false, tlv(0x30, &uri(PEER)))
        });
    names.into_iter().chain([hidden, uncritical]).collect()
}

/// Refused as they stand, never normalised into an identity.
fn ids() -> Vec<Case> {
    let long_domain = format!("spiffe://{}/a", "d".repeat(256));
    let long = format!("spiffe://corp.example/{}", "a".repeat(2049 - 22));
    let ids = [
        "SPIFFE://corp.example/EVILMARK",
        "spiffe://Corp.example/EVILMARK",
        "spiffe://corp.example/ns/shop/sa/%78EVILMARK",
        "spiffe://corp.example/ns/EVILMARK/../shop/sa/peer",
        "spiffe://corp.example/./ns/shop/sa/EVILMARK",
        "spiffe://corp.example//EVILMARK",
        "spiffe://corp.example/EVILMARK/",
        "spiffe://corp.example:443/EVILMARK",
        "spiffe://EVILMARK@corp.example/ns/shop/sa/peer",
        "spiffe://corp.example/ns/shop/sa/peer?EVILMARK",
        "spiffe://corp.example/ns/shop/sa/peer#EVILMARK",
        "spiffe://corp.example/ns/shop/sa/peer EVILMARK",
        "spiffe://corp.example/ns/shop/sa/peer\0EVILMARK",
        "spiffe://corp.example/ns/shop/sa/peer\n{\"outcome\":\"EVILMARK\"}",
        "spiffe://corp.example/ns/shop/sa/é",
        "spiffe://corp.example",
        "spiffe://corp.example/",
        "spiffe:///EVILMARK",
        "https://corp.example/EVILMARK",
        "",
        &long_domain,
        &long,
    ];
    let refused = ids.map(|id| {
        let name = format!("the id {:?}", id.chars().take(60).collect::<String>());
        let id = id.to_owned();
        case(name, "bad_spiffe_id", BadCertificate, move |mesh| mesh.leaf(&id, |spec| spec))
    });
    refused.into_iter().collect()
}

fn usages() -> Vec<Case> {
    let changes: [Named<Change>; 13] = [
        ("CA:TRUE", |s| s.with(BASIC, true, ca())),
        ("no basic constraints", |s| s.without(BASIC)),
        ("no key usage", |s| s.without(KEY_USAGE)),
        ("a key usage that may be ignored", |s| s.with(KEY_USAGE, false, usage(DIGITAL_SIGNATURE))),
        ("may sign certificates", |s| s.with(KEY_USAGE, true, usage(DIGITAL_SIGNATURE | CERT_SIGN))),
        ("may sign CRLs", |s| s.with(KEY_USAGE, true, usage(DIGITAL_SIGNATURE | CRL_SIGN))),
        ("may not sign a handshake", |s| s.with(KEY_USAGE, true, usage(0x20))),
        ("serves only", |s| s.with(EXTENDED_USAGE, false, extended(&[SERVER_AUTH]))),
        ("calls only", |s| s.with(EXTENDED_USAGE, false, extended(&[CLIENT_AUTH]))),
        ("signs code", |s| s.with(EXTENDED_USAGE, false, extended(&[CODE_SIGNING]))),
        ("any extended usage", |s| s.with(EXTENDED_USAGE, false, extended(&[ANY_USAGE]))),
        ("an empty list of extended usages", |s| s.with(EXTENDED_USAGE, false, extended(&[]))),
        ("an unknown critical extension", |s| s.with(99, true, vec![5, 0])),
    ];
    let mut cases: Vec<Case> = changes
        .into_iter()
        .map(|(name, change)| leaf(name, "bad_certificate", BadCertificate, change))
        .collect();
    cases.push(case("a CA with a workload's name", "bad_certificate", BadCertificate, |mesh| {
        own(mesh.root.issuing("c", |spec| spec.names(&[uri(PEER)])))
    }));
    cases.push(case("a CA as it is", "bad_spiffe_id", BadCertificate, |mesh| {
        own(mesh.root.issuing(MARK, |spec| spec))
    }));
    cases
}

fn keys() -> Vec<Case> {
    // By the fixtures' CA, which is in the bundle. Their keys are gone: the verifier speaks first.
    let fixture = |name: &str, reason, alert, der: &'static [u8]| {
        case(name, reason, alert, move |_| Presented { chain: vec![der.into()], key: Arc::new(key()) })
    };
    let bad = |name, der| fixture(name, "bad_certificate", BadCertificate, der);
    vec![
        bad("a SHA-1 signature", include_bytes!("../fixtures/sha1.der")),
        bad("a P-192 key", include_bytes!("../fixtures/p192.der")),
        bad("an RSA key of 1024 bits", include_bytes!("../fixtures/rsa1024.der")),
        // The control: this chain is believed, and what remains is that nobody holds its key.
        fixture(
            "a good certificate by the same CA without its key",
            "bad_signature",
            DecryptError,
            include_bytes!("../fixtures/sha256.der"),
        ),
        case("somebody else's certificate", "bad_signature", DecryptError, |mesh| Presented {
            key: Arc::new(key()),
            ..mesh.honest()
        }),
    ]
}

fn damage() -> Vec<Case> {
    let bad = |name: &str, change: fn(&mut Vec<CertificateDer<'static>>)| {
        case(name, "bad_certificate", BadCertificate, move |mesh| {
            let mut presented = mesh.honest();
            change(&mut presented.chain);
            presented
        })
    };
    vec![
        bad("no DER", |chain| chain[0] = MARK.as_bytes().to_vec().into()),
        bad("junk for an issuer", |chain| chain[1] = vec![0x30, 0x80, 0, 0].into()),
        bad("a byte too many", |chain| chain[0] = [chain[0].as_ref(), &[0]].concat().into()),
        bad("a byte too few", |chain| chain[0] = chain[0][..chain[0].len() - 1].to_vec().into()),
        bad("five certificates", |chain| chain.extend(vec![chain[1].clone(); 3])),
        bad("20 KiB of certificates", |chain| chain.push(vec![0x30; 20 * 1024].into())),
        case("a byte of the signature changed", "bad_signature", DecryptError, |mesh| {
            let mut presented = mesh.honest();
            let mut der = presented.chain[0].to_vec();
            *der.last_mut().unwrap() ^= 1;
            presented.chain[0] = der.into();
            presented
        }),
    ]
}

/// What is wrong only in whoever is called: it proves an identity, but not the one that was called.
pub(super) fn refused_as_server() -> Vec<Case> {
    let wrong = |name: &str, forge: Make| case(name, "wrong_identity", Alert::CertificateUnknown, forge);
    vec![
        wrong("another workload", |mesh| mesh.leaf("spiffe://corp.example/ns/shop/sa/other", |s| s)),
        wrong("another namespace", |mesh| mesh.leaf("spiffe://corp.example/ns/dev/sa/peer", |s| s)),
        wrong("a longer name", |mesh| mesh.leaf(&format!("{PEER}r"), |s| s)),
        wrong("the control plane", |mesh| mesh.leaf("spiffe://corp.example/postern/control-plane", |s| s)),
        wrong("the proxy itself", |mesh| mesh.leaf(PROXY, |s| s)),
        wrong("another case", |mesh| mesh.leaf("spiffe://corp.example/ns/shop/sa/Peer", |s| s)),
        wrong("a partner of the same name", partner),
    ]
}

pub(super) fn partner(mesh: &Mesh) -> Presented {
    by(&mesh.partner, PARTNER)
}

/// Unusual, and within the rules.
pub(super) fn believed() -> Vec<Named<Make>> {
    vec![
        ("a DNS name beside the URI name", |mesh| {
            mesh.leaf(PEER, |s| s.names(&[dns("admin.corp.example"), uri(PEER)]))
        }),
        ("another identity for a common name", |mesh| mesh.leaf(PEER, |s| s.named(PROXY))),
        ("valid in half a minute", |mesh| mesh.leaf(PEER, |s| s.valid(30, 3600))),
        ("no extended usage", |mesh| mesh.leaf(PEER, |s| s.without(EXTENDED_USAGE))),
        ("more extended usages than needed", |mesh| {
            let usages = extended(&[CODE_SIGNING, CLIENT_AUTH, SERVER_AUTH]);
            mesh.leaf(PEER, |s| s.with(EXTENDED_USAGE, true, usages))
        }),
        ("a key of P-384", |mesh| {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
            let leaf = mesh.issuing.sign(&Spec::leaf(PEER, &key));
            Presented { chain: vec![leaf, mesh.issuing.der.clone()], key: Arc::new(key) }
        }),
        ("signed by the root itself", |mesh| by(&mesh.root, PEER)),
        ("the root brought along", |mesh| with(mesh.honest(), &[&mesh.root.der])),
        ("an issuing CA named as its domain", |mesh| {
            let issuing = mesh.root.issuing("c", |s| s.names(&[uri("spiffe://corp.example")]));
            with(by(&issuing, PEER), &[&issuing.der])
        }),
    ]
}
