//! A certificate's end is the end of what it opened, the peer's and the proxy's own.

use std::net::SocketAddr;

use crate::support::client::{Client, End, config, read_to_end, tcp};
use crate::support::eventually;
use crate::support::forge::now;
use crate::support::mesh::PEER;
use crate::support::scene::Scene;

/// A client whose certificate lives for three seconds, connected; and the moment of its end.
fn short_lived(scene: &Scene) -> (Client, i64) {
    let expires = now() + 3;
    let peer = scene.mesh.leaf(PEER, |spec| spec.valid(-60, 3));
    let mut client = Client::connect(scene.proxy.inbound, config(Some(&peer))).unwrap();
    client.send(b"hello").unwrap();
    assert_eq!(client.receive(5), b"hello");
    (client, expires)
}

#[test]
fn an_open_connection_ends_with_its_peers_certificate() {
    let scene = Scene::new();
    let apps = scene.app.seen.ends.lock().unwrap().len();
    let (mut client, expires) = short_lived(&scene);
    assert_eq!(read_to_end(&mut client.stream()), (vec![], End::Reset));
    assert!(now() > expires, "not before its end");
    assert_eq!(scene.proxy.record(client.source())["outcome"], "peer_expired");
    let end = eventually("the app's end", || scene.app.seen.ends.lock().unwrap().get(apps).copied());
    assert_eq!(end, End::Reset);
    scene.inbound_works();
    scene.nothing_is_left();
}

#[test]
fn an_open_connection_may_be_kept_beyond_it() {
    let scene = Scene::with(|options| options.yaml("limits: { peer_expiry: keep }"));
    let (mut client, expires) = short_lived(&scene);
    // Two looks of the worker after that.
    eventually("the certificate's end", || (now() > expires + 2).then_some(()));
    client.send(b"still").unwrap();
    assert_eq!(client.receive(5), b"still");
    scene.echoes(client, b"");
    // What is new is refused all the same.
    scene.refuses_client("expired", |to| {
        let expired = scene.mesh.leaf(PEER, |spec| spec.valid(-60, -1));
        let mut client = Client::connect(to, config(Some(&expired))).unwrap();
        assert_eq!(read_to_end(&mut client.stream()).0, b"");
        client.source()
    });
}

#[test]
fn without_an_identity_of_its_own_the_proxy_refuses_everybody() {
    let scene = Scene::with(|mut options| {
        options.ttl = 5;
        options
    });
    assert!(scene.proxy.readiness().starts_with("HTTP/1.1 200"));
    let readiness = eventually("the certificate's end", || {
        Some(scene.proxy.readiness()).filter(|answer| answer.starts_with("HTTP/1.1 503"))
    });
    assert!(readiness.contains("no valid identity"), "{readiness}");
    let before = scene.proxy.metrics();
    let reached = (scene.app.seen.connections(), scene.upstream.seen.connections());
    let end = |source: SocketAddr| {
        let record = scene.proxy.record(source);
        ["outcome", "reason"].map(|field| record[field].as_str().unwrap_or_default().to_owned())
    };
    let mut client = Client::prepare(tcp(scene.proxy.inbound), config(Some(&scene.mesh.honest())));
    client.handshake().unwrap_err();
    assert_eq!(end(client.source()), ["handshake_failed", "no_identity"]);
    let mut app = tcp(scene.proxy.outbound);
    assert_eq!(read_to_end(&mut app), (vec![], End::Reset));
    assert_eq!(end(app.local_addr().unwrap()), ["handshake_failed", "no_identity"]);
    let moved = scene.proxy.metrics().moved_since(&before);
    assert_eq!(
        moved.keys().filter(|series| series.contains("reason=\"no_identity\"")).count(),
        2,
        "{moved:?}"
    );
    assert_eq!((scene.app.seen.connections(), scene.upstream.seen.connections()), reached);
}
