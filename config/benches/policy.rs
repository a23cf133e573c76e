//! What a decision costs with one, a hundred and ten thousand rules: `cargo bench -p postern-config`.

#![expect(clippy::unwrap_used, reason = "what a benchmark prepares must succeed")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use postern_config::id::SpiffeId;
use postern_config::policy::{AuthorizationPolicy, Connection, Policy, Request};

/// How the rules of a set differ from each other.
#[derive(Clone, Copy)]
enum Shape {
    /// Each names a caller of its own.
    Callers,
    /// All name one caller, each a path of its own.
    Paths,
    /// A hundred callers, each with a hundredth of the paths.
    Grid,
    /// Each names an end of principals, a beginning of paths and a host of its own.
    Patterns,
}

fn policy(shape: Shape, count: usize) -> Policy {
    let rule = |i: usize| {
        let (source, path) = match shape {
            Shape::Callers => (format!("corp.example/ns/shop/sa/app-{i}"), "/charge".to_owned()),
            Shape::Paths => ("corp.example/ns/shop/sa/app-0".to_owned(), format!("/charge/{i}")),
            Shape::Grid => {
                (format!("corp.example/ns/shop/sa/app-{}", i / 100), format!("/charge/{}", i % 100))
            }
            Shape::Patterns => (format!("*/sa/app-{i}"), format!("/charge/{i}/*")),
        };
        serde_json::json!({
            "from": [{ "source": { "principals": [source] } }],
            "to": [{ "operation": { "methods": ["POST"], "paths": [path] } }],
        })
    };
    let document = serde_json::json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "shop" },
        "spec": { "action": "ALLOW", "rules": (0..count).map(rule).collect::<Vec<_>>() },
    });
    let policy = AuthorizationPolicy::from_json(&document.to_string()).unwrap();
    Policy::compile(&[policy], "corp.example".parse().unwrap())
}

fn decide(c: &mut Criterion) {
    let headers = HeaderMap::new();
    for (name, shape) in [
        ("callers", Shape::Callers),
        ("paths", Shape::Paths),
        ("grid", Shape::Grid),
        ("patterns", Shape::Patterns),
    ] {
        for count in [1, 100, 10_000] {
            let policy = policy(shape, count);
            let last = count - 1;
            let (app, path) = match shape {
                Shape::Callers => (last, "/charge".to_owned()),
                Shape::Paths => (0, format!("/charge/{last}")),
                Shape::Grid => (last / 100, format!("/charge/{}", last % 100)),
                Shape::Patterns => (last, format!("/charge/{last}/x")),
            };
            let peer: SpiffeId = format!("spiffe://corp.example/ns/shop/sa/app-{app}").parse().unwrap();
            let ip = [10, 0, 0, 1].into();
            let request = |method| Request {
                connection: Connection {
                    peer: Some(&peer),
                    admits_anonymous: false,
                    source_ip: ip,
                    remote_ip: ip,
                    destination_ip: ip,
                    destination_port: 8080,
                    sni: None,
                },
                method,
                host: "payments.shop",
                path: &path,
                headers: &headers,
                token: None,
            };
            assert!(policy.decide_request(&request("POST")).allow);
            c.bench_function(&format!("allow/{name}/{count}"), |b| {
                b.iter(|| policy.decide_request(black_box(&request("POST"))).allow);
            });
            c.bench_function(&format!("deny/{name}/{count}"), |b| {
                b.iter(|| policy.decide_request(black_box(&request("GET"))).allow);
            });
        }
    }
}

fn compile(c: &mut Criterion) {
    let mut group = c.benchmark_group("compile");
    group.sample_size(10);
    group.bench_function("grid/10000", |b| b.iter(|| policy(Shape::Grid, 10_000)));
}

criterion_group!(benches, decide, compile);
criterion_main!(benches);
