//! The stages of a rotation, and what has to hold before each; pure.
//!
//! ```text
//! prepared ──every live proxy has the new root──► canary ──its handshakes do not fail──► active ──no leaf of the old one──► pruned
//!                                                   └──they fail──► rolling back ──no leaf of the new one──► rolled back
//! ```
//! A root signs nothing before every proxy believes in it, and leaves no bundle before the last leaf below it has ended, be it the old
//! one or a new one that was withdrawn. The rotation of an issuing CA begins with its canary: proxies believe its root already. Each
//! stage is one change in the store, so a rotation goes on wherever it was left, on whichever replica.

use super::canary::{Trial, Verdict};
use crate::store::Kind;

/// Where a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The new root is in every bundle that is pushed, and signs nothing yet.
    Prepared,
    /// The new authority signs for a share of the proxies.
    Canary,
    /// The new one signs; the old one stays in every bundle.
    Active,
    /// The old root is in no bundle any more.
    Pruned,
    /// The new one signs nothing any more, and stays believed as long as its leaves live.
    RollingBack,
    /// The new one is in no bundle any more.
    RolledBack,
}

/// A rotation under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// Its name, a ULID.
    pub id: String,
    /// What is rotated.
    pub kind: Kind,
    /// The replica whose issuing CA it is; empty for a root.
    pub replica: String,
    /// Where it is.
    pub stage: Stage,
    /// Key id of the authority that goes.
    pub old_root: String,
    /// Key id of the authority that comes.
    pub new_root: String,
    /// The generation that brought the new root to the proxies.
    pub generation: u64,
    /// Proxies that cannot be reached are not waited for, and no canary is watched.
    pub is_forced: bool,
    /// The old root's key is known to others: it is cut off as soon as the new one signs.
    pub is_taint: bool,
    /// Who goes first, and for how long.
    pub trial: Trial,
    /// Why it was rolled back; empty if it was not.
    pub reason: String,
    /// Milliseconds since 1970.
    pub began_at: i64,
    /// When it reached its stage, milliseconds since 1970.
    pub changed_at: i64,
}

/// What the store and the proxies say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Live proxies that have not confirmed the generation, connected or not.
    pub stragglers: Vec<Straggler>,
    /// When the last unused join token ends that carries the old root's pin alone, milliseconds since 1970; 0 if there is none.
    pub tokens_end: i64,
    /// When the last leaf below the authority that goes ends, milliseconds since 1970; 0 if there is none.
    pub leaves_end: i64,
    /// Replicas that still sign with an issuing CA of the root that goes.
    pub replicas: Vec<String>,
    /// Replicas that try an issuing CA of their own now.
    pub trying: Vec<String>,
    /// Whether anybody is there who could go first.
    pub has_proxies: bool,
    /// What the canary's handshakes say.
    pub verdict: Verdict,
}

/// A proxy that has not confirmed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Straggler {
    /// What it calls itself.
    pub instance: String,
    /// Whether its stream is open.
    pub is_connected: bool,
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Let the new one sign for a share.
    Try,
    /// Let the new one sign.
    Activate,
    /// Take the old root out of the bundles.
    Prune,
    /// Withdraw the new one, because of this.
    RollBack(String),
    /// Take the withdrawn root out of the bundles.
    Forget,
    /// Nothing yet.
    Wait(Waiting),
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// These proxies have not confirmed.
    Proxies(Vec<Straggler>),
    /// Tokens that only know the old root.
    Tokens(i64),
    /// The canary's watch ends then; these of its proxies have not been heard with the new chain.
    Canary(Vec<String>, i64),
    /// Replicas that have no issuing CA of the new root yet, or try one of their own.
    Replicas(Vec<String>),
    /// Leaves below the one that goes.
    Leaves(i64),
}

/// How long a forced rotation waits for proxies that are connected, milliseconds.
const PATIENCE: i64 = 3_000;
/// How long after a leaf's end its root stays: a peer whose clock is behind still takes the leaf for valid, milliseconds.
const SKEW: i64 = 60_000;

/// What is due for `rotation` at `now` (milliseconds since 1970).
pub fn next(rotation: &Rotation, facts: &Facts, now: i64) -> Step {
    match rotation.stage {
        Stage::Prepared => activate(rotation, facts, now),
        Stage::Canary => go_on_trial(rotation, facts),
        Stage::Active => prune(rotation, facts, now),
        Stage::RollingBack => forget(rotation, facts, now),
        Stage::Pruned | Stage::RolledBack => Step::Wait(Waiting::Leaves(0)),
    }
}

fn activate(rotation: &Rotation, facts: &Facts, now: i64) -> Step {
    if rotation.is_forced {
        let connected: Vec<_> = facts.stragglers.iter().filter(|s| s.is_connected).cloned().collect();
        let is_patient = now < rotation.changed_at.saturating_add(PATIENCE);
        return if is_patient && !connected.is_empty() {
            Step::Wait(Waiting::Proxies(connected))
        } else {
            Step::Activate
        };
    }
    if !facts.stragglers.is_empty() {
        return Step::Wait(Waiting::Proxies(facts.stragglers.clone()));
    }
    if facts.tokens_end > now {
        return Step::Wait(Waiting::Tokens(facts.tokens_end));
    }
    if rotation.trial.share == 0 || !facts.has_proxies {
        return Step::Activate;
    }
    // A replica has one issuing CA on trial at a time.
    if facts.trying.is_empty() { Step::Try } else { Step::Wait(Waiting::Replicas(facts.trying.clone())) }
}

fn go_on_trial(rotation: &Rotation, facts: &Facts) -> Step {
    if rotation.is_forced {
        return Step::Activate;
    }
    match &facts.verdict {
        Verdict::Proceed => Step::Activate,
        Verdict::RollBack(why) => Step::RollBack(why.clone()),
        Verdict::Continue(silent) => {
            let until = rotation.changed_at.saturating_add(rotation.trial.watch_ms);
            Step::Wait(Waiting::Canary(silent.clone(), until))
        }
    }
}

fn prune(rotation: &Rotation, facts: &Facts, now: i64) -> Step {
    // A tainted root left the bundles with its activation; its row stays as long as leaves may ask for their successors.
    if !rotation.is_taint && !facts.replicas.is_empty() {
        return Step::Wait(Waiting::Replicas(facts.replicas.clone()));
    }
    let end = facts.leaves_end.saturating_add(SKEW);
    if facts.leaves_end > 0 && end > now { Step::Wait(Waiting::Leaves(end)) } else { Step::Prune }
}

/// A leaf may have been replaced, and a connection that was opened with it goes on: its end counts.
fn forget(rotation: &Rotation, facts: &Facts, now: i64) -> Step {
    let end = facts.leaves_end.max(rotation.changed_at).saturating_add(SKEW);
    if end > now { Step::Wait(Waiting::Leaves(end)) } else { Step::Forget }
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Prepared, Self::Canary, Self::Active, Self::Pruned, Self::RollingBack, Self::RolledBack];

    /// The word in the store and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Canary => "canary",
            Self::Active => "active",
            Self::Pruned => "pruned",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Whether the rotation is over.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Pruned | Self::RolledBack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(stage: Stage) -> Rotation {
        Rotation {
            id: "1".into(),
            kind: Kind::Root,
            replica: String::new(),
            stage,
            old_root: "a".into(),
            new_root: "b".into(),
            generation: 7,
            is_forced: false,
            is_taint: false,
            trial: Trial { share: 0, bound: 0, watch_ms: 1_000 },
            reason: String::new(),
            began_at: 0,
            changed_at: 0,
        }
    }

    fn facts() -> Facts {
        Facts {
            stragglers: Vec::new(),
            tokens_end: 0,
            leaves_end: 0,
            replicas: Vec::new(),
            trying: Vec::new(),
            has_proxies: true,
            verdict: Verdict::Continue(Vec::new()),
        }
    }

    fn straggler(is_connected: bool) -> Straggler {
        Straggler { instance: "edge-3".into(), is_connected }
    }

    #[test]
    fn nothing_signs_before_every_live_proxy_believes_in_it() {
        for is_connected in [true, false] {
            let facts = Facts { stragglers: vec![straggler(is_connected)], ..facts() };
            let named = Waiting::Proxies(facts.stragglers.clone());
            assert_eq!(next(&rotation(Stage::Prepared), &facts, i64::MAX), Step::Wait(named));
        }
        assert_eq!(next(&rotation(Stage::Prepared), &facts(), 0), Step::Activate);
    }

    #[test]
    fn a_token_that_knows_the_old_root_alone_is_waited_for() {
        let facts = Facts { tokens_end: 10, ..facts() };
        assert_eq!(next(&rotation(Stage::Prepared), &facts, 9), Step::Wait(Waiting::Tokens(10)));
        assert_eq!(next(&rotation(Stage::Prepared), &facts, 10), Step::Activate);
    }

    #[test]
    fn force_waits_for_the_connected_alone_and_not_for_long() {
        let forced = Rotation { is_forced: true, ..rotation(Stage::Prepared) };
        let away = Facts { stragglers: vec![straggler(false)], tokens_end: i64::MAX, ..facts() };
        assert_eq!(next(&forced, &away, 0), Step::Activate);
        let near = Facts { stragglers: vec![straggler(true)], ..facts() };
        assert!(matches!(next(&forced, &near, PATIENCE - 1), Step::Wait(_)));
        assert_eq!(next(&forced, &near, PATIENCE), Step::Activate);
    }

    #[test]
    fn the_old_root_stays_until_its_last_leaf_has_ended() {
        let active = rotation(Stage::Active);
        let facts = Facts { leaves_end: 1_000, ..facts() };
        assert_eq!(next(&active, &facts, SKEW + 999), Step::Wait(Waiting::Leaves(SKEW + 1_000)));
        assert_eq!(next(&active, &facts, SKEW + 1_000), Step::Prune);
        let facts = Facts { replicas: vec!["r".into()], leaves_end: 0, ..facts };
        assert!(matches!(next(&active, &facts, i64::MAX), Step::Wait(Waiting::Replicas(_))));
    }

    fn tried(stage: Stage) -> Rotation {
        Rotation { trial: Trial { share: 10, bound: 0, watch_ms: 1_000 }, changed_at: 500, ..rotation(stage) }
    }

    #[test]
    fn a_share_goes_first_unless_nobody_is_there_or_somebody_is_in_a_hurry() {
        assert_eq!(next(&tried(Stage::Prepared), &facts(), 0), Step::Try);
        let alone = Facts { has_proxies: false, ..facts() };
        assert_eq!(next(&tried(Stage::Prepared), &alone, 0), Step::Activate);
        let busy = Facts { trying: vec!["r".into()], ..facts() };
        assert_eq!(next(&tried(Stage::Prepared), &busy, 0), Step::Wait(Waiting::Replicas(vec!["r".into()])));
        for stage in [Stage::Prepared, Stage::Canary] {
            let forced = Rotation { is_forced: true, ..tried(stage) };
            assert_eq!(next(&forced, &facts(), 0), Step::Activate);
        }
    }

    #[test]
    fn the_canary_decides_and_a_root_that_was_withdrawn_stays_until_its_last_leaf_has_ended() {
        let canary = tried(Stage::Canary);
        let with = |verdict| Facts { verdict, ..facts() };
        let silent = vec!["edge-3".to_owned()];
        let waits = next(&canary, &with(Verdict::Continue(silent.clone())), 0);
        assert_eq!(waits, Step::Wait(Waiting::Canary(silent, 1_500)));
        assert_eq!(next(&canary, &with(Verdict::Proceed), 0), Step::Activate);
        assert_eq!(next(&canary, &with(Verdict::RollBack("x".into())), 0), Step::RollBack("x".into()));
        let back = tried(Stage::RollingBack);
        assert_eq!(next(&back, &facts(), SKEW + 499), Step::Wait(Waiting::Leaves(SKEW + 500)));
        assert_eq!(next(&back, &facts(), SKEW + 500), Step::Forget);
        let facts = Facts { leaves_end: 1_000, ..facts() };
        assert_eq!(next(&back, &facts, SKEW + 999), Step::Wait(Waiting::Leaves(SKEW + 1_000)));
    }
}
