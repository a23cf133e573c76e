//! A root's rotation carried out: begun where the root's key lies, continued by whichever replica has the lease.

use postern_config::file::control::keys::KeyPlace;
use rcgen::{Issuer, KeyPair};
use serde_json::json;

use super::authorities::{Authorities, pem};
use super::keys::Key;
use super::rotation::{Facts, Rotation, Stage, Step, Straggler};
use super::{Ca, CaError, files, profile, root, rotation};
use crate::audit::Entry;
use crate::clock::now_ms;
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
    /// The key is on a token or in Vault.
    #[error(
        "the root's key lives outside of this host's files; make the next one there and exchange it by a ceremony: postern ca csr"
    )]
    Place,
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

impl Ca {
    /// Prepares a new root: made here, signed by the old one as well, and put into every bundle. If a rotation is under way, `force`
    /// and `taint` make that one hurry.
    pub async fn begin_rotation(
        &self,
        store: &Store,
        force: bool,
        taint: bool,
        actor: &str,
    ) -> Result<Rotation, RotateError> {
        let mut change = store.change().await?;
        let now = now_ms();
        if let Some(mut under_way) = change.rotation().await? {
            if !force || under_way.stage != Stage::Prepared {
                return Err(RotateError::UnderWay(under_way.stage.as_str().to_owned()));
            }
            under_way.is_forced = true;
            under_way.is_taint |= taint;
            under_way.changed_at = now;
            commit(change, &under_way, "ca rotate force", actor).await?;
            return Ok(under_way);
        }
        let authorities = Authorities::new(&change.authorities().await?)?;
        let old = authorities.active();
        let old_key = root::key_of(&self.places, old)?.ok_or(RotateError::NotHere)?;
        if !matches!(self.places.root(), Some(KeyPlace::File(_))) {
            return Err(RotateError::Place);
        }
        let mut row = self.new_root(old, old_key, now / 1000)?;
        row.state = State::Prepared;
        change.put_authority(&row, now).await?;
        change.advance("bundle").await?;
        let rotation = Rotation {
            id: ulid::Ulid::new().to_string(),
            stage: Stage::Prepared,
            old_root: old.key_id.clone(),
            new_root: row.key_id,
            generation: change.advance("generation").await?,
            is_forced: force,
            is_taint: taint,
            began_at: now,
            changed_at: now,
        };
        commit(change, &rotation, "ca rotate prepare", actor).await?;
        Ok(rotation)
    }

    /// Files first: what was made and not recorded is only a file too many.
    fn new_root(&self, old: &super::Root, old_key: Key, now: i64) -> Result<Authority, CaError> {
        let key = KeyPair::generate()?;
        let certificate = profile::root(&self.trust_domain, &key, self.terms.root(now))?.self_signed(&key)?;
        let mut row = root::row_of(certificate.der())?;
        files::write(
            &self.places.dir.join(root::next_name(&row.key_id, "key")),
            key.serialize_pem().as_bytes(),
        )?;
        files::write(
            &self.places.dir.join(root::next_name(&row.key_id, "pem")),
            pem(certificate.der()).as_bytes(),
        )?;
        let signer = Issuer::from_ca_cert_der(&old.certificate, old_key)?;
        let validity = self.terms.root(now);
        let validity = (validity.0.max(old.not_before), validity.1.min(old.not_after));
        row.cross_der =
            profile::root(&self.trust_domain, &key, validity)?.signed_by(&key, &signer)?.der().to_vec();
        Ok(row)
    }
}

/// What decides about `rotation` now; `holding` is how far the proxies have come with its generation.
pub(crate) async fn facts(store: &Store, rotation: &Rotation, holding: &[Holding]) -> Result<Facts, CaError> {
    let now = now_ms();
    let missing = holding.iter().filter(|h| h.acked_at.is_none());
    let authorities = store.authorities().await?;
    let replicas = authorities.iter().filter(|a| {
        a.kind == Kind::Issuing
            && a.state == State::Active
            && a.issuer == rotation.old_root
            && a.not_after * 1000 > now
    });
    Ok(Facts {
        stragglers: missing
            .map(|h| Straggler { instance: h.instance.clone(), is_connected: h.is_connected })
            .collect(),
        tokens_end: store.last_token_before(rotation.began_at, now).await?,
        leaves_end: store.last_leaf_below(&rotation.old_root, now).await?,
        replicas: replicas.map(|a| a.replica.clone()).collect(),
    })
}

/// Takes the step that is due, if there is one; says whether it did.
pub(crate) async fn go_on(
    store: &Store,
    rotation: &Rotation,
    facts: &Facts,
    lease: &Lease,
) -> Result<bool, CaError> {
    let step = rotation::next(rotation, facts, now_ms());
    if matches!(step, Step::Wait(_)) {
        return Ok(false);
    }
    let mut change = store.change().await?;
    change.fence(lease).await?;
    // Somebody may have made it hurry meanwhile.
    let Some(mut current) = change.rotation().await?.filter(|r| r.stage == rotation.stage) else {
        return Ok(false);
    };
    let rows = change.authorities().await?;
    let of = |key_id: &str| rows.iter().find(|a| a.key_id == key_id).cloned();
    let action = match step {
        Step::Activate => {
            if let Some(new) = of(&current.new_root) {
                change.put_authority(&Authority { state: State::Active, ..new }, now_ms()).await?;
            }
            if let Some(old) = of(&current.old_root) {
                retire(&mut change, old, current.is_taint).await?;
            }
            current.stage = Stage::Active;
            "ca rotate activate"
        }
        _ => {
            if let Some(old) = of(&current.old_root) {
                change.put_authority(&Authority { state: State::Pruned, ..old }, now_ms()).await?;
            }
            current.stage = Stage::Pruned;
            "ca rotate prune"
        }
    };
    current.changed_at = now_ms();
    change.advance("bundle").await?;
    change.advance("generation").await?;
    commit(change, &current, action, "control").await?;
    Ok(true)
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
    let detail = json!({ "old": rotation.old_root, "stage": rotation.stage.as_str(), "forced": rotation.is_forced, "taint": rotation.is_taint });
    let entry = Entry::done(actor, action, &*rotation.new_root, detail);
    change.put_rotation(rotation).await?;
    entry.append(&mut change).await?;
    change.commit().await?;
    entry.log();
    Ok(())
}
