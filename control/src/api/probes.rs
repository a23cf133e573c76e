//! `/livez`, `/readyz` and `/metrics`, over plain HTTP on an address of their own.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Plane;

/// Serves probes until `shutdown`.
pub async fn serve(listener: TcpListener, plane: Arc<Plane>, shutdown: CancellationToken) {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(plane);
    let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the metrics listener ended");
    }
}

/// Ready: it can sign, the store answers, and what it does can be put on record. Otherwise one line for each reason.
async fn ready(State(plane): State<Arc<Plane>>) -> Response {
    let faults = plane.health.faults(&plane).await;
    if faults.is_empty() {
        return "ok\n".into_response();
    }
    let lines: String = faults.iter().map(|fault| format!("{}: {}\n", fault.what, fault.why)).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines).into_response()
}

async fn metrics(State(plane): State<Arc<Plane>>) -> Response {
    plane.metrics.issuing_ends.set(plane.ca.issuing().not_after);
    match plane.metrics.text() {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
                .into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
