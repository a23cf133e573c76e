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

use std::collections::HashMap;
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
    by_identity: HashMap<SpiffeId, usize>,
    /// Counts uses; an entry's last one tells its age.
    clock: u64,
}

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
        entry.used = self.clock;
        Some(Arc::clone(&entry.peer))
    }

    /// Remembers a chain whose peer has finished its handshake, among at most `most`.
    pub(super) fn insert(&mut self, key: Key, peer: Arc<Peer>, most: usize) {
        if most == 0 {
            return;
        }
        self.remove(&key);
        if self.by_identity.get(&peer.id).is_some_and(|held| *held >= most.div_ceil(SHARES)) {
            self.evict(|entry| entry.peer.id == peer.id);
        } else if self.entries.len() >= most {
            self.evict(|_| true);
        }
        self.clock += 1;
        *self.by_identity.entry(peer.id.clone()).or_default() += 1;
        self.entries.insert(key, Entry { peer, used: self.clock });
    }

    /// Drops the one among these that was used longest ago. Looks at each: that is a fraction of the signature checks which
    /// an insertion has just paid for.
    fn evict(&mut self, among: impl Fn(&Entry) -> bool) {
        let oldest = self.entries.iter().filter(|(_, e)| among(e)).min_by_key(|(_, e)| e.used);
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        if let Some(held) = self.by_identity.get_mut(&entry.peer.id) {
            *held -= 1;
            if *held == 0 {
                self.by_identity.remove(&entry.peer.id);
            }
        }
    }
}
