//! Everything that is due by time alone, and what other replicas have changed.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::api::Plane;
use crate::ca::CaError;
use crate::ca::rotation::{Rotation, Stage};
use crate::ca::turn::{self, RotateError};
use crate::clock::{millis, now_ms};
use crate::store::{Lease, Replica};
use crate::{ServeError, publish, replica, revoke};

/// The pause between two rounds. Acknowledgements are saved this often; an operator who waits for them sees them this late.
const ROUND: Duration = Duration::from_millis(200);
/// How many rounds pass between two signs of life, in which everything that can wait for a second is done as well.
const SECOND: u32 = 5;
/// The pause between two questions to the places of keys: a token in a data centre or a Vault answers more than that.
const PROBE: Duration = Duration::from_secs(3);
/// How many rounds pass between two clean-ups.
const CLEAN_UP: u32 = 3000;
/// How long an ended certificate or token stays in the store, for whoever asks what it was.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the lease on the work of all replicas lasts after its holder's last sign of life.
const LEASE: Duration = Duration::from_secs(5);

/// Keeps house until `shutdown`. A failure is logged and tried again in the next round.
pub(crate) async fn run(plane: Arc<Plane>, shutdown: CancellationToken) {
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut own = Replica {
        id: plane.replica.clone(),
        address: plane.advertise.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: now_ms(),
        last_seen: now_ms(),
    };
    let mut round = 0_u32;
    let mut failing = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = rounds.tick() => {}
        }
        let done = keep(&plane, &mut own, round).await;
        plane.health.note_store(match &done {
            Err(ServeError::Store(error)) => Some(error),
            _ => None,
        });
        match &done {
            // An outage of the store fails every round; once is enough to say so.
            Err(error) if !failing => tracing::error!(%error, "housekeeping failed"),
            Ok(()) if failing => tracing::info!("housekeeping goes on"),
            _ => {}
        }
        failing = done.is_err();
        round = round.wrapping_add(1);
    }
    if let Err(error) = plane.proxies.save(&plane.store, &plane.publisher.world().trials).await {
        tracing::error!(%error, "the last acknowledgements could not be saved");
    }
}

/// Asks every few seconds whether the keys could sign, until `shutdown`: readiness and metrics know it before a proxy does.
pub(crate) async fn probe_keys(plane: Arc<Plane>, shutdown: CancellationToken) {
    let mut rounds = tokio::time::interval(PROBE);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = rounds.tick() => {}
        }
        for (key, usable) in plane.ca.probe_keys() {
            plane.metrics.key_usable(key, usable.is_ok());
        }
        plane.health.probe_audit(&plane.store).await;
    }
}

/// Publishes what other replicas have changed, until `shutdown`.
pub(crate) async fn follow(plane: Arc<Plane>, shutdown: CancellationToken) {
    let Some(mut hints) = plane.store.hints() else { return };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = hints.next() => {}
        }
        if let Err(error) = plane.publisher.catch_up().await {
            tracing::debug!(%error, "other replicas' changes cannot be read for now");
        }
    }
}

impl Plane {
    /// Begins this replica's part in a rotation's canary, or ends it, as the store wants it.
    async fn keep_trial(&self) -> Result<(), ServeError> {
        let _turn = self.rotating.lock().await;
        Ok(self.ca.keep_trial(&self.store).await?)
    }

    /// Tries a new issuing CA of this replica with a share of its callers.
    pub async fn begin_trial(&self, begin: &turn::Begin, actor: &str) -> Result<Rotation, RotateError> {
        let _turn = self.rotating.lock().await;
        self.ca.begin_trial(&self.store, begin, actor).await
    }

    /// Lets a new issuing CA take over, and the control plane's own certificate with it. `false`: it was asked for, and the
    /// root's holder has not signed it yet.
    pub async fn rotate(&self, actor: &str) -> Result<bool, ServeError> {
        let _turn = self.rotating.lock().await;
        let done = self.ca.rotate(&self.store, actor).await?;
        if done {
            self.presented.replace(&self.ca)?;
        }
        Ok(done)
    }
}

async fn keep(plane: &Plane, own: &mut Replica, round: u32) -> Result<(), ServeError> {
    plane.proxies.save(&plane.store, &plane.publisher.world().trials).await?;
    if !round.is_multiple_of(SECOND) {
        return Ok(());
    }
    replica::beat(&plane.store, own).await?;
    plane.health.look(&plane.replica, &plane.store.replicas().await?);
    let until = now_ms() + millis(LEASE);
    if let Some(lease) = plane.store.lease("housekeeping", &plane.replica, now_ms(), until).await? {
        for_all(plane, &lease, round.is_multiple_of(CLEAN_UP)).await?;
    }
    let now = plane.health.believed_ms() / 1000;
    without_key(plane.keep_trial().await)?;
    plane.publisher.catch_up().await?;
    if plane.ca.is_due(now) {
        let rotated = plane.rotate("control").await;
        if let Ok(done) = rotated {
            waits(plane, !done);
        }
        without_key(rotated.map(drop))?;
    } else if plane.presented.is_due(&plane.ca, now) {
        plane.presented.replace(&plane.ca)?;
    }
    if plane.ca.rotate_root_if_due(&plane.store, now).await? {
        plane.publisher.catch_up().await?;
    }
    match plane.ca.serve_requests(&plane.store).await {
        Ok(served) => {
            for replica in served {
                tracing::info!(%replica, "signed an issuing CA for another replica");
            }
        }
        Err(error) => without_key(Err(error.into()))?,
    }
    if plane.tokens.turn().await? {
        plane.publisher.catch_up().await?;
    }
    Ok(())
}

/// Half of the issuing CA's life is over, and whoever holds the root has not signed the next one: there is time, but somebody
/// has to know.
fn waits(plane: &Plane, waits: bool) {
    if plane.metrics.issuing_waits.set(waits.into()) == i64::from(waits) {
        return;
    }
    let until = crate::clock::rfc3339(plane.ca.issuing().not_after * 1000);
    match waits {
        true => tracing::warn!(
            %until,
            "the next issuing CA waits to be signed, and nothing is issued once the present one ends: run `postern ca approve` \
             where a control plane holds the root, or `postern ca csr`, `sign` and `install` where the root is offline"
        ),
        false => tracing::info!(%until, "the next issuing CA signs"),
    }
}

/// A key that does not answer is said by [`probe_keys`]; nothing else has to wait for it.
fn without_key(done: Result<(), ServeError>) -> Result<(), ServeError> {
    match done {
        Err(ServeError::Ca(CaError::Key(error))) => {
            tracing::debug!(%error, "nothing can be signed for now");
            Ok(())
        }
        done => done,
    }
}

/// The work that one replica does for all.
async fn for_all(plane: &Plane, lease: &Lease, clean_up: bool) -> Result<(), ServeError> {
    plane.publisher.sweep(lease).await?;
    for ended in
        plane.store.declared().await?.all().iter().filter(|d| d.has_ended(plane.health.believed_ms()))
    {
        // Whoever became one of a template's identities is refused its next certificate.
        let Some(id) = ended.id() else { continue };
        if plane.store.is_in_service(&id, now_ms()).await? {
            let mut change = plane.store.change().await?;
            change.fence(lease).await?;
            // Somebody may have given it more time meanwhile.
            if change
                .declared(&id)
                .await?
                .is_some_and(|declared| declared.has_ended(plane.health.believed_ms()))
            {
                revoke::retire(change, &id, "its declared end has come", "control").await?;
                plane.publisher.catch_up().await?;
            }
        }
    }
    sweep_jwt_keys(plane, lease).await?;
    for rotation in plane.store.rotations().await? {
        let holding = publish::rollout(&plane.store, &plane.proxies, rotation.generation).await?;
        let facts = turn::facts(&plane.store, &rotation, &holding, plane.ca.canary()).await?;
        if let Some(stage) = turn::go_on(&plane.store, &rotation, &facts, lease).await? {
            plane.metrics.rotation(rotation.kind.as_str(), stage.as_str());
            if stage == Stage::RollingBack {
                tracing::warn!(kind = rotation.kind.as_str(), id = %rotation.id, "a new authority was withdrawn; `postern ca list` says why");
            }
            plane.publisher.catch_up().await?;
        }
    }
    if clean_up {
        // By a clock that is ahead, revocations would be swept whose certificates are good again once it is right.
        let now = plane.health.believed_ms();
        let before = now - millis(KEPT);
        let mut change = plane.store.change().await?;
        change.fence(lease).await?;
        change.forget_certificates(before).await?;
        change.forget_tokens(before).await?;
        change.forget_attestations(before).await?;
        if change.sweep_revocations(now).await? > 0 {
            change.advance("generation").await?;
        }
        change.commit().await?;
        plane.publisher.catch_up().await?;
    }
    Ok(())
}

/// Takes back keys for JWT-SVIDs whose last token has ended.
async fn sweep_jwt_keys(plane: &Plane, lease: &Lease) -> Result<(), ServeError> {
    let now = now_ms();
    if plane.store.first_jwt_key_end().await?.is_none_or(|end| end > now) {
        return Ok(());
    }
    let mut change = plane.store.change().await?;
    change.fence(lease).await?;
    if change.sweep_jwt_keys(now).await? > 0 {
        change.advance("bundle").await?;
        change.advance("generation").await?;
    }
    change.commit().await?;
    Ok(plane.publisher.catch_up().await?)
}
