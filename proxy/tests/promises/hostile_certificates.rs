//! Every certificate that must be refused, presented by a client and by a server; and those that must not be.

use rustls::AlertDescription as Alert;

use crate::support::client::{Client, End, config, read_to_end};
use crate::support::mesh::{PARTNER, PEER};
use crate::support::metrics::ok;
use crate::support::scene::{MARK, Scene};
use crate::support::server::{server_config, tls};

mod table;

#[test]
fn a_client_is_refused_for_its_certificate() {
    let scene = Scene::new();
    let series = scene.proxy.metrics().names().join("\n");
    for case in table::refused() {
        eprintln!("{}", case.name);
        let config = std::sync::Arc::new(config(Some(&(case.forge)(&scene.mesh))));
        scene.refuses_client(case.reason, |to| {
            let mut client = Client::connect(to, config.clone()).unwrap();
            // In TLS 1.3 a client believes that it is in before the server has looked at its certificate.
            assert_eq!(read_to_end(&mut client.stream()), (vec![], End::Alert(case.alert)), "{}", case.name);
            client.source()
        });
        scene.refuses_client(case.reason, |to| {
            let mut client = Client::connect(to, config).unwrap();
            let source = client.source();
            // It may already have been thrown out.
            let _ = client.send(MARK.as_bytes());
            let _ = client.send(MARK.as_bytes());
            assert_eq!(read_to_end(&mut client.stream()).0, b"", "{}", case.name);
            source
        });
    }
    assert_eq!(scene.proxy.metrics().names().join("\n"), series, "nobody's input makes a new series");
}

#[test]
fn a_server_is_refused_for_its_certificate() {
    let scene = Scene::new();
    let series = scene.proxy.metrics().names().join("\n");
    for case in table::refused().into_iter().chain(table::refused_as_server()) {
        eprintln!("{}", case.name);
        scene.upstream.behave(tls(server_config(&(case.forge)(&scene.mesh))));
        let seen = scene.upstream.seen.ends.lock().unwrap().len();
        scene.refuses_server(case.reason);
        assert_eq!(scene.upstream.seen.ends.lock().unwrap()[seen], End::Alert(case.alert), "{}", case.name);
    }
    assert_eq!(scene.proxy.metrics().names().join("\n"), series, "nobody's input makes a new series");
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let scene = Scene::new();
    scene.refuses_client("no_certificate", |to| {
        let mut client = Client::connect(to, config(None)).unwrap();
        assert_eq!(read_to_end(&mut client.stream()), (vec![], End::Alert(Alert::CertificateRequired)));
        client.source()
    });
    scene.refuses_client("no_certificate", |to| {
        let mut client = Client::connect(to, config(None)).unwrap();
        let _ = client.send(MARK.as_bytes());
        assert_eq!(read_to_end(&mut client.stream()).0, b"");
        client.source()
    });
}

#[test]
fn unusual_certificates_that_keep_the_rules_are_believed() {
    let scene = Scene::new();
    for (name, forge) in table::believed() {
        eprintln!("{name}");
        let presented = forge(&scene.mesh);
        let client = Client::connect(scene.proxy.inbound, config(Some(&presented))).unwrap();
        // The identity is the URI name and nothing else that stands in the certificate.
        assert_eq!(scene.echoes(client, b"hello")["peer"], PEER, "{name}");
        scene.upstream.behave(tls(server_config(&presented)));
        let before = scene.proxy.metrics().of(&ok("outbound"));
        scene.outbound_reaches(b"hello");
        assert_eq!(scene.proxy.metrics().of(&ok("outbound")), before + 1, "{name}");
    }
}

/// A federated identity is proven, and still nobody whom the default policy lets in.
#[test]
fn a_partners_identity_is_proven_and_denied() {
    let scene = Scene::new();
    let presented = table::partner(&scene.mesh);
    let reached = scene.app.seen.connections();
    let mut client = Client::connect(scene.proxy.inbound, config(Some(&presented))).unwrap();
    let _ = client.send(MARK.as_bytes());
    assert_eq!(read_to_end(&mut client.stream()), (vec![], End::Reset));
    let record = scene.proxy.record(client.source());
    assert_eq!((&record["outcome"], &record["peer"]), (&"denied".into(), &PARTNER.into()));
    assert_eq!(scene.app.seen.connections(), reached);
    scene.inbound_works();
    scene.nothing_is_left();
}
