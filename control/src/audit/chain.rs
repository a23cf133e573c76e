//! The hash that ties a record to the one before it.
//!
//! SHA-256 over a domain and then every field of the record, in the order below; each is preceded by its length in bytes as a 64 bit
//! number, most significant byte first, so that no two different records are the same bytes. Numbers are eight such bytes; texts
//! are UTF-8; `detail` is JSON without spaces and with sorted names; `prev` is its text, lower-case hex.
//!
//! `DOMAIN, chain, seq, at, id, actor, action, subject, outcome, detail, prev`

use crate::digest::{hex, sha256};
use crate::store::Record;

/// What is hashed here, and in which form.
const DOMAIN: &str = "postern audit record v1";
/// What the first record of a chain follows.
const GENESIS: &str = "postern audit genesis v1";

/// A record's hash, lower-case hex. Its field `hash` does not matter.
pub fn hash(record: &Record) -> String {
    let Record { chain, seq, at, id, actor, action, subject, outcome, detail, prev, hash: _ } = record;
    let detail = detail.to_string();
    hex(&sha256(&framed(&[
        DOMAIN.as_bytes(),
        chain.as_bytes(),
        &seq.to_be_bytes(),
        &at.to_be_bytes(),
        id.as_bytes(),
        actor.as_bytes(),
        action.as_bytes(),
        subject.as_bytes(),
        outcome.as_bytes(),
        detail.as_bytes(),
        prev.as_bytes(),
    ])))
}

/// What the first record of this chain has as `prev`.
pub fn genesis(chain: &str) -> String {
    hex(&sha256(&framed(&[GENESIS.as_bytes(), chain.as_bytes()])))
}

/// Fields one after the other, each behind its length.
pub(super) fn framed(fields: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        out.extend_from_slice(&(field.len() as u64).to_be_bytes());
        out.extend_from_slice(field);
    }
    out
}
