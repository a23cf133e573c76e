//! A new authority on trial: which proxies get its certificates first, and what their handshakes say of it; pure.
//!
//! Only handshakes that proxies began themselves count, and only failures that a certificate can cause: a stranger who connects and
//! fails decides nothing. Each proxy has one vote, however often it fails, and a few bad ones among many are not believed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::sha256;

/// Fewer failed handshakes of one proxy are an accident.
const ACCIDENTS: u64 = 2;
/// How many times the watch may last until enough canary proxies have been heard.
const PATIENCE: i64 = 3;
/// How many names a reason holds.
const NAMED: usize = 5;

/// The share that goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// Per cent of the lineages; at least one takes part.
    pub share: u8,
    /// A lineage takes part whose hash is below it; 0 before the trial has begun.
    pub bound: u64,
    /// How long their handshakes are watched, milliseconds.
    pub watch_ms: i64,
}

/// What counts as worse than before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// By how much a proxy's share of failed handshakes may rise, 0 to 1.
    pub rise: f64,
    /// Which share of the proxies may fail without being believed, 0 to 1.
    pub doubted: f64,
}

/// Handshakes by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Well.
    pub ok: u64,
    /// By a certificate's fault.
    pub failed: u64,
}

/// One proxy's counters since it started: by key id of the authority that signed the certificate it presented (hex).
pub type Counters = BTreeMap<String, Tally>;

/// One live proxy as its reports show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voter {
    /// What it calls itself.
    pub instance: String,
    /// Whether the new authority signs for it.
    pub is_canary: bool,
    /// Whether its stream is open.
    pub is_connected: bool,
    /// Before the trial.
    pub before: Tally,
    /// Since it presents the new chain, or, for the others, since the trial began; `None` if nothing was heard of that.
    pub since: Option<Tally>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is too early; these canary proxies have not been heard with the new chain.
    Continue(Vec<String>),
    /// The new authority may sign for everybody.
    Proceed,
    /// The new authority is withdrawn, because of this.
    RollBack(String),
}

/// Where a lineage stands in the order of this rotation's trial, below 2^32: another rotation begins with others.
pub fn hash(lineage: &str, rotation: &str) -> u64 {
    let digest = sha256(format!("{rotation}\0{lineage}").as_bytes());
    digest.iter().take(4).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The bound below which `share` per cent of all hashes lie, lifted until one of these lineages is below it.
pub fn bound<'a>(share: u8, rotation: &str, lineages: impl Iterator<Item = &'a str>) -> u64 {
    let least = lineages.map(|lineage| hash(lineage, rotation)).min().map_or(0, |least| least + 1);
    ((u64::from(share.min(100)) << 32) / 100).max(least)
}

impl Trial {
    /// Whether the new authority signs for this lineage.
    pub fn includes(&self, lineage: &str, rotation: &str) -> bool {
        hash(lineage, rotation) < self.bound
    }
}

/// The voter that two reports of one proxy make: the first of this trial and the newest one, each with the moment since which its
/// counters count. `is_new` tells the trial's authorities.
pub fn since(
    first: &(i64, Counters),
    latest: &(i64, Counters),
    is_canary: bool,
    is_new: impl Fn(&str) -> bool,
) -> (Tally, Option<Tally>) {
    let sum = |counters: &Counters, new: bool| {
        let own = counters.iter().filter(|(authority, _)| is_new(authority) == new);
        own.fold(Tally::default(), |sum, (_, tally)| sum.plus(*tally))
    };
    let before = sum(&first.1, false);
    if is_canary {
        let has_come = latest.1.keys().any(|authority| is_new(authority));
        return (before, has_come.then(|| sum(&latest.1, true)));
    }
    let now = sum(&latest.1, false);
    // Started anew since: its counters began at zero.
    let since = if first.0 == latest.0 { now.less(before) } else { now };
    (before, Some(since))
}

/// What the voters say `elapsed` milliseconds after the trial began.
pub fn judge(trial: &Trial, terms: &Terms, voters: &[Voter], elapsed: i64) -> Verdict {
    for (is_canary, who) in [(true, "canary proxies"), (false, "proxies that meet the new chain")] {
        let group: Vec<_> = voters.iter().filter(|v| v.is_canary == is_canary).collect();
        let bad: Vec<_> = group.iter().filter(|v| v.is_worse(terms)).collect();
        // Of a few proxies one is enough; of many, some may lie.
        if bad.len() > (group.len() as f64 * terms.doubted).floor() as usize {
            let names: Vec<&str> = bad.iter().take(NAMED).map(|v| v.instance.as_str()).collect();
            let (all, names) = (group.len(), names.join(", "));
            return Verdict::RollBack(format!("handshakes fail at {} of {all} {who}: {names}", bad.len()));
        }
    }
    let canaries: Vec<_> = voters.iter().filter(|v| v.is_canary).collect();
    let silent = canaries.iter().filter(|v| v.since.is_none());
    let silent: Vec<String> = silent.map(|v| v.name()).collect();
    let heard = canaries.len() - silent.len();
    let is_enough = heard > 0 && heard * 2 >= canaries.len();
    match elapsed {
        early if early < trial.watch_ms => Verdict::Continue(silent),
        _ if is_enough => Verdict::Proceed,
        late if late < trial.watch_ms.saturating_mul(PATIENCE) => Verdict::Continue(silent),
        _ => Verdict::RollBack(format!(
            "only {heard} of {} canary proxies were heard with the new chain",
            canaries.len()
        )),
    }
}

impl Voter {
    fn is_worse(&self, terms: &Terms) -> bool {
        let Some(since) = self.since else { return false };
        since.failed > ACCIDENTS && since.rate() > self.before.rate() + terms.rise
    }

    fn name(&self) -> String {
        match self.is_connected {
            true => self.instance.clone(),
            false => format!("{} (not connected)", self.instance),
        }
    }
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self { ok: self.ok.saturating_add(other.ok), failed: self.failed.saturating_add(other.failed) }
    }

    fn less(self, other: Self) -> Self {
        Self { ok: self.ok.saturating_sub(other.ok), failed: self.failed.saturating_sub(other.failed) }
    }

    fn rate(self) -> f64 {
        match self.ok.saturating_add(self.failed) {
            0 => 0.0,
            all => self.failed as f64 / all as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIAL: Trial = Trial { share: 10, bound: 0, watch_ms: 1_000 };
    const TERMS: Terms = Terms { rise: 0.05, doubted: 0.1 };

    fn tally(ok: u64, failed: u64) -> Tally {
        Tally { ok, failed }
    }

    fn voter(is_canary: bool, before: Tally, since: Option<Tally>) -> Voter {
        Voter { instance: "edge-3".into(), is_canary, is_connected: true, before, since }
    }

    fn good(is_canary: bool) -> Voter {
        voter(is_canary, tally(100, 0), Some(tally(100, 0)))
    }

    fn bad(is_canary: bool) -> Voter {
        voter(is_canary, tally(100, 0), Some(tally(0, u64::MAX)))
    }

    #[test]
    fn a_share_takes_part_another_one_each_time_and_never_nobody() {
        let lineages: Vec<String> = (0..1000).map(|n| format!("lineage-{n}")).collect();
        let chosen = |rotation: &str| {
            let trial = Trial { bound: bound(10, rotation, lineages.iter().map(String::as_str)), ..TRIAL };
            lineages.iter().filter(|l| trial.includes(l, rotation)).cloned().collect::<Vec<_>>()
        };
        let (one, two) = (chosen("one"), chosen("two"));
        assert!((60..=140).contains(&one.len()), "{}", one.len());
        assert_ne!(one, two);
        for few in [1, 2, 3] {
            let few = &lineages[..few];
            let trial = Trial { bound: bound(1, "r", few.iter().map(String::as_str)), ..TRIAL };
            assert_eq!(few.iter().filter(|l| trial.includes(l, "r")).count(), 1);
        }
        assert!(lineages.iter().all(|l| hash(l, "r") < bound(100, "r", std::iter::empty())));
    }

    #[test]
    fn it_goes_on_when_the_watch_is_over_and_half_of_the_canaries_were_heard() {
        let silent = voter(true, Tally::default(), None);
        let voters = [good(true), silent.clone(), good(false)];
        let named = Verdict::Continue(vec!["edge-3".into()]);
        assert_eq!(judge(&TRIAL, &TERMS, &voters, 999), named);
        assert_eq!(judge(&TRIAL, &TERMS, &voters, 1_000), Verdict::Proceed);
        let mute = [silent.clone(), silent.clone(), good(true), good(false)];
        assert!(matches!(judge(&TRIAL, &TERMS, &mute, 2_999), Verdict::Continue(_)));
        assert!(matches!(judge(&TRIAL, &TERMS, &mute, 3_000), Verdict::RollBack(_)));
        assert!(matches!(judge(&TRIAL, &TERMS, &[], i64::MAX), Verdict::RollBack(_)));
    }

    #[test]
    fn failures_that_rise_roll_it_back_at_once_on_either_side() {
        for is_canary in [true, false] {
            let voters = [good(true), good(false), bad(is_canary)];
            assert!(matches!(judge(&TRIAL, &TERMS, &voters, 0), Verdict::RollBack(_)), "{is_canary}");
        }
        let as_before = voter(true, tally(50, 50), Some(tally(50, 52)));
        assert_eq!(judge(&TRIAL, &TERMS, &[as_before], 1_000), Verdict::Proceed);
        let accident = voter(true, tally(0, 0), Some(tally(0, ACCIDENTS)));
        assert_eq!(judge(&TRIAL, &TERMS, &[accident], 1_000), Verdict::Proceed);
    }

    #[test]
    fn one_liar_among_many_has_one_vote() {
        let mut voters: Vec<Voter> =
            (0..20).map(|_| good(true)).chain((0..200).map(|_| good(false))).collect();
        voters.extend([bad(true), bad(false)]);
        assert_eq!(judge(&TRIAL, &TERMS, &voters, 1_000), Verdict::Proceed);
        voters.extend([bad(true), bad(true)]);
        assert!(matches!(judge(&TRIAL, &TERMS, &voters, 1_000), Verdict::RollBack(_)));
        // Nor does praise outvote those who fail.
        let mut voters = vec![bad(true)];
        voters.push(voter(true, Tally::default(), Some(tally(u64::MAX, 0))));
        assert!(matches!(judge(&TRIAL, &TERMS, &voters, 1_000), Verdict::RollBack(_)));
    }

    #[test]
    fn counters_are_split_by_chain_and_survive_a_restart() {
        let of = |old, new: Option<Tally>| {
            let new = new.map(|tally| ("new".to_owned(), tally));
            std::iter::once(("old".to_owned(), old)).chain(new).collect::<Counters>()
        };
        let is_new = |authority: &str| authority == "new";
        let first = (1, of(tally(10, 1), None));
        let latest = (1, of(tally(15, 2), Some(tally(3, 4))));
        assert_eq!(since(&first, &latest, true, is_new), (tally(10, 1), Some(tally(3, 4))));
        assert_eq!(since(&first, &latest, false, is_new), (tally(10, 1), Some(tally(5, 1))));
        assert_eq!(since(&first, &first, true, is_new), (tally(10, 1), None), "it has not come yet");
        let restarted = (9, of(tally(2, 0), None));
        assert_eq!(since(&first, &restarted, false, is_new), (tally(10, 1), Some(tally(2, 0))));
    }
}
