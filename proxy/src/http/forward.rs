//! Finds who answers a request: an endpoint, a connection, and another try where that is safe.
//!
//! A request that was not sent is tried again whatever it asks for. One that may have been read is tried again only if it
//! changes nothing and had no body (RFC 9110 §9.2.2): bodies stream through, so there is none to send twice.

use std::rc::Rc;
use std::sync::Arc;

use ::http::{Method, request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::pool::{Key, Lost, Speaks};
use super::refuse::{Fault, Refusal};
use super::{Body, Request, Response, Version, headers, pool};
use crate::dial::{self, Miss, Secured};
use crate::discover::Upstream;
use crate::finish::Socketed;
use crate::prefixed::Prefixed;
use crate::tls::{Alpn, Stream};
use crate::worker::Worker;
use crate::worker::open::{Open, Subject};

/// How many endpoints one request may try.
const MAX_ENDPOINTS: usize = 4;
/// How often one request may be sent, or nearly so.
const MAX_SENDS: usize = 3;

/// Whom a request is for.
#[derive(Debug, Clone)]
pub enum To {
    /// The app beside this proxy, `host:port`.
    App(Arc<str>, Speaks),
    /// One of a service's endpoints.
    Service(Arc<Upstream>),
}

/// An answer, and who gave it.
pub struct Answer {
    /// The answer, cleaned for the way back.
    pub response: Response,
    /// The address that it came from.
    pub from: Arc<str>,
}

/// Sends a request on.
pub async fn send(worker: &Rc<Worker>, to: &To, mut request: Request) -> Result<Answer, Refusal> {
    let body_broke = request.body_mut().watch();
    let mut again = is_repeatable(&request).then(|| copy(&request));
    let mut tried: Vec<Arc<str>> = Vec::new();
    let mut sends = 0;
    loop {
        let (key, upstream) = next(worker, to, &tried)?;
        let mut lease = match worker.pool.lease(worker, &key, upstream).await {
            Ok(lease) => lease,
            Err(miss) => {
                let refusal = refusal(&key.address, miss);
                worker.balance.borrow_mut().failed(&key.address, worker.uptime());
                let give_up =
                    upstream.is_none_or(|u| tried.len() + 1 >= u.endpoints.len().min(MAX_ENDPOINTS));
                if give_up || refusal.fault == Fault::NotReady {
                    return Err(refusal);
                }
                tried.push(key.address);
                continue;
            }
        };
        sends += 1;
        match lease.send(request).await {
            Ok(response) => {
                let (mut parts, incoming) = response.into_parts();
                headers::end_hop_of_answer(&mut parts);
                let mut body = Body::streaming(incoming);
                body.hold(lease);
                return Ok(Answer { response: Response::from_parts(parts, body), from: key.address });
            }
            Err(Lost::Unsent(back)) if sends < MAX_SENDS => request = *back,
            Err(Lost::Unsent(_)) => {
                return Err(Refusal::new(
                    Fault::Reset,
                    format!("{}: it closes its connections", key.address),
                ));
            }
            Err(Lost::Sent(_)) if body_broke.get() => {
                return Err(Refusal::new(
                    Fault::BadBody,
                    "the request's body broke off or was framed wrongly",
                ));
            }
            Err(Lost::Sent(error)) => match again.take() {
                Some(copy) if !error.is_parse() => request = copy,
                _ => return Err(lost(&key.address, &error)),
            },
        }
    }
}

/// The next address to try.
fn next<'a>(
    worker: &Worker,
    to: &'a To,
    tried: &[Arc<str>],
) -> Result<(Key, Option<&'a Arc<Upstream>>), Refusal> {
    match to {
        To::App(address, speaks) => {
            Ok((Key { peer: None, address: Arc::clone(address), speaks: *speaks }, None))
        }
        To::Service(upstream) => {
            let address = dial::pick(worker, &upstream.endpoints, tried)
                .ok_or_else(|| Refusal::new(Fault::NoEndpoint, "the service has no endpoint"))?;
            let peer = Some(upstream.expected.clone());
            Ok((Key { peer, address, speaks: Speaks::Mesh }, Some(upstream)))
        }
    }
}

fn refusal(address: &str, miss: Miss) -> Refusal {
    match miss {
        Miss::Unreachable(why) => Refusal::new(Fault::Unreachable, format!("{address}: {why}")),
        Miss::Refused(failure) => {
            Refusal::new(Fault::Handshake, format!("{address}: {failure} ({})", failure.reason))
        }
        Miss::NoIdentity(failure) => Refusal::new(Fault::NotReady, failure.to_string()),
    }
}

fn lost(address: &str, error: &hyper::Error) -> Refusal {
    let fault = if error.is_parse() { Fault::BadAnswer } else { Fault::Reset };
    Refusal::new(fault, format!("{address}: {error}"))
}

/// Whether a request may be read twice: RFC 9110 §9.2.2, and nothing of it is a stream.
fn is_repeatable(request: &Request) -> bool {
    let method = request.method();
    let idempotent =
        [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE].contains(method);
    idempotent && request.body().is_empty()
}

fn copy(request: &Request) -> Request {
    let mut copy = Request::new(Body::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

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
}

/// Sends a request to switch protocols, on an HTTP/1.1 connection of its own: the answer and, where it agrees, the
/// connection.
pub async fn switch(
    worker: &Rc<Worker>,
    to: &To,
    request: Request,
) -> Result<(Answer, Option<Switched>), Refusal> {
    let mut tried: Vec<Arc<str>> = Vec::new();
    loop {
        let (key, upstream) = next(worker, to, &tried)?;
        let open = worker.upstreams.enter(None);
        let dialed = match upstream {
            None => dial::plain(worker, &key.address).await.map(Io::Plain),
            Some(upstream) => dial::peer(worker, &open, upstream, &key.address, Alpn::Http1)
                .await
                .map(Box::new)
                .map(Io::Tls),
        };
        return match dialed {
            Ok(Io::Plain(tcp)) => switch_on(tcp, Far::Plain, None, open, key, request).await,
            Ok(Io::Tls(secured)) => {
                let Secured { tls, subject, .. } = *secured;
                switch_on(tls, |s| Far::Tls(Box::new(s)), Some(subject), open, key, request).await
            }
            Err(miss) => {
                worker.balance.borrow_mut().failed(&key.address, worker.uptime());
                let refusal = refusal(&key.address, miss);
                tried.push(key.address);
                if upstream.is_some_and(|u| tried.len() < u.endpoints.len().min(MAX_ENDPOINTS)) {
                    continue;
                }
                Err(refusal)
            }
        };
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<Secured>),
}

async fn switch_on<S>(
    io: S,
    far: impl FnOnce(Prefixed<S>) -> Far + 'static,
    peer: Option<Rc<Subject>>,
    open: Open,
    key: Key,
    mut request: Request,
) -> Result<(Answer, Option<Switched>), Refusal>
where
    S: Socketed + 'static,
{
    let failed = |e: hyper::Error| lost(&key.address, &e);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    let driving = tokio::task::spawn_local(async move {
        let parts = open.unless_closed(connection.without_shutdown()).await.ok()?.ok()?;
        Some(far(Prefixed::new(parts.read_buf, parts.io.into_inner())))
    });
    pool::shape(&mut request, Version::Http1, key.speaks);
    let response = sender.send_request(request).await.map_err(failed)?;
    let switched = response.status() == ::http::StatusCode::SWITCHING_PROTOCOLS;
    let (mut parts, incoming) = response.into_parts();
    let to = parts.headers.get(::http::header::UPGRADE).cloned();
    headers::end_hop_of_answer(&mut parts);
    let mut body = Body::default();
    if switched {
        headers::switch(&mut parts.headers, to);
    } else {
        body = Body::streaming(incoming);
    }
    let answer = Answer { response: Response::from_parts(parts, body), from: key.address };
    Ok((answer, switched.then_some(Switched { far: driving, peer })))
}

/// Asks for the switch again, which ended at this hop like every hop-by-hop header.
pub fn ask_to_switch(parts: &mut request::Parts, to: ::http::HeaderValue) {
    headers::switch(&mut parts.headers, Some(to));
}
