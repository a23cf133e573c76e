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
use crate::clock::now_ms;

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

/// Ready: it can sign, and the store answers.
async fn ready(State(plane): State<Arc<Plane>>) -> Response {
    let unavailable = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response();
    if plane.ca.issuing().not_after <= now_ms() / 1000 {
        return unavailable("the issuing CA has expired".to_owned());
    }
    if let Some(fault) = plane.ca.issuing().signer.key().fault() {
        return unavailable(fault.to_string());
    }
    match plane.store.counter("generation").await {
        Ok(_) => "ok\n".into_response(),
        Err(error) => unavailable(error.to_string()),
    }
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
