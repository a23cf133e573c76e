//! Connections to apps and peers, kept for the next request. One pool per worker, so nothing here is locked.
//!
//! A connection is taken up again only by requests to the same peer identity at the same address in the same protocol, and
//! only while it is as good as a new one: made with the credentials and bundles that are in force, and not too old. One
//! that no longer is finishes what it carries and goes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::Guard;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use postern_config::id::SpiffeId;
use tokio::sync::Notify;

use super::shape::shape;
use super::{Body, Request, Version};
use crate::dial::Miss;
use crate::discover::Upstream;
use crate::snapshot::Trust;
use crate::tls::Credentials;
use crate::upstream::circuit::{Circuit, Permit, Resource};
use crate::worker::{Lookup, Worker};

mod connect;

use connect::connect;

/// HTTP/2 connections of one worker to one address: one would share its congestion window and its lost packets among all.
const LINES: usize = 4;
/// Requests that a connection carries before the next one is opened.
const GROW_AT: usize = 32;
/// Requests that a connection carries at most; what peers commonly allow.
const STREAMS: usize = 100;
/// How long an unused connection is kept: to an app below the shortest keep-alive in common use (5 s), so that a request
/// rarely meets its end; to a peer as long as a handshake is worth.
const IDLE_APP: Duration = Duration::from_secs(4);
const IDLE_PEER: Duration = Duration::from_secs(90);
/// Unused HTTP/1 connections to one address: fewer than there are requests at once, and each of them opens and closes one.
const IDLE_LINES: usize = 256;

/// What is spoken to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaks {
    /// HTTP/1.1 in plain text.
    Http1,
    /// HTTP/2 with prior knowledge in plain text (RFC 9113 §3.3).
    Http2,
    /// What the handshake agrees on.
    Mesh,
}

/// What a connection must be, to be taken up again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Who is at the other end; none for the app.
    pub peer: Option<SpiffeId>,
    /// Where, `host:port`.
    pub address: Arc<str>,
    /// In which protocol.
    pub speaks: Speaks,
}

/// One worker's connections.
#[derive(Default)]
pub struct Pool {
    hosts: RefCell<Lookup<Key, Rc<Host>>>,
}

/// The connections to one address.
struct Host {
    key: Key,
    lines: RefCell<Vec<Rc<Line>>>,
    dialing: Cell<usize>,
    /// Requests that wait for one of the dials to end.
    waiting: Cell<usize>,
    /// Whether one connection carries many requests: what the last handshake has agreed on.
    multiplexes: Cell<bool>,
    /// Counts the dials that failed, with how the last one did.
    failures: RefCell<(u64, Option<Miss>)>,
    dialed: Notify,
}

/// One connection.
struct Line {
    sender: RefCell<Sender>,
    active: Cell<usize>,
    born: Instant,
    used: Cell<Instant>,
    max_age: Duration,
    made_with: Option<(Arc<Credentials>, Arc<Trust>)>,
    _permit: Permit,
}

enum Sender {
    Http1(Option<http1::SendRequest<Body>>),
    Http2(http2::SendRequest<Body>),
}

/// A connection for one request.
pub struct Lease {
    host: Rc<Host>,
    line: Rc<Line>,
    http1: Option<http1::SendRequest<Body>>,
}

/// Why a request has no answer.
pub enum Lost {
    /// It was not sent: here it is again.
    Unsent(Box<Request>),
    /// It may have been read by the other side.
    Sent(hyper::Error),
}

impl Pool {
    /// A connection for one request, taken up or new. `upstream` is the peer behind `key`, none for the app.
    pub async fn lease(
        &self,
        worker: &Rc<Worker>,
        key: &Key,
        upstream: Option<&Arc<Upstream>>,
        circuit: &Arc<Circuit>,
    ) -> Result<Lease, Miss> {
        let host = self.host(key);
        loop {
            if let Some(lease) = host.take(worker) {
                return Ok(lease);
            }
            if host.may_wait() {
                let (failures, _) = *host.failures.borrow();
                host.waiting.set(host.waiting.get() + 1);
                let _waiting = Waiting(&host);
                host.dialed.notified().await;
                if let (now, Some(miss)) = &*host.failures.borrow()
                    && *now > failures
                {
                    return Err(miss.clone());
                }
                continue;
            }
            return host.dial(worker, upstream, circuit).await;
        }
    }

    fn host(&self, key: &Key) -> Rc<Host> {
        if let Some(host) = self.hosts.borrow().get(key) {
            return Rc::clone(host);
        }
        let host = Rc::new(Host {
            key: key.clone(),
            lines: RefCell::default(),
            dialing: Cell::new(0),
            waiting: Cell::new(0),
            multiplexes: Cell::new(key.speaks != Speaks::Http1),
            failures: RefCell::default(),
            dialed: Notify::new(),
        });
        self.hosts.borrow_mut().insert(key.clone(), Rc::clone(&host));
        host
    }

    /// Lets go of what nobody uses or should use; called now and then.
    pub fn forget(&self, worker: &Worker) {
        let present = Present::of(worker);
        self.hosts.borrow_mut().retain(|_, host| {
            host.lines.borrow_mut().retain(|line| {
                let idle = if line.made_with.is_some() { IDLE_PEER } else { IDLE_APP };
                let keep =
                    line.is_fresh(&present) && present.now.saturating_duration_since(line.used.get()) < idle;
                !line.is_closed() && (keep || line.active.get() > 0)
            });
            !host.lines.borrow().is_empty() || Rc::strong_count(host) > 1
        });
    }

    /// Lets go of every unused connection.
    pub fn clear(&self) {
        self.hosts.borrow_mut().clear();
    }
}

impl Host {
    /// Whether a request does better to wait for a connection under way than to open one more: they will carry it too.
    fn may_wait(&self) -> bool {
        let dialing = self.dialing.get();
        let carry = if dialing + self.lines.borrow().len() < LINES { dialing * GROW_AT } else { usize::MAX };
        self.multiplexes.get() && dialing > 0 && dialing + self.waiting.get() < carry
    }

    /// A connection that may carry one more request: of HTTP/1 the one that was used last, so that those beyond need grow
    /// old unused; of HTTP/2 the one that carries the fewest.
    fn take(self: &Rc<Self>, worker: &Rc<Worker>) -> Option<Lease> {
        let mut lines = self.lines.borrow_mut();
        let present = Present::of(worker);
        let idle = lines.iter().rposition(|line| line.is_idle_http1() && line.is_fresh(&present));
        if let Some(line) = idle.map(|at| lines.remove(at)) {
            let http1 = line.take_http1();
            return Some(Lease::new(Rc::clone(self), line, http1));
        }
        lines.retain(|line| !line.is_closed() && (line.is_fresh(&present) || line.active.get() > 0));
        let fresh =
            lines.iter().filter(|l| l.is_fresh(&present) && l.active.get() < STREAMS && !l.is_http1());
        let line = Rc::clone(fresh.min_by_key(|l| l.active.get())?);
        let may_grow = lines.len() + self.dialing.get() < LINES;
        if self.key.speaks == Speaks::Mesh && line.active.get() >= GROW_AT && may_grow {
            return None;
        }
        Some(Lease::new(Rc::clone(self), line, None))
    }

    async fn dial(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        upstream: Option<&Arc<Upstream>>,
        circuit: &Arc<Circuit>,
    ) -> Result<Lease, Miss> {
        let permit = circuit.take(Resource::Connection).map_err(Miss::Full)?;
        self.dialing.set(self.dialing.get() + 1);
        let _dialing = Dialing(self);
        // Boxed: most requests find a connection, and need no room for the making of one.
        let dialed = Box::pin(connect(worker, &self.key, upstream, permit)).await;
        let line = dialed.inspect_err(|miss| {
            let mut failures = self.failures.borrow_mut();
            *failures = (failures.0 + 1, Some(miss.clone()));
        })?;
        let line = Rc::new(line);
        let http1 = line.take_http1();
        self.multiplexes.set(http1.is_none());
        if http1.is_none() {
            self.lines.borrow_mut().push(Rc::clone(&line));
        }
        Ok(Lease::new(Rc::clone(self), line, http1))
    }
}

/// One dial under way; wakes those who wait for its end, however it ends.
struct Dialing<'a>(&'a Host);

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.dialing.set(self.0.dialing.get() - 1);
        self.0.dialed.notify_waiters();
    }
}

/// A request that waits for a dial to end.
struct Waiting<'a>(&'a Host);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// What makes a connection a current one, looked up once for all of them.
struct Present {
    now: Instant,
    credentials: Guard<Option<Arc<Credentials>>>,
    trust: Guard<Arc<Trust>>,
}

impl Present {
    fn of(worker: &Worker) -> Self {
        let snapshots = &worker.shared.snapshots;
        let (credentials, trust) = (snapshots.credentials.load(), snapshots.trust.load());
        Self { now: Instant::now(), credentials, trust }
    }
}

impl Line {
    fn is_fresh(&self, present: &Present) -> bool {
        let is_current = self.made_with.as_ref().is_none_or(|(credentials, trust)| {
            present.credentials.as_ref().is_some_and(|c| Arc::ptr_eq(c, credentials))
                && Arc::ptr_eq(&present.trust, trust)
        });
        is_current && present.now.saturating_duration_since(self.born) < self.max_age
    }

    fn is_http1(&self) -> bool {
        matches!(&*self.sender.borrow(), Sender::Http1(_))
    }

    fn is_closed(&self) -> bool {
        match &*self.sender.borrow() {
            Sender::Http1(sender) => sender.as_ref().is_none_or(http1::SendRequest::is_closed),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// What sends on a connection of HTTP/1: nobody else can use that until it is given back.
    fn take_http1(&self) -> Option<http1::SendRequest<Body>> {
        match &mut *self.sender.borrow_mut() {
            Sender::Http1(sender) => sender.take(),
            Sender::Http2(_) => None,
        }
    }

    fn is_idle_http1(&self) -> bool {
        let sender = self.sender.borrow();
        matches!(&*sender, Sender::Http1(Some(sender)) if sender.is_ready())
    }
}

impl Lease {
    fn new(host: Rc<Host>, line: Rc<Line>, http1: Option<http1::SendRequest<Body>>) -> Self {
        line.active.set(line.active.get() + 1);
        Self { host, line, http1 }
    }

    /// Sends a request: its answer, or why there is none.
    pub async fn send(&mut self, mut request: Box<Request>) -> Result<::http::Response<Incoming>, Lost> {
        let again = |mut lost: TrySendError<Request>| match lost.take_message() {
            Some(request) => Lost::Unsent(Box::new(request)),
            None => Lost::Sent(lost.into_error()),
        };
        if let Some(sender) = &mut self.http1 {
            shape(&mut request, Version::Http1, self.host.key.speaks);
            return sender.try_send_request(*request).await.map_err(again);
        }
        shape(&mut request, Version::Http2, self.host.key.speaks);
        let sender = match &*self.line.sender.borrow() {
            Sender::Http2(sender) => Some(sender.clone()),
            Sender::Http1(_) => None,
        };
        match sender {
            Some(mut sender) => sender.try_send_request(*request).await.map_err(again),
            None => Err(Lost::Unsent(request)),
        }
    }

    /// The exchange is complete: the connection may carry the next one.
    pub fn give_back(mut self) {
        let Some(sender) = self.http1.take().filter(|s| !s.is_closed()) else { return };
        *self.line.sender.borrow_mut() = Sender::Http1(Some(sender));
        let mut lines = self.host.lines.borrow_mut();
        if lines.len() < IDLE_LINES {
            lines.push(Rc::clone(&self.line));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.line.active.set(self.line.active.get() - 1);
        self.line.used.set(Instant::now());
    }
}
