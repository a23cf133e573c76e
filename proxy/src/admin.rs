//! `/livez`, `/readyz` and `/metrics`, on a thread and runtime of their own, so that a flood of probes costs no traffic.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::readiness::Readiness;
use crate::telemetry::Metrics;

#[cfg(test)]
mod tests;

/// Probes and scrapers; one more ends the oldest. An honest one takes milliseconds, so whoever fills all places only ends
/// himself, and an orchestrator that asks whether this process lives gets its answer.
const CONNECTIONS: usize = 64;
/// For a request's head; a scraper that takes longer is broken.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may live: nobody holds a place for good.
const LIFETIME: Duration = Duration::from_secs(60);
/// After a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// The OpenMetrics media type, as Prometheus asks for it.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the endpoints show.
#[derive(Clone)]
pub struct Admin {
    /// For `/readyz`.
    pub readiness: Arc<Readiness>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
}

/// Serves until `stop` is cancelled.
pub async fn run(
    listener: std::net::TcpListener,
    admin: Admin,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS);
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let admin = admin.clone();
        let stop = stop.clone();
        if oldest_first.len() == CONNECTIONS {
            oldest_first.retain(|open| !open.is_finished());
        }
        if oldest_first.len() == CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        let serving = tasks.spawn(async move {
            let service =
                service_fn(move |request| std::future::ready(Ok::<_, Infallible>(admin.answer(&request))));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(tcp), service);
            // An error here is the prober's: it went away or spoke no HTTP.
            tokio::select! {
                _ = connection => {}
                () = stop.cancelled() => {}
                () = tokio::time::sleep(LIFETIME) => {}
            }
        });
        oldest_first.push_back(serving.abort_handle());
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

impl Admin {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n".to_owned());
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" if self.readiness.is_ready() => text(StatusCode::OK, "ready\n".to_owned()),
            "/readyz" => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", self.readiness.reasons()))
            }
            "/metrics" => match self.metrics.encode() {
                Ok(body) => typed(StatusCode::OK, OPENMETRICS, body),
                Err(_) => {
                    text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded\n".to_owned())
                }
            },
            _ => text(StatusCode::NOT_FOUND, "try /livez, /readyz or /metrics\n".to_owned()),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, media_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    response
}
