//! One process after another on the same sockets: whether a successor has taken over, and who may renew the identity.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

/// Whether a successor holds this process's sockets and is ready.
#[derive(Debug, Clone, Default)]
pub struct Succession {
    taken: Arc<OnceLock<Vec<SocketAddr>>>,
    happened: CancellationToken,
}

impl Succession {
    /// From here on a successor serves these sockets. Only the first one counts.
    pub fn conclude(&self, taken: Vec<SocketAddr>) {
        let _ = self.taken.set(taken);
        self.happened.cancel();
    }

    /// Ends when a successor has taken over.
    pub async fn happened(&self) {
        self.happened.cancelled().await;
    }

    /// Whether a successor serves the socket at this address.
    pub fn includes(&self, address: SocketAddr) -> bool {
        self.taken.get().is_some_and(|taken| taken.contains(&address))
    }
}

/// The right to renew the identity and to write its cache: one process at a time has it. Two that renew the same
/// certificate would supersede each other's.
#[derive(Debug, Clone, Default)]
pub struct Pen {
    hand: Arc<Mutex<()>>,
    given_away: Arc<AtomicBool>,
}

/// The pen in somebody's hand.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "held for its drop")] OwnedMutexGuard<()>);

impl Pen {
    /// Takes it, as soon as a renewal that is under way has ended.
    pub async fn take(&self) -> Held {
        Held(Arc::clone(&self.hand).lock_owned().await)
    }

    /// It does not come back: a successor has it.
    pub fn give_away(&self) {
        self.given_away.store(true, Ordering::Relaxed);
    }

    /// Whether a successor has it.
    pub fn is_given_away(&self) -> bool {
        self.given_away.load(Ordering::Relaxed)
    }

    /// Takes it, if nobody has it.
    pub fn try_take(&self) -> Option<Held> {
        Arc::clone(&self.hand).try_lock_owned().ok().map(Held)
    }
}
