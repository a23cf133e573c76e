//! The successor's side. It happens before anything else runs, hence blocking, with a limit on each wait.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use socket2::Socket;

use super::{HandoverError, Message, PROTOCOL, unexpected};
use crate::inherit::Inherited;
use crate::os::caller::Caller;
use crate::os::private_socket::{self, Kind};
use crate::os::{passing, watch_messages};

/// For each answer. The first one waits for a renewal of the predecessor's that is under way.
const PATIENCE: Duration = Duration::from_secs(30);
/// For the last one, which is only news: this process serves already.
const FAREWELL: Duration = Duration::from_secs(2);

/// The process that ran before and waits to hear that this one is ready.
#[derive(Debug)]
pub struct Predecessor {
    connection: Socket,
    offered: Vec<SocketAddr>,
}

/// A predecessor that drains.
#[derive(Debug)]
pub struct Leaving(Socket);

impl Leaving {
    /// Waits until its process has ended; it says nothing more before.
    pub async fn gone(self) -> io::Result<()> {
        self.0.set_nonblocking(true)?;
        let connection = watch_messages(self.0)?;
        loop {
            let mut readable = connection.readable().await?;
            let received = readable.try_io(|connection| passing::receive(connection.get_ref()));
            if received.is_ok_and(|received| received.is_ok_and(|(message, _)| message.is_empty())) {
                return Ok(());
            }
        }
    }
}

/// Takes the sockets of the proxy that answers at `path` into `inherited`; none where nobody answers.
pub fn take(path: &Path, inherited: &mut Inherited) -> Result<Option<Predecessor>, HandoverError> {
    let connection = match private_socket::connect(path, Kind::Messages) {
        Ok(connection) => connection,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    // Whoever listens there could give us sockets of its own choosing.
    let caller = Caller::trusted(&connection)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut predecessor = Predecessor { connection, offered: Vec::new() };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    predecessor.say(&Message::Hello { protocol: PROTOCOL, version })?;
    loop {
        match Message::read(passing::receive(&predecessor.connection)?)? {
            (Message::Socket { role, address }, Some(fd)) => {
                let at = inherited.add(fd, Some(role)).map_err(io::Error::other)?;
                if at != address {
                    return Err(io::Error::other(format!("the socket of {address} is bound to {at}")).into());
                }
                predecessor.offered.push(at);
            }
            (Message::End { count }, None) if count == predecessor.offered.len() => break,
            (Message::Refused { why }, None) => return Err(HandoverError::Refused(why)),
            (other, _) => return Err(unexpected(&other).into()),
        }
    }
    tracing::info!(pid = caller.pid, sockets = predecessor.offered.len(), "taking over from a running proxy");
    Ok(Some(predecessor))
}

impl Predecessor {
    /// Tells it that this process serves the sockets at `bound`, as far as they were its own. It may have died meanwhile:
    /// then there is nobody left to tell. What is given back ends with it.
    pub fn ready(self, bound: &[SocketAddr]) -> Option<Leaving> {
        let told = || -> io::Result<()> {
            for address in self.offered.iter().filter(|address| bound.contains(address)) {
                self.say(&Message::Taken { address: *address })?;
            }
            self.say(&Message::Ready)?;
            self.connection.set_read_timeout(Some(FAREWELL))?;
            match Message::read(passing::receive(&self.connection)?)? {
                (Message::Farewell, None) => Ok(()),
                (other, _) => Err(unexpected(&other)),
            }
        };
        match told() {
            Ok(()) => {
                tracing::info!("taken over; the other proxy drains");
                Some(Leaving(self.connection))
            }
            Err(error) => {
                tracing::warn!(%error, "the proxy that was taken over from does not answer any more");
                None
            }
        }
    }

    fn say(&self, message: &Message) -> io::Result<()> {
        passing::send(&self.connection, &message.to_bytes(), None)
    }
}
