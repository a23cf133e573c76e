//! Row 43: a client that is slow on purpose is cut off, and one that is done does not stay for ever.

use std::time::{Duration, Instant};

use crate::support::client::{Client, End};
use crate::support::http::{HttpScene, end_of};
use crate::support::scene::MARK;

/// Longer than the window over which a pace is measured, several times.
const CUT: Duration = Duration::from_secs(90);
/// What the kernel's buffers of one connection cannot hold.
const LARGE: usize = 32 << 20;

/// Sends a byte now and then until the proxy has enough of it; the outcome of the connection.
#[track_caller]
fn drip(scene: &HttpScene, mut client: Client, every: Duration) -> String {
    let source = client.source();
    let deadline = Instant::now() + CUT;
    loop {
        if let Some(record) = scene.proxy.records(source).into_iter().find(|r| r["target"] == "connection") {
            return record["outcome"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "still open");
        let _ = client.send(b"a");
        std::thread::park_timeout(every);
    }
}

#[test]
fn a_head_that_comes_byte_by_byte_is_cut_off() {
    let scene = HttpScene::new("limits: { head_timeout: 1s }", &[]);
    for begun in
        [&b"G"[..], b"\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET /"]
    {
        let mut client = scene.connect();
        client.send(begun).unwrap();
        assert_eq!(drip(&scene, client, Duration::from_millis(50)), "too_slow", "{}", begun.escape_ascii());
        scene.works();
    }
    let mut client = scene.connect();
    client.send(format!("GET /{MARK} HTTP/1.1\r\nHost: a\r\n").as_bytes()).unwrap();
    let source = client.source();
    let answer = end_of(client);
    assert_eq!((answer.text.as_str(), answer.end), ("", End::Reset), "one that falls silent");
    assert_eq!(scene.proxy.record(source)["outcome"], "too_slow");
    assert!(!scene.proxy.log().concat().contains(MARK));
    scene.nothing_is_left();
}

#[test]
fn a_connection_without_requests_is_closed_in_order() {
    let scene = HttpScene::new("limits: { keep_alive: 1s }", &[]);
    let served = scene.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((served.status(), served.count(), served.end), (200, 1, End::Clean), "{served:?}");
    let silent = scene.exchange(b"");
    assert_eq!((silent.text.as_str(), silent.end), ("", End::Clean));
    scene.nothing_is_left();
}

#[test]
fn a_body_that_drips_is_cut_off_and_never_complete() {
    let scene = HttpScene::new("", &[]);
    for framing in ["Content-Length: 1000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n3e8\r\n"] {
        let mut client = scene.connect();
        client.send(format!("POST /slow HTTP/1.1\r\nHost: a\r\n{framing}").as_bytes()).unwrap();
        assert_eq!(drip(&scene, client, Duration::from_secs(1)), "too_slow", "{framing:?}");
    }
    scene.works();
    assert!(!scene.heard().iter().any(|h| h.target() == "/slow" && h.complete));
    scene.nothing_is_left();
}

#[test]
fn an_answer_that_nobody_takes_is_cut_off() {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
    let scene = HttpScene::answering("", &[], String::leak(head + &"x".repeat(LARGE)));
    let mut client = scene.connect();
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    // Nothing more is sent in this direction: a byte would be the next request's.
    let source = client.source();
    let deadline = Instant::now() + CUT;
    let record = loop {
        if let Some(record) = scene.proxy.records(source).into_iter().find(|r| r["target"] == "connection") {
            break record;
        }
        assert!(Instant::now() < deadline, "still open");
        std::thread::park_timeout(Duration::from_millis(50));
    };
    assert_eq!(record["outcome"], "too_slow", "{record}");
    drop(client);
    scene.nothing_is_left();
}
