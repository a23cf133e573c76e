//! HTTP/2 from a hostile peer: it is cut off, its streams reach no app, and nobody else notices.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::client::{Client, config};
use crate::support::eventually;
use crate::support::h2::*;
use crate::support::mesh::{Mesh, Presented};
use crate::support::process::{Options, Proxy};
use crate::support::server::Server;

/// What a flood may add to the proxy's memory.
const BOUND: u64 = 48 << 20;

/// A proxy that speaks HTTP to an app which counts what reaches it.
struct Scene {
    proxy: Proxy,
    app: Server,
    honest: Presented,
}

impl Scene {
    fn new(yaml: &str) -> Self {
        let mesh = Mesh::new();
        let honest = mesh.honest();
        let app = Server::start(|mut tcp, seen| {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while matches!(tcp.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
                if head.ends_with(b"\r\n\r\n") {
                    seen.raw.lock().unwrap().append(&mut head);
                    // More than a window of nothing lets out.
                    let body = "x".repeat(1000);
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{body}");
                    if tcp.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            }
        });
        let inbound =
            format!("inbound: [{{ listen: \"127.0.0.1:0\", app: \"{}\", protocol: http }}]", app.address);
        let options = Options::new(app.address, app.address).yaml(&inbound).yaml(yaml);
        Self { proxy: Proxy::start(&mesh, &options), app, honest }
    }

    fn connect(&self) -> H2 {
        let mut config = config(Some(&self.honest));
        config.alpn_protocols = vec![b"h2".to_vec()];
        H2 { client: Client::connect(self.proxy.inbound, config).unwrap() }
    }

    /// A client that has said hello.
    fn open(&self) -> H2 {
        let mut h2 = self.connect();
        h2.send(PREFACE).unwrap();
        h2.send(&frame(SETTINGS, 0, 0, &[])).unwrap();
        h2
    }

    /// An honest request is answered.
    #[track_caller]
    fn works(&self) {
        let mut h2 = self.open();
        h2.send(&headers(1, END_STREAM | END_HEADERS, &request(&[]))).unwrap();
        h2.send(&goodbye()).unwrap();
        let (frames, _) = h2.rest();
        assert!(frames.iter().any(|f| f.kind == HEADERS && f.stream == 1), "no answer: {frames:?}");
    }

    fn reached(&self) -> String {
        String::from_utf8(self.app.seen.raw.lock().unwrap().clone()).unwrap()
    }

    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.proxy.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

#[test]
fn a_stream_that_is_opened_and_reset_again_and_again_ends_the_connection() {
    let scene = Scene::new("");
    let mut h2 = scene.open();
    let sent = h2.flood(20_000, |n| {
        let stream = 2 * n as u32 + 1;
        [
            headers(stream, END_STREAM | END_HEADERS, &request(&[])),
            frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        ]
        .concat()
    });
    let (frames, _) = h2.rest();
    assert!(sent < 20_000 || goaways(&frames).contains(&ENHANCE_YOUR_CALM), "{sent} were taken");
    scene.works();
}

#[test]
fn frames_that_carry_nothing_are_cut_off_and_cost_no_memory() {
    let scene = Scene::new("");
    scene.works();
    let setting = [0, 3, 0, 0, 0, 100];
    let floods: [(&str, Vec<u8>); 5] = [
        ("SETTINGS", frame(SETTINGS, 0, 0, &setting)),
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("unknown", frame(0xfa, 0, 0, &[])),
    ];
    for (name, frame) in floods {
        let before = scene.memory();
        let mut h2 = scene.open();
        let batch = frame.repeat(100);
        h2.flood(2_000, |_| batch.clone());
        let grown = scene.memory().saturating_sub(before);
        assert!(grown < BOUND, "{name}: {grown} bytes more");
        let record = scene.proxy.record(h2.client.source());
        assert_eq!(record["outcome"], "bad_request", "{name}: {record}");
        let taken = record["bytes_up"].as_u64().unwrap() as usize;
        assert!(taken < 20_000 * frame.len(), "{name}: {taken} bytes of it were taken");
        scene.works();
    }
}

#[test]
fn headers_without_an_end_and_data_without_content_end_the_connection() {
    let scene = Scene::new("");
    let before = scene.memory();
    let mut h2 = scene.open();
    h2.send(&headers(1, 0, &request(&[]))).unwrap();
    let field = block(&[(b"x-filler", &[b'a'; 120])]).repeat(120);
    h2.flood(2_000, |_| frame(CONTINUATION, 0, 1, &field));
    let taken = |h2: &H2| scene.proxy.record(h2.client.source())["bytes_up"].as_u64().unwrap();
    assert!(taken(&h2) < 1 << 20, "{} bytes of headers were taken", taken(&h2));
    assert!(scene.memory().saturating_sub(before) < BOUND);

    let mut h2 = scene.open();
    let post: [(&[u8], &[u8]); 4] =
        [(b":method", b"POST"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"shop")];
    h2.send(&headers(1, END_HEADERS, &block(&post))).unwrap();
    h2.flood(2_000, |_| frame(DATA, 0, 1, &[]).repeat(100));
    assert!(taken(&h2) < 1 << 19, "{} bytes of empty DATA were taken", taken(&h2));
    scene.works();
}

#[test]
fn flow_control_that_breaks_its_rules_ends_the_connection() {
    let scene = Scene::new("");
    let most = 0x7fff_ffff_u32.to_be_bytes();
    for (name, bytes, code) in [
        ("overflow", frame(WINDOW_UPDATE, 0, 0, &most).repeat(2), FLOW_CONTROL_ERROR),
        ("zero increment", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        ("DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
    ] {
        let mut h2 = scene.open();
        h2.send(&bytes).unwrap();
        let (frames, _) = h2.rest();
        assert_eq!(goaways(&frames), [code], "{name}: {frames:?}");
    }
    scene.works();
}

#[test]
fn a_small_block_that_unpacks_to_much_is_refused() {
    let scene = Scene::new("");
    let before = scene.memory();
    let mut h2 = scene.open();
    // One field of 3,900 bytes enters the table; each further byte repeats it.
    let mut bomb = request(&[]);
    bomb.extend([0x40, 1, b'x', 0x7f]);
    // 3900 - 127 = 3773 = 0b11101_0111101
    bomb.extend([0xbd, 0x1d]);
    bomb.extend([b'a'; 3900]);
    bomb.extend([0xbe; 8000]);
    h2.send(&headers(1, END_STREAM | END_HEADERS, &bomb)).unwrap();
    h2.send(&goodbye()).unwrap();
    let (frames, _) = h2.rest();
    let refused =
        frames.iter().any(|f| matches!(f.kind, RST_STREAM | GOAWAY) || (f.kind == HEADERS && f.stream == 1));
    assert!(refused, "{frames:?}");
    assert!(!scene.reached().contains("aaaa"), "31 MB of headers went on");
    assert!(scene.memory().saturating_sub(before) < BOUND);
    scene.works();
}

#[test]
fn what_no_request_may_hold_reaches_no_app() {
    let scene = Scene::new("");
    scene.works();
    let reached = scene.reached();
    let malformed: [(&str, &[u8], &[u8]); 9] = [
        ("capital letters", b"X-Evil", b"1"),
        ("a line feed", b"x-evil", b"a\nb"),
        ("a carriage return", b"x-evil", b"a\rb"),
        ("NUL", b"x-evil", b"a\0b"),
        ("NUL in a name", b"x\0evil", b"1"),
        ("connection", b"connection", b"close"),
        ("transfer-encoding", b"transfer-encoding", b"chunked"),
        ("te", b"te", b"gzip"),
        ("a pseudo-header that is none", b":evil", b"1"),
    ];
    for (what, name, value) in malformed {
        let mut h2 = scene.open();
        h2.send(&headers(1, END_STREAM | END_HEADERS, &request(&[(name, value)]))).unwrap();
        h2.send(&goodbye()).unwrap();
        let (frames, _) = h2.rest();
        let reset =
            frames.iter().any(|f| matches!(f.kind, RST_STREAM | GOAWAY) && f.code() == PROTOCOL_ERROR);
        assert!(reset, "{what}: {frames:?}");
    }
    let pseudo = |scheme: &'static [u8], authority: &'static [u8], host: &'static [u8]| {
        let mut fields: Vec<(&[u8], &[u8])> =
            vec![(b":method", b"GET"), (b":scheme", scheme), (b":path", b"/")];
        if !authority.is_empty() {
            fields.push((b":authority", authority));
        }
        if !host.is_empty() {
            fields.push((b"host", host));
        }
        block(&fields)
    };
    for (what, block) in [
        ("host is not :authority", pseudo(b"https", b"shop", b"other")),
        ("user information", pseudo(b"https", b"me@shop", b"")),
        ("no authority", pseudo(b"https", b"", b"")),
        ("another scheme", pseudo(b"javascript", b"shop", b"")),
    ] {
        let mut h2 = scene.open();
        h2.send(&headers(1, END_STREAM | END_HEADERS, &block)).unwrap();
        h2.send(&goodbye()).unwrap();
        let (frames, _) = h2.rest();
        // `:status: 400` is entry 12 of the static table; a reset by the library is as good.
        let refused = frames.iter().any(|f| f.kind == HEADERS && f.payload.contains(&0x8c))
            || frames.iter().any(|f| matches!(f.kind, RST_STREAM | GOAWAY) && f.code() == PROTOCOL_ERROR);
        assert!(refused, "{what}: {frames:?}");
    }
    assert_eq!(scene.reached(), reached, "something of it reached the app");
    scene.works();
}

#[test]
fn a_body_that_is_not_as_long_as_it_says_never_looks_complete() {
    let scene = Scene::new("");
    for (length, data) in [(&b"10"[..], &b"12345"[..]), (b"3", b"12345")] {
        let mut h2 = scene.open();
        let fields: [(&[u8], &[u8]); 5] = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", b"/short"),
            (b":authority", b"shop"),
            (b"content-length", length),
        ];
        h2.send(&headers(1, END_HEADERS, &block(&fields))).unwrap();
        h2.send(&frame(DATA, END_STREAM, 1, data)).unwrap();
        h2.send(&goodbye()).unwrap();
        let (frames, _) = h2.rest();
        assert!(frames.iter().any(|f| matches!(f.kind, RST_STREAM | GOAWAY)), "{frames:?}");
    }
    scene.works();
}

#[test]
fn streams_whose_answers_nobody_takes_are_reset_and_no_other() {
    let scene = Scene::new("limits: { stream_idle_timeout: 1s }");
    let mut h2 = scene.connect();
    h2.send(PREFACE).unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE = 0
    h2.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
    for n in 0..200_u32 {
        h2.send(&headers(2 * n + 1, END_STREAM | END_HEADERS, &request(&[]))).unwrap();
    }
    scene.works();
    let mut reset = 0;
    let mut bytes = Vec::new();
    let mut some = [0; 4096];
    eventually("every stream's reset", || {
        let got = h2.client.stream().read(&mut some).unwrap();
        bytes.extend_from_slice(&some[..got]);
        reset = frames(&bytes).iter().filter(|f| f.kind == RST_STREAM).count();
        (reset == 200).then_some(())
    });
    // The connection itself goes on.
    h2.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])).unwrap();
    h2.send(&headers(401, END_STREAM | END_HEADERS, &request(&[]))).unwrap();
    h2.send(&goodbye()).unwrap();
    let (frames, _) = h2.rest();
    assert!(frames.iter().any(|f| f.kind == DATA && f.stream == 401), "{frames:?}");
}

#[test]
fn who_says_nothing_or_half_of_something_is_let_go() {
    let scene = Scene::new("limits: { keep_alive: 1s, head_timeout: 1s }");
    for said in [&b""[..], b"P", &PREFACE[..12], PREFACE] {
        let mut h2 = scene.connect();
        h2.send(said).unwrap();
        let (_, _) = h2.rest();
    }
    scene.works();
    // The same on TCP, before any TLS: the handshake's deadline is in `limits.rs`.
    drop(TcpStream::connect(scene.proxy.inbound).unwrap());
}
