//! SIGTERM: nothing new, time for what is open, then the end; a second one does not wait.

use std::io::ErrorKind;
use std::net::TcpStream;

use nix::sys::signal::Signal;

use crate::support::client::{Client, End, config, read_to_end, tcp};
use crate::support::eventually;
use crate::support::scene::Scene;

/// A client in the middle of a conversation.
fn talking(scene: &Scene) -> Client {
    let mut client = Client::connect(scene.proxy.inbound, config(Some(&scene.mesh.honest()))).unwrap();
    client.send(b"hello").unwrap();
    assert_eq!(client.receive(5), b"hello");
    client
}

/// Tells it to stop; returns once it takes no more peers. The app may still call out while it is answering.
fn stop(scene: &Scene) {
    scene.proxy.signal(Signal::SIGTERM);
    let refused = || TcpStream::connect(scene.proxy.inbound).err().map(|error| error.kind());
    assert_eq!(eventually("the listener's end", refused), ErrorKind::ConnectionRefused);
}

#[test]
fn an_open_connection_is_carried_to_its_end() {
    let mut scene = Scene::new();
    let mut client = talking(&scene);
    let source = client.source();
    stop(&scene);
    assert!(scene.proxy.readiness().contains("draining"));
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
fn nothing_open_is_an_end_at_once() {
    let mut scene = Scene::with(|options| options.yaml("drain: { timeout: 1h }"));
    scene.proxy.signal(Signal::SIGINT);
    assert_eq!(scene.proxy.wait().code(), Some(0));
}
