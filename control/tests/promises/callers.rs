//! Who may call what: every method against every kind of caller, and what is in no table is denied.

use postern_config::file::Span;
use postern_config::file::control::SvidConfig;
use postern_config::wire::v1;
use postern_control::api::callers::{Grace, Standing, TABLE, admit};
use tonic::Code;

use crate::harness::{Connection, Control, Keys, Svid, TD, enrolled, verify};

#[tokio::test]
async fn every_method_names_its_caller() {
    let control = Control::start();
    let (_, svid) = enrolled(&control, "/a", &[]).await;
    let root = std::fs::read(control.data().join("ca/root.pem")).unwrap();
    let root = x509_parser::pem::parse_x509_pem(&root).unwrap().1.contents;
    let workload = verify(&svid.chain, root.into(), postern_config::svid::Role::Client);
    let mut reserved = workload.clone();
    reserved.id = format!("spiffe://{TD}/postern/control").parse().unwrap();
    let mut foreign = workload.clone();
    foreign.id = "spiffe://other.example/a".parse().unwrap();
    let (td, now) = (TD.parse().unwrap(), workload.not_after);

    let terms = SvidConfig::default();
    let grace = Grace::new(&terms);
    assert_eq!(TABLE.len(), 5, "a new method needs a row here");
    let code = |method: &str, peer, now| admit(method, peer, &td, grace, now).map_err(|s| s.code());
    for method in ["Enroll", "Challenge"] {
        let method = &format!("/postern.control.v1.Control/{method}");
        assert_eq!(code(method, None, now), Ok(()));
        assert_eq!(code(method, Some((&workload, Standing::Good)), now), Err(Code::PermissionDenied));
    }
    for method in ["Renew", "Watch", "FetchJwtSvid"] {
        let method = &format!("/postern.control.v1.Control/{method}");
        assert_eq!(code(method, None, now), Err(Code::Unauthenticated));
        assert_eq!(code(method, Some((&workload, Standing::Good)), now), Ok(()));
        assert_eq!(
            code(method, Some((&workload, Standing::Good)), now + 1),
            Err(Code::Unauthenticated),
            "expired meanwhile"
        );
        assert_eq!(code(method, Some((&reserved, Standing::Good)), now), Err(Code::PermissionDenied));
        assert_eq!(code(method, Some((&foreign, Standing::Good)), now), Err(Code::PermissionDenied));
    }
    let last = Some((&workload, Standing::Last));
    assert_eq!(
        code("/postern.control.v1.Control/Renew", last, now),
        Ok(()),
        "its CA was tainted: it may renew"
    );
    assert_eq!(
        code("/postern.control.v1.Control/Watch", last, now),
        Err(Code::PermissionDenied),
        "and nothing else"
    );
    for unknown in ["/", "/postern.control.v1.Control/Reflect", "/postern.control.v1.Control/Enroll/", ""] {
        assert_eq!(code(unknown, Some((&workload, Standing::Good)), now), Err(Code::PermissionDenied));
    }

    // With a grace, a late certificate may renew and nothing else, and never longer than it lived.
    let lived = workload.not_after - workload.not_before - 300;
    let grace = Grace::new(&SvidConfig { grace: Span::from_secs(365 * 86_400), ..terms.clone() });
    let code = |method: &str, late| {
        let peer = Some((&workload, Standing::Good));
        admit(method, peer, &td, grace, now + late).map_err(|s| s.code())
    };
    assert_eq!(code("/postern.control.v1.Control/Renew", lived), Ok(()));
    assert_eq!(code("/postern.control.v1.Control/Renew", lived + 1), Err(Code::Unauthenticated));
    assert_eq!(code("/postern.control.v1.Control/Watch", 1), Err(Code::Unauthenticated));
    let short = Grace::new(&SvidConfig { grace: Span::from_secs(5), ..terms });
    assert!(short.covers(&workload, now + 5) && !short.covers(&workload, now + 6));
}

#[tokio::test]
async fn the_wire_keeps_to_the_table() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let keys = Keys::new();
    let mut anonymous = Connection::to(&control, &join, None).await;
    let renew = v1::RenewRequest { csr: keys.csr.clone(), ttl_ms: 0 };
    assert_eq!(anonymous.client.renew(renew).await.unwrap_err().code(), Code::Unauthenticated);
    let mut workload = Connection::to(&control, &join, Some(&svid)).await;
    assert_eq!(workload.enroll(&join, &keys).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_certificate_of_nobody_known_ends_the_handshake() {
    let (control, other) = (Control::start(), Control::start());
    let (join, _) = enrolled(&control, "/a", &[]).await;
    let (_, foreign) = enrolled(&other, "/a", &[]).await;
    let own_ca = {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        Svid { chain: vec![certificate.der().clone()], key: key.serialize_der().into() }
    };
    for svid in [foreign, own_ca] {
        // In TLS 1.3 the client has finished before the server refuses: the first call shows it.
        let refused = match Connection::open(control.listen, join.pins[0], Some(&svid)).await {
            Err(_) => true,
            Ok(mut connection) => {
                connection.client.renew(v1::RenewRequest { csr: Keys::new().csr, ttl_ms: 0 }).await.is_err()
            }
        };
        assert!(refused);
    }
    assert_eq!(control.issued("renew"), 0);
}
