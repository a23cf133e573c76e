//! What means more than one thing is answered with 400 and the end of the connection, whatever stands behind it.

use crate::support::client::End;
use crate::support::eventually;
use crate::support::http::{HttpScene, end_of};
use crate::support::scene::MARK;

/// A request with these further header lines, and what comes behind its head.
fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST /x HTTP/1.1\r\nHost: a\r\nX-Mark: {MARK}\r\n{headers}\r\n{body}").into_bytes()
}

/// Rows 33, 34, 35 and 38.
#[test]
fn a_length_that_two_could_read_differently_is_refused() {
    let scene = HttpScene::new("", &[]);
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    for (headers, body) in [
        // CL.TE and TE.CL.
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", chunked),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", chunked),
        ("Transfer-Encoding: chunked\r\ncontent-length: 0\r\n", chunked),
        // Transfer codings.
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunked),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", chunked),
        ("Transfer-Encoding: ,chunked\r\n", chunked),
        ("Transfer-Encoding: chunked, identity\r\n", chunked),
        ("Transfer-Encoding: identity, chunked\r\n", chunked),
        ("Transfer-Encoding: gzip, chunked\r\n", chunked),
        ("Transfer-Encoding: chunked;q=1\r\n", chunked),
        ("Transfer-Encoding: \"chunked\"\r\n", chunked),
        ("Transfer-Encoding: xchunked\r\n", chunked),
        ("Transfer-Encoding: \x0bchunked\r\n", chunked),
        ("Transfer-Encoding: identity\r\n", ""),
        ("Transfer-Encoding:\r\n", ""),
        ("Transfer-Encoding:\r\n chunked\r\n", chunked),
        ("Transfer-Encoding : chunked\r\n", chunked),
        ("Transfer-Encoding\t: chunked\r\n", chunked),
        // Lengths.
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"),
        ("Content-Length: 5, 5\r\n", "hello"),
        ("Content-Length: +1\r\n", "h"),
        ("Content-Length: -1\r\n", "h"),
        ("Content-Length: 0x1\r\n", "h"),
        ("Content-Length: 1 1\r\n", "h"),
        ("Content-Length: 1.0\r\n", "h"),
        ("Content-Length: 18446744073709551617\r\n", "h"),
        ("Content-Length: \x0b5\r\n", "hello"),
        ("Content-Length:\r\n", ""),
        ("Content-Length : 5\r\n", "hello"),
        // What makes either of them somebody else's business.
        ("Content-Length: 5\r\nConnection: content-length\r\n", "hello"),
        ("Transfer-Encoding: chunked\r\nConnection: close, transfer-encoding\r\n", chunked),
    ] {
        scene.refuses(400, &post(headers, body));
    }
    let old = "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    scene.refuses(400, old.as_bytes());
    scene.nothing_is_left();
}

/// Row 36.
#[test]
fn a_head_with_a_byte_out_of_place_is_refused() {
    let scene = HttpScene::new("", &[]);
    for headers in [
        "X-A: b\nX-C: d\r\n",
        "X-A: b\rX-C: d\r\n",
        "X-A: b\r\r\nX-C: d\r\n",
        "X-A: b\0\r\n",
        "X-A\0: b\r\n",
        "X-A: b\r\n folded\r\n",
        "X-A: b\r\n\tfolded\r\n",
        " X-A: b\r\n",
        "X-A : b\r\n",
        ": b\r\n",
        "X-A\r\n",
        "X A: b\r\n",
        "X-\u{e4}: b\r\n",
        "X-A: b\x7f\r\n",
    ] {
        scene.refuses(400, &post(headers, ""));
    }
    for line in [
        "GET / HTTP/1.1\nHost: a",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET /",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "get / HTTP/1.1",
        "G@T / HTTP/1.1",
        "GET / HTTP/1.1\0",
        "\r\n\r\nGET / HTTP/1.1",
    ] {
        scene.refuses(400, format!("{line}\r\nHost: a\r\n\r\n").as_bytes());
    }
    scene.nothing_is_left();
}

/// Row 36: with the body under way it is the client's fault still, and the app must not take what came for all of it.
#[test]
fn a_body_that_is_framed_wrongly_is_the_clients_fault_and_never_complete() {
    let scene = HttpScene::new("", &[]);
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloo\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;a\0\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\nxyz\r\n",
        "5\r\nhello\r\n0\r\nx-a : b\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-a: b\n\r\n",
        "5\r\nhello\r\n0\r\n folded\r\n\r\n",
        "5\r\nhello\r\n0\r\n: b\r\n\r\n",
        &format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(300)),
        &format!("5\r\nhello\r\n0\r\nx-a: {}\r\n\r\n", "a".repeat(9000)),
    ] {
        scene.refuses(400, &post("Transfer-Encoding: chunked\r\n", body));
    }
    scene.nothing_is_left();
}

#[test]
fn a_body_that_breaks_off_is_never_complete_at_the_app() {
    let scene = HttpScene::new("", &[]);
    for request in [
        post("Content-Length: 10\r\n", "hello"),
        post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
        post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n"),
        post("Transfer-Encoding: chunked\r\n", "5\r\nhel"),
    ] {
        let before = scene.heard().len();
        let mut client = scene.connect();
        client.send(&request).unwrap();
        client.finish();
        let answer = end_of(client);
        assert!(matches!(answer.status(), 0 | 400), "{answer:?}");
        let heard = eventually("the app to see the end", || scene.heard().get(before).cloned());
        assert!(!heard.complete, "{heard:?}");
        scene.works();
    }
    scene.nothing_is_left();
}

/// Rows 40 and 7 (hostile inputs).
#[test]
fn a_request_that_is_for_two_hosts_or_none_is_refused() {
    let scene = HttpScene::new("", &[]);
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a..b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: %61\r\n\r\n",
        "GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
    ] {
        scene.refuses(400, request.as_bytes());
    }
    scene.nothing_is_left();
}

/// Rows 42 and 44.
#[test]
fn what_is_too_long_or_not_carried_is_refused_by_its_name() {
    let scene = HttpScene::new("", &[]);
    scene.refuses(414, format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(16 * 1024)).as_bytes());
    scene.refuses(431, &post(&"X-A: b\r\n".repeat(100), ""));
    scene.refuses(431, &post(&format!("X-A: {}\r\n", "b".repeat(64 * 1024)), ""));
    scene.refuses(431, &post(&format!("X-A: {}\r\n", "b".repeat(1000)).repeat(64), ""));
    scene.refuses(405, b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n");
    scene.refuses(405, b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n");
    scene.refuses(
        405,
        b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    );
    scene.nothing_is_left();
    assert!(!scene.heard().iter().any(|h| h.lines.concat().contains(MARK)));
}

/// A policy's refusal is no flaw of the message: the connection goes on, and what is behind it is judged for itself.
#[test]
fn a_denial_ends_its_request_and_not_the_connection() {
    let scene = HttpScene::new(
        "",
        &[r#"{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/forbidden"]}}]}]}"#],
    );
    let answer = scene.exchange(
        b"GET /forbidden HTTP/1.1\r\nHost: a\r\n\r\nGET /free HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert_eq!((answer.status(), answer.count(), answer.end), (403, 2, End::Clean), "{answer:?}");
    assert_eq!(scene.heard().last().unwrap().target(), "/free");
}
