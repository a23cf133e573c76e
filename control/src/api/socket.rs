//! The operators' door: a Unix socket with mode 0600 that asks the kernel who is on the other end.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admin::Operator;

/// Operators at once; more are a mistake of a script.
const CONNECTIONS: usize = 64;
/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a request may take to arrive, and a running one to end on a stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// Binds the socket, replacing a stale one. Nobody else's live socket can be there: the data directory is locked.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (_held, short) = shortened(path)?;
    let listener = UnixListener::bind(short)?;
    // The directory has mode 0700 already, so there is no moment at which others could connect.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A way to `path` that the system takes as a socket's address. That has room for 107 bytes only, and data directories may lie
/// deep; through the open directory, which has to be held meanwhile, the way is short.
pub fn shortened(path: &Path) -> io::Result<(Option<File>, PathBuf)> {
    const ROOM: usize = 107;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok((None, path.to_owned()));
    };
    if path.as_os_str().len() <= ROOM {
        return Ok((None, path.to_owned()));
    }
    let held = File::open(directory)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd())).join(name);
    Ok((Some(held), short))
}

/// Serves operators until `shutdown`, then removes the socket.
pub async fn serve(listener: UnixListener, path: PathBuf, router: Router, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        let (Ok(permit), stream) = accepted else { break };
        let Ok((stream, _)) = stream else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some(operator) = operator(&stream) else { continue };
        let (router, shutdown) = (router.clone(), shutdown.clone());
        tasks.spawn(async move {
            connection(stream, router.layer(Extension(operator)).layer(super::operators::local()), shutdown)
                .await;
            drop(permit);
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(PATIENCE, tasks.wait()).await;
    let _ = std::fs::remove_file(path);
}

/// Who connected, if it is ourselves or root.
fn operator(stream: &UnixStream) -> Option<Operator> {
    let own = nix::unistd::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if is_operator(peer.uid(), own) => Some(Operator(format!("uid {}", peer.uid()))),
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                pid = peer.pid(),
                "a stranger on the admin socket was turned away"
            );
            None
        }
        Err(error) => {
            tracing::warn!(%error, "the kernel does not say who is on the admin socket");
            None
        }
    }
}

fn is_operator(uid: u32, own: u32) -> bool {
    uid == own || uid == 0
}

async fn connection(stream: UnixStream, router: Router, shutdown: CancellationToken) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        () = shutdown.cancelled() => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(PATIENCE, served).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_user_and_root_are_operators() {
        assert!(is_operator(1000, 1000));
        assert!(is_operator(0, 1000));
        assert!(!is_operator(1001, 1000));
        assert!(!is_operator(1000, 0));
    }
}
