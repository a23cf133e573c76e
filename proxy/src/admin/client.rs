//! The operators' client: one request, one answer, over a running proxy's Unix socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::os::caller::{Caller, CallerError};
use crate::os::private_socket::{self, Kind};

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// For the whole answer; a proxy whose workers hang answers within this time, too.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No proxy there.
    #[error("nobody answers at {0}: does a postern-proxy run with this admin.socket? --socket says which")]
    Nobody(String),
    /// Not ours to use.
    #[error("{0} belongs to somebody else: run this as the user of the proxy, or as root")]
    Forbidden(String),
    /// Somebody else listens there.
    #[error("{0}: {1}")]
    Caller(String, CallerError),
    /// The proxy refused.
    #[error("{0}")]
    Refused(String),
    /// It broke off.
    #[error("{0}: {1}")]
    Broken(String, String),
}

/// Asks the proxy whose admin socket is at `socket`; a body goes as JSON.
pub fn ask(socket: &Path, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
    let place = socket.display().to_string();
    let broken = |error: &dyn std::fmt::Display| ClientError::Broken(place.clone(), error.to_string());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| broken(&e))?;
    runtime.block_on(async {
        let asking = exchange(socket, method, path, body);
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|e| Err(broken(&e)))
    })
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, ClientError> {
    let place = socket.display().to_string();
    let broken = |error: &dyn std::fmt::Display| ClientError::Broken(place.clone(), error.to_string());
    let stream = private_socket::connect(socket, Kind::Stream).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Nobody(place.clone()),
        io::ErrorKind::PermissionDenied => ClientError::Forbidden(place.clone()),
        _ => broken(&error),
    })?;
    Caller::trusted(&stream).map_err(|e| ClientError::Caller(place.clone(), e))?;
    stream.set_nonblocking(true).map_err(|e| broken(&e))?;
    let stream = tokio::net::UnixStream::from_std(stream.into()).map_err(|e| broken(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "postern")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))
        .map_err(|e| broken(&e))?;
    let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
    let status = response.status();
    let answer =
        Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| broken(&e))?.to_bytes();
    connection.abort();
    let answer: Value = serde_json::from_slice(&answer).map_err(|e| broken(&e))?;
    match (status, answer["error"].as_str()) {
        (StatusCode::OK | StatusCode::ACCEPTED, _) => Ok(answer),
        (_, Some(why)) => Err(ClientError::Refused(why.to_owned())),
        (status, None) => Err(broken(&status)),
    }
}
