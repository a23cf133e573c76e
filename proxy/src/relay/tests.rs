//! The relay against in-memory streams: everything arrives, half-close passes, errors stay errors.

use std::cell::{Cell, RefCell};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::*;

#[derive(Default)]
struct Count {
    up: Cell<usize>,
    down: Cell<usize>,
}

impl Progress for Count {
    fn moved(&self, up: usize, down: usize) {
        self.up.set(self.up.get() + up);
        self.down.set(self.down.get() + down);
    }
}

#[tokio::test]
async fn everything_arrives_in_order_through_pipes_of_any_size() {
    for pipe in [1, 7, 4096, 100_000] {
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i * 31 % 251) as u8).collect();
        let (mut client, mut a) = duplex(pipe);
        let (mut b, mut server) = duplex(pipe);
        let count = Count::default();
        let echo = async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            server.write_all(&got).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let ask = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut back = Vec::new();
            client.read_to_end(&mut back).await.unwrap();
            back
        };
        let (end, (), back) = tokio::join!(relay(&mut a, &mut b, &count), echo, ask);
        end.unwrap();
        assert!(back == sent, "pipe of {pipe}");
        assert_eq!((count.up.get(), count.down.get()), (sent.len(), sent.len()));
    }
}

#[tokio::test]
async fn a_server_may_speak_first_and_close_first() {
    let (mut client, mut a) = duplex(64);
    let (mut b, mut server) = duplex(64);
    let count = Count::default();
    let serve = async {
        server.write_all(b"220 hello").await.unwrap();
        server.shutdown().await.unwrap();
        let mut rest = String::new();
        server.read_to_string(&mut rest).await.unwrap();
        rest
    };
    let ask = async {
        let mut greeting = String::new();
        client.read_to_string(&mut greeting).await.unwrap();
        client.write_all(b"still here").await.unwrap();
        client.shutdown().await.unwrap();
        greeting
    };
    let (end, rest, greeting) = tokio::join!(relay(&mut a, &mut b, &count), serve, ask);
    end.unwrap();
    assert_eq!((greeting.as_str(), rest.as_str()), ("220 hello", "still here"));
}

type Read = fn(&mut Context<'_>, &mut ReadBuf<'_>) -> Poll<io::Result<()>>;

/// A stream that reads as it is told, takes everything, and notes how it was ended.
struct Takes {
    read: Read,
    taken: usize,
    calls: RefCell<Vec<&'static str>>,
}

impl Takes {
    fn reading(read: Read) -> Self {
        Self { read, taken: 0, calls: RefCell::default() }
    }
}

impl Ending for Takes {
    fn ending(&self) {
        self.calls.borrow_mut().push("ending");
    }
}

impl AsyncRead for Takes {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        (self.read)(cx, buf)
    }
}

impl AsyncWrite for Takes {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.taken += buf.len();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.calls.borrow_mut().push("shutdown");
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_truncated_side_is_an_error_and_never_an_orderly_end() {
    let (_client, mut a) = duplex(64);
    // As TLS fails when the peer goes without a close_notify.
    let mut truncated = Takes::reading(|_, _| Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())));
    let error = relay(&mut a, &mut truncated, &Count::default()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn buffers_grow_with_traffic_and_are_held_only_while_something_is_in_them() {
    let mut flow = Flow::default();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut plenty: &[u8] = &vec![1; 1 << 20];
    let mut sink = Takes::reading(|_, _| Poll::Pending);
    assert!(matches!(flow.poll(&mut cx, &mut plenty, &mut sink, |_| {}), Ok(Poll::Ready(()))));
    assert_eq!(*sink.calls.borrow(), ["ending", "shutdown"], "told before it is shut down");
    assert!(flow.size > Size::Small);
    assert!(flow.held.is_none());
    let (_open, mut silent) = duplex(64);
    let mut flow = Flow::default();
    assert!(matches!(flow.poll(&mut cx, &mut silent, &mut sink, |_| {}), Ok(Poll::Pending)));
    assert!(flow.held.is_none(), "an idle direction holds no buffer");
}

/// A reader that yields bytes, then fails.
struct Breaks(Option<Vec<u8>>);

impl AsyncRead for Breaks {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.0.take() {
            Some(bytes) => buf.put_slice(&bytes),
            None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
        Poll::Ready(Ok(()))
    }
}

#[test]
fn what_came_before_an_error_is_written_before_it_is_reported() {
    for size in [1, PLENTY, PLENTY + 1] {
        let (mut flow, mut written) = (Flow::default(), Takes::reading(|_, _| Poll::Pending));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut reader = Breaks(Some(vec![7; size]));
        let error = flow.poll(&mut cx, &mut reader, &mut written, |_| {}).unwrap_err();
        assert_eq!((error.kind(), written.taken), (io::ErrorKind::ConnectionReset, size));
        assert!(written.calls.borrow().is_empty(), "an error is no orderly end");
    }
}

#[tokio::test]
async fn a_busy_direction_leaves_room_for_the_other() {
    let count = Count::default();
    let mut turns = 0;
    // Never at a loss: each read brings bytes and each write takes them.
    let endless = || {
        Takes::reading(|cx, buf| {
            // As sockets do: tokio makes a task that works on and on pause here.
            ready!(tokio::task::coop::poll_proceed(cx)).made_progress();
            buf.advance(buf.remaining());
            Poll::Ready(Ok(()))
        })
    };
    let relaying = async { relay(&mut endless(), &mut endless(), &count).await };
    tokio::pin!(relaying);
    poll_fn(|cx| {
        turns += 1;
        assert!(relaying.as_mut().poll(cx).is_pending(), "there is no end to this");
        if turns == 4 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    assert!(count.up.get() > 0 && count.down.get() > 0, "{} up, {} down", count.up.get(), count.down.get());
}
