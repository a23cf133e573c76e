//! What an HTTP/2 connection writes in one turn of its task goes out together: one TLS record and one system call.
//!
//! The HTTP/2 library flushes after every DATA frame, so that answers which are ready at the same time would cost a record
//! each. A corked stream takes small writes into a buffer and their flushes on trust; whoever drives the connection flushes
//! the [`Cork`] at the end of each turn. Large writes pass it by, behind what it holds.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffers::{Buffer, Size};

/// What is no smaller than this gains nothing from company.
const LARGE: usize = Size::Small.bytes() / 2;

/// The stream's end that the HTTP library reads and writes.
pub struct Corked<S>(Rc<RefCell<Inner<S>>>);

/// The other end, for whoever drives the library.
pub struct Cork<S>(Rc<RefCell<Inner<S>>>);

struct Inner<S> {
    stream: S,
    held: Option<Held>,
}

/// Bytes between `start` and `end` are still to be written.
struct Held {
    buffer: Buffer,
    start: usize,
    end: usize,
}

/// Both ends of `stream`.
pub fn cork<S>(stream: S) -> (Corked<S>, Cork<S>) {
    let inner = Rc::new(RefCell::new(Inner { stream, held: None }));
    (Corked(Rc::clone(&inner)), Cork(inner))
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// Writes what is held and flushes the stream. While this is pending, the task is woken as by any write.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.drain(cx))?;
        Pin::new(&mut inner.stream).poll_flush(cx)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(held) = &mut self.held {
            let rest = &held.buffer[held.start..held.end];
            let wrote = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            held.start += wrote;
            if held.start == held.end {
                self.held = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let size = slices.iter().map(|slice| slice.len()).sum::<usize>();
        let room = self.held.as_ref().map_or(Size::Small.bytes(), |held| held.buffer.len() - held.end);
        if size >= LARGE || size > room {
            ready!(self.drain(cx))?;
        }
        if size >= LARGE {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        let held =
            self.held.get_or_insert_with(|| Held { buffer: Buffer::take(Size::Small), start: 0, end: 0 });
        for slice in slices {
            held.buffer[held.end..held.end + slice.len()].copy_from_slice(slice);
            held.end += slice.len();
        }
        Poll::Ready(Ok(size))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.drain(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn small_writes_of_a_turn_are_one_and_every_byte_keeps_its_place() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (mut corked, cork) = cork(near);
        let mut sent = Vec::new();
        for size in [1, 500, LARGE - 1, 500, LARGE, 3, 5 * LARGE, 7, LARGE - 1, LARGE - 1, LARGE - 1] {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 7 + size) as u8).collect();
            corked.write_all(&bytes).await.unwrap();
            corked.flush().await.unwrap();
            sent.extend(bytes);
        }
        poll_fn(|cx| cork.poll_flush(cx)).await.unwrap();
        assert!(cork.0.borrow().held.is_none(), "a quiet connection holds no buffer");
        let mut got = vec![0; sent.len()];
        far.read_exact(&mut got).await.unwrap();
        assert!(got == sent);

        corked.write_all(b"answer").await.unwrap();
        corked.flush().await.unwrap();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut byte = [0; 16];
        assert!(Pin::new(&mut far).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending());
        poll_fn(|cx| cork.poll_flush(cx)).await.unwrap();
        assert_eq!(far.read(&mut byte).await.unwrap(), 6);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_full_stream_holds_its_writer_back_and_loses_nothing() {
        let (near, mut far) = tokio::io::duplex(10);
        let (mut corked, cork) = cork(near);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (mut taken, piece) = (0, [7; 1000]);
        while let Poll::Ready(wrote) = Pin::new(&mut corked).poll_write(&mut cx, &piece) {
            taken += wrote.unwrap();
            assert!(cork.poll_flush(&mut cx).is_pending());
            assert!(taken <= Size::Small.bytes());
        }
        let reading = async {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            got.len()
        };
        let (got, ()) = tokio::join!(reading, async {
            corked.shutdown().await.unwrap();
            drop((corked, cork));
        });
        assert_eq!(got, taken);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_broken_stream_is_told_of_at_the_end_of_the_turn() {
        let (near, far) = tokio::io::duplex(10);
        let (mut corked, cork) = cork(near);
        drop(far);
        corked.write_all(b"answer").await.unwrap();
        assert!(poll_fn(|cx| cork.poll_flush(cx)).await.is_err());
    }
}
