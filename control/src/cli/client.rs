//! The admin API's client: one request, one answer, over the Unix socket in the data directory or over mutual TLS.

use std::io;
use std::path::{Path, PathBuf};

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::CliError;
use super::remote::Remote;
use crate::ADMIN_SOCKET;
use crate::api::model::Refused;
use crate::api::socket::shortened;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Where the control plane is.
#[derive(Debug)]
pub(super) enum Client {
    /// The socket in this data directory.
    Local(PathBuf),
    /// The operators' port.
    Remote(Remote),
}

/// A connection, of either kind.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Client {
    /// The control plane of this data directory.
    pub(super) fn new(data: &Path) -> Self {
        Self::Local(data.to_owned())
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.call(Method::DELETE, path, Bytes::new()).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        let body = serde_json::to_vec(body).map_err(|e| CliError::Failed(e.to_string()))?;
        self.call(Method::POST, path, body.into()).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, CliError> {
        let stream = self.connect().await?;
        let broken = |e: &dyn std::fmt::Display| CliError::Failed(format!("the control plane hung up: {e}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "postern")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| CliError::Failed(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| broken(&e))?
            .to_bytes();
        connection.abort();
        if status == StatusCode::OK {
            return serde_json::from_slice(&answer).map_err(|e| {
                CliError::Failed(format!(
                    "the control plane's answer cannot be read ({e}); is it of the same version?"
                ))
            });
        }
        Err(match serde_json::from_slice::<Refused>(&answer) {
            Ok(Refused { error, kind }) => CliError::Refused { error, kind },
            Err(_) => CliError::Failed(format!("the control plane answered {status}")),
        })
    }

    async fn connect(&self) -> Result<Box<dyn Duplex>, CliError> {
        match self {
            Self::Local(data) => Ok(Box::new(local(data).await?)),
            Self::Remote(remote) => Ok(Box::new(remote.connect().await?)),
        }
    }
}

async fn local(data: &Path) -> Result<UnixStream, CliError> {
    let socket = data.join(ADMIN_SOCKET);
    let connected = async {
        let (_held, short) = shortened(&socket)?;
        UnixStream::connect(short).await
    };
    connected.await.map_err(|error| {
        let (socket, data) = (socket.display(), data.display());
        CliError::Failed(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!("nobody answers at {socket}: is `postern serve --data {data}` running?")
            }
            io::ErrorKind::PermissionDenied => {
                format!(
                    "{socket} belongs to somebody else: run this as the user of `postern serve`, or as root"
                )
            }
            _ => format!("{socket}: {error}"),
        })
    })
}
