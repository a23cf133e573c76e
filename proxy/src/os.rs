//! The operating system's corners; the only place where `unsafe` may stand.

use std::io;
use std::net::TcpListener;

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub mod activation;
pub mod caller;
pub mod passing;
pub mod private_socket;

/// Watches a non-blocking listening socket for connections, without tokio's own accept: that would register each accepted
/// socket with the acceptor's runtime only to have it taken out again.
pub fn watch_listener(socket: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: std's TcpListener owns its descriptor, returns the same one from every `as_raw_fd`, and closes it only when
    // it is dropped, which the AsyncFd that owns it does after deregistering it.
    #[expect(unsafe_code, reason = "the contract above is met by std's type")]
    let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(watched?)
}

/// Watches a non-blocking Unix socket of whole messages, which tokio has no type for.
pub fn watch_messages(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: socket2's Socket owns its descriptor, as std's types do, and keeps it until it is dropped.
    #[expect(unsafe_code, reason = "the contract above is met by socket2's type")]
    let watched = unsafe { AsyncFd::register(socket) };
    Ok(watched?)
}
