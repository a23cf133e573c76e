//! A rotation carried out: begun where the root's key lies, continued by whichever replica has the lease.

use std::collections::{HashMap, HashSet};

use postern_config::file::control::CanaryConfig;
use postern_config::file::control::keys::KeyPlace;
use rcgen::{Issuer, KeyPair, PublicKeyData as _};
use serde_json::json;

use super::authorities::{Authorities, pem};
use super::canary::{self, Tally, Trial, Verdict, Voter};
use super::keys::Key;
use super::rotation::{Facts, Rotation, Stage, Step, Straggler};
use super::{Ca, CaError, files, profile, requests, root, rotation};
use crate::audit::Entry;
use crate::clock::{millis, now_ms};
use crate::digest::hex;
use crate::publish::Holding;
use crate::store::{Authority, Change, Kind, Lease, Revocation, Revoked, State, Store};

/// Why a rotation does not begin.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// Another one is under way.
    #[error(
        "a rotation is under way ({0}); it has to end first, or be made to hurry: postern ca rotate --root --force"
    )]
    UnderWay(String),
    /// The key is elsewhere.
    #[error("this replica does not hold the key of the root; run this on the host that does")]
    NotHere,
    /// No such authority.
    #[error("there is no authority with the key id {0:?}; `postern ca list` shows them")]
    Unknown(String),
    /// A fault on this side.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl From<crate::store::StoreError> for RotateError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Ca(error.into())
    }
}

/// How a rotation is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Wait for nobody who cannot be reached, and watch no canary.
    pub force: bool,
    /// The old root's key is known to others.
    pub taint: bool,
    /// Which share of the proxies goes first, per cent; 0 for all at once.
    pub share: u8,
    /// How long they are watched, milliseconds.
    pub watch_ms: i64,
}

impl Begin {
    /// As the configuration has it.
    pub fn by_schedule(canary: &CanaryConfig) -> Self {
        let watch_ms = millis(canary.watch.as_duration());
        Self { force: false, taint: false, share: canary.share.get(), watch_ms }
    }

    fn trial(self) -> Trial {
        let share = if self.force || self.taint { 0 } else { self.share };
        Trial { share, bound: 0, watch_ms: self.watch_ms }
    }
}

impl Ca {
    /// Prepares a new root: made where the old one's key lies, signed by that as well, and put into every bundle. If a rotation is
    /// under way, `force` and `taint` make that one hurry.
    pub async fn begin_rotation(
        &self,
        store: &Store,
        begin: &Begin,
        actor: &str,
    ) -> Result<Rotation, RotateError> {
        let mut change = store.change().await?;
        let now = now_ms();
        if let Some(mut under_way) = change.rotation().await? {
            if !begin.force || !matches!(under_way.stage, Stage::Prepared | Stage::Canary) {
                return Err(RotateError::UnderWay(under_way.stage.as_str().to_owned()));
            }
            under_way.is_forced = true;
            under_way.is_taint |= begin.taint;
            under_way.changed_at = now;
            commit(change, &under_way, "ca rotate force", actor).await?;
            return Ok(under_way);
        }
        let authorities = Authorities::new(&change.authorities().await?)?;
        let old = authorities.active();
        let old_key = root::key_of(&self.places, old)?.ok_or(RotateError::NotHere)?;
        let mut row = self.new_root(old, old_key, now / 1000)?;
        row.state = State::Prepared;
        change.put_authority(&row, now).await?;
        change.advance("bundle").await?;
        let rotation = Rotation {
            id: ulid::Ulid::new().to_string(),
            kind: Kind::Root,
            replica: String::new(),
            stage: Stage::Prepared,
            old_root: old.key_id.clone(),
            new_root: row.key_id,
            generation: change.advance("generation").await?,
            is_forced: begin.force,
            is_taint: begin.taint,
            trial: begin.trial(),
            reason: String::new(),
            began_at: now,
            changed_at: now,
        };
        commit(change, &rotation, "ca rotate prepare", actor).await?;
        Ok(rotation)
    }

    /// Lets a new issuing CA of this replica sign for a share of its callers first. Their root is believed by all already, so the
    /// canary begins at once.
    pub async fn begin_trial(
        &self,
        store: &Store,
        begin: &Begin,
        actor: &str,
    ) -> Result<Rotation, RotateError> {
        let asking = self.asking(store, actor, None);
        let row = requests::prepare(&asking).await?.ok_or(RotateError::NotHere)?;
        let lineages = store.live_lineages(now_ms()).await?;
        let mut change = store.change().await?;
        let busy =
            |r: &Rotation| r.concerns(&self.replica) || (r.kind == Kind::Root && r.stage == Stage::Prepared);
        if let Some(under_way) = change.rotations().await?.iter().find(|r| busy(r)) {
            return Err(RotateError::UnderWay(under_way.stage.as_str().to_owned()));
        }
        let id = ulid::Ulid::new().to_string();
        let trial = begin.trial();
        let here = lineages.iter().filter(|l| l.replica == self.replica).map(|l| l.lineage.id.as_str());
        let bound = canary::bound(trial.share, &id, here);
        change.put_authority(&row, now_ms()).await?;
        let rotation = Rotation {
            id,
            kind: Kind::Issuing,
            replica: self.replica.clone(),
            stage: Stage::Canary,
            old_root: hex(&self.issuing.load().key_id),
            new_root: row.key_id,
            generation: change.advance("generation").await?,
            is_forced: false,
            is_taint: false,
            trial: Trial { bound, ..trial },
            reason: String::new(),
            began_at: now_ms(),
            changed_at: now_ms(),
        };
        commit(change, &rotation, "ca rotate canary", actor).await?;
        self.keep_trial(store).await?;
        Ok(rotation)
    }

    /// Files first: what was made and not recorded is only a file too many.
    fn new_root(&self, old: &super::Root, old_key: Key, now: i64) -> Result<Authority, CaError> {
        // On a token it is one more object of that label, in Vault one more version of that key; in files another file.
        let pair = KeyPair::generate()?;
        let key = match self.places.root() {
            Some(elsewhere @ (KeyPlace::Pkcs11(_) | KeyPlace::Vault(_))) => Key::create(&elsewhere)?,
            _ => {
                let key_id = hex(&profile::key_id(&pair));
                let path = self.places.dir.join(root::next_name(&key_id, "key"));
                files::write(&path, pair.serialize_pem().as_bytes())?;
                let spki = pair.subject_public_key_info();
                let missing = || CaError::Unusable { path: path.clone(), why: "it is gone".to_owned() };
                Key::open(&KeyPlace::File(path.clone()), Some(&spki))?.ok_or_else(missing)?
            }
        };
        let certificate = profile::root(&self.trust_domain, &key, self.terms.root(now))?.self_signed(&key);
        let certificate = certificate.map_err(|e| key.failed(e))?;
        let mut row = root::row_of(certificate.der())?;
        files::write(
            &self.places.dir.join(root::next_name(&row.key_id, "pem")),
            pem(certificate.der()).as_bytes(),
        )?;
        let signer = Issuer::from_ca_cert_der(&old.certificate, old_key.clone())?;
        let validity = self.terms.root(now);
        let validity = (validity.0.max(old.not_before), validity.1.min(old.not_after));
        let cross = profile::root(&self.trust_domain, &key, validity)?.signed_by(&key, &signer);
        row.cross_der = cross.map_err(|e| old_key.failed(e))?.der().to_vec();
        Ok(row)
    }
}

/// What decides about `rotation` now; `holding` is how far the proxies have come with its generation.
pub(crate) async fn facts(
    store: &Store,
    rotation: &Rotation,
    holding: &[Holding],
    terms: &CanaryConfig,
) -> Result<Facts, CaError> {
    let now = now_ms();
    let missing = holding.iter().filter(|h| h.acked_at.is_none());
    let authorities = store.authorities().await?;
    let replicas = authorities.iter().filter(|a| {
        a.kind == Kind::Issuing
            && a.state == State::Active
            && a.issuer == rotation.old_root
            && a.not_after * 1000 > now
    });
    let goes = if rotation.stage == Stage::RollingBack { &rotation.new_root } else { &rotation.old_root };
    let leaves_end = match rotation.kind {
        Kind::Root => store.last_leaf_below(goes, now).await?,
        Kind::Issuing => store.last_leaf_of(goes, now).await?,
    };
    let verdict = match rotation.stage {
        Stage::Canary => {
            let terms = canary::Terms { rise: terms.failures.as_share(), doubted: terms.doubted.as_share() };
            let voters = voters(store, rotation, holding, &authorities).await?;
            canary::judge(&rotation.trial, &terms, &voters, now.saturating_sub(rotation.changed_at))
        }
        _ => Verdict::Continue(Vec::new()),
    };
    let others = store.rotations().await?.into_iter();
    let trying = others.filter(|r| r.kind == Kind::Issuing && r.stage == Stage::Canary);
    Ok(Facts {
        stragglers: missing
            .map(|h| Straggler { instance: h.instance.clone(), is_connected: h.is_connected })
            .collect(),
        tokens_end: store.last_token_before(rotation.began_at, now).await?,
        leaves_end,
        replicas: replicas.map(|a| a.replica.clone()).collect(),
        trying: trying.map(|r| r.replica).collect(),
        has_proxies: !holding.is_empty(),
        verdict,
    })
}

/// The live proxies, and what their reports say.
async fn voters(
    store: &Store,
    rotation: &Rotation,
    holding: &[Holding],
    authorities: &[Authority],
) -> Result<Vec<Voter>, CaError> {
    let tried: HashSet<&str> =
        authorities.iter().filter(|a| rotation.tries(a)).map(|a| a.key_id.as_str()).collect();
    let reports = store.canary_reports(&rotation.id).await?;
    let reports: HashMap<_, _> = reports.into_iter().map(|r| (r.lineage.clone(), r)).collect();
    let voter = |held: &Holding| {
        // An issuing CA is tried at its replica alone.
        let is_here = rotation.kind == Kind::Root || held.replica == rotation.replica;
        let report = reports.get(&held.lineage);
        let has_come = report.is_some_and(|r| r.latest.1.keys().any(|id| tried.contains(id.as_str())));
        let is_canary = has_come || is_here && rotation.trial.includes(&held.lineage, &rotation.id);
        let (before, since) = match report {
            Some(r) => canary::since(&r.first, &r.latest, is_canary, |id| tried.contains(id)),
            None => (Tally::default(), None),
        };
        let (instance, is_connected) = (held.instance.clone(), held.is_connected);
        Voter { instance, is_canary, is_connected, before, since }
    };
    Ok(holding.iter().map(voter).collect())
}

/// Takes the step that is due, if there is one; says which.
pub(crate) async fn go_on(
    store: &Store,
    rotation: &Rotation,
    facts: &Facts,
    lease: &Lease,
) -> Result<Option<Stage>, CaError> {
    let step = rotation::next(rotation, facts, now_ms());
    if matches!(step, Step::Wait(_)) {
        return Ok(None);
    }
    let lineages = store.live_lineages(now_ms()).await?;
    let mut change = store.change().await?;
    change.fence(lease).await?;
    // Somebody may have made it hurry meanwhile.
    let current = change.rotations().await?.into_iter().find(|r| r.id == rotation.id);
    let Some(mut current) = current.filter(|r| r.stage == rotation.stage) else { return Ok(None) };
    let rows = change.authorities().await?;
    let of = |key_id: &str| rows.iter().find(|a| a.key_id == key_id).cloned();
    let (old, new) = (of(&current.old_root), of(&current.new_root));
    let action = match step {
        Step::Try => {
            let live = lineages.iter().map(|l| l.lineage.id.as_str());
            current.trial.bound = canary::bound(current.trial.share, &current.id, live);
            current.stage = Stage::Canary;
            "ca rotate canary"
        }
        Step::Activate => {
            put(&mut change, new, State::Active).await?;
            if let Some(old) = old {
                retire(&mut change, old, current.is_taint).await?;
            }
            // Bundles hold no issuing CA: there is nothing more to wait for.
            current.stage = if current.kind == Kind::Root { Stage::Active } else { Stage::Pruned };
            "ca rotate activate"
        }
        Step::RollBack(why) => {
            for tried in rows.iter().filter(|a| current.tries(a)) {
                put(&mut change, Some(tried.clone()), State::Retired).await?;
            }
            put(&mut change, new, State::Retired).await?;
            (current.stage, current.reason) = (Stage::RollingBack, why);
            "ca rotate roll back"
        }
        Step::Forget => {
            put(&mut change, new.filter(|_| current.kind == Kind::Root), State::Pruned).await?;
            current.stage = Stage::RolledBack;
            "ca rotate rolled back"
        }
        _ => {
            put(&mut change, old, State::Pruned).await?;
            current.stage = Stage::Pruned;
            "ca rotate prune"
        }
    };
    if current.stage.is_end() || current.stage == Stage::Active {
        change.forget_canary_reports(&current.id).await?;
    }
    current.changed_at = now_ms();
    if current.kind == Kind::Root && current.stage != Stage::Canary {
        change.advance("bundle").await?;
    }
    change.advance("generation").await?;
    commit(change, &current, action, "control").await?;
    Ok(Some(current.stage))
}

async fn put(change: &mut Change, authority: Option<Authority>, state: State) -> Result<(), CaError> {
    if let Some(authority) = authority {
        change.put_authority(&Authority { state, ..authority }, now_ms()).await?;
    }
    Ok(())
}

/// Takes an issuing CA back whose key is known to others: no proxy believes what it signed, and its replica gets another one.
pub async fn taint_issuing(store: &Store, key_id: &str, actor: &str) -> Result<u64, RotateError> {
    let mut change = store.change().await?;
    let found =
        change.authorities().await?.into_iter().find(|a| a.key_id == key_id && a.kind == Kind::Issuing);
    let found = found.ok_or_else(|| RotateError::Unknown(key_id.to_owned()))?;
    let entry =
        Entry::done(actor, "ca taint", &*found.name, json!({ "key_id": key_id, "replica": found.replica }));
    taint(&mut change, found).await?;
    let generation = change.advance("generation").await?;
    entry.append(&mut change).await?;
    change.commit().await?;
    entry.log();
    Ok(generation)
}

async fn retire(change: &mut Change, old: Authority, is_taint: bool) -> Result<(), CaError> {
    match is_taint {
        true => taint(change, old).await,
        false => Ok(change.put_authority(&Authority { state: State::Retired, ..old }, now_ms()).await?),
    }
}

/// Out of every bundle, and refused on any member of a path.
async fn taint(change: &mut Change, authority: Authority) -> Result<(), CaError> {
    let key = super::public_key(&authority)?;
    let revocation = Revocation {
        id: ulid::Ulid::new().to_string(),
        what: Revoked::Key { spki: hex(&key) },
        reason: "cACompromise".to_owned(),
        created_at: now_ms(),
        created_by: "control".to_owned(),
        ends_at: authority.not_after.saturating_mul(1000),
    };
    change.add_revocation(&revocation).await?;
    change.put_authority(&Authority { state: State::Tainted, ..authority }, now_ms()).await?;
    Ok(())
}

async fn commit(mut change: Change, rotation: &Rotation, action: &str, actor: &str) -> Result<(), CaError> {
    let mut detail = json!({ "old": rotation.old_root, "stage": rotation.stage.as_str(), "forced": rotation.is_forced, "taint": rotation.is_taint });
    if !rotation.reason.is_empty() {
        detail["reason"] = json!(rotation.reason);
    }
    let entry = Entry::done(actor, action, &*rotation.new_root, detail);
    change.put_rotation(rotation).await?;
    entry.append(&mut change).await?;
    change.commit().await?;
    entry.log();
    Ok(())
}
