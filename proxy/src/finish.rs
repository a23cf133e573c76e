//! How connections end: socket options at the start of that end, resets where an orderly close would lie.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::telemetry::{Outcome, Record};
use crate::tls::{Failure, Stream};

/// Sends small writes at once; a proxy must not add Nagle's delay.
pub fn tune(tcp: &TcpStream) {
    // An error means that the socket is already dead, which the next read reports better.
    let _ = tcp.set_nodelay(true);
}

/// Makes the coming close of `tcp` a reset: its peer must see an error, not the end of a complete stream.
pub fn reset(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// The same for the socket under TLS; no close_notify is sent.
pub fn reset_tls(tls: &Stream) {
    reset(tls.get_ref().0.inner());
}

/// Resets both sides.
pub fn reset_both(tls: &Stream, plain: &TcpStream) {
    reset_tls(tls);
    reset(plain);
}

/// Notes a failed handshake.
pub fn refused(record: &mut Record, failure: &Failure) -> Outcome {
    record.reason = Some(failure.reason);
    record.detail = Some(failure.to_string());
    Outcome::HandshakeFailed
}

/// Notes how a relay ended; where it broke, both sides are told so.
pub fn ended(end: io::Result<()>, tls: &Stream, plain: &TcpStream, record: &mut Record) -> Outcome {
    let Err(error) = end else { return Outcome::Completed };
    reset_both(tls, plain);
    record.detail = Some(format!("broken off: {}", error.kind()));
    Outcome::Broken
}
