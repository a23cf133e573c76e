//! Requests to switch protocols (RFC 9110 §7.8): each on an HTTP/1.1 connection of its own, which becomes the tunnel.

use std::pin::pin;
use std::rc::Rc;

use ::http::header::UPGRADE;
use ::http::{HeaderValue, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::super::pool::Key;
use super::super::refuse::{Fault, Refusal};
use super::super::shape::shape;
use super::super::{Body, Request, Response, Version, headers};
use super::{Answer, To, full, lost, next, refusal};
use crate::dial::{self, Secured};
use crate::finish::Socketed;
use crate::prefixed::Prefixed;
use crate::tls::{Alpn, Stream};
use crate::upstream::circuit::{Permit, Resource};
use crate::worker::Worker;
use crate::worker::open::{Open, Subject};

/// How many endpoints may be tried before the request is sent.
const MAX_DIALS: usize = 4;

/// The far end of a tunnel.
pub enum Far {
    /// The app.
    Plain(Prefixed<TcpStream>),
    /// A peer.
    Tls(Box<Prefixed<Stream>>),
}

/// A connection that switched.
pub struct Switched {
    /// Its far end, once the answer has been read from it.
    pub far: JoinHandle<Option<Far>>,
    /// Who is there; none for the app.
    pub peer: Option<Rc<Subject>>,
    /// What it takes up of the upstream's limits.
    pub permits: [Permit; 2],
}

/// Sends a request to switch to `protocol`, which ended at this hop like every hop-by-hop header: the answer and, where it
/// agrees, the connection.
pub async fn switch(
    worker: &Rc<Worker>,
    to: &To<'_>,
    mut request: Box<Request>,
    protocol: HeaderValue,
) -> Result<(Answer, Option<Switched>), Refusal> {
    headers::switch(request.headers_mut(), Some(protocol));
    // Boxed: requests that ask for no switch, nearly all, need no room for it.
    Box::pin(ask(worker, to, request)).await
}

async fn ask(
    worker: &Rc<Worker>,
    to: &To<'_>,
    request: Box<Request>,
) -> Result<(Answer, Option<Switched>), Refusal> {
    let permits = [
        to.circuit().take(Resource::Request).map_err(full)?,
        to.circuit().take(Resource::Connection).map_err(full)?,
    ];
    let mut tried = Vec::new();
    loop {
        let key = next(worker, to, &tried)?;
        let open = worker.upstreams.enter(None);
        let dialed = match to.upstream() {
            None => dial::plain(worker, &key.address).await.map(Io::Plain),
            Some(upstream) => dial::peer(worker, &open, upstream, &key.address, Alpn::Http1)
                .await
                .map(Box::new)
                .map(Io::Tls),
        };
        let (answer, begun) = match dialed {
            Ok(Io::Plain(tcp)) => (switch_on(tcp, Far::Plain, open, key, request).await?, None),
            Ok(Io::Tls(secured)) => {
                let Secured { tls, subject, .. } = *secured;
                (switch_on(tls, |s| Far::Tls(Box::new(s)), open, key, request).await?, Some(subject))
            }
            Err(miss) => {
                worker.balance.borrow_mut().failed(&key.address, worker.uptime());
                let refusal = refusal(&key.address, miss);
                tried.push(key.address);
                let endpoints = to.upstream().map_or(1, |u| u.endpoints.len());
                if tried.len() < endpoints.min(MAX_DIALS) {
                    continue;
                }
                return Err(refusal);
            }
        };
        let (answer, far) = answer;
        return Ok((answer, far.map(|far| Switched { far, peer: begun, permits })));
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<Secured>),
}

async fn switch_on<S>(
    io: S,
    far: impl FnOnce(Prefixed<S>) -> Far + 'static,
    open: Open,
    key: Key,
    mut request: Box<Request>,
) -> Result<(Answer, Option<JoinHandle<Option<Far>>>), Refusal>
where
    S: Socketed + 'static,
{
    let failed = |e: hyper::Error| lost(&key.address, &e);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    let driving = tokio::task::spawn_local(async move {
        let parts = open.unless_closed(pin!(connection.without_shutdown())).await.ok()?.ok()?;
        Some(far(Prefixed::new(parts.read_buf, parts.io.into_inner())))
    });
    shape(&mut request, Version::Http1, key.speaks);
    let offered = request.headers().get(UPGRADE).cloned();
    let response = sender.send_request(*request).await.map_err(failed)?;
    if let Some(flaw) = headers::flaw_of_answer(&response, offered.as_ref()) {
        return Err(Refusal::new(Fault::BadAnswer, format!("{}: {flaw}", key.address)));
    }
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let (mut parts, incoming) = response.into_parts();
    let protocol = parts.headers.get(UPGRADE).cloned();
    headers::end_hop_of_answer(&mut parts);
    let mut body = Body::default();
    if switched {
        headers::switch(&mut parts.headers, protocol);
    } else {
        body = Body::streaming(incoming);
    }
    let answer = Answer { response: Response::from_parts(parts, body), from: key.address };
    Ok((answer, switched.then_some(driving)))
}
