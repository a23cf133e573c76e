//! Messages into the model and back; a message with one mistake changes nothing at all.

#![expect(clippy::unwrap_used, reason = "what a test prepares must succeed")]

use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::policy::MtlsMode;
use postern_config::revocation::Revocations;
use postern_config::wire::{self, WireError, v1};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};

fn bundle(trust_domain: &str) -> TrustBundle {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone();
    TrustBundle::new(trust_domain.parse().unwrap(), 3, [root]).unwrap()
}

#[test]
fn bundles_read_back_and_one_bad_one_refuses_them_all() {
    let set: BundleSet = [bundle("corp.example"), bundle("partner.example")].into_iter().collect();
    let message = v1::BundleSet::from(&set);
    assert_eq!(BundleSet::try_from(&message).unwrap(), set);

    let broken = |change: fn(&mut v1::Bundle)| {
        let mut message = message.clone();
        change(&mut message.bundles[1]);
        BundleSet::try_from(&message).unwrap_err()
    };
    assert!(
        matches!(broken(|b| b.trust_domain = "Partner".into()), WireError::Id(name, _) if name == "Partner")
    );
    assert!(matches!(broken(|b| b.trust_domain.clear()), WireError::Id(..)));
    assert!(
        matches!(broken(|b| b.document = "{}".into()), WireError::Bundle(td, _) if td == "partner.example")
    );
    assert!(matches!(broken(|b| b.document.clear()), WireError::Bundle(..)));
    assert!(
        matches!(broken(|b| b.trust_domain = "corp.example".into()), WireError::Twice(td) if td == "corp.example")
    );
    assert!(BundleSet::try_from(&v1::BundleSet::default()).unwrap().is_empty());
}

#[test]
fn revocations_read_back_and_one_bad_one_refuses_them_all() {
    let revoked = Revocations {
        serials: [(vec![1; 20], vec![0, 0x91, 2]), (vec![], vec![7])].into(),
        identities: [("spiffe://corp.example/a".parse().unwrap(), 1_700_000_000)].into(),
        spkis: [[9; 32], [8; 32]].into(),
    };
    let message = v1::RevocationSet::from(&revoked);
    assert_eq!(Revocations::try_from(&message).unwrap(), revoked);

    let mut short = message.clone();
    short.spkis.push(vec![1; 31]);
    assert!(matches!(Revocations::try_from(&short), Err(WireError::Spki(31))));
    for bad in ["", "corp.example/a", "spiffe://corp.example", "spiffe://corp.example/a/"] {
        let mut message = message.clone();
        message.identities.push(v1::RevokedIdentity { spiffe_id: bad.into(), issued_before: 1 });
        assert!(matches!(Revocations::try_from(&message), Err(WireError::Id(text, _)) if text == bad));
    }
    assert!(Revocations::try_from(&v1::RevocationSet::default()).unwrap().is_empty());
}

#[test]
fn an_identity_revoked_twice_is_refused_up_to_the_later_date() {
    let entry =
        |issued_before| v1::RevokedIdentity { spiffe_id: "spiffe://corp.example/a".into(), issued_before };
    for dates in [[5, 9], [9, 5]] {
        let message = v1::RevocationSet { identities: dates.map(entry).to_vec(), ..Default::default() };
        let revoked = Revocations::try_from(&message).unwrap();
        assert_eq!(revoked.identities["spiffe://corp.example/a"], 9);
    }
}

#[test]
fn services_are_checked_and_one_bad_one_refuses_them_all() {
    let service = |name: &str, id: &str, endpoints: &[&str]| v1::Service {
        name: name.into(),
        spiffe_id: id.into(),
        endpoints: endpoints.iter().map(|e| (*e).to_owned()).collect(),
    };
    let good = service("pay", "spiffe://corp.example/pay", &["10.0.0.1:80", "pay.shop:80"]);
    let read = |extra: &[v1::Service]| {
        let services = std::iter::once(good.clone()).chain(extra.iter().cloned()).collect();
        wire::services(&v1::ServiceSet { services })
    };
    let both = read(&[service("cart", "spiffe://corp.example/cart", &[])]).unwrap();
    assert_eq!(both[0].identity.as_str(), "spiffe://corp.example/pay");
    assert_eq!(both[0].endpoints, ["10.0.0.1:80", "pay.shop:80"]);
    assert!(both[1].endpoints.is_empty());
    for bad in [
        service("", "spiffe://corp.example/x", &[]),
        service("a b", "spiffe://corp.example/x", &[]),
        service("x", "spiffe://corp.example", &[]),
        service("x", "", &[]),
        service("x", "spiffe://corp.example/x", &["10.0.0.1"]),
        service("x", "spiffe://corp.example/x", &["10.0.0.1:80", ""]),
        service("pay", "spiffe://corp.example/other", &[]),
    ] {
        assert!(read(std::slice::from_ref(&bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn policies_are_read_in_order_and_one_bad_one_refuses_them_all() {
    let document = |name: &str| {
        format!(
            r#"{{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{{"name":"{name}"}},"spec":{{}}}}"#
        )
    };
    let read = |documents: &[String]| {
        wire::policies(&v1::PolicySet { documents: documents.to_vec(), ..v1::PolicySet::default() })
    };
    let names: Vec<String> =
        read(&[document("b"), document("a")]).unwrap().0.iter().map(|p| p.full_name()).collect();
    assert_eq!(names, ["default/b", "default/a"]);
    for bad in [String::new(), "{}".into(), document("x").replace("spec", "speck"), document("x") + "x"] {
        assert!(matches!(read(&[document("a"), bad.clone()]), Err(WireError::Policy(_))), "{bad}");
    }
}

#[test]
fn peer_authentications_become_modes_and_one_bad_one_refuses_the_message() {
    let peer = |namespace: &str, spec: &str| {
        format!(
            r#"{{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{{"name":"p","namespace":"{namespace}"}},"spec":{spec}}}"#
        )
    };
    let read = |peers: &[String]| {
        wire::policies(&v1::PolicySet {
            documents: Vec::new(),
            peer_authentications: peers.to_vec(),
            root_namespace: "root".into(),
        })
    };
    let (mesh, own) =
        (peer("root", r#"{"mtls":{"mode":"DISABLE"}}"#), peer("shop", r#"{"mtls":{"mode":"PERMISSIVE"}}"#));
    assert_eq!(read(&[]).unwrap().1.of(1), None);
    assert_eq!(read(std::slice::from_ref(&mesh)).unwrap().1.of(1), Some(MtlsMode::Disable));
    assert_eq!(read(&[own, mesh.clone()]).unwrap().1.of(1), Some(MtlsMode::Permissive));
    for bad in
        [String::new(), mesh.replace("DISABLE", "OFF"), mesh.replace("mtls", "tls"), mesh.replace("v1", "v3")]
    {
        assert!(matches!(read(&[mesh.clone(), bad.clone()]), Err(WireError::Policy(_))), "{bad}");
    }
}
