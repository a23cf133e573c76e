//! A stream that was cut off never looks complete to whoever reads it, on either side.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustls::ServerConnection;
use socket2::SockRef;

use crate::support::client::{Client, End, config, read_to_end, tcp};
use crate::support::eventually;
use crate::support::scene::Scene;
use crate::support::server::{Seen, server_config};

const HALF: &[u8] = b"the first half of";

fn client(scene: &Scene) -> Client {
    Client::connect(scene.proxy.inbound, config(Some(&scene.mesh.honest()))).unwrap()
}

/// Each way in which a client can go without close_notify.
#[test]
fn the_app_sees_a_reset_when_the_client_is_cut_off() {
    type Cut = fn(&TcpStream);
    let cuts: [(&str, Cut); 2] = [
        ("FIN", |tcp| tcp.shutdown(Shutdown::Write).unwrap()),
        ("RST", |tcp| SockRef::from(tcp).set_linger(Some(Duration::ZERO)).unwrap()),
    ];
    let scene = Scene::new();
    for (name, cut) in cuts {
        let apps = scene.app.seen.ends.lock().unwrap().len();
        let mut client = client(&scene);
        client.send(HALF).unwrap();
        assert_eq!(client.receive(HALF.len()), HALF);
        let source = client.source();
        cut(&client.tcp);
        drop(client);
        let end = eventually("the app's end", || scene.app.seen.ends.lock().unwrap().get(apps).copied());
        assert_eq!(end, End::Reset, "{name}");
        assert_eq!(scene.proxy.record(source)["outcome"], "broken", "{name}");
        scene.nothing_is_left();
    }
}

#[test]
fn the_client_sees_no_orderly_end_when_the_app_is_cut_off() {
    let scene = Scene::new();
    scene.app.behave(|mut tcp: TcpStream, _: &Seen| {
        tcp.write_all(HALF).unwrap();
        // The other half never comes: not before the client has read this one.
        let _ = tcp.read(&mut [0]);
        SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let mut client = client(&scene);
    assert_eq!(client.receive(HALF.len()), HALF);
    client.send(b".").unwrap();
    let (_, end) = read_to_end(&mut client.stream());
    assert!(matches!(end, End::Reset | End::Eof), "{end:?}");
    assert_eq!(scene.proxy.record(client.source())["outcome"], "broken");
}

#[test]
fn the_app_sees_a_reset_when_the_upstream_is_cut_off() {
    let scene = Scene::new();
    let server = std::sync::Arc::new(server_config(&scene.mesh.honest()));
    scene.upstream.behave(move |mut tcp: TcpStream, _: &Seen| {
        let mut tls = ServerConnection::new(server.clone()).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        stream.write_all(HALF).unwrap();
        stream.flush().unwrap();
        let _ = stream.read(&mut [0]);
        // FIN, and no close_notify.
    });
    let mut app = tcp(scene.proxy.outbound);
    let mut half = [0; HALF.len()];
    app.read_exact(&mut half).unwrap();
    assert_eq!(half, HALF);
    app.write_all(b".").unwrap();
    assert_eq!(read_to_end(&mut app), (vec![], End::Reset));
    assert_eq!(scene.proxy.record(app.local_addr().unwrap())["outcome"], "broken");
    scene.outbound_works();
    scene.nothing_is_left();
}

#[test]
fn the_upstream_sees_no_orderly_end_when_the_app_is_cut_off() {
    let scene = Scene::new();
    let ends = scene.upstream.seen.ends.lock().unwrap().len();
    let mut app = tcp(scene.proxy.outbound);
    app.write_all(HALF).unwrap();
    let mut half = [0; HALF.len()];
    app.read_exact(&mut half).unwrap();
    SockRef::from(&app).set_linger(Some(Duration::ZERO)).unwrap();
    drop(app);
    let end =
        eventually("the upstream's end", || scene.upstream.seen.ends.lock().unwrap().get(ends).copied());
    assert!(matches!(end, End::Reset | End::Eof), "{end:?}");
    scene.nothing_is_left();
}
