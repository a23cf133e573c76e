//! What does a request cost on a connection that is kept? HTTP/1.1, HTTP/2 with several streams, or gRPC.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header, request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::Mutex;

use super::Protocol;
use crate::drive::{Connector, Done, Failure, Negotiated, Operation, Plan, Reason};

/// An empty message: not compressed, no bytes.
const EMPTY_MESSAGE: &[u8] = &[0; 5];
/// What a stream and a connection may have under way over HTTP/2: more than a round trip on loopback fills.
const WINDOW: u32 = 4 * 1024 * 1024;

type H2 = http2::SendRequest<Full<Bytes>>;

pub(super) struct Requests {
    connector: Connector,
    protocol: Protocol,
    parts: request::Parts,
    body: Bytes,
    streams: usize,
    /// HTTP/2 connections, each shared by so many lanes.
    shared: RefCell<Vec<Rc<Mutex<Option<H2>>>>>,
    negotiated: RefCell<Negotiated>,
}

impl Requests {
    pub(super) fn new(plan: &Plan, connector: Connector) -> Result<Self> {
        let authority = plan.authority();
        let path: &str = &plan.path;
        ensure!(path.starts_with('/'), "{path:?}: a path begins with `/`");
        let body = match plan.protocol {
            Protocol::Grpc => Bytes::from_static(EMPTY_MESSAGE),
            _ => Bytes::from(vec![b'x'; plan.size]),
        };
        let method = if body.is_empty() { Method::GET } else { Method::POST };
        let uri = match plan.protocol {
            Protocol::H1 | Protocol::Raw => path.parse::<Uri>(),
            Protocol::H2 | Protocol::Grpc => {
                let scheme = if plan.tls.is_some() { "https" } else { "http" };
                format!("{scheme}://{authority}{path}").parse::<Uri>()
            }
        };
        let uri = uri.with_context(|| format!("{path:?} at {authority:?} is no address of HTTP"))?;
        let mut request =
            Request::builder().method(method).uri(uri).header(header::USER_AGENT, "postern-loadtest");
        if plan.protocol == Protocol::H1 {
            request = request.header(header::HOST, authority);
        }
        if plan.protocol == Protocol::Grpc {
            request = request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
        }
        let (parts, ()) = request.body(()).context("the request")?.into_parts();
        Ok(Self {
            connector,
            protocol: plan.protocol,
            parts,
            body,
            streams: plan.streams,
            shared: RefCell::default(),
            negotiated: RefCell::default(),
        })
    }

    /// The request as bytes, with the end of the connection asked for.
    pub(super) fn h1_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.parts.method, self.parts.uri).into_bytes();
        for (name, value) in &self.parts.headers {
            bytes.extend_from_slice(format!("{name}: {}\r\n", value.to_str()?).as_bytes());
        }
        if !self.body.is_empty() {
            bytes.extend_from_slice(format!("content-length: {}\r\n", self.body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"connection: close\r\n\r\n");
        bytes.extend_from_slice(&self.body);
        Ok(bytes)
    }

    pub(super) fn size(&self) -> u64 {
        self.body.len() as u64
    }

    pub(super) fn is_raw(&self) -> bool {
        self.protocol == Protocol::Raw
    }

    /// Over HTTP/2, with the connection's own cost.
    pub(super) async fn on_a_new_connection(&self) -> Result<Done, Failure> {
        let mut done = Done::default();
        let sender = self.connect_h2(&mut done).await?;
        self.ask_h2(sender, &mut done).await?;
        Ok(done)
    }

    fn request(&self) -> Request<Full<Bytes>> {
        Request::from_parts(self.parts.clone(), Full::new(self.body.clone()))
    }

    async fn connect(&self, done: &mut Done) -> Result<TokioIo<crate::drive::Stream>, Failure> {
        let stream = self.connector.connect().await?;
        if self.negotiated.borrow().version.is_empty() {
            self.negotiated.replace(stream.negotiated());
        }
        (done.handshakes, done.resumed) = stream.handshakes();
        Ok(TokioIo::new(stream))
    }

    async fn connect_h1(&self, done: &mut Done) -> Result<http1::SendRequest<Full<Bytes>>, Failure> {
        let stream = self.connect(done).await?;
        let (sender, connection) = http1::handshake(stream).await?;
        // It ends when its sender is dropped; how, the request says that was on it.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connect_h2(&self, done: &mut Done) -> Result<H2, Failure> {
        let stream = self.connect(done).await?;
        if matches!(stream.inner(), crate::drive::Stream::Tls(_)) && !stream.inner().is_h2() {
            return Err(Failure::new(Reason::Incompatible, "the server does not agree to h2 by ALPN"));
        }
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(stream)
            .await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn ask_h2(&self, mut sender: H2, done: &mut Done) -> Result<(), Failure> {
        sender.ready().await?;
        let answer = sender.send_request(self.request()).await?;
        self.finish(answer, done).await
    }

    /// Reads the answer to its end and judges it.
    async fn finish(&self, answer: Response<Incoming>, done: &mut Done) -> Result<(), Failure> {
        let status = answer.status();
        let (head, mut body) = answer.into_parts();
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            let frame = frame?;
            match frame.into_data() {
                Ok(data) => done.received += data.len() as u64,
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        if !status.is_success() {
            return Err(Failure::new(Reason::Status, status.as_u16().to_string()));
        }
        if self.protocol == Protocol::Grpc {
            grpc_status(trailers.as_ref().unwrap_or(&head.headers))?;
        }
        done.requests = 1;
        done.sent = self.size();
        Ok(())
    }

    fn group(&self, lane: usize) -> Rc<Mutex<Option<H2>>> {
        let (mut shared, at) = (self.shared.borrow_mut(), lane / self.streams);
        while shared.len() <= at {
            shared.push(Rc::default());
        }
        Rc::clone(&shared[at])
    }
}

fn grpc_status(headers: &HeaderMap<HeaderValue>) -> Result<(), Failure> {
    match headers.get("grpc-status").map(HeaderValue::as_bytes) {
        Some(b"0") => Ok(()),
        Some(other) => {
            Err(Failure::new(Reason::Status, format!("grpc-status {}", String::from_utf8_lossy(other))))
        }
        None => Err(Failure::new(Reason::BadAnswer, "an answer without grpc-status")),
    }
}

impl Operation for Requests {
    type Kept = Option<http1::SendRequest<Full<Bytes>>>;

    async fn once(&self, lane: usize, kept: &mut Self::Kept) -> Result<Done, Failure> {
        let mut done = Done::default();
        if matches!(self.protocol, Protocol::H2 | Protocol::Grpc) {
            let group = self.group(lane);
            let mut held = group.lock().await;
            let sender = match held.as_ref().filter(|sender| !sender.is_closed()) {
                Some(sender) => sender.clone(),
                None => held.insert(self.connect_h2(&mut done).await?).clone(),
            };
            drop(held);
            self.ask_h2(sender, &mut done).await?;
            return Ok(done);
        }
        // Servers end kept connections as they like; one that has ended between two requests is no failure.
        if let Some(sender) = kept
            && sender.ready().await.is_err()
        {
            *kept = None;
        }
        let sender = match kept {
            Some(sender) => sender,
            None => kept.insert(self.connect_h1(&mut done).await?),
        };
        sender.ready().await?;
        let answer = sender.send_request(self.request()).await?;
        self.finish(answer, &mut done).await?;
        Ok(done)
    }

    fn negotiated(&self) -> Negotiated {
        self.negotiated.borrow().clone()
    }
}
