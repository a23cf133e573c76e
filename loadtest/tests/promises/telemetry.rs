//! What operators get to see: OTLP to a collector, no harm from a dead one, labels that nobody can multiply.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::{REQUEST, SOON, let_pass, steady};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::mesh::Mesh;
use tonic::{Request, Response, Status};

/// A collector that passes on what it is sent.
struct Collector<T>(mpsc::Sender<T>);

#[tonic::async_trait]
impl TraceService for Collector<ExportTraceServiceRequest> {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector<ExportMetricsServiceRequest> {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// Serves both on a free port until the test's process ends.
fn collector()
-> (SocketAddr, mpsc::Receiver<ExportTraceServiceRequest>, mpsc::Receiver<ExportMetricsServiceRequest>) {
    let (traces, got_traces) = mpsc::channel();
    let (metrics, got_metrics) = mpsc::channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let incoming = tokio::net::TcpListener::from_std(listener).unwrap();
            tonic::transport::Server::builder()
                .add_service(TraceServiceServer::new(Collector(traces)))
                .add_service(MetricsServiceServer::new(Collector(metrics)))
                .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(incoming))
                .await
                .unwrap();
        });
    });
    (address, got_traces, got_metrics)
}

#[test]
fn connections_become_spans_and_counters_at_the_collector() {
    let (address, traces, metrics) = collector();
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let endpoint = format!("http://{address}");
    let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop"));
    let shop = shop.env("POSTERN_OTLP_ENDPOINT", &endpoint).env("OTEL_METRIC_EXPORT_INTERVAL", "500");
    let mut shop = mesh.server_with(shop).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    assert_eq!(http::get(web.outbound(), "/", REQUEST).unwrap().status, 200);
    let request = traces.recv_timeout(Duration::from_secs(20)).unwrap();
    let span = &request.resource_spans[0].scope_spans[0].spans[0];
    assert_eq!(span.name, "connection");
    let of = |key: &str| format!("{:?}", span.attributes.iter().find(|a| a.key == key).unwrap().value);
    assert!(of("peer").contains(&mesh.id("web")), "{}", of("peer"));
    assert!(of("outcome").contains("completed"));
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    let names: std::collections::BTreeSet<String> =
        std::iter::from_fn(|| metrics.recv_timeout(Duration::from_secs(2)).ok())
            .take(3)
            .flat_map(|r| r.resource_metrics)
            .flat_map(|r| r.scope_metrics)
            .flat_map(|s| s.metrics)
            .map(|m| m.name)
            .collect();
    for name in ["postern.handshakes", "postern.bytes", "postern.renewals", "postern.handshake.duration"] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    shop.stop().unwrap();
}

#[test]
fn a_dead_collector_slows_nothing() {
    // It accepts, and never answers.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", deaf.local_addr().unwrap());
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop"));
    let mut shop = mesh.server_with(shop.env("POSTERN_OTLP_ENDPOINT", &endpoint)).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let traffic = steady(web.outbound(), 50);
    let_pass(Duration::from_secs(8));
    let tally = traffic.finish();
    assert_eq!(tally.errors, Vec::<String>::new());
    // Log lines go on too: the export has a queue of its own.
    let logged = || shop.logs().iter().filter(|l| l["outcome"] == "completed").count() as u64;
    assert!(
        postern_loadtest::mesh::until(SOON, || (logged() >= tally.requests).then_some(())).is_some(),
        "{}",
        logged()
    );
    shop.sigterm();
    assert_eq!(shop.process().wait(Duration::from_secs(30)).unwrap().code(), Some(0));
}

#[test]
fn one_connection_is_one_log_event_and_no_new_series() {
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let shop = mesh.server("shop", app.address()).unwrap();
    let clients: Vec<_> = ["a", "b", "c"].iter().map(|name| mesh.client(name, "shop").unwrap()).collect();
    http::get(clients[0].outbound(), "/", REQUEST).unwrap();
    let before = shop.metrics().unwrap().len();
    for client in &clients {
        for _ in 0..10 {
            http::get(client.outbound(), "/", REQUEST).unwrap();
        }
    }
    shop.wait_for_metric(SOON, |m| m.count("postern_connections_total", &[("outcome", "completed")]) == 31)
        .unwrap();
    assert_eq!(shop.metrics().unwrap().len(), before, "peers multiply series");
    let events = || shop.logs().iter().filter(|l| l["direction"] == "inbound").count();
    assert!(
        postern_loadtest::mesh::until(SOON, || (events() == 31).then_some(())).is_some(),
        "{} events",
        events()
    );
    let line = shop.wait_for_log(SOON, |l| l["direction"] == "inbound").unwrap();
    for field in [
        "outcome",
        "source",
        "target_address",
        "peer",
        "handshake_us",
        "duration_ms",
        "bytes_up",
        "bytes_down",
    ] {
        assert!(!line[field].is_null(), "{field} is missing in {line}");
    }
}
