//! A request that fails at one endpoint is sent to another where that is safe, and limits end in an answer at once.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use postern_loadtest::app::App;
use postern_loadtest::http::{self, Answer};
use postern_loadtest::mesh::{Mesh, Sidecar};

use crate::support::{REQUEST, SOON};

/// An app that answers every request with `status`, and counts them.
fn app(status: &str) -> (App, Arc<AtomicU64>) {
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let serve = move |mut stream: TcpStream| {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while stream.read(&mut byte)? == 1 {
            head.push(byte[0]);
            if head.ends_with(b"\r\n\r\n") {
                counted.fetch_add(1, Ordering::SeqCst);
                stream.write_all(answer.as_bytes())?;
                head.clear();
            }
        }
        Ok(())
    };
    (App::start(serve).unwrap(), count)
}

fn ask(address: SocketAddr, method: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(REQUEST)).unwrap();
    let head = format!("{method} / HTTP/1.1\r\nhost: shop\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    http::parse(&bytes).unwrap()
}

/// Two sidecars of one service in front of these apps, and a client towards it.
fn two_endpoints(mesh: &Mesh, apps: [&App; 2]) -> (Vec<Sidecar>, Sidecar) {
    mesh.control.apply_service("shop", &mesh.id("shop"), &[]).unwrap();
    let servers = apps.map(|app| {
        let options = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).protocol("http");
        mesh.sidecar(options).unwrap()
    });
    let client = mesh.sidecar(mesh.options("web").unwrap().outbound("shop").protocol("http")).unwrap();
    let endpoints = || {
        let services = mesh.control.json(&["service", "list"]).unwrap();
        services.to_string().matches("127.0.0.1:").count()
    };
    postern_loadtest::mesh::until(SOON, || (endpoints() >= 2).then_some(()))
        .expect("both announce themselves");
    (servers.into(), client)
}

#[test]
fn a_failing_endpoint_costs_no_repeatable_request_and_is_left_alone() {
    let mesh = Mesh::start().unwrap();
    let ((good, served), (bad, failed)) = (app("200 OK"), app("503 Service Unavailable"));
    let (_servers, client) = two_endpoints(&mesh, [&good, &bad]);
    for _ in 0..60 {
        assert_eq!(ask(client.outbound(), "GET").status, 200);
    }
    assert_eq!(served.load(Ordering::SeqCst), 60);
    let met = failed.load(Ordering::SeqCst);
    assert!((1..=30).contains(&met), "met {met} times: it is tried, then left alone");
    let metrics = client.metrics().unwrap();
    assert_eq!(metrics.count("postern_retries_total", &[]), met);
    // What changes something is not repeated; its answer is the app's own.
    let (posts_before, mut refused) = (served.load(Ordering::SeqCst) + failed.load(Ordering::SeqCst), 0);
    for _ in 0..10 {
        refused += u64::from(ask(client.outbound(), "POST").status == 503);
    }
    let posts = served.load(Ordering::SeqCst) + failed.load(Ordering::SeqCst) - posts_before;
    assert_eq!(posts, 10, "each POST reached one app once; {refused} were refused there");
}

#[test]
fn an_endpoint_that_is_gone_costs_no_request_of_any_kind() {
    let mesh = Mesh::start().unwrap();
    let ((one, _), (two, _)) = (app("200 OK"), app("200 OK"));
    let (mut servers, client) = two_endpoints(&mesh, [&one, &two]);
    assert_eq!(ask(client.outbound(), "POST").status, 200);
    servers[0].kill9();
    for _ in 0..20 {
        let answer = ask(client.outbound(), "GET");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for _ in 0..20 {
        assert_eq!(ask(client.outbound(), "POST").status, 200);
    }
}

#[test]
fn a_rate_limit_answers_429_and_is_counted() {
    let mesh = Mesh::start().unwrap();
    let (app, served) = app("200 OK");
    let options = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).protocol("http");
    let server = mesh
        .server_with(options.config("http: { rate_limit: { requests_per_second: 1, burst: 3 } }\n"))
        .unwrap();
    let client = mesh.sidecar(mesh.options("web").unwrap().outbound("shop").protocol("http")).unwrap();
    let answers: Vec<u16> = (0..20).map(|_| ask(client.outbound(), "POST").status).collect();
    let limited = answers.iter().filter(|s| **s == 429).count() as u64;
    assert!(answers[..3] == [200; 3] && limited > 0, "{answers:?}");
    assert_eq!(served.load(Ordering::SeqCst) + limited, 20, "nothing that was limited reached the app");
    let labels = [("direction", "inbound"), ("reason", "rate_limited")];
    assert_eq!(server.metrics().unwrap().count("postern_request_faults_total", &labels), limited);
}

#[test]
fn an_app_that_never_answers_meets_the_timeout() {
    let mesh = Mesh::start().unwrap();
    let silent =
        App::start(|mut stream| stream.read(&mut [0; 1024]).and_then(|_| stream.read(&mut [0; 1])).map(drop));
    let silent = silent.unwrap();
    let options = mesh.options("shop").unwrap().inbound(silent.address(), Some("shop")).protocol("http");
    let server = mesh.server_with(options.config("http: { timeouts: { request: 300ms } }\n")).unwrap();
    let client = mesh.sidecar(mesh.options("web").unwrap().outbound("shop").protocol("http")).unwrap();
    assert_eq!(ask(client.outbound(), "POST").status, 504);
    let line = server.wait_for_log(SOON, |l| l["reason"] == "upstream_timeout").unwrap();
    assert_eq!((line["method"].as_str(), line["path"].as_str()), (Some("POST"), Some("/")));
}
