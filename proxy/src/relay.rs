//! Copies bytes both ways until both sides are done: half-close is passed on, buffers grow with traffic and go when idle.
//!
//! Both directions are polled as one future over two streams that it owns the only reference to, so nothing is split
//! and nothing is locked. An error is never passed on as an orderly end: the caller resets the other side, so that a
//! truncated answer cannot look complete.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(test)]
mod tests;

/// What an idle or chatty connection costs per direction.
const SMALL: usize = 2 * 1024;
/// What a busy one grows to: four TLS records a write.
const LARGE: usize = 64 * 1024;
/// Growth by steps that each pay for themselves within a few reads.
const GROWTH: usize = 4;

/// What a relay reports while it runs.
pub trait Progress {
    /// Bytes that were written onward: from the first stream to the second, and back.
    fn moved(&self, up: usize, down: usize);
    /// Whether idle buffers should be given back now; asked at each poll.
    fn shrink(&self) -> bool;
}

/// Relays until both directions have ended or one fails.
pub async fn relay<A, B>(a: &mut A, b: &mut B, progress: &impl Progress) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Flow::default();
    let mut down = Flow::default();
    let mut up_first = false;
    poll_fn(|cx| {
        if progress.shrink() {
            up.shrink();
            down.shrink();
        }
        // By turns: a busy direction uses up all that tokio grants a task before it must pause.
        up_first = !up_first;
        let (up_done, down_done);
        if up_first {
            up_done = up.poll(cx, a, b, |n| progress.moved(n, 0))?;
            down_done = down.poll(cx, b, a, |n| progress.moved(0, n))?;
        } else {
            down_done = down.poll(cx, b, a, |n| progress.moved(0, n))?;
            up_done = up.poll(cx, a, b, |n| progress.moved(n, 0))?;
        }
        match (up_done, down_done) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await
}

/// One direction.
#[derive(Default)]
struct Flow {
    buffer: Vec<u8>,
    /// What the next allocation takes.
    wanted: usize,
    start: usize,
    end: usize,
    unflushed: bool,
    state: State,
}

#[derive(Default, PartialEq)]
enum State {
    #[default]
    Copying,
    /// The reader ended; the writer is told so.
    Closing,
    Done,
}

impl Flow {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        mut moved: impl FnMut(usize),
    ) -> io::Result<Poll<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            let step = match self.state {
                State::Copying if self.start == self.end => self.fill(cx, reader, writer),
                State::Copying => self.drain(cx, writer, &mut moved),
                State::Closing => self.close(cx, writer),
                State::Done => return Ok(Poll::Ready(())),
            };
            match step {
                Poll::Ready(result) => result?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
    }

    /// Reads into the empty buffer; flushes the writer where there is nothing to read yet.
    fn fill<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let wanted = self.wanted.max(SMALL);
        if self.buffer.len() < wanted {
            self.buffer = vec![0; wanted];
        }
        let mut read = ReadBuf::new(&mut self.buffer);
        match Pin::new(reader).poll_read(cx, &mut read) {
            Poll::Ready(result) => {
                result?;
                let got = read.filled().len();
                (self.start, self.end) = (0, got);
                if got == 0 {
                    self.state = State::Closing;
                } else if got == self.buffer.len() && got < LARGE {
                    self.wanted = (got * GROWTH).min(LARGE);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                if self.unflushed {
                    ready!(Pin::new(writer).poll_flush(cx))?;
                    self.unflushed = false;
                }
                Poll::Pending
            }
        }
    }

    fn drain<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        moved: &mut impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        let wrote = ready!(Pin::new(writer).poll_write(cx, &self.buffer[self.start..self.end]))?;
        if wrote == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.start += wrote;
        self.unflushed = true;
        moved(wrote);
        Poll::Ready(Ok(()))
    }

    fn close<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>> {
        match ready!(Pin::new(writer).poll_shutdown(cx)) {
            // The other side has gone already: there is nobody left to tell.
            Err(e) if e.kind() != io::ErrorKind::NotConnected => return Poll::Ready(Err(e)),
            _ => {}
        }
        self.state = State::Done;
        self.buffer = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Gives an empty buffer back; the next byte allocates a small one.
    fn shrink(&mut self) {
        if self.start == self.end {
            self.buffer = Vec::new();
            self.wanted = SMALL;
        }
    }
}
