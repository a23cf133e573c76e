//! SIGTERM: nothing new, time for what is open, then the end; a second one does not wait.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::Signal;

use crate::support::client::{Client, End, config, read_to_end, tcp};
use crate::support::eventually;
use crate::support::mesh::Mesh;
use crate::support::process::{Options, Proxy};
use crate::support::scene::Scene;
use crate::support::server::Server;

/// A client in the middle of a conversation.
fn talking(scene: &Scene) -> Client {
    let mut client = Client::connect(scene.proxy.inbound, config(Some(&scene.mesh.honest()))).unwrap();
    client.send(b"hello").unwrap();
    assert_eq!(client.receive(5), b"hello");
    client
}

/// Tells it to stop; returns once it takes no peers any more.
fn stop(scene: &Scene) {
    scene.proxy.signal(Signal::SIGTERM);
    wait_until_closed(scene.proxy.inbound);
}

fn wait_until_closed(listener: SocketAddr) {
    let refused = || TcpStream::connect(listener).err().map(|error| error.kind());
    assert_eq!(eventually("the listener's end", refused), ErrorKind::ConnectionRefused);
}

#[test]
fn an_open_connection_is_carried_to_its_end() {
    let mut scene = Scene::new();
    let mut client = talking(&scene);
    let source = client.source();
    stop(&scene);
    assert!(scene.proxy.readiness().contains("draining"));
    TcpStream::connect(scene.proxy.outbound).expect("an answer may need the app's own connections");
    let much = vec![7; 3 << 20];
    let (sent, mut got) = (much.len(), 0);
    for piece in much.chunks(64 * 1024) {
        client.send(piece).unwrap();
        got += client.receive(piece.len()).len();
    }
    assert_eq!(got, sent);
    assert!(scene.proxy.ended().is_none());
    assert_eq!(client.echo(b"bye"), (b"bye".to_vec(), End::Clean));
    assert_eq!(scene.proxy.wait().code(), Some(0));
    assert_eq!(scene.proxy.record(source)["outcome"], "completed", "the last line is written before the end");
}

/// It has no peers whose end could be waited for.
#[test]
fn a_proxy_that_takes_no_peers_ends_as_soon_as_the_app_is_done() {
    let mesh = Mesh::new();
    let honest = mesh.honest();
    let (app, upstream) = (Server::echo(), Server::presenting(&honest));
    for yaml in ["drain: { timeout: 300s }", "drain: { timeout: 300s, pre_drain: 1s }"] {
        let options =
            Options { takes_peers: false, ..Options::new(app.address, upstream.address).yaml(yaml) };
        let mut proxy = Proxy::start(&mesh, &options);
        proxy.signal(Signal::SIGTERM);
        assert_eq!(proxy.wait().code(), Some(0), "{yaml}");
    }
}

#[test]
fn what_stays_open_is_closed_when_the_time_is_up() {
    let mut scene = Scene::with(|options| options.yaml("drain: { timeout: 1s }"));
    let mut client = talking(&scene);
    let silent = tcp(scene.proxy.inbound);
    stop(&scene);
    assert_eq!(read_to_end(&mut client.stream()), (vec![], End::Reset));
    assert_eq!(scene.proxy.wait().code(), Some(0));
    assert_eq!(scene.proxy.record(client.source())["outcome"], "drained");
    drop(silent);
}

#[test]
fn a_second_signal_does_not_wait() {
    let mut scene = Scene::new();
    let client = talking(&scene);
    stop(&scene);
    assert!(scene.proxy.ended().is_none());
    scene.proxy.signal(Signal::SIGTERM);
    assert_eq!(scene.proxy.wait().code(), Some(1));
    drop(client);
}

#[test]
fn peers_are_still_taken_for_a_while_after_readiness_has_failed() {
    let mut scene = Scene::with(|options| options.yaml("drain: { pre_drain: 2s, timeout: 1h }"));
    scene.proxy.signal(Signal::SIGTERM);
    eventually("not ready", || scene.proxy.readiness().contains("draining").then_some(()));
    let client = talking(&scene);
    wait_until_closed(scene.proxy.inbound);
    assert!(scene.proxy.ended().is_none(), "what came late is carried to its end as well");
    drop(client);
    assert_eq!(scene.proxy.wait().code(), Some(0));
}

#[test]
fn the_apps_own_connections_go_on_until_the_inbound_side_has_ended() {
    let mut scene = Scene::with(|options| options.yaml("drain: { timeout: 1h }"));
    let client = talking(&scene);
    stop(&scene);
    // The app answers the last request, and needs to ask somebody else for that.
    drop(TcpStream::connect(scene.proxy.outbound).unwrap());
    drop(client);
    wait_until_closed(scene.proxy.outbound);
    assert_eq!(scene.proxy.wait().code(), Some(0));
}

#[test]
fn nothing_open_is_an_end_at_once() {
    let mut scene = Scene::with(|options| options.yaml("drain: { timeout: 1h }"));
    scene.proxy.signal(Signal::SIGINT);
    assert_eq!(scene.proxy.wait().code(), Some(0));
}
