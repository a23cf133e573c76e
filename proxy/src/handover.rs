//! How a new process takes the listening sockets of a running one: over a Unix socket, descriptors and all (`SCM_RIGHTS`).
//!
//! ```text
//! successor                          predecessor
//! Hello { protocol } ──────────────▶ stops renewing its identity
//!   ◀──────────── Socket + descriptor, for each; End { count }
//! … gets its identity, starts …      serves as before
//! Taken { address }, for each; Ready ▶ accepts no more, drains, ends
//!   ◀─────────────────────── Farewell
//! renews the identity ◀─────────────── (its end)
//! ```
//! Both hold the same sockets in between, so none of their queues is ever closed. A successor that goes before `Ready` changes
//! nothing. Each message is JSON in a packet of its own, so there is no half of one.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::inherit::Role;
use crate::os::caller::CallerError;

mod give;
mod take;
#[cfg(test)]
mod tests;

pub use give::{Giver, Offer, Offers};
pub use take::{Leaving, Predecessor, take};

/// Grows when a message changes its meaning; the two processes must agree on it, not on their versions.
const PROTOCOL: u32 = 1;

/// What the two processes say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "lowercase", deny_unknown_fields)]
enum Message {
    /// The successor begins.
    Hello { protocol: u32, version: String },
    /// No, and why.
    Refused { why: String },
    /// One listening socket; its descriptor comes with it.
    Socket { role: Role, address: SocketAddr },
    /// That was all of them.
    End { count: usize },
    /// The successor will serve this one; others are its predecessor's to close.
    Taken { address: SocketAddr },
    /// The successor serves.
    Ready,
    /// The predecessor has understood.
    Farewell,
}

/// Why there is no handover.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The running proxy does not want to.
    #[error("the running proxy does not hand its sockets over: {0}")]
    Refused(String),
    /// Somebody else.
    #[error("handover: {0}")]
    Caller(#[from] CallerError),
    /// It broke off.
    #[error("the handover broke off: {0}; the running proxy goes on, if it still runs")]
    Broken(#[from] io::Error),
}

impl Message {
    fn to_bytes(&self) -> Vec<u8> {
        // Strings and numbers: this cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a packet; an empty one is the end of the connection.
    fn read(packet: (Vec<u8>, Option<OwnedFd>)) -> io::Result<(Self, Option<OwnedFd>)> {
        let (bytes, passed) = packet;
        if bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other process has gone"));
        }
        Ok((serde_json::from_slice(&bytes)?, passed))
    }
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{message:?} does not belong here"))
}
