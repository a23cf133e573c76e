//! The verified-chain cache: a peer that comes again costs no signatures of its CAs; whatever can change is asked anew.
//!
//! Four fifths of a verification are facts about bytes that do not change: that they parse, keep SPIFFE's profile, and are
//! signed up to an anchor. An entry remembers them under the SHA-256 of the presented bytes. What can change is asked at
//! every hit, of the trust in force at that moment: whether that very anchor is still in the bundle of the peer's trust
//! domain, whether all dates of the path are good now, whether any member of the path is revoked. That the peer holds the
//! leaf's key (CertificateVerify) and what policy says are no matter of the chain: both are asked of every connection.
//!
//! - A hit can only confirm. Where an entry does not hold any longer it is dropped and the verifier decides: there may be
//!   another path, and its reason is the one that is reported.
//! - An entry is made only after the peer's Finished: chains are public, and whoever replays them must not fill the cache.
//! - No identity takes more than its share, and what was used longest ago goes first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use postern_config::id::SpiffeId;
use postern_config::svid::{MAX_CHAIN, MAX_CHAIN_BYTES, Peer, Role};
use prometheus_client::metrics::counter::Counter;
use rustls_pki_types::CertificateDer;

use super::sha256;
use crate::snapshot::Trust;

#[cfg(test)]
mod tests;

/// One identity takes at most one part in so many.
const SHARES: usize = 4;

/// A presented chain and what the peer was in that handshake, by their SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// Certificates are told apart by their lengths, so that no two chains read alike. None for a chain that the verifier
    /// refuses for its size before it looks at it.
    pub(super) fn of(chain: &[CertificateDer<'_>], role: Role) -> Option<Self> {
        let size: usize = chain.iter().map(|c| c.len()).sum();
        if chain.is_empty() || chain.len() > MAX_CHAIN || size > MAX_CHAIN_BYTES {
            return None;
        }
        let mut bytes = Vec::with_capacity(1 + size + chain.len() * size_of::<usize>());
        bytes.push(match role {
            Role::Client => 0,
            Role::Server => 1,
        });
        for certificate in chain {
            bytes.extend_from_slice(&certificate.len().to_be_bytes());
            bytes.extend_from_slice(certificate);
        }
        Some(Self(sha256(&bytes)))
    }
}

/// How often a presented chain was known. Shared by all workers: an addition each.
#[derive(Debug, Clone, Default)]
pub struct ChainCounters {
    /// Known, and everything that can change still good.
    pub hits: Counter,
    /// Verified in full.
    pub misses: Counter,
}

/// One worker's verified chains.
#[derive(Debug, Default)]
pub(super) struct Chains {
    entries: HashMap<Key, Entry>,
    by_age: Ages,
    by_identity: HashMap<SpiffeId, Ages>,
    /// Counts uses; an entry's last one tells its age.
    clock: u64,
}

/// Chains by their last use; the first one was used longest ago.
type Ages = BTreeMap<u64, Key>;

#[derive(Debug)]
struct Entry {
    peer: Arc<Peer>,
    used: u64,
}

impl Chains {
    /// Whom this chain speaks for, if it was verified before and everything that can change still holds at `now` (seconds
    /// since 1970).
    pub(super) fn find(&mut self, key: &Key, trust: &Trust, now: i64) -> Option<Arc<Peer>> {
        let entry = self.entries.get_mut(key)?;
        if entry.peer.still_verifies(&trust.bundles, &trust.revoked, now).is_err() {
            self.remove(key);
            return None;
        }
        self.clock += 1;
        let before = std::mem::replace(&mut entry.used, self.clock);
        let of_identity = self.by_identity.get_mut(&entry.peer.id);
        for ages in [Some(&mut self.by_age), of_identity].into_iter().flatten() {
            ages.remove(&before);
            ages.insert(self.clock, *key);
        }
        Some(Arc::clone(&entry.peer))
    }

    /// Remembers a chain whose peer has finished its handshake, among at most `most`.
    pub(super) fn insert(&mut self, key: Key, peer: Arc<Peer>, most: usize) {
        if most == 0 {
            return;
        }
        self.remove(&key);
        let share = self.by_identity.get(&peer.id).filter(|ages| ages.len() >= most.div_ceil(SHARES));
        let full = share.or(Some(&self.by_age).filter(|ages| ages.len() >= most));
        if let Some(oldest) = full.and_then(|ages| ages.values().next().copied()) {
            self.remove(&oldest);
        }
        self.clock += 1;
        self.by_age.insert(self.clock, key);
        self.by_identity.entry(peer.id.clone()).or_default().insert(self.clock, key);
        self.entries.insert(key, Entry { peer, used: self.clock });
    }

    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.by_age.remove(&entry.used);
        if let Some(ages) = self.by_identity.get_mut(&entry.peer.id) {
            ages.remove(&entry.used);
            if ages.is_empty() {
                self.by_identity.remove(&entry.peer.id);
            }
        }
    }
}
