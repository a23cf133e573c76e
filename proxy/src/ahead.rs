//! Reads ahead of a reader that asks for little: rustls takes 4 KiB a call, and a system call for each would cost more than
//! its cryptography.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffers::{Buffer, Size};

/// A stream that is read in large pieces and handed out in small ones. Writing is the stream's own.
#[derive(Debug)]
pub struct ReadAhead<S> {
    stream: S,
    /// What was read and not asked for yet; none as soon as everything was.
    ahead: Option<Ahead>,
    /// What the next read takes.
    size: Size,
}

#[derive(Debug)]
struct Ahead {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl<S> ReadAhead<S> {
    /// The stream below; what it yields comes after what was read ahead.
    pub fn inner(&self) -> &S {
        &self.stream
    }
}

impl<S> From<S> for ReadAhead<S> {
    fn from(stream: S) -> Self {
        Self { stream, ahead: None, size: Size::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut ahead = match this.ahead.take() {
            Some(ahead) => ahead,
            // Who asks for as much as we would take gets it without a copy.
            None if buf.remaining() >= this.size.bytes() => {
                return Pin::new(&mut this.stream).poll_read(cx, buf);
            }
            None => {
                let mut buffer = Buffer::take(this.size);
                let size = buffer.size();
                let mut read = ReadBuf::new(&mut buffer);
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
                let end = read.filled().len();
                this.size = size.after(end);
                Ahead { buffer, start: 0, end }
            }
        };
        let taken = (ahead.end - ahead.start).min(buf.remaining());
        buf.put_slice(&ahead.buffer[ahead.start..ahead.start + taken]);
        ahead.start += taken;
        if ahead.start < ahead.end {
            this.ahead = Some(ahead);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn everything_comes_in_order_whatever_is_asked_for_and_nothing_is_held_in_the_end() {
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i * 31 % 251) as u8).collect();
        for asked in [1000, 4096, 20_000, 300_000] {
            let mut stream = ReadAhead::from(sent.as_slice());
            let (mut all, mut chunk, mut largest) = (Vec::new(), vec![0; asked], Size::Small);
            loop {
                let got = stream.read(&mut chunk).await.unwrap();
                largest = largest.max(stream.size);
                if got == 0 {
                    break;
                }
                all.extend_from_slice(&chunk[..got]);
            }
            assert!(all == sent, "{asked} at a time");
            assert!(stream.ahead.is_none());
            let grew = if asked < Size::Small.bytes() { Size::Large } else { largest };
            assert_eq!(largest, grew, "{asked} at a time");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_stream_that_has_nothing_costs_no_buffer() {
        let (_open, far) = tokio::io::duplex(64);
        let mut stream = ReadAhead::from(far);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut bytes = [0; 8];
        assert!(Pin::new(&mut stream).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes)).is_pending());
        assert!(stream.ahead.is_none());
    }
}
