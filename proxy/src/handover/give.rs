//! The predecessor's side: one successor at a time, and nothing changes before that one is ready.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::Socket;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Message, PROTOCOL, unexpected};
use crate::inherit::Role;
use crate::os::caller::Caller;
use crate::os::private_socket::{Occupied, PrivateSocket};
use crate::os::{passing, watch_messages};
use crate::succession::{Held, Pen, Succession};

/// For the first message, and for the successor to take what it is sent. How long it needs to become ready is its own affair.
const PATIENCE: Duration = Duration::from_secs(5);
/// For a renewal that is under way.
const RENEWAL: Duration = Duration::from_secs(3);
/// After a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// A second handle of one listening socket.
#[derive(Debug)]
pub struct Offer {
    /// What it is for.
    pub role: Role,
    /// The socket.
    pub socket: TcpListener,
}

/// The sockets that can be handed over. Emptied when this process stops accepting by itself: as long as one handle is open,
/// the kernel would go on queueing connections that nobody serves.
#[derive(Debug, Clone, Default)]
pub struct Offers(Arc<Mutex<Option<Vec<Offer>>>>);

impl Offers {
    /// These.
    pub fn new(offers: Vec<Offer>) -> Self {
        Self(Arc::new(Mutex::new(Some(offers))))
    }

    /// Closes these handles; nothing can be handed over any more.
    pub fn close(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Further handles of all of them, with their addresses; none once they are closed.
    fn duplicates(&self) -> io::Result<Option<Vec<(Role, SocketAddr, OwnedFd)>>> {
        let offers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let duplicate =
            |o: &Offer| Ok((o.role, o.socket.local_addr()?, o.socket.as_fd().try_clone_to_owned()?));
        offers.as_ref().map(|offers| offers.iter().map(duplicate).collect()).transpose()
    }
}

/// What a handover concerns.
#[derive(Debug, Clone)]
pub struct Giver {
    /// The sockets.
    pub offers: Offers,
    /// Held from a successor's first word on, and for good once it is ready.
    pub pen: Pen,
    /// Where the end of it is told.
    pub succession: Succession,
}

impl Giver {
    /// Waits for successors, from when `open` is cancelled until `stop` is. `published` is dropped once they find the socket.
    pub async fn run(
        self,
        socket: PrivateSocket,
        occupied: Occupied,
        open: CancellationToken,
        stop: CancellationToken,
        published: mpsc::Sender<Infallible>,
    ) -> io::Result<()> {
        tokio::select! {
            () = open.cancelled() => {}
            () = stop.cancelled() => return Ok(()),
        }
        let (socket, _place) = socket.publish(occupied).map_err(io::Error::other)?;
        let listener = watch_messages(Socket::from(socket))?;
        drop(published);
        let tasks = TaskTracker::new();
        let busy = Rc::new(Cell::new(false));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&listener) => accepted,
            };
            let Ok(connection) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (giver, busy, stop) = (self.clone(), Rc::clone(&busy), stop.clone());
            tasks.spawn_local(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = giver.meet(&connection, &busy, &stop) => {}
                }
            });
        }
        tasks.close();
        tasks.wait().await;
        Ok(())
    }

    /// One who connects.
    async fn meet(&self, connection: &AsyncFd<Socket>, busy: &Cell<bool>, stop: &CancellationToken) {
        let caller = match Caller::trusted(connection.get_ref()) {
            Ok(caller) => caller,
            Err(error) => return tracing::warn!(%error, "a stranger on the handover socket was turned away"),
        };
        if busy.replace(true) {
            // Its first word is read first: closing over what is unread would take the answer along.
            let _ = tokio::time::timeout(PATIENCE, hear(connection)).await;
            let why = "another process is taking over already".to_owned();
            let _ = say(connection, &Message::Refused { why }, None).await;
            return;
        }
        tracing::info!(pid = caller.pid, "a successor asks for the sockets");
        match self.hand_over(connection).await {
            Ok(_pen) => {
                tracing::info!(pid = caller.pid, "the successor is ready; it has the sockets");
                // Nobody renews here any more, and nobody else is given anything.
                stop.cancelled().await;
            }
            Err(error) => {
                tracing::warn!(pid = caller.pid, %error, "the successor is not ready and has gone; this proxy goes on");
                busy.set(false);
            }
        }
    }

    async fn hand_over(&self, connection: &AsyncFd<Socket>) -> io::Result<Held> {
        let sending = async {
            match hear(connection).await? {
                Message::Hello { protocol: PROTOCOL, .. } => {}
                Message::Hello { protocol, version } => {
                    let why = format!(
                        "it speaks version {PROTOCOL} of the handover and postern-proxy {version} speaks {protocol}; \
                         stop it and start anew"
                    );
                    say(connection, &Message::Refused { why: why.clone() }, None).await?;
                    return Err(io::Error::other(why));
                }
                other => return Err(unexpected(&other)),
            }
            // What is renewed from here on would be lost on the successor, which reads the cache next.
            let Ok(pen) = tokio::time::timeout(RENEWAL, self.pen.take()).await else {
                let why = "it has taken over itself and its predecessor still drains; try again when that has ended";
                say(connection, &Message::Refused { why: why.to_owned() }, None).await?;
                return Err(io::Error::other(why));
            };
            let Some(offers) = self.offers.duplicates()? else {
                let why = "it is stopping; wait for its end".to_owned();
                say(connection, &Message::Refused { why: why.clone() }, None).await?;
                return Err(io::Error::other(why));
            };
            let count = offers.len();
            for (role, address, socket) in offers {
                say(connection, &Message::Socket { role, address }, Some(&socket)).await?;
            }
            say(connection, &Message::End { count }, None).await?;
            Ok(pen)
        };
        let sent = tokio::time::timeout(PATIENCE, sending).await;
        let pen = sent.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let mut taken = Vec::new();
        loop {
            match hear(connection).await? {
                Message::Taken { address } => taken.push(address),
                Message::Ready => break,
                other => return Err(unexpected(&other)),
            }
        }
        self.pen.give_away();
        self.succession.conclude(taken);
        // It serves already; whether it hears this changes nothing.
        let _ = say(connection, &Message::Farewell, None).await;
        Ok(pen)
    }
}

async fn accept(listener: &AsyncFd<Socket>) -> io::Result<AsyncFd<Socket>> {
    loop {
        let mut readable = listener.readable().await?;
        if let Ok(accepted) = readable.try_io(|listener| listener.get_ref().accept()) {
            let (connection, _) = accepted?;
            connection.set_nonblocking(true)?;
            return watch_messages(connection);
        }
    }
}

async fn say(connection: &AsyncFd<Socket>, message: &Message, passed: Option<&OwnedFd>) -> io::Result<()> {
    let bytes = message.to_bytes();
    loop {
        let mut writable = connection.writable().await?;
        let passed = passed.map(|fd| fd.as_fd());
        if let Ok(sent) = writable.try_io(|connection| passing::send(connection.get_ref(), &bytes, passed)) {
            return sent;
        }
    }
}

async fn hear(connection: &AsyncFd<Socket>) -> io::Result<Message> {
    loop {
        let mut readable = connection.readable().await?;
        if let Ok(received) = readable.try_io(|connection| passing::receive(connection.get_ref())) {
            // A successor passes nothing; what it does pass is closed.
            return Message::read(received?).map(|(message, _)| message);
        }
    }
}
