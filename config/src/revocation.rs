//! What is no longer believed although its dates are good: single certificates, whole identities, CA keys.

use std::collections::{HashMap, HashSet};

use crate::id::SpiffeId;

/// A revocation set; empty until somebody revokes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    /// (issuer key identifier, serial number) of single certificates, both as raw bytes.
    pub serials: HashSet<(Vec<u8>, Vec<u8>)>,
    /// Identities whose certificates with an earlier notBefore (seconds since 1970) are refused.
    pub identities: HashMap<SpiffeId, i64>,
    /// SHA-256 of the SubjectPublicKeyInfo of tainted keys; bites on every member of a path, anchor included.
    pub spkis: HashSet<[u8; 32]>,
}

impl Revocations {
    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty() && self.identities.is_empty() && self.spkis.is_empty()
    }
}
