//! Whatever a peer speaks, on whatever kind of listener, policy is asked before a byte of it reaches the app.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::behind::{Behind, OK, head, target};
use crate::support::client::{read_to_end, tcp};
use crate::support::eventually;
use crate::support::h2::*;
use crate::support::scene::MARK;
use crate::support::server::echo;

/// Every kind of listener that leads to an app, each with and without plain text.
const LISTENERS: [&str; 8] = [
    "protocol: http",
    "protocol: http, mtls: permissive",
    "protocol: grpc",
    "protocol: grpc, mtls: permissive",
    "protocol: auto",
    "protocol: auto, mtls: permissive",
    "protocol: tcp",
    "protocol: tcp, mtls: permissive",
];
/// What a peer may offer to speak inside TLS.
const OFFERS: [&[&[u8]]; 4] = [&[b"http/1.1"], &[b"h2"], &[b"postern-tcp/1"], &[]];

/// Ways in that a policy could be forgotten on, in HTTP/1.
fn http1() -> Vec<Vec<u8>> {
    let ways = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET /\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "get / http/1.1\r\nhost: a\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\nEVILMARK",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nEVILMARK",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 8\r\n\r\nEVILMARK",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x-a\r\n\r\n8\r\nEVILMARK\r\n0\r\nx-a: EVILMARK\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /pkg.Svc/Method HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n",
        "EVILMARK",
        "\x16\x03\x01\x02\0EVILMARK",
    ];
    ways.iter().map(|way| way.as_bytes().to_vec()).collect()
}

/// The same in HTTP/2.
fn http2() -> Vec<Vec<u8>> {
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let ask = |flags: u8, fields: &[(&[u8], &[u8])], more: Vec<u8>| {
        [&hello[..], &headers(1, flags | END_HEADERS, &block(fields)), &more, &goodbye()].concat()
    };
    let fields = |method: &'static str, path: &'static str| -> [(&[u8], &[u8]); 4] {
        [
            (b":method", method.as_bytes()),
            (b":scheme", b"https"),
            (b":path", path.as_bytes()),
            (b":authority", b"a"),
        ]
    };
    let with =
        |more: &[(&'static [u8], &'static [u8])], method, path| [&fields(method, path)[..], more].concat();
    let data = frame(DATA, END_STREAM, 1, MARK.as_bytes());
    vec![
        ask(END_STREAM, &fields("GET", "/"), vec![]),
        ask(END_STREAM, &fields("OPTIONS", "*"), vec![]),
        ask(0, &fields("POST", "/"), data.clone()),
        ask(0, &[(b":method", b"CONNECT"), (b":authority", b"a:80")], data.clone()),
        ask(0, &with(&[(b":protocol", b"websocket")], "CONNECT", "/"), data.clone()),
        ask(0, &with(&[(b"te", b"trailers")], "POST", "/"), {
            let trailers = headers(1, END_STREAM | END_HEADERS, &block(&[(b"x-a", MARK.as_bytes())]));
            [frame(DATA, 0, 1, MARK.as_bytes()), trailers].concat()
        }),
        ask(0, &with(&[(b"content-type", b"application/grpc")], "POST", "/pkg.Svc/Method"), data.clone()),
        ask(END_STREAM, &with(&[(b"host", b"b")], "GET", "/"), vec![]),
        // Two streams at once, the second before the first is answered.
        ask(END_STREAM, &fields("GET", "/"), headers(3, END_STREAM | END_HEADERS, &request(&[]))),
        // After a HEADERS frame that never ends.
        [&hello[..], &headers(1, 0, &request(&[])), &data].concat(),
    ]
}

/// Says all of it on a new connection, waits for an answer or the end, and ends. Not before: who goes away at once is not
/// served by anybody.
fn say(scene: &Behind, to: SocketAddr, offer: Option<&[&[u8]]>, bytes: &[u8]) {
    let mut some = [0; 4096];
    match offer {
        None => {
            let mut tcp = tcp(to);
            let _ = tcp.write_all(bytes);
            let _ = tcp.read(&mut some);
        }
        Some(offer) => {
            let Ok(mut client) = scene.connect_to(to, offer) else { return };
            let _ = client.send(bytes);
            let _ = client.stream().read(&mut some);
            // Of HTTP/2 that was the proxy's greeting; what it does about the rest comes before it answers this.
            let _ = client.send(&[frame(PING, 0, 0, &[1; 8]), goodbye()].concat());
            read_to_end(&mut client.stream());
        }
    }
}

/// Row 26 of the hostile inputs.
#[test]
fn under_a_policy_that_admits_nobody_no_byte_reaches_the_app() {
    let limits = "limits: { head_timeout: 1s, keep_alive: 1s, detect_timeout: 200ms }";
    let scene = Behind::new(&LISTENERS, limits, &["{}"], echo);
    let ways: Vec<Vec<u8>> = [http1(), http2()].concat();
    // Much of it is waiting for the end of what the proxy does not understand.
    std::thread::scope(|scope| {
        for (n, to) in scene.listeners.iter().enumerate() {
            let (scene, ways) = (&scene, &ways);
            scope.spawn(move || {
                let offers = || std::iter::once(None).chain(OFFERS.map(Some));
                ways.iter().for_each(|way| offers().for_each(|offer| say(scene, *to, offer, way)));
                changed(scene, *to, ways, n as u64);
            });
        }
    });
    assert_eq!((scene.app.seen.connections(), scene.app.seen.bytes()), (0, 0), "the app was reached");
    // It stands in no way of those who are let in: the same listeners under no policy.
    let open = Behind::new(&LISTENERS, "", &[], echo);
    for (to, kind) in open.listeners.iter().zip(LISTENERS) {
        let reached = open.app.seen.connections();
        let offer: &[&[u8]] = if kind.contains("tcp") { &[b"postern-tcp/1"] } else { &[b"http/1.1"] };
        let mut client = open.connect_to(*to, offer).unwrap();
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        eventually(kind, || (open.app.seen.connections() > reached).then_some(()));
    }
}

/// What lies between the ways, by a seed.
fn changed(scene: &Behind, to: SocketAddr, ways: &[Vec<u8>], seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    for _ in 0..40 {
        let mut way = ways[dice.random_range(0..ways.len())].clone();
        for _ in 0..dice.random_range(1..4) {
            if way.is_empty() {
                break;
            }
            let at = dice.random_range(0..way.len());
            match dice.random_range(0..4) {
                0 => way[at] = dice.random(),
                1 => drop(way.remove(at)),
                2 => way.insert(at, b"\r\n\0 :/"[dice.random_range(0..6)]),
                _ => way.extend_from_within(at..),
            }
        }
        let offer = std::iter::once(None).chain(OFFERS.map(Some)).nth(dice.random_range(0..5)).unwrap();
        say(scene, to, offer, &way);
    }
}

/// A path as a lenient app reads it: everything decoded, once; slashes merged; `.` and `..` followed.
fn leniently(target: &str) -> String {
    let path = target.split('?').next().unwrap().replace('\\', "/").into_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let escaped = path.get(at + 1..at + 3).and_then(|d| std::str::from_utf8(d).ok());
        match (path[at], escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    let decoded = String::from_utf8_lossy(&decoded).replace('\\', "/");
    let mut segments = Vec::new();
    for segment in decoded.split('\0').next().unwrap().split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment.to_owned()),
        }
    }
    // A folder is not the file of its name.
    let folder = if decoded.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{folder}", segments.join("/"))
}

/// Rows 1, 2, 4 and 41, and authorization.md §5, from the app's side: a denied path reaches it in no spelling.
#[test]
fn no_spelling_of_a_denied_path_reaches_the_app() {
    let deny = r#"{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/forbidden"]}}]}]}"#;
    let scene = Behind::new(&["protocol: http"], "", &[deny], |mut tcp, seen| {
        while let Some(head) = head(&mut tcp) {
            seen.raw.lock().unwrap().extend_from_slice(format!("{}\n", target(&head)).as_bytes());
            if tcp.write_all(OK).is_err() {
                return;
            }
        }
    });
    let pieces = [
        "/",
        "/",
        "//",
        "/./",
        "/../",
        "/a/../",
        "/%2e/",
        "/.%2E/",
        "/%2e%2e/",
        "%2f",
        "%5c",
        "\\",
        "/..;/",
        "/;/",
        "%00",
        "#",
        "?",
        "%",
        "%25",
        "%252f",
        "forbidden",
        "forbidden",
        "%66orbidden",
        "forbidde%6e",
        "forbidden;x",
        "a",
        "..",
        ".",
        "%09",
        "~",
        "\u{e4}",
    ];
    let mut dice = StdRng::seed_from_u64(41);
    let mut spelling = || {
        let count = dice.random_range(1..6);
        let text: String = (0..count).map(|_| pieces[dice.random_range(0..pieces.len())]).collect();
        if dice.random_bool(0.8) { format!("/{text}") } else { text }
    };
    for n in 0..400_u32 {
        let path = spelling();
        if n % 2 == 0 {
            let absolute = if n % 8 == 0 { "http://shop" } else { "" };
            let request = format!("GET {absolute}{path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
            scene.http1(request.as_bytes());
        } else {
            // Ten streams on one connection.
            let mut h2 = scene.http2();
            for stream in 0..10 {
                let path = spelling();
                let fields: [(&[u8], &[u8]); 4] = [
                    (b":method", b"GET"),
                    (b":scheme", b"https"),
                    (b":path", path.as_bytes()),
                    (b":authority", b"shop"),
                ];
                if h2.send(&headers(2 * stream + 1, END_STREAM | END_HEADERS, &block(&fields))).is_err() {
                    break;
                }
            }
            let _ = h2.send(&goodbye());
            h2.rest();
        }
    }
    let seen = String::from_utf8(scene.app.seen.raw.lock().unwrap().clone()).unwrap();
    assert!(seen.lines().count() > 300, "hardly anything reached the app, so nothing was tried");
    for target in seen.lines() {
        assert_ne!(leniently(target), "/forbidden", "{target:?} reached the app");
        assert!(target.bytes().all(|b| b.is_ascii_graphic()), "{target:?} has a byte that no URI has");
    }
}

/// A peer that the port asks for TLS cannot talk its way around by closing early, or by breaking its record in two.
#[test]
fn a_silent_or_broken_peer_of_a_permissive_port_opens_nothing() {
    let scene =
        Behind::new(&LISTENERS, "limits: { handshake_timeout: 1s, detect_timeout: 200ms }", &["{}"], echo);
    for to in &scene.listeners {
        for bytes in [&b""[..], b"\x16", b"\x16\x03\x01", b"P", b"GET", b"\x15\x03\x03\0\x02\x01\0"] {
            let mut tcp = tcp(*to);
            tcp.write_all(bytes).unwrap();
            drop(tcp);
            scene.plain(*to, bytes);
        }
    }
    assert_eq!(scene.app.seen.connections(), 0);
}
