//! Copies bytes both ways until both sides are done: half-close is passed on, buffers grow with traffic and are held only
//! while something is in them.
//!
//! Both directions are polled as one future over two streams that it owns the only reference to, so nothing is split
//! and nothing is locked. An error is never passed on as an orderly end: the caller resets the other side, so that a
//! truncated answer cannot look complete.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffers::{Buffer, Size};
use crate::finish::Ending;

#[cfg(test)]
mod tests;

/// A read that brings less leaves the reader empty; one that brings as much may have left more.
const PLENTY: usize = 8 * 1024;

/// What a relay reports while it runs.
pub trait Progress {
    /// Bytes that were written onward: from the first stream to the second, and back.
    fn moved(&self, up: usize, down: usize);
}

/// Relays until both directions have ended or one fails.
pub async fn relay<A, B>(a: &mut A, b: &mut B, progress: &impl Progress) -> io::Result<()>
where
    A: Ending,
    B: Ending,
{
    let mut up = Flow::default();
    let mut down = Flow::default();
    let mut up_first = false;
    poll_fn(|cx| {
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
    /// What was read and not written yet.
    held: Option<Held>,
    /// What the next read takes.
    size: Size,
    unflushed: bool,
    state: State,
}

struct Held {
    buffer: Buffer,
    start: usize,
    end: usize,
    /// How the reader ended behind these bytes, if it has.
    then: Option<io::Result<()>>,
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
        W: Ending,
    {
        loop {
            let step = match self.state {
                State::Copying if self.held.is_none() => self.fill(cx, reader, writer),
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

    /// Reads as much as there is and fits; flushes the writer where there is nothing to read yet.
    fn fill<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buffer = Buffer::take(self.size);
        let (size, mut read) = (buffer.size(), ReadBuf::new(&mut buffer));
        let mut then = None;
        // TLS hands out one record at a time, however many it has; together they are one write.
        loop {
            let before = read.filled().len();
            match Pin::new(&mut *reader).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) => {
                    let got = read.filled().len() - before;
                    if got == 0 {
                        then = Some(Ok(()));
                    }
                    if got < PLENTY || read.remaining() == 0 {
                        break;
                    }
                }
                Poll::Ready(Err(error)) => {
                    then = Some(Err(error));
                    break;
                }
                Poll::Pending if before > 0 => break,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(writer).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        let end = read.filled().len();
        self.size = size.after(end);
        if end > 0 {
            self.held = Some(Held { buffer, start: 0, end, then });
        } else {
            self.end(then)?;
        }
        Poll::Ready(Ok(()))
    }

    fn drain<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        moved: &mut impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        let Some(held) = &mut self.held else { return Poll::Ready(Ok(())) };
        let wrote = ready!(Pin::new(writer).poll_write(cx, &held.buffer[held.start..held.end]))?;
        if wrote == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        held.start += wrote;
        self.unflushed = true;
        moved(wrote);
        if held.start == held.end {
            let then = self.held.take().and_then(|held| held.then);
            self.end(then)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes note of how the reader ended, once all before it has been written.
    fn end(&mut self, then: Option<io::Result<()>>) -> io::Result<()> {
        if let Some(ended) = then {
            ended?;
            self.state = State::Closing;
        }
        Ok(())
    }

    fn close(&mut self, cx: &mut Context<'_>, writer: &mut impl Ending) -> Poll<io::Result<()>> {
        writer.ending();
        match ready!(Pin::new(writer).poll_shutdown(cx)) {
            // The other side has gone already: there is nobody left to tell.
            Err(e) if e.kind() != io::ErrorKind::NotConnected => return Poll::Ready(Err(e)),
            _ => {}
        }
        self.state = State::Done;
        Poll::Ready(Ok(()))
    }
}
