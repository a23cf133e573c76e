//! Answers from an app that breaks the rules of HTTP: they are 502 to the client, never read as two things, and never as
//! somebody else's.

use std::io::Write as _;
use std::net::TcpStream;

use crate::support::behind::{Behind, OK, head, target};
use crate::support::client::{End, read_to_end};
use crate::support::h2::*;
use crate::support::scene::MARK;
use crate::support::server::Seen;

/// What an app may add to the proxy's memory.
const BOUND: u64 = 48 << 20;

/// Answers each request of a connection by its target; none: the connection ends.
fn app(
    answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> impl Fn(TcpStream, &Seen) + Send + Sync + 'static {
    move |mut tcp, _| {
        while let Some(head) = head(&mut tcp) {
            let answered = match target(&head) {
                "/good" => Some(OK.to_vec()),
                target => answer(target),
            };
            if answered.is_none_or(|bytes| tcp.write_all(&bytes).is_err()) {
                return;
            }
        }
    }
}

fn scene(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Behind {
    let scene = Behind::new(&["protocol: http"], "", &[], app(answer));
    scene.works();
    scene
}

/// One request over HTTP/1.1.
fn get(scene: &Behind, method: &str, path: &str) -> (String, End) {
    scene.http1(format!("{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").as_bytes())
}

/// One request over HTTP/2; its frames.
fn get_h2(scene: &Behind, path: &str) -> Vec<Frame> {
    let mut h2 = scene.http2();
    let fields: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", path.as_bytes()), (b":authority", b"shop")];
    h2.send(&headers(1, END_STREAM | END_HEADERS, &block(&fields))).unwrap();
    h2.send(&goodbye()).unwrap();
    h2.rest().0
}

/// Answers whose end, or whose meaning, two readers could see differently; the app closes behind none of them.
fn ambiguous() -> Vec<(&'static str, String)> {
    let ok = |headers: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{headers}\r\n{body}{MARK}");
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    vec![
        ("both lengths", ok("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", chunked)),
        ("both lengths, turned round", ok("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", chunked)),
        ("another coding first", ok("Transfer-Encoding: gzip, chunked\r\n", chunked)),
        ("another coding alone", ok("Transfer-Encoding: gzip\r\n", "")),
        ("chunked twice", ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunked)),
        (
            "chunked of HTTP/1.0",
            format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}{MARK}"),
        ),
        ("two lengths", ok("Content-Length: 5\r\nContent-Length: 6\r\n", "hello")),
        ("the same length twice", ok("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")),
        ("a list of lengths", ok("Content-Length: 5, 6\r\n", "hello")),
        ("a length with a sign", ok("Content-Length: +5\r\n", "hello")),
        ("a negative length", ok("Content-Length: -5\r\n", "hello")),
        ("a length without end", ok("Content-Length: 18446744073709551617\r\n", "hello")),
        ("a length in words", ok("Content-Length: five\r\n", "hello")),
        ("a folded line", ok("X-A: b\r\n folded\r\nContent-Length: 5\r\n", "hello")),
        ("a space before the colon", ok("X-A : b\r\nContent-Length: 5\r\n", "hello")),
        ("NUL in a value", ok("X-A: \0\r\nContent-Length: 5\r\n", "hello")),
        ("a line without a colon", ok("X-A\r\nContent-Length: 5\r\n", "hello")),
        ("a name without a name", ok(": b\r\nContent-Length: 5\r\n", "hello")),
        ("no HTTP", format!("220 {MARK} ready\r\n\r\n")),
        ("HTTP/2", format!("HTTP/2 200 OK\r\nContent-Length: 5\r\n\r\n{MARK}")),
        ("no status", format!("HTTP/1.1 {MARK}\r\n\r\n")),
        ("a status beyond the last", format!("HTTP/1.1 1000 {MARK}\r\nContent-Length: 0\r\n\r\n")),
        ("TLS", "\x15\x03\x03\0\x02\x02\x28".to_owned()),
        (
            "a switch that nobody asked for",
            format!("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n{MARK}"),
        ),
        (
            "a switch to HTTP/2",
            format!("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n{MARK}"),
        ),
        ("101 header lines", ok(&"X-A: b\r\n".repeat(101), "")),
        ("a head of a megabyte", ok(&format!("X-A: {}\r\n", "b".repeat(1 << 20)), "")),
        ("a head of many lines", ok(&format!("X-A: {}\r\n", "b".repeat(1000)).repeat(1000), "")),
    ]
}

#[test]
fn an_answer_that_means_more_than_one_thing_is_a_bad_answer() {
    let cases = ambiguous();
    let bytes: Vec<Vec<u8>> = cases.iter().map(|(_, answer)| answer.clone().into_bytes()).collect();
    let scene = scene(move |target| bytes.get(target[1..].parse::<usize>().ok()?).cloned());
    let fault = "postern_request_faults_total{direction=\"inbound\",reason=\"bad_answer\"}";
    for (n, (name, _)) in cases.iter().enumerate() {
        let before = scene.proxy.metrics().of(fault);
        let (answer, end) = get(&scene, "GET", &format!("/{n}"));
        assert!(
            answer.starts_with("HTTP/1.1 502 ") && answer.ends_with("\r\n\r\nbad_answer\n"),
            "{name}: {answer:?}"
        );
        assert_eq!((answer.matches("HTTP/1.").count(), end), (1, End::Clean), "{name}: {answer:?}");
        let frames = get_h2(&scene, &format!("/{n}"));
        assert_eq!(status(&frames, 1), Some(502), "{name}: {frames:?}");
        assert!(scene.proxy.metrics().of(fault) >= before + 2, "{name} is counted");
        scene.works();
    }
    assert!(!scene.proxy.log().concat().contains(MARK), "the log repeats what the app sent");
}

/// A client that waits for an upgrade gets the protocol that it has offered, or none.
#[test]
fn an_app_that_switches_to_something_else_gets_no_tunnel() {
    let scene = scene(|target| {
        let to = target.strip_prefix("/to-").map(|to| format!("Upgrade: {to}\r\n")).unwrap_or_default();
        Some(format!("HTTP/1.1 101 Go\r\nConnection: upgrade\r\n{to}\r\n{MARK}").into_bytes())
    });
    for path in ["/to-h2c", "/to-HTTP/2.0", "/to-irc", "/to-", "/nowhere"] {
        let offer = format!(
            "GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"
        );
        let (answer, _) = scene.http1(offer.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 502 ") && !answer.contains(MARK), "{path}: {answer:?}");
        scene.works();
    }
    let mut client = scene.connect(&[b"http/1.1"]);
    client
        .send(
            b"GET /to-WebSocket HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(MARK.as_bytes()) {
        answer.extend(client.receive(1));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
}

/// What an app sends behind the end of its answer is nobody's.
#[test]
fn bytes_behind_an_answer_are_never_the_next_ones() {
    let poison = format!("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{MARK}");
    let behind = [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 47\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\ncontent-length: 47\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 47\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n"),
    ];
    let scene = scene({
        let poison = poison.clone();
        move |target| {
            Some([behind[target[1..].parse::<usize>().ok()?].1.as_bytes(), poison.as_bytes()].concat())
        }
    });
    for (n, (method, answer)) in behind.iter().enumerate() {
        // Both workers have connections to the app of their own.
        for _ in 0..4 {
            let pipelined = format!(
                "{method} /{n} HTTP/1.1\r\nHost: shop\r\n\r\nGET /good HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"
            );
            let (answers, _) = scene.http1(pipelined.as_bytes());
            assert!(!answers.contains(MARK), "{method}, {answer:?}: {answers:?}");
            assert!(
                answers.ends_with("\r\n\r\nok"),
                "{method}, {answer:?}: the second request's own: {answers:?}"
            );
            scene.works();
        }
    }
}

#[test]
fn an_answer_that_breaks_off_never_looks_complete() {
    let broken = [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloo\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello",
    ];
    let scene = Behind::new(&["protocol: http"], "", &[], move |mut tcp, _| {
        let Some(head) = head(&mut tcp) else { return };
        let answer = target(&head)[1..].parse::<usize>().map_or(OK, |n| broken[n].as_bytes());
        let _ = tcp.write_all(answer);
        // One answer a connection, and its end.
        let _ = tcp.shutdown(std::net::Shutdown::Write);
        read_to_end(&mut tcp);
    });
    for (n, answer) in broken.iter().enumerate() {
        for version in ["1.1", "1.0"] {
            let (answered, end) =
                scene.http1(format!("GET /{n} HTTP/{version}\r\nHost: shop\r\n\r\n").as_bytes());
            assert_ne!(end, End::Clean, "{answer:?}: {answered:?}");
            assert!(!answered.ends_with("0\r\n\r\n"), "{answer:?}: {answered:?}");
        }
        let frames = get_h2(&scene, &format!("/{n}"));
        assert!(frames.iter().any(|f| f.kind == RST_STREAM && f.stream == 1), "{answer:?}: {frames:?}");
        assert!(!frames.iter().any(|f| f.stream == 1 && f.flags & END_STREAM != 0), "{answer:?}: {frames:?}");
    }
    for nothing in ["", "HTTP/1.1 200 OK\r\ncontent-le"] {
        scene.app.behave(move |mut tcp, _| {
            let _ = head(&mut tcp);
            let _ = tcp.write_all(nothing.as_bytes());
        });
        let (answer, _) = get(&scene, "GET", "/");
        assert!(answer.starts_with("HTTP/1.1 502 "), "{nothing:?}: {answer:?}");
    }
}

/// A hundred thousand interim answers are read and dropped; so are those without an end, until the request's own.
#[test]
fn interim_answers_are_not_passed_on_and_cost_no_memory() {
    let interim =
        "HTTP/1.1 103 Early Hints\r\nlink: </EVILMARK>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n".repeat(500);
    let yaml = "http: { timeouts: { request: 2s } }";
    let scene = Behind::new(&["protocol: http"], yaml, &[], move |mut tcp, _| {
        while let Some(head) = head(&mut tcp) {
            let rounds = match target(&head) {
                "/many" => 100,
                "/endless" => usize::MAX,
                _ => 0,
            };
            if (0..rounds).any(|_| tcp.write_all(interim.as_bytes()).is_err()) || tcp.write_all(OK).is_err() {
                return;
            }
        }
    });
    scene.works();
    let before = scene.memory();
    let (answer, end) = get(&scene, "GET", "/many");
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains(MARK), "{answer:?}");
    assert_eq!((answer.matches("HTTP/1.1").count(), end), (1, End::Clean), "{answer:?}");
    let mut client = scene.connect(&[b"http/1.1"]);
    client.send(b"GET /endless HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").unwrap();
    // Meanwhile others are served.
    (0..5).for_each(|_| scene.works());
    let (answer, _) = read_to_end(&mut client.stream());
    assert!(answer.starts_with(b"HTTP/1.1 504 "), "{}", answer.escape_ascii());
    let grown = scene.memory().saturating_sub(before);
    assert!(grown < BOUND, "{grown} bytes more");
}

/// What ends at this hop ends in this direction too, trailers included; nothing is unpacked (hostile inputs, row 62).
#[test]
fn an_answer_is_cleaned_of_what_is_not_the_apps_to_say_and_otherwise_left_alone() {
    let packed = "\x1f\u{8b}not really packed";
    let scene = scene(move |_| {
        let body = format!("{:x}\r\n{packed}\r\n0\r\n", packed.len());
        Some(
            format!(
                "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Own\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\n\
                Content-Encoding: gzip\r\nX-Postern-Denial: 01ARZ3NDEKTSV4RRFFQ69G5FAV\r\nx-kept: 1\r\nTrailer: x-sum, x-postern-denial\r\n\
                Transfer-Encoding: chunked\r\n\r\n{body}x-sum: 1\r\nX-Postern-Denial: 01ARZ3NDEKTSV4RRFFQ69G5FAV\r\nset-cookie: a=b\r\n\r\n"
            )
            .into_bytes(),
        )
    });
    let (answer, end) =
        scene.http1(b"GET / HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\nConnection: te, close\r\nAccept-Encoding: identity\r\n\r\n");
    let lower = answer.to_ascii_lowercase();
    for gone in ["x-own", "keep-alive", "proxy-authenticate", "x-postern-denial:", "set-cookie"] {
        assert!(!lower.contains(gone), "{gone}: {answer}");
    }
    for kept in ["content-encoding: gzip", "x-kept: 1", packed] {
        assert!(lower.contains(kept), "{kept}: {answer}");
    }
    assert_eq!(end, End::Clean);
}
