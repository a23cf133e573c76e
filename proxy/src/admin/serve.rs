//! HTTP/1.1 at one door: bounded in connections, in time and in the size of what is asked.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::os::caller::Caller;

#[cfg(test)]
mod tests;

/// Callers of one door at once; one more ends the oldest. An honest one takes milliseconds, so whoever fills all places only
/// ends himself, and an orchestrator that asks whether this process lives gets its answer.
const CONNECTIONS: usize = 64;
/// For a request's head; a scraper that takes longer is broken.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may live: nobody holds a place for good.
const LIFETIME: Duration = Duration::from_secs(60);
/// For an answer that is being given when the door closes.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// After a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// Where callers come in.
pub(super) trait Door {
    /// A caller.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;

    /// The next caller; none where one was turned away.
    fn accept(&self) -> impl Future<Output = io::Result<Option<Self::Stream>>>;
}

impl Door for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<Option<TcpStream>> {
        Self::accept(self).await.map(|(tcp, _)| Some(tcp))
    }
}

/// The door that only this process's own user and root may pass.
pub(super) struct Operators(pub(super) UnixListener);

impl Door for Operators {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.0.accept().await?;
        match Caller::trusted(&stream) {
            Ok(_) => Ok(Some(stream)),
            Err(error) => {
                tracing::warn!(%error, "a stranger on the admin socket was turned away");
                Ok(None)
            }
        }
    }
}

/// Serves until `stop` is cancelled; an answer that is under way then is finished.
pub(super) async fn serve<D, A, F>(door: D, answer: A, stop: CancellationToken) -> io::Result<()>
where
    D: Door,
    A: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Response<Full<Bytes>>> + 'static,
{
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS);
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = door.accept() => accepted,
        };
        let stream = match accepted {
            Ok(Some(stream)) => stream,
            Ok(None) => continue,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if oldest_first.len() == CONNECTIONS {
            oldest_first.retain(|open| !open.is_finished());
        }
        if oldest_first.len() == CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        let serving = tasks.spawn_local(one(stream, answer.clone(), stop.clone()));
        oldest_first.push_back(serving.abort_handle());
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn one<S, A, F>(stream: S, answer: A, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| {
        let answering = answer(request);
        async { Ok::<_, Infallible>(answering.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // An error here is the caller's: it went away or spoke no HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(LIFETIME) => return,
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LAST_ANSWER, connection).await;
}

/// An answer of one media type.
pub(super) fn typed(
    status: StatusCode,
    media_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    response
}

/// An answer in plain text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}
