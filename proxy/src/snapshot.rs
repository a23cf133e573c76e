//! What connections read: immutable snapshots, each swapped as a whole. A connection loads what it needs and never waits.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use arc_swap::{ArcSwap, ArcSwapOption};
use postern_config::bundle::BundleSet;
use postern_config::revocation::Revocations;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::discover::Services;
use crate::policy::CurrentPolicy;
use crate::tls::Credentials;

/// Who is trusted and who no longer is.
#[derive(Debug, Default)]
pub struct Trust {
    /// Bundles by trust domain.
    pub bundles: BundleSet,
    /// What is revoked.
    pub revoked: Revocations,
}

/// The policy documents in force as they came; what decides is compiled from them.
#[derive(Debug, Default)]
pub struct Documents {
    /// Their generation; 0 before the first push.
    pub generation: u64,
    /// AuthorizationPolicies, each one JSON.
    pub policies: Vec<String>,
    /// PeerAuthentications, likewise.
    pub peer_authentications: Vec<String>,
}

/// Every snapshot, for every worker. Publishing validates first and stores last; reading is a load.
#[derive(Debug)]
pub struct Snapshots {
    /// This proxy's own certificate and key; none before the first enrollment.
    pub credentials: ArcSwapOption<Credentials>,
    /// Bundles and revocations.
    pub trust: ArcSwap<Trust>,
    /// The policy in force; none before the first push, and then nobody is let in.
    pub policy: ArcSwapOption<CurrentPolicy>,
    /// Upstream services.
    pub services: ArcSwap<Services>,
    /// What the control plane published, for operators to read.
    pub documents: ArcSwap<Documents>,
    /// When the certificate is to be renewed, milliseconds since 1970; 0 before the first one. For operators to read.
    pub renewal_ms: AtomicI64,
    /// The time by which all of this is judged.
    pub clock: Clock,
    changed: watch::Sender<u64>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            credentials: ArcSwapOption::empty(),
            trust: ArcSwap::default(),
            policy: ArcSwapOption::empty(),
            services: ArcSwap::default(),
            documents: ArcSwap::default(),
            renewal_ms: AtomicI64::new(0),
            clock: Clock::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl Snapshots {
    /// This proxy's credentials, if it holds some that have not expired.
    pub fn usable_credentials(&self) -> Option<Arc<Credentials>> {
        self.credentials.load_full().filter(|c| self.clock.now() <= c.not_after())
    }

    /// Tells the workers that something which open connections depend on was replaced.
    pub fn announce_change(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Wakes at every [`Self::announce_change`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
