//! Whether the audit record is what was written: every chain by its hashes, their ends by signed checkpoints. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::chain;
use super::checkpoint::Checkpoint;
use crate::clock::rfc3339;
use crate::store::{Head, Record};

/// How many records are compared with each other to tell a change of order from a change of content.
const COMPARED: usize = 200;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A record does not say what was written.
    Altered,
    /// Records are missing between others, or before the first.
    Removed,
    /// A record stands in another's place.
    Reordered,
    /// The end of a chain is missing.
    Truncated,
    /// Records stand where no chain is known, or without a hash behind the time of chains.
    Inserted,
    /// A checkpoint is not signed by the key that it names, or by a key that was not asked for.
    BadSignature,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// In which chain.
    pub chain: String,
    /// From which position on.
    pub seq: u64,
    /// For people.
    pub message: String,
}

/// What was given besides the records: it decides what can be promised.
#[derive(Debug, Default)]
pub struct Given {
    /// Checkpoints from the same place as the records.
    pub beside: Vec<Checkpoint>,
    /// Checkpoints that were exported; `None` if none were asked for.
    pub exported: Option<Vec<Checkpoint>>,
    /// Ids of the keys that may sign checkpoints; empty for whichever a checkpoint names.
    pub keys: BTreeSet<String>,
    /// Ends of chains, as the store has them.
    pub heads: Vec<Head>,
    /// The records are a part of the whole: chains may begin anywhere.
    pub is_part: bool,
}

/// The answer.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether nothing was found.
    pub whole: bool,
    /// Records in chains.
    pub records: u64,
    /// Records from before there were chains: nothing can be said about them.
    pub unchained: u64,
    /// Signatures that are good.
    pub signatures: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What holds, given what was given.
    pub promises: Vec<String>,
}

/// Reads records one after the other, each chain in the order in which it stands.
#[derive(Debug, Default)]
pub struct Verifier {
    chains: BTreeMap<String, Chain>,
    unchained: u64,
    findings: Vec<Finding>,
}

#[derive(Debug, Default)]
struct Chain {
    first: u64,
    last: u64,
    prev: String,
    records: u64,
    hashes: BTreeMap<u64, String>,
    /// Records whose hash does not fit.
    broken: Vec<Record>,
}

impl Verifier {
    /// Takes the next record.
    pub fn take(&mut self, record: &Record, is_part: bool) {
        if record.chain.is_empty() {
            self.unchained += 1;
            if !record.hash.is_empty() || !record.prev.is_empty() {
                self.findings.push(found(Kind::Inserted, record, "it has a hash and no chain"));
            }
            return;
        }
        let chain = self.chains.entry(record.chain.clone()).or_default();
        let begins = chain.records == 0;
        let expected = chain.last + 1;
        chain.records += 1;
        if begins && is_part {
            chain.first = record.seq;
        } else if record.seq < expected {
            let message = format!("it stands behind record {}", chain.last);
            self.findings.push(found(Kind::Reordered, record, &message));
            return;
        } else if record.seq > expected {
            let first = if begins { 1 } else { expected };
            self.findings.push(Finding {
                kind: Kind::Removed,
                chain: record.chain.clone(),
                seq: first,
                message: format!("records {first} to {} are missing", record.seq - 1),
            });
        } else {
            let before = if begins { chain::genesis(&record.chain) } else { chain.prev.clone() };
            let is_intact = chain::hash(record) == record.hash;
            if is_intact && record.prev != before && !chain.broken.iter().any(|r| r.seq + 1 == record.seq) {
                let why =
                    "what it follows is another record than the one before it, which was put there later";
                self.findings.push(found(Kind::Altered, record, why));
            }
        }
        if begins && !is_part {
            chain.first = 1;
        }
        if chain::hash(record) != record.hash {
            chain.broken.push(record.clone());
        }
        chain.last = record.seq;
        chain.prev.clone_from(&record.hash);
        chain.hashes.insert(record.seq, record.hash.clone());
    }

    /// Says what holds.
    pub fn finish(mut self, given: &Given) -> Report {
        for chain in self.chains.values() {
            self.findings.extend(broken(&chain.broken));
        }
        for head in &given.heads {
            self.head(head, "the store's own note of the chain's end", given.is_part);
        }
        let mut signatures = 0;
        let exported = given.exported.iter().flatten();
        for checkpoint in given.beside.iter().chain(exported.clone()) {
            let trusted = given.keys.is_empty() || given.keys.contains(&checkpoint.key_id());
            if !checkpoint.is_signed() || !trusted {
                let why =
                    if trusted { "its signature does not fit" } else { "its key is none of those given" };
                self.findings.push(Finding {
                    kind: Kind::BadSignature,
                    chain: checkpoint.replica.clone(),
                    seq: 0,
                    message: format!("checkpoint {}: {why}", checkpoint.checkpoint),
                });
                continue;
            }
            signatures += 1;
            let who = format!("checkpoint {} of {}", checkpoint.checkpoint, rfc3339(checkpoint.at));
            for head in &checkpoint.heads {
                self.head(head, &who, given.is_part);
            }
        }
        let mut seen = BTreeSet::new();
        self.findings.retain(|f| seen.insert((f.kind as u8, f.chain.clone(), f.seq)));
        Report {
            whole: self.findings.is_empty(),
            records: self.chains.values().map(|c| c.records).sum(),
            unchained: self.unchained,
            signatures,
            promises: self.promises(given),
            findings: self.findings,
        }
    }

    /// Holds a chain against what somebody says of it.
    fn head(&mut self, head: &Head, who: &str, is_part: bool) {
        let (last, first, here) = match self.chains.get(&head.chain) {
            Some(chain) => (chain.last, chain.first, chain.hashes.get(&head.seq)),
            // An export since some time has nothing of a chain that had ended before.
            None if is_part => return,
            None => (0, 1, None),
        };
        let (kind, message) = match here {
            Some(hash) if *hash == head.hash => return,
            Some(_) => (Kind::Altered, format!("{who} has seen another record {} here", head.seq)),
            None if head.seq < first => return,
            None if head.seq > last => {
                (Kind::Truncated, format!("the chain ends at {last}; {who} has seen record {}", head.seq))
            }
            None => (Kind::Removed, format!("{who} has seen record {}", head.seq)),
        };
        let seq = if kind == Kind::Truncated { last + 1 } else { head.seq };
        self.findings.push(Finding { kind, chain: head.chain.clone(), seq, message });
    }

    fn promises(&self, given: &Given) -> Vec<String> {
        let mut said = vec![
            "a record that was altered, removed or moved without computing every later hash anew is found"
                .to_owned(),
        ];
        if given.is_part {
            said.push("this is a part: nothing is said of records before the first one of each chain".into());
        }
        match &given.exported {
            Some(exported) if !exported.is_empty() => {
                for chain in self.chains.keys() {
                    let heads = exported.iter().flat_map(|c| &c.heads).filter(|h| h.chain == *chain);
                    let seq = heads.map(|h| h.seq).max().unwrap_or(0);
                    said.push(format!(
                        "chain {chain}: rewriting and truncation are found up to record {seq}, which the exported checkpoints \
                         have seen; not behind it"
                    ));
                }
            }
            Some(_) => said.push("no exported checkpoint was there: rewriting and truncation are not promised".into()),
            None => said.push(
                "rewriting and truncation are not promised: checkpoints of the same place can be removed with the records; \
                 give exported ones with --checkpoints"
                    .into(),
            ),
        }
        if given.keys.is_empty() {
            said.push("checkpoints count by whichever key they name; give known ones with --key".into());
        }
        if self.unchained > 0 {
            said.push(format!("nothing is said of {} records from before there were chains", self.unchained));
        }
        said
    }
}

/// Of records whose hash does not fit: which were moved, and which say something else.
fn broken(records: &[Record]) -> Vec<Finding> {
    let compared = &records[..records.len().min(COMPARED)];
    let was = |record: &Record| {
        let place = compared.iter().map(|other| other.seq);
        place.into_iter().find(|seq| chain::hash(&Record { seq: *seq, ..record.clone() }) == record.hash)
    };
    let said = records.iter().map(|record| match was(record) {
        Some(seq) => found(Kind::Reordered, record, &format!("it was written as record {seq}")),
        None => found(Kind::Altered, record, "its hash does not fit what it says"),
    });
    said.collect()
}

fn found(kind: Kind, record: &Record, why: &str) -> Finding {
    let message = format!("record {}: {why}", record.seq);
    Finding { kind, chain: record.chain.clone(), seq: record.seq, message }
}
