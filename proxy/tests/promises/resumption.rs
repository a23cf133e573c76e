//! No handshake is ever resumed, in either direction: a ticket would bring an expired or banned peer back unseen.

use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use rustls::{ClientConfig, HandshakeKind, ServerConfig, ServerConnection};

use crate::support::client::{Client, End, config, read_to_end};
use crate::support::eventually;
use crate::support::forge::now;
use crate::support::mesh::{Mesh, PEER};
use crate::support::scene::{MARK, Scene};
use crate::support::server::{Seen, Server, server_config, tls};

/// Sends and receives once; what kind of handshake it was, how many tickets came.
fn visit(scene: &Scene, config: &Arc<ClientConfig>) -> (HandshakeKind, u32) {
    let mut client = Client::connect(scene.proxy.inbound, Arc::clone(config)).unwrap();
    client.send(b"hello").unwrap();
    assert_eq!(client.receive(5), b"hello");
    let kind = client.tls.handshake_kind().unwrap();
    client.finish();
    assert_eq!(read_to_end(&mut client.stream()), (vec![], End::Clean));
    // Tickets would have come with the data.
    (kind, client.tls.tls13_tickets_received())
}

#[test]
fn a_client_gets_no_ticket_and_a_full_handshake_each_time() {
    let scene = Scene::new();
    // The default remembers what it is given.
    let config = Arc::new(config(Some(&scene.mesh.honest())));
    for _ in 0..3 {
        // The first may need another round for the key share, which is no resumption either.
        let (kind, tickets) = visit(&scene, &config);
        assert_ne!(kind, HandshakeKind::Resumed);
        assert_eq!(tickets, 0);
    }
}

#[test]
fn an_expired_client_cannot_come_back() {
    let scene = Scene::new();
    let config = Arc::new(config(Some(&scene.mesh.leaf(PEER, |spec| spec.valid(-60, 3)))));
    let expires = now() + 3;
    visit(&scene, &config);
    eventually("the certificate's end", || (now() > expires).then_some(()));
    scene.refuses_client("expired", |to| {
        let mut client = Client::connect(to, config).unwrap();
        assert_ne!(client.tls.handshake_kind(), Some(HandshakeKind::Resumed));
        let end = read_to_end(&mut client.stream());
        assert_eq!(end, (vec![], End::Alert(rustls::AlertDescription::CertificateExpired)));
        client.source()
    });
}

/// Somebody who has a ticket, though not from here, and data to go with it before anybody has said who they are.
fn with_a_foreign_ticket(mesh: &Mesh, mut config: ClientConfig) -> Arc<ClientConfig> {
    config.enable_early_data = true;
    let config = Arc::new(config);
    let mut server = server_config(&mesh.honest());
    server.max_early_data_size = 1024;
    let elsewhere = Server::start(tls(server));
    let mut client = Client::connect(elsewhere.address, Arc::clone(&config)).unwrap();
    client.send(b"a ticket, please").unwrap();
    client.receive(16);
    assert!(client.tls.tls13_tickets_received() > 0);
    config
}

#[test]
fn a_foreign_ticket_is_a_full_handshake_and_its_early_data_is_dropped() {
    let scene = Scene::new();
    let early = |config: &Arc<ClientConfig>, to| {
        let mut client = Client::prepare(crate::support::client::tcp(to), Arc::clone(config));
        let mut data = client.tls.early_data().expect("a ticket to use");
        std::io::Write::write_all(&mut data, MARK.as_bytes()).unwrap();
        client.handshake().unwrap();
        assert_ne!(client.tls.handshake_kind(), Some(HandshakeKind::Resumed));
        assert!(!client.tls.is_early_data_accepted());
        client
    };
    let honest = with_a_foreign_ticket(&scene.mesh, config(Some(&scene.mesh.honest())));
    let reached = scene.app.seen.bytes();
    let client = early(&honest, scene.proxy.inbound);
    scene.echoes(client, b"hello");
    assert_eq!(scene.app.seen.bytes(), reached + 5, "nothing of the early data went on");

    let stranger = with_a_foreign_ticket(&scene.mesh, config(Some(&Mesh::new().honest())));
    scene.refuses_client("bad_signature", |to| {
        let mut client = early(&stranger, to);
        assert_eq!(read_to_end(&mut client.stream()).0, b"");
        client.source()
    });
}

#[test]
fn the_proxy_uses_no_ticket_that_an_upstream_gives_it() {
    let scene = Scene::new();
    let config: Arc<ServerConfig> = Arc::new(server_config(&scene.mesh.honest()));
    assert!(config.send_tls13_tickets > 0);
    let kinds = Arc::<Mutex<Vec<HandshakeKind>>>::default();
    let seen = Arc::clone(&kinds);
    scene.upstream.behave(move |mut tcp: TcpStream, _: &Seen| {
        let mut tls = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        let (bytes, _) = read_to_end(&mut stream);
        std::io::Write::write_all(&mut stream, &bytes).unwrap();
        tls.send_close_notify();
        tls.write_tls(&mut tcp).unwrap();
        seen.lock().unwrap().extend(tls.handshake_kind());
    });
    (0..3).for_each(|_| scene.outbound_reaches(b"hello"));
    eventually("three handshakes", || (kinds.lock().unwrap().len() == 3).then_some(()));
    assert!(!kinds.lock().unwrap().contains(&HandshakeKind::Resumed), "{kinds:?}");
}
