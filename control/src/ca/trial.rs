//! Who signs for whom while a new authority is on trial: for a share of the lineages the new one, for the others the old one.

use std::collections::HashMap;
use std::sync::Arc;

use super::rotation::{Rotation, Stage};
use super::{Ca, CaError, Issuing, requests};
use crate::digest::hex;
use crate::store::{Authority, Kind, State, Store};

/// The bounds of the pause between two reports of one proxy, milliseconds: a tenth of the watch within them.
const REPORTS: (i64, i64) = (500, 30_000);

/// An issuing CA on trial at this replica.
#[derive(Debug)]
pub struct OnTrial {
    /// The rotation that tries it.
    pub rotation: Rotation,
    /// What signs for its share.
    pub issuing: Arc<Issuing>,
}

/// All trials, as the store had them when a generation was built; those that were rolled back as long as their leaves live.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trials(Vec<Current>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Current {
    rotation: Rotation,
    /// Key ids (hex) of the issuing CAs that are on trial, and whose they are.
    issuing: HashMap<String, String>,
}

impl Trials {
    /// From the store's rows.
    pub fn new(rotations: Vec<Rotation>, rows: &[Authority]) -> Self {
        let tried = rotations.into_iter().filter(|r| matches!(r.stage, Stage::Canary | Stage::RollingBack));
        let current = tried.map(|rotation| {
            let own = rows.iter().filter(|a| rotation.tries(a));
            let issuing = own.map(|a| (a.key_id.clone(), a.replica.clone())).collect();
            Current { rotation, issuing }
        });
        Self(current.collect())
    }

    /// Whether this lineage's proxy, which presents a certificate of `issuer` (hex) to `replica`, shall have another one at once: from
    /// the authority on trial if it is among those who go first, from the one of before if that was withdrawn.
    pub fn wants_renewal(&self, lineage: &str, issuer: &str, replica: &str) -> bool {
        self.0.iter().any(|Current { rotation, issuing }| match rotation.stage {
            Stage::RollingBack => issuing.contains_key(issuer),
            // Not before this replica can sign it.
            _ => {
                issuing.values().any(|r| r == replica)
                    && !issuing.contains_key(issuer)
                    && rotation.trial.includes(lineage, &rotation.id)
            }
        })
    }

    /// The rotations whose canary is watched now.
    pub fn watched(&self) -> impl Iterator<Item = &Rotation> {
        self.0.iter().map(|current| &current.rotation).filter(|r| r.stage == Stage::Canary)
    }

    /// How often proxies shall report, milliseconds; 0 if nothing is watched.
    pub fn report_every_ms(&self) -> u64 {
        let pause = |r: &Rotation| (r.trial.watch_ms / 10).clamp(REPORTS.0, REPORTS.1);
        self.watched().map(pause).min().unwrap_or(0).unsigned_abs()
    }
}

impl Rotation {
    /// Whether this issuing CA is on trial by this rotation.
    pub fn tries(&self, authority: &Authority) -> bool {
        authority.kind == Kind::Issuing
            && match self.kind {
                Kind::Root => authority.issuer == self.new_root,
                Kind::Issuing => authority.key_id == self.new_root,
            }
    }

    /// Whether `replica` has an issuing CA on trial by it.
    pub fn concerns(&self, replica: &str) -> bool {
        self.stage == Stage::Canary && (self.kind == Kind::Root || self.replica == replica)
    }
}

impl Ca {
    /// The issuing CA on trial here, if it is this lineage's turn and the CA is believed.
    pub fn trial_for(&self, lineage: &str) -> Option<Arc<OnTrial>> {
        let trial = self.trial.load_full()?;
        let is_chosen = trial.rotation.trial.includes(lineage, &trial.rotation.id);
        (is_chosen && self.authorities.load().vouches(&trial.issuing)).then_some(trial)
    }

    /// Begins this replica's part in a trial, or ends it, as the store wants it.
    pub async fn keep_trial(&self, store: &Store) -> Result<(), CaError> {
        let wanted = store.rotations().await?.into_iter().find(|r| r.concerns(&self.replica));
        let held = self.trial.load_full();
        match (wanted, held) {
            (None, None) => Ok(()),
            (Some(wanted), Some(held)) if wanted.id == held.rotation.id => {
                if wanted != held.rotation {
                    let issuing = Arc::clone(&held.issuing);
                    self.trial.store(Some(Arc::new(OnTrial { rotation: wanted, issuing })));
                }
                Ok(())
            }
            (wanted, held) => {
                if let Some(held) = held {
                    self.end_trial(&held, store).await?;
                }
                let Some(rotation) = wanted else { return Ok(()) };
                let asking = self.asking(store, "control", Some(&rotation));
                if let Some(issuing) = requests::ask(&asking, Some(&self.issuing.load_full())).await? {
                    let issuing = Arc::new(issuing);
                    self.trial.store(Some(Arc::new(OnTrial { rotation, issuing })));
                }
                Ok(())
            }
        }
    }

    /// What was withdrawn keeps its key only to sign revocation lists; what proved good is taken over by [`Ca::rotate`].
    async fn end_trial(&self, held: &OnTrial, store: &Store) -> Result<(), CaError> {
        let key_id = hex(&held.issuing.key_id);
        let rows = store.authorities().await?;
        let is_withdrawn = rows.iter().any(|a| a.key_id == key_id && a.state == State::Retired);
        if is_withdrawn {
            self.places.keep_withdrawn(held.issuing.signer.key(), &held.issuing.certificate)?;
            self.places.forget_next()?;
        }
        self.trial.store(None);
        Ok(())
    }
}
