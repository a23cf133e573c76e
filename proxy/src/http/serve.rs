//! The requests of one connection, one handler for each; ends when either side is done, asked to, or told to.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::cork::{Cork, Corked, cork};
use super::guard::{Guard, Said, h1};
use super::{Answered, Body, Handler, Version};
use crate::finish::Socketed;
use crate::prefixed::Prefixed;
use crate::telemetry::Outcome;
use crate::worker::Worker;
use crate::worker::open::{Half, Open, Pulse};

/// Header lines of one request.
const MAX_HEADERS: usize = 100;
/// Decoded size of an HTTP/2 request's head, cookies included.
const HEAD_LIST_LIMIT: u32 = 64 * 1024;
/// What one HTTP/2 stream may keep here of an answer that its peer does not take.
const SEND_BUFFER: usize = 64 * 1024;
/// For telling the peer of an orderly end; one that does not listen is not waited for.
const GOODBYE: Duration = Duration::from_secs(1);

tokio::task_local! {
    /// The register's entry of the HTTP/2 stream that this task serves.
    static STREAM: Pulse;
}

/// How a connection ended.
pub struct Ended<S> {
    /// In a word.
    pub outcome: Outcome,
    /// What was wrong with it, where something was.
    pub detail: Option<String>,
    /// The stream itself, where its last request made it a tunnel.
    pub tunnel: Option<Prefixed<S>>,
}

impl<S> Ended<S> {
    fn by(outcome: Outcome) -> Self {
        Self { outcome, detail: None, tunnel: None }
    }
}

/// Serves `stream` to its end.
pub async fn serve<S, H>(
    worker: &Rc<Worker>,
    open: &Open,
    stream: S,
    version: Version,
    handler: &Rc<H>,
) -> Ended<S>
where
    S: Socketed + 'static,
    H: Handler,
{
    let said = Rc::new(Said::default());
    let pulse = open.pulse();
    open.settle();
    let keep_alive = worker.shared.limits.keep_alive.as_duration();
    pulse.rests_for(Some(keep_alive), version == Version::Http2);
    let head_timeout = worker.shared.limits.head_timeout.as_duration();
    let mut ended = match version {
        Version::Http1 => {
            let guard = Guard::new(stream, version, open.pulse(), Rc::clone(&said), head_timeout);
            http1(open, guard, &said, handler).await
        }
        Version::Http2 => {
            let (corked, cork) = cork(stream);
            let guard = Guard::new(corked, version, open.pulse(), Rc::clone(&said), head_timeout);
            // Boxed: HTTP/1, which is small, needs no room for it.
            Box::pin(http2(worker, open, guard, cork, handler)).await
        }
    };
    pulse.rests_for(None, false);
    if let Some(flaw) = said.flaw() {
        (ended.outcome, ended.detail) = (Outcome::BadRequest, Some(flaw.to_string()));
    } else if said.flooded() {
        let why = "more HTTP/2 frames without data than any client needs";
        (ended.outcome, ended.detail) = (Outcome::BadRequest, Some(why.to_owned()));
    }
    ended
}

async fn http1<S, H>(open: &Open, guard: Guard<S>, said: &Rc<Said>, handler: &Rc<H>) -> Ended<S>
where
    S: Socketed + 'static,
    H: Handler,
{
    let service = service_fn(|request: ::http::Request<Incoming>| {
        let (handler, said, progress) =
            (Rc::clone(handler), Rc::clone(said), InProgress::begin(open.pulse()));
        let request = Box::new(request.map(Body::streaming));
        let answering = async move {
            let mut response = handler.handle(request).await;
            said.answered(response.status() == ::http::StatusCode::SWITCHING_PROTOCOLS);
            response.body_mut().at_end(move |_| drop(progress));
            Answered::Ok(response)
        };
        Box::pin(answering) as Pin<Box<dyn Future<Output = Answered>>>
    });
    let mut connection = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(h1::HEAD_LIMIT)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(guard), service);
    let mut draining = false;
    let end = loop {
        tokio::select! {
            biased;
            cause = open.closed() => {
                connection.into_parts().io.into_inner().into_parts().0.reset();
                return Ended::by(cause.into());
            }
            () = open.draining(), if !draining => {
                draining = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            end = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break end,
        }
    };
    let parts = connection.into_parts();
    let (mut stream, held) = parts.io.into_inner().into_parts();
    match end {
        Ok(()) if handler.became_tunnel() => {
            let early = [&parts.read_buf[..], &held[..]].concat();
            let tunnel = Some(Prefixed::new(Bytes::from(early), stream));
            Ended { outcome: Outcome::Completed, detail: None, tunnel }
        }
        Ok(()) => {
            goodbye(&mut stream).await;
            Ended::by(Outcome::Completed)
        }
        // The answer broke off where it came from. To a client of HTTP/1.0 the end of the connection is the end of the
        // answer: an orderly one would make it look complete.
        Err(error) if error.is_user() => {
            stream.reset();
            broken(&error)
        }
        Err(error) => {
            goodbye(&mut stream).await;
            broken(&error)
        }
    }
}

/// Tells the peer of an orderly end.
async fn goodbye(stream: &mut impl Socketed) {
    stream.ending();
    let _ = timeout(GOODBYE, stream.shutdown()).await;
}

async fn http2<S, H>(
    worker: &Rc<Worker>,
    open: &Open,
    guard: Guard<Corked<S>>,
    cork: Cork<S>,
    handler: &Rc<H>,
) -> Ended<S>
where
    S: Socketed + 'static,
    H: Handler,
{
    let flow = handler.flow();
    let service = {
        let (handler, pulse) = (Rc::clone(handler), open.pulse());
        service_fn(move |request: ::http::Request<Incoming>| {
            let (handler, progress) = (Rc::clone(&handler), InProgress::begin(pulse.clone()));
            let mut request = Box::new(request.map(Body::streaming));
            let answering = async move {
                let stream = STREAM.try_with(Pulse::clone).ok();
                if let Some(stream) = &stream {
                    request.body_mut().beat(stream.clone());
                }
                // The library leaves a body out of an answer to HEAD in HTTP/1 alone.
                let wants_body = request.method() != ::http::Method::HEAD;
                let mut response = handler.handle(request).await;
                if let Some(stream) = stream {
                    response.body_mut().beat(stream);
                }
                if !wants_body {
                    response.body_mut().leave_out();
                }
                response.body_mut().at_end(move |_| drop(progress));
                Answered::Ok(response)
            };
            // Boxed before the library and the task wrap it: each layer would move it once more.
            Box::pin(answering) as Pin<Box<dyn Future<Output = Answered>>>
        })
    };
    let connection = http2::Builder::new(StreamTasks(Rc::clone(worker)))
        .timer(TokioTimer::new())
        .initial_stream_window_size(flow.stream_window)
        .initial_connection_window_size(flow.connection_window)
        .max_concurrent_streams(worker.shared.limits.streams.min(flow.streams))
        .max_header_list_size(HEAD_LIST_LIMIT)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(guard), service);
    tokio::pin!(connection);
    let mut draining = false;
    let pulse = open.pulse();
    loop {
        tokio::select! {
            biased;
            cause = open.closed() => return Ended::by(cause.into()),
            () = open.draining(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            end = poll_fn(|cx| {
                let end = connection.as_mut().poll(cx);
                match cork.poll_flush(cx) {
                    Poll::Pending => pulse.waits(Half::Write),
                    Poll::Ready(Ok(())) => pulse.progressed(Half::Write, 0),
                    Poll::Ready(Err(_)) if end.is_pending() => return Poll::Ready(None),
                    Poll::Ready(Err(_)) => {}
                }
                end.map(Some)
            }) => {
                return match end {
                    Some(Ok(())) => Ended::by(Outcome::Completed),
                    Some(Err(error)) => broken(&error),
                    None => Ended::by(Outcome::Broken),
                };
            }
        }
    }
}

fn broken<S>(error: &hyper::Error) -> Ended<S> {
    let outcome = if error.is_parse() { Outcome::BadRequest } else { Outcome::Broken };
    Ended { outcome, detail: Some(error.to_string()), tunnel: None }
}

/// One request in progress; it ends with the last of its answer, or when its task is dropped.
struct InProgress(Pulse);

impl InProgress {
    fn begin(pulse: Pulse) -> Self {
        pulse.request_begun();
        Self(pulse)
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.request_ended();
    }
}

/// Runs each HTTP/2 stream as a task that stands in the worker's register of requests: one that stands still for too long
/// is dropped, which resets its stream and no other.
#[derive(Clone)]
struct StreamTasks(Rc<Worker>);

impl<F> Executor<F> for StreamTasks
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, stream: F) {
        let open = self.0.requests.enter(None);
        open.settle();
        tokio::task::spawn_local(async move {
            let pulse = open.pulse();
            let _ = open.unless_closed(pin!(STREAM.scope(pulse, stream))).await;
        });
    }
}
