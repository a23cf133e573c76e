//! A server of bare hyper, with its defaults: the app behind a proxy, and what a proxy's HTTP/2 is held against.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Answers each request with `METHOD PATH LENGTH`, HTTP/2 in TLS or HTTP/1 in plain text, for as long as the test runs.
pub(crate) fn start(tls: Option<ServerConfig>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(accept(listener, tls.map(|c| TlsAcceptor::from(Arc::new(c)))))
    });
    address
}

async fn accept(listener: std::net::TcpListener, tls: Option<TlsAcceptor>) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let tls = tls.clone();
        tokio::spawn(async move {
            // How a connection ends is the peer's to see.
            match tls {
                None => {
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(echo)).await;
                }
                Some(tls) => {
                    let Ok(tls) = tls.accept(tcp).await else { return };
                    let builder = http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(tls), service_fn(echo)).await;
                }
            }
        });
    }
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        let mut refused = Response::default();
        *refused.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(refused);
    };
    let text = format!("{} {} {}\n", parts.method, parts.uri.path(), body.to_bytes().len());
    Ok(Response::new(Full::from(text)))
}
