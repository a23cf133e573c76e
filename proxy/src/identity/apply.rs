//! A push from the control plane into the snapshots: everything is read and built first, then swapped in; what cannot be
//! read changes nothing.

use std::sync::Arc;

use postern_config::bundle::BundleSet;
use postern_config::id::TrustDomain;
use postern_config::policy::{MtlsModes, Policy};
use postern_config::revocation::Revocations;
use postern_config::wire::{self, v1};

use crate::discover::Services;
use crate::policy::CurrentPolicy;
use crate::readiness::{Missing, Readiness};
use crate::snapshot::{Documents, Snapshots, Trust};
use crate::telemetry::Metrics;
use crate::tls::Tls;

#[cfg(test)]
mod tests;

/// The sections that are in force, as they came; this is also what the cache keeps.
pub(super) struct Held {
    trust_domain: TrustDomain,
    state: v1::WatchResponse,
}

impl Held {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, state: v1::WatchResponse::default() }
    }

    /// The generation in force; 0 for none.
    pub(super) fn generation(&self) -> u64 {
        self.state.generation
    }

    /// Everything that is in force.
    pub(super) fn state(&self) -> &v1::WatchResponse {
        &self.state
    }

    /// Puts a push in force; false where it held nothing new.
    pub(super) fn apply(
        &mut self,
        message: &v1::WatchResponse,
        snapshots: &Snapshots,
        tls: &Tls,
        metrics: &Metrics,
        readiness: &Readiness,
    ) -> Result<bool, String> {
        let bundles = message.bundles.as_ref().map(|b| self.read_bundles(b, snapshots)).transpose()?;
        let revoked = message.revocations.as_ref().map(Revocations::try_from).transpose().map_err(text)?;
        let policies = message.policies.as_ref().map(wire::policies).transpose().map_err(text)?;
        let services = message.services.as_ref().map(wire::services).transpose().map_err(text)?;
        let earlier = snapshots.services.load();
        let services = services.map(|s| Services::new(&s, tls, &earlier)).transpose().map_err(text)?;
        if bundles.is_none() && revoked.is_none() && policies.is_none() && services.is_none() {
            return Ok(false);
        }

        // From here on nothing fails.
        let recheck = bundles.is_some() || revoked.is_some() || policies.is_some();
        self.keep(message);
        if bundles.is_some() || revoked.is_some() {
            let current = snapshots.trust.load_full();
            snapshots.trust.store(Arc::new(Trust {
                bundles: bundles.unwrap_or_else(|| current.bundles.clone()),
                revoked: revoked.unwrap_or_else(|| current.revoked.clone()),
            }));
        }
        if let Some((policies, modes)) = policies {
            let policy = Policy::compile(&policies, self.trust_domain.clone());
            publish_policy(policy, modes, snapshots, metrics);
        }
        let in_force = self.state.policies.clone().unwrap_or_default();
        snapshots.documents.store(Arc::new(Documents {
            generation: self.state.generation,
            policies: in_force.documents,
            peer_authentications: in_force.peer_authentications,
        }));
        if let Some(services) = services {
            snapshots.services.store(Arc::new(services));
        }
        if recheck {
            snapshots.announce_change();
        }
        self.tell(readiness);
        Ok(true)
    }

    /// The bundles of a push. The own trust domain's must be among them, and a bundle never goes back to an earlier sequence.
    fn read_bundles(&self, message: &v1::BundleSet, snapshots: &Snapshots) -> Result<BundleSet, String> {
        let bundles = BundleSet::try_from(message).map_err(text)?;
        if bundles.of(self.trust_domain.as_str()).is_none_or(|own| own.anchors().is_empty()) {
            return Err(format!("the bundle of {} is missing or trusts nobody", self.trust_domain));
        }
        let current = snapshots.trust.load();
        for bundle in bundles.iter() {
            let earlier = current.bundles.of(bundle.trust_domain().as_str());
            if let Some(earlier) = earlier.filter(|e| e.sequence() > bundle.sequence()) {
                return Err(format!(
                    "the bundle of {} goes back from sequence {} to {}",
                    bundle.trust_domain(),
                    earlier.sequence(),
                    bundle.sequence()
                ));
            }
        }
        Ok(bundles)
    }

    fn keep(&mut self, message: &v1::WatchResponse) {
        let state = &mut self.state;
        state.generation = message.generation.max(state.generation);
        state.bundles = message.bundles.clone().or_else(|| state.bundles.take());
        state.policies = message.policies.clone().or_else(|| state.policies.take());
        state.revocations = message.revocations.clone().or_else(|| state.revocations.take());
        state.services = message.services.clone().or_else(|| state.services.take());
    }

    fn tell(&self, readiness: &Readiness) {
        let pieces = [
            (self.state.bundles.is_some(), Missing::Bundle),
            (self.state.policies.is_some(), Missing::Policy),
            (self.state.revocations.is_some(), Missing::Revocations),
        ];
        pieces.into_iter().filter(|(held, _)| *held).for_each(|(_, piece)| readiness.held(piece));
    }
}

fn publish_policy(policy: Policy, modes: MtlsModes, snapshots: &Snapshots, metrics: &Metrics) {
    let next = Arc::new(CurrentPolicy::new(policy, modes, metrics));
    let earlier = snapshots.policy.swap(Some(Arc::clone(&next)));
    let gone = earlier.iter().flat_map(|e| e.policy().names().to_vec());
    for name in gone.filter(|name| !next.policy().names().contains(name)) {
        metrics.forget_decisions(&name.0);
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
