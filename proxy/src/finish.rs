//! How connections end: socket options at the start of that end, resets where an orderly close would lie.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;

use crate::prefixed::Prefixed;
use crate::telemetry::{Outcome, Record};
use crate::tls::{Failure, Stream};

/// A stream that is told of its end before it is shut down.
pub trait Ending: AsyncRead + AsyncWrite + Unpin {
    /// What is written from here on waits for the end of the stream and leaves with it.
    fn ending(&self) {}
}

/// A stream whose end can be made a reset: its peer must see an error, not the end of a complete stream.
pub trait Socketed: Ending {
    /// The socket below.
    fn socket(&self) -> &TcpStream;

    /// Makes the coming close a reset; no close_notify is sent.
    fn reset(&self) {
        reset(self.socket());
    }
}

impl Ending for TcpStream {}

/// A pipe in memory, for tests and benches.
impl Ending for DuplexStream {}

impl Ending for Stream {
    /// close_notify and TCP's FIN share a segment: two would cost both hosts twice.
    fn ending(&self) {
        hold(self.socket());
    }
}

impl<S: Ending> Ending for Prefixed<S> {
    fn ending(&self) {
        self.inner().ending();
    }
}

impl Socketed for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Socketed for Stream {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0.inner().inner()
    }
}

impl<S: Socketed> Socketed for Prefixed<S> {
    fn socket(&self) -> &TcpStream {
        self.inner().socket()
    }
}

/// Sends small writes at once; a proxy must not add Nagle's delay.
pub fn tune(tcp: &TcpStream) {
    // An error means that the socket is already dead, which the next read reports better.
    let _ = tcp.set_nodelay(true);
}

/// Holds back what does not fill a segment until `tcp` is shut down (tcp(7), TCP_CORK: for 200 ms at most).
fn hold(tcp: &TcpStream) {
    // An error means that the socket is already dead, as in `tune`.
    let _ = SockRef::from(tcp).set_tcp_cork(true);
}

/// Makes the coming close of `tcp` a reset.
pub fn reset(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// Notes a failed handshake.
pub fn refused(record: &mut Record, failure: &Failure) -> Outcome {
    record.reason = Some(failure.reason);
    record.detail = Some(failure.to_string());
    Outcome::HandshakeFailed
}

/// Notes how a relay ended; where it broke, both sides are told so.
pub fn ended(
    end: io::Result<()>,
    one: &impl Socketed,
    other: &impl Socketed,
    record: &mut Record,
) -> Outcome {
    let Err(error) = end else { return Outcome::Completed };
    one.reset();
    other.reset();
    record.detail = Some(format!("broken off: {}", error.kind()));
    Outcome::Broken
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn last_words_leave_with_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        tune(&near);
        hold(&near);
        near.write_all(b"farewell").await.unwrap();
        near.shutdown().await.unwrap();
        assert!(SockRef::from(&near).tcp_cork().unwrap());
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"farewell");
    }
}
