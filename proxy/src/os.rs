//! The operating system's corners; the only place where `unsafe` may stand.

use std::io;
use std::net::TcpListener;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a non-blocking listening socket for connections, without tokio's own accept: that would register each accepted
/// socket with the acceptor's runtime only to have it taken out again.
pub fn watch_listener(socket: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: std's TcpListener owns its descriptor, returns the same one from every `as_raw_fd`, and closes it only when
    // it is dropped, which the AsyncFd that owns it does after deregistering it.
    #[expect(unsafe_code, reason = "the contract above is met by std's type")]
    let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(watched?)
}
