//! Stands between a connection's bytes and the HTTP library: what the library would read leniently never reaches it, what
//! it does not bound is bounded here, and a peer that is too slow is noticed.
//!
//! A refused HTTP/1 request is replaced by bytes that the library is sure to refuse, so that the answer 400 and the end of
//! the connection come from one place and in the order of the requests.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::io::poll_read_buf;

use super::Version;
use crate::worker::open::{Half, Pulse};

pub mod h1;
pub mod h2;
#[cfg(test)]
mod tests;

use h1::{Flaw, Framing, Place, Step};

/// Neither a method nor the size of a chunk begins with this byte.
const REFUSED: &[u8] = b"\0\0\0\0\r\n\r\n";
/// What one read of HTTP/1 takes: a head, or a good part of a body.
const READ: usize = 16 * 1024;
/// For requests that a peer sent together with its acknowledgement of a GOAWAY to come in, a record or a lost packet later.
const LATE_REQUESTS: Duration = Duration::from_millis(100);

/// What the guard and the handler of the connection's requests say to each other.
#[derive(Debug, Default)]
pub struct Said {
    flaw: Cell<Option<Flaw>>,
    flood: Cell<bool>,
    release: Cell<Option<bool>>,
    /// Who reads bytes that wait for the answer.
    reader: RefCell<Option<Waker>>,
}

impl Said {
    /// Why requests are no longer read.
    pub fn flaw(&self) -> Option<Flaw> {
        self.flaw.get()
    }

    /// Whether the peer sent more frames without data than anyone needs.
    pub fn flooded(&self) -> bool {
        self.flood.get()
    }

    /// How the request was answered behind which bytes may wait: whether the connection is a tunnel now.
    pub fn answered(&self, tunnel: bool) {
        self.release.set(Some(tunnel));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// A guarded stream.
pub struct Guard<S> {
    stream: S,
    pulse: Pulse,
    said: Rc<Said>,
    head_timeout: Duration,
    reading: Reading,
}

enum Reading {
    Http1 {
        framing: Framing,
        pending: BytesMut,
        /// How many of the pending bytes may go on.
        granted: usize,
    },
    Http2(h2::Meter, Instant, Farewell),
}

impl<S> Guard<S> {
    /// Guards a connection that speaks `version`.
    pub fn new(stream: S, version: Version, pulse: Pulse, said: Rc<Said>, head_timeout: Duration) -> Self {
        let reading = match version {
            Version::Http1 => {
                Reading::Http1 { framing: Framing::default(), pending: BytesMut::new(), granted: 0 }
            }
            Version::Http2 => Reading::Http2(h2::Meter::default(), Instant::now(), Farewell::default()),
        };
        Self { stream, pulse, said, head_timeout, reading }
    }

    /// The stream below, and what was read of it and has not gone on.
    pub fn into_parts(self) -> (S, BytesMut) {
        match self.reading {
            Reading::Http1 { pending, .. } => (self.stream, pending),
            Reading::Http2(..) => (self.stream, BytesMut::new()),
        }
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    fn poll_http1(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, pulse, said, head_timeout, reading: Reading::Http1 { framing, pending, granted } } =
            self
        else {
            return Poll::Ready(Ok(()));
        };
        if let Some(tunnel) = said.release.take() {
            framing.release(tunnel);
        }
        let mut looked = None;
        while *granted == 0 {
            let (before, step) = match looked.take() {
                Some(looked) => looked,
                None => (framing.place(), framing.step(pending)),
            };
            match step {
                Step::Pass(bytes) => {
                    *granted = bytes;
                    passes(pulse, before, framing.place());
                }
                Step::Hold => {
                    *said.reader.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Step::Refuse(flaw) => {
                    said.flaw.set(Some(flaw));
                    pulse.head_within(None);
                    pending.clear();
                    pending.extend_from_slice(REFUSED);
                    *granted = REFUSED.len();
                }
                Step::More => {
                    // The empty line that may precede a head is none of it.
                    let begins = matches!(before, Place::Start | Place::Head(0));
                    if begins && matches!(framing.place(), Place::Head(1..)) {
                        pulse.head_within(Some(*head_timeout));
                    }
                    let in_body = !matches!(before, Place::Start | Place::Head(_) | Place::Tunnel);
                    let start = buf.filled().len();
                    // What is whole, and most requests are, stays where it was read.
                    let polled = if pending.is_empty() {
                        *pending = BytesMut::new();
                        let polled = Pin::new(&mut *stream).poll_read(cx, buf);
                        polled.map_ok(|()| buf.filled().len() - start)
                    } else {
                        pending.reserve(READ);
                        poll_read_buf(Pin::new(&mut *stream), cx, pending)
                    };
                    let Poll::Ready(read) = polled else {
                        if in_body {
                            pulse.waits(Half::Read);
                        }
                        return Poll::Pending;
                    };
                    let read = read?;
                    if read == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    pulse.moved(read, 0);
                    if in_body {
                        pulse.progressed(Half::Read, read);
                    }
                    let came = &buf.filled()[start..];
                    if came.is_empty() {
                        continue;
                    }
                    let before = framing.place();
                    let step = framing.step(came);
                    if step == Step::Pass(came.len()) {
                        passes(pulse, before, framing.place());
                        return Poll::Ready(Ok(()));
                    }
                    pending.extend_from_slice(came);
                    buf.set_filled(start);
                    looked = Some((before, step));
                }
            }
        }
        let pass = (*granted).min(buf.remaining());
        buf.put_slice(&pending[..pass]);
        pending.advance(pass);
        *granted -= pass;
        Poll::Ready(Ok(()))
    }
}

/// Notes how far what may go on has brought the connection.
fn passes(pulse: &Pulse, before: Place, now: Place) {
    match now {
        _ if !matches!(before, Place::Start | Place::Head(_)) => {}
        Place::Body(_) | Place::ChunkSize => pulse.head_within(None),
        Place::Start | Place::Held => {
            pulse.head_within(None);
            pulse.arrived(Half::Read);
        }
        _ => {}
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Reading::Http2(meter, since, farewell) = &mut this.reading else {
            return this.poll_http1(cx, buf);
        };
        loop {
            let before = buf.filled().len();
            if Pin::new(&mut this.stream).poll_read(cx, buf)?.is_pending() {
                ready!(farewell.poll(cx, meter, buf));
                return Poll::Ready(Ok(()));
            }
            let read = &buf.filled()[before..];
            this.pulse.moved(read.len(), 0);
            if !meter.read(read, || since.elapsed()) {
                this.said.flood.set(true);
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            let came = read.len();
            if let Some(frame) = meter.farewell() {
                farewell.hold(buf, before + frame.start..before + frame.end);
            }
            // Nothing in a buffer means the end of the stream; there is more to come.
            if came == 0 || buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// The acknowledgement of an orderly GOAWAY, kept back for a moment.
///
/// The HTTP/2 library takes it for the sign that the peer has seen the GOAWAY and sends nothing new, and passes over every
/// stream that begins behind it. But a peer may send it ahead of requests that it had in its queue (the library itself does):
/// those would be lost, and the ones with a body cannot be sent again.
#[derive(Default)]
struct Farewell {
    frame: BytesMut,
    due: Option<Pin<Box<Sleep>>>,
}

impl Farewell {
    /// Takes the frame out of what was read. The first one alone: whoever sends more has lost what they were for.
    fn hold(&mut self, buf: &mut ReadBuf<'_>, frame: Range<usize>) {
        if self.due.is_some() {
            return;
        }
        self.due = Some(Box::pin(sleep(LATE_REQUESTS)));
        let filled = buf.filled_mut();
        self.frame = BytesMut::from(&filled[frame.clone()]);
        filled.copy_within(frame.end.., frame.start);
        let left = filled.len() - frame.len();
        buf.set_filled(left);
    }

    /// Gives it back between two frames, once its time has come.
    fn poll(&mut self, cx: &mut Context<'_>, meter: &h2::Meter, buf: &mut ReadBuf<'_>) -> Poll<()> {
        match &mut self.due {
            Some(due) if !self.frame.is_empty() && meter.between_frames() => ready!(due.as_mut().poll(cx)),
            _ => return Poll::Pending,
        }
        let pass = self.frame.len().min(buf.remaining());
        buf.put_slice(&self.frame.split_to(pass));
        Poll::Ready(())
    }
}

impl<S: AsyncWrite + Unpin> Guard<S> {
    fn wrote(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Ready(Ok(wrote)) => {
                self.pulse.moved(0, *wrote);
                self.pulse.progressed(Half::Write, *wrote);
                if let Reading::Http2(meter, ..) = &mut self.reading {
                    meter.wrote(*wrote);
                }
            }
            Poll::Pending => self.pulse.waits(Half::Write),
            Poll::Ready(Err(_)) => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        match &polled {
            Poll::Pending => self.pulse.waits(Half::Write),
            Poll::Ready(_) => self.pulse.progressed(Half::Write, 0),
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
