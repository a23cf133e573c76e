//! Taking back what was issued: one certificate or a whole identity is refused by every proxy from the next push on, and gets
//! nothing more from here.
//!
//! An entry is kept until the last certificate that it could refuse has ended. An identity stays banned until somebody lifts that;
//! its lineages and unused tokens stay dead even then.

use std::collections::HashMap;

use postern_config::id::SpiffeId;
use postern_config::revocation::Revocations;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::audit::Entry;
use crate::clock::now_ms;
use crate::store::{Change, Revocation, Revoked, Store, StoreError, Subject};

/// How long after a certificate's end its revocation is kept: a proxy whose clock is behind still takes it for valid.
const AFTERWARDS: i64 = 5 * 60 * 1000;

/// Why, in the words of RFC 5280 §5.3.1.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "camelCase")]
#[clap(rename_all = "camelCase")]
pub enum Reason {
    /// Nothing is known, or nothing is said.
    #[default]
    Unspecified,
    /// Somebody else has the key.
    KeyCompromise,
    /// It belongs to somebody else now.
    AffiliationChanged,
    /// A newer one stands for it.
    Superseded,
    /// It is not needed any more.
    CessationOfOperation,
    /// It may no longer do what it was issued for.
    PrivilegeWithdrawn,
}

/// What to take back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// All certificates of an identity, and everything that could lead to another one.
    Identity(SpiffeId),
    /// One certificate, by its serial in hex, and the lineage that it belongs to.
    Serial(String),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Whose certificates they were.
    pub id: SpiffeId,
    /// How many valid certificates are refused from now on.
    pub certificates: u64,
    /// The generation that tells the proxies.
    pub generation: u64,
    /// When it was committed, milliseconds since 1970.
    pub at: i64,
}

/// Why nothing was revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// No such certificate is on record.
    #[error("no certificate with the serial {0} is on record; ended ones are forgotten after a week")]
    UnknownSerial(String),
    /// It is not banned.
    #[error("{0} is not revoked")]
    NotRevoked(SpiffeId),
    /// A fault on this side.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Reason {
    /// The word in RFC 5280 §5.3.1.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "keyCompromise",
            Self::AffiliationChanged => "affiliationChanged",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessationOfOperation",
            Self::PrivilegeWithdrawn => "privilegeWithdrawn",
        }
    }
}

/// Records the revocation; the caller publishes its generation.
pub async fn revoke(
    store: &Store,
    target: &Target,
    reason: Reason,
    actor: &str,
) -> Result<Done, RevokeError> {
    let mut change = store.change().await?;
    let now = now_ms();
    let (id, certificates, entry) = match target {
        Target::Identity(id) => {
            let (certificates, revocation) = identity(&mut change, id, reason, actor, now).await?;
            let subject = revocation.as_ref().map_or("", |r| &*r.id).to_owned();
            let detail =
                json!({ "reason": reason.as_str(), "certificates": certificates, "revocation": subject });
            (id.clone(), certificates, Entry::done(actor, "revoke", id.as_str(), detail))
        }
        Target::Serial(serial) => {
            let id = certificate(&mut change, serial, reason, actor, now).await?;
            let detail = json!({ "reason": reason.as_str(), "id": id });
            (id, 1, Entry::done(actor, "revoke", serial.as_str(), detail))
        }
    };
    entry.append(&mut change).await?;
    let generation = change.advance("generation").await?;
    change.commit().await?;
    entry.log();
    Ok(Done { id, certificates, generation, at: now_ms() })
}

/// Takes an identity out of service: what it has is refused from now on, its enrollments and unused tokens are dead. Unlike after a
/// revocation, a new token or attestation may bring it back. The change is the caller's, who has made sure in it that this is due.
pub async fn retire(mut change: Change, id: &SpiffeId, why: &str, actor: &str) -> Result<Done, RevokeError> {
    let now = now_ms();
    let before = change.subject(id, now).await?;
    let (certificates, _) = identity(&mut change, id, Reason::CessationOfOperation, actor, now).await?;
    let after = change.subject(id, now).await?;
    change.set_subject(id, Subject { is_banned: before.is_banned, ..after }).await?;
    let detail = json!({ "why": why, "certificates": certificates });
    let entry = Entry::done(actor, "identity remove", id.as_str(), detail);
    entry.append(&mut change).await?;
    let generation = change.advance("generation").await?;
    change.commit().await?;
    entry.log();
    Ok(Done { id: id.clone(), certificates, generation, at: now_ms() })
}

/// Lets an identity have certificates again. What was revoked stays revoked.
pub async fn lift(store: &Store, id: &SpiffeId, actor: &str) -> Result<(), RevokeError> {
    let mut change = store.change().await?;
    let subject = change.subject(id, now_ms()).await?;
    if !subject.is_banned {
        return Err(RevokeError::NotRevoked(id.clone()));
    }
    change.set_subject(id, Subject { is_banned: false, ..subject }).await?;
    let entry = Entry::done(actor, "revoke lift", id.as_str(), json!({}));
    entry.append(&mut change).await?;
    change.commit().await?;
    entry.log();
    Ok(())
}

/// The set that proxies are told, and that callers are checked by.
pub fn set(entries: &[Revocation]) -> Result<Revocations, StoreError> {
    let mut revoked = Revocations { identities: HashMap::new(), ..Revocations::default() };
    for entry in entries {
        match &entry.what {
            Revoked::Serial { issuer_key_id, serial } => {
                revoked.serials.insert((bytes(issuer_key_id)?, bytes(serial)?));
            }
            Revoked::Identity { id, issued_before } => {
                let before = revoked.identities.entry(id.clone()).or_insert(i64::MIN);
                *before = (*before).max(*issued_before);
            }
            Revoked::Key { spki } => {
                let key = bytes(spki)?.try_into();
                revoked.spkis.insert(key.map_err(|_| unreadable(spki))?);
            }
        }
    }
    Ok(revoked)
}

async fn identity(
    change: &mut Change,
    id: &SpiffeId,
    reason: Reason,
    actor: &str,
    now: i64,
) -> Result<(u64, Option<Revocation>), RevokeError> {
    // Whole seconds, rounded up: a certificate's dates have no finer ones, and none that exists may slip through.
    let issued_before = now.div_euclid(1000) + 1;
    change.subject(id, now).await?;
    change.set_subject(id, Subject { revoked_before: issued_before * 1000, is_banned: true }).await?;
    change.end_lineages(id, "revoked", now).await?;
    change.end_tokens(id, now).await?;
    let (certificates, last_end) = change.valid_certificates(id, now - AFTERWARDS).await?;
    if certificates == 0 {
        return Ok((0, None));
    }
    let what = Revoked::Identity { id: id.clone(), issued_before };
    let revocation = entry(what, reason, actor, now, last_end);
    change.add_revocation(&revocation).await?;
    Ok((certificates, Some(revocation)))
}

async fn certificate(
    change: &mut Change,
    serial: &str,
    reason: Reason,
    actor: &str,
    now: i64,
) -> Result<SpiffeId, RevokeError> {
    let serial = normal(serial);
    let unknown = || RevokeError::UnknownSerial(serial.clone());
    let lineage = change.lineage_of(&serial).await?.ok_or_else(unknown)?;
    let found = change.certificate(&serial).await?.ok_or_else(unknown)?;
    let what = Revoked::Serial { issuer_key_id: found.issuer_key_id, serial: serial.clone() };
    change.add_revocation(&entry(what, reason, actor, now, found.not_after)).await?;
    change.end_lineage(&lineage.id, "revoked", now).await?;
    Ok(lineage.spiffe_id)
}

fn entry(what: Revoked, reason: Reason, actor: &str, now: i64, last_end: i64) -> Revocation {
    Revocation {
        id: ulid::Ulid::new().to_string(),
        what,
        reason: reason.as_str().to_owned(),
        created_at: now,
        created_by: actor.to_owned(),
        ends_at: last_end.saturating_add(AFTERWARDS),
    }
}

/// A serial as people paste it: with colons, upper case, or a leading zero byte.
fn normal(serial: &str) -> String {
    let hex: String = serial.chars().filter(|c| *c != ':').flat_map(char::to_lowercase).collect();
    let mut hex = hex.as_str();
    while let Some(rest) = hex.strip_prefix("00") {
        hex = rest;
    }
    hex.to_owned()
}

fn bytes(hex: &str) -> Result<Vec<u8>, StoreError> {
    crate::digest::unhex(hex).ok_or_else(|| unreadable(hex))
}

fn unreadable(value: &str) -> StoreError {
    StoreError::Unreadable { what: "revocation", value: value.to_owned() }
}
