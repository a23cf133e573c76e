//! A body that streams through: never buffered, its trailers cleaned, its end noticed by whoever has to know.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::forward::Carried;
use super::headers;
use super::pool::Lease;
use crate::worker::open::Pulse;

/// The body of a request or of an answer.
#[derive(Default)]
pub struct Body {
    content: Content,
    /// Set where reading it failed: the fault is with whoever sends it.
    broken: Option<Rc<Cell<bool>>>,
    pulse: Option<Pulse>,
    deadline: Option<Pin<Box<Sleep>>>,
    held: Held,
}

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Whoever sends it broke off, or broke a rule.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The time for the whole request is up.
    #[error("the time for the whole request is up")]
    Timeout,
}

#[derive(Default)]
enum Content {
    #[default]
    Empty,
    Whole(Bytes),
    Streaming(Incoming),
}

/// What lives as long as the body: dropped with it, on every way that an exchange can end.
#[derive(Default)]
struct Held {
    lease: Option<Lease>,
    carried: Option<Carried>,
    ends: Option<Box<dyn FnOnce(End)>>,
    end: End,
}

/// How a body ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum End {
    /// Whoever read it went away first.
    #[default]
    Dropped,
    /// It was read to its end.
    Complete,
    /// Whoever sent it broke off.
    Broken,
}

impl Body {
    /// A body that is known already.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let content = if bytes.is_empty() { Content::Empty } else { Content::Whole(bytes) };
        Self { content, ..Self::default() }
    }

    /// A body as it comes in.
    pub fn streaming(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Self::default();
        }
        Self { content: Content::Streaming(incoming), ..Self::default() }
    }

    /// A flag that is set where reading this body fails.
    pub fn watch(&mut self) -> Rc<Cell<bool>> {
        Rc::clone(self.broken.get_or_insert_default())
    }

    /// Notes what moves in a register of requests in progress.
    pub(super) fn beat(&mut self, pulse: Pulse) {
        self.pulse = Some(pulse);
    }

    /// Keeps the connection that it comes from until its end.
    pub(super) fn hold(&mut self, lease: Lease, carried: Carried) {
        self.held.lease = Some(lease);
        self.held.carried = Some(carried);
        if matches!(self.content, Content::Empty) {
            self.held.finish(End::Complete);
        }
    }

    /// Breaks off at `deadline`.
    pub(super) fn end_by(&mut self, deadline: Instant) {
        if !self.is_empty() {
            self.deadline = Some(Box::pin(tokio::time::sleep_until(deadline.into())));
        }
    }

    /// Calls `ends` once when it has ended.
    pub(super) fn at_end(&mut self, ends: impl FnOnce(End) + 'static) {
        self.held.ends = Some(Box::new(ends));
        if matches!(self.content, Content::Empty) {
            self.held.end = End::Complete;
        }
    }

    /// Leaves out what is known already.
    pub(super) fn leave_out(&mut self) {
        if matches!(self.content, Content::Whole(_)) {
            self.content = Content::Empty;
        }
    }

    /// Whether nothing is to come and nothing was taken.
    pub fn is_empty(&self) -> bool {
        matches!(self.content, Content::Empty)
    }
}

impl Held {
    fn finish(&mut self, end: End) {
        self.end = end;
        if let Some(lease) = self.lease.take()
            && end == End::Complete
        {
            lease.give_back();
        }
        self.carried = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(ends) = self.ends.take() {
            ends(self.end);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        if this.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            this.held.finish(End::Broken);
            return Poll::Ready(Some(Err(Broken::Timeout)));
        }
        let polled = match &mut this.content {
            Content::Empty => Poll::Ready(None),
            Content::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                this.content = Content::Empty;
                this.held.finish(End::Complete);
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Content::Streaming(incoming) => Pin::new(incoming).poll_frame(cx),
        };
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                this.held.finish(End::Complete);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(broken) = &this.broken {
                    broken.set(true);
                }
                this.held.finish(End::Broken);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                }
                if let (Some(pulse), Some(data)) = (&this.pulse, frame.data_ref()) {
                    pulse.moved(data.len(), 0);
                }
                if this.is_end_stream() {
                    this.held.finish(End::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Whole(_) => false,
            Content::Streaming(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Streaming(incoming) => incoming.size_hint(),
        }
    }
}
