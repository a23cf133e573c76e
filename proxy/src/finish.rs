//! How connections end: socket options at the start of that end, resets where an orderly close would lie.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::prefixed::Prefixed;
use crate::telemetry::{Outcome, Record};
use crate::tls::{Failure, Stream};

/// A stream whose end can be made a reset: its peer must see an error, not the end of a complete stream.
pub trait Socketed: AsyncRead + AsyncWrite + Unpin {
    /// The socket below.
    fn socket(&self) -> &TcpStream;

    /// Makes the coming close a reset; no close_notify is sent.
    fn reset(&self) {
        reset(self.socket());
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
