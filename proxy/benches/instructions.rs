//! What the hot path costs in instructions, counted by callgrind: two runs of one binary agree where wall time does not.
//!
//! `.ci/instructions` runs this and compares with `baseline.json`, which holds what one operation costs. A name that ends in
//! a number counts a whole program that does so many operations; its pair with another number gives the cost of one, so that
//! preparation and the threads' start drop out. A name without one counts the operation itself.
//!
//! Valgrind shows every program the same made-up processor (AVX2, without SHA and without AVX-512), whatever it runs on: the
//! cryptography takes the same way everywhere, although not the way that it takes outside. The handshake of rustls alone
//! stands beside ours to tell a change in the library from a change here.

#![expect(clippy::unwrap_used, reason = "a bench that cannot set itself up has nothing to measure")]
#![expect(missing_docs, unused_qualifications, reason = "what the macros of the bench write")]

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use gungraun::{
    Callgrind, EntryPoint, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use postern_config::file::proxy::{Limits, Protocol, RequestLog};
use postern_config::id::SpiffeId;
use postern_config::policy::{Connection, Document, MtlsMode, MtlsModes, Policy, Request, read_stream};
use postern_config::revocation::Revocations;
use postern_config::svid::{self, Algorithms, Role};
use postern_proxy::inbound::App;
use postern_proxy::listen::admission::Connections;
use postern_proxy::policy::CurrentPolicy;
use postern_proxy::relay::{Progress, relay};
use postern_proxy::telemetry::{self, Direction, Metrics};
use postern_proxy::tls::{Alpn, sha256};
use postern_proxy::worker::{self, Job, Route, Shared};
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

mod support;

use support::Chain;

type Configs = (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>);

/// Ours; the first handshake, which fills what is filled once, is done.
fn shipped(seen_before: bool) -> Configs {
    let (_, tls, connector) = support::tls(&support::chain(false));
    if seen_before {
        support::acquaint(&tls, &connector);
    }
    let configs = (Arc::clone(tls.server_config(Alpn::Tcp)), Arc::clone(connector.client_config(Alpn::Tcp)));
    warmed(configs)
}

/// The library with a certificate and a root, and nothing of ours.
fn library() -> Configs {
    warmed(support::library(&support::chain(false), &support::Shape::DEFAULTS))
}

fn warmed(configs: Configs) -> Configs {
    support::handshake(&configs.0, &configs.1, |_, step| step());
    configs
}

#[library_benchmark]
#[bench::never_seen(shipped(false))]
#[bench::seen_before(shipped(true))]
#[bench::library(library())]
fn handshake((server, client): Configs) -> Configs {
    black_box(support::handshake(&server, &client, |_, step| step()));
    (server, client)
}

#[library_benchmark]
#[bench::direct(support::chain(false))]
#[bench::intermediate(support::chain(true))]
fn verifier(chain: Chain) -> Chain {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let algorithms = Algorithms { signatures: provider.signature_verification_algorithms.all, sha256 };
    let revoked = Revocations::default();
    let found = svid::verify(
        black_box(&chain.presented),
        &chain.bundles,
        &revoked,
        Role::Client,
        UnixTime::now(),
        algorithms,
    );
    assert!(black_box(found).is_ok());
    chain
}

/// So many rules, each for another caller and path; the request matches the last.
fn rules(count: usize) -> (Policy, SpiffeId, http::HeaderMap, String) {
    let mut text = String::from(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec:\n  rules:\n",
    );
    for i in 0..count {
        text.push_str(&format!(
            "  - from: [{{source: {{principals: [\"bench.example/ns/a/sa/s{i}\"]}}}}]\n    to: [{{operation: {{methods: [GET], paths: [\"/p{i}\"]}}}}]\n"
        ));
    }
    let documents = read_stream(&text).unwrap();
    let policies: Vec<_> = documents
        .into_iter()
        .filter_map(|document| match document {
            Document::Policy(policy) => Some(policy),
            Document::Peer(_) => None,
        })
        .collect();
    let policy = Policy::compile(&policies, "bench.example".parse().unwrap());
    let last = count - 1;
    let peer = format!("spiffe://bench.example/ns/a/sa/s{last}").parse().unwrap();
    (policy, peer, http::HeaderMap::new(), format!("/p{last}"))
}

#[library_benchmark]
#[bench::one_rule(rules(1))]
#[bench::hundred_rules(rules(100))]
#[bench::ten_thousand_rules(rules(10_000))]
fn policy(
    (policy, peer, headers, path): (Policy, SpiffeId, http::HeaderMap, String),
) -> (Policy, SpiffeId, http::HeaderMap, String) {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let connection = Connection {
        peer: Some(&peer),
        admits_anonymous: false,
        source_ip: here,
        remote_ip: here,
        destination_ip: here,
        destination_port: 8080,
        sni: None,
    };
    let request = Request {
        connection,
        method: "GET",
        host: "app.example",
        path: &path,
        headers: &headers,
        token: None,
    };
    assert!(black_box(policy.decide_request(black_box(&request))).allow);
    (policy, peer, headers, path)
}

struct NoProgress;

impl Progress for NoProgress {
    fn moved(&self, up: usize, down: usize) {
        black_box((up, down));
    }
}

// Pieces of 16 KiB through the loop, each answered with one byte, over pipes in memory.
#[library_benchmark]
#[bench::messages_100(100)]
#[bench::messages_300(300)]
fn relay_16_kib(pieces: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut client, mut near) = tokio::io::duplex(64 * 1024);
        let (mut far, mut server) = tokio::io::duplex(64 * 1024);
        let piece = vec![7; 16 * 1024];
        let asking = async {
            let mut answer = [0];
            for _ in 0..pieces {
                client.write_all(&piece).await.unwrap();
                client.read_exact(&mut answer).await.unwrap();
            }
            client.shutdown().await.unwrap();
        };
        let answering = async {
            let mut got = vec![0; 16 * 1024];
            for _ in 0..pieces {
                server.read_exact(&mut got).await.unwrap();
                server.write_all(&[1]).await.unwrap();
            }
            server.shutdown().await.unwrap();
        };
        let (end, (), ()) = tokio::join!(relay(&mut near, &mut far, &NoProgress), asking, answering);
        end.unwrap();
    });
}

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\ncontent-type: text/plain\r\n\r\n0123456789abcdef";
const REQUEST: &[u8] =
    b"GET /catalog/items?page=2 HTTP/1.1\r\nhost: app.example\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";

/// One worker whose client speaks plain text, so that what is counted is HTTP: the way of a request from a listener to the
/// app and back. Client and app are on the other side of sockets and do as little as they can.
fn forward(exchange: impl FnOnce(&mut TcpStream)) {
    let (snapshots, tls, _) = support::tls(&support::chain(false));
    let metrics = Arc::new(Metrics::new(&snapshots, &Default::default()));
    let policy = Policy::compile(&[], "bench.example".parse().unwrap());
    let policy = CurrentPolicy::new(policy, MtlsModes::default(), &metrics);
    snapshots.policy.store(Some(Arc::new(policy)));
    let (telemetry, writer) = telemetry::start(metrics, None).unwrap();
    let shared = Shared {
        snapshots,
        tls,
        telemetry,
        limits: Arc::new(Limits::default()),
        http: Arc::default(),
        request_log: RequestLog::default(),
        started: Instant::now(),
        drain: CancellationToken::new(),
        drain_outbound: CancellationToken::new(),
    };
    let app = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = app.local_addr().unwrap().to_string();
    let app = std::thread::spawn(move || {
        let (mut stream, _) = app.accept().unwrap();
        let mut held = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            held.extend_from_slice(&buffer[..n]);
            if held.ends_with(b"\r\n\r\n") {
                held.clear();
                stream.write_all(ANSWER).unwrap();
            }
        }
    });
    let kill = CancellationToken::new();
    let (handle, seat) = worker::seat(0);
    let thread = seat.start(shared.clone(), kill.clone(), || std::future::ready(())).unwrap();
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(door.local_addr().unwrap()).unwrap();
    let (tcp, source) = door.accept().unwrap();
    tcp.set_nonblocking(true).unwrap();
    let route = Arc::new(Route::Inbound(App {
        mtls: MtlsMode::Disable,
        ..App::new(&address, Protocol::Http, &Default::default())
    }));
    let free = Connections::new(10);
    let connection = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(free.free(Direction::Inbound));
    handle.send(Job { tcp, source, route, accepted: Instant::now(), connection, handshake: None });
    exchange(&mut client);
    drop(client);
    drop(handle);
    kill.cancel();
    thread.join().unwrap();
    app.join().unwrap();
    drop(shared);
    writer.join();
}

#[library_benchmark(config = whole_program())]
#[bench::requests_50(50)]
#[bench::requests_250(250)]
fn http1(requests: usize) {
    forward(|client| {
        let mut buffer = [0; 4096];
        for _ in 0..requests {
            client.write_all(REQUEST).unwrap();
            let mut got = Vec::new();
            while !got.ends_with(b"0123456789abcdef") {
                let n = client.read(&mut buffer).unwrap();
                assert!(n > 0, "the proxy hung up");
                got.extend_from_slice(&buffer[..n]);
            }
            assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
        }
    });
}

/// RFC 9113 §4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[library_benchmark(config = whole_program())]
#[bench::requests_50(50)]
#[bench::requests_250(250)]
fn http2(requests: u32) {
    const END_STREAM: u8 = 1;
    forward(|client| {
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        client.write_all(&frame(4, 0, 0, &[])).unwrap();
        // GET, http and a path from the static table's names (RFC 7541 §6), without a dynamic table.
        let mut head = vec![0x82, 0x86, 0x04, 8];
        head.extend_from_slice(b"/catalog\x01\x0bapp.example");
        let mut header = [0; 9];
        for request in 0..requests {
            let stream = 2 * request + 1;
            client.write_all(&frame(1, END_STREAM | 4, stream, &head)).unwrap();
            loop {
                client.read_exact(&mut header).unwrap();
                let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
                let mut payload = vec![0; length as usize];
                client.read_exact(&mut payload).unwrap();
                let (kind, flags) = (header[3], header[4]);
                assert!(kind != 3 && kind != 7, "the proxy refused: {kind} {payload:?}");
                let ends = kind <= 1 && flags & END_STREAM != 0;
                if ends && u32::from_be_bytes([header[5], header[6], header[7], header[8]]) == stream {
                    break;
                }
            }
        }
    });
}

/// Counts every thread from the start of the program.
fn whole_program() -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::with_args(["--cache-sim=no"]).entry_point(EntryPoint::None));
    config
}

fn one_function() -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::with_args(["--cache-sim=no"]));
    config
}

library_benchmark_group!(name = single, benchmarks = [handshake, verifier, policy, relay_16_kib]);
library_benchmark_group!(name = forwarding, benchmarks = [http1, http2]);

main!(config = one_function(), library_benchmark_groups = [single, forwarding]);
