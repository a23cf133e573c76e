//! Fetches foreign bundles when they are due: one replica for all, one interval apart, whatever the answer was.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{FederationError, refresh};
use crate::api::Plane;
use crate::clock::{millis, now_ms};

/// How often it is looked at what is due.
const ROUND: Duration = Duration::from_secs(1);
/// How long the lease lasts without a sign of life: longer than a fetch may take.
const LEASE: Duration = Duration::from_secs(20);
/// How many endpoints are asked at once.
const AT_ONCE: usize = 8;

/// Polls until `shutdown`.
pub(crate) async fn run(plane: Arc<Plane>, shutdown: CancellationToken) {
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = rounds.tick() => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            done = round(&plane) => if let Err(error) = done {
                tracing::debug!(%error, "foreign bundles cannot be looked after for now");
            },
        }
    }
}

async fn round(plane: &Arc<Plane>) -> Result<(), FederationError> {
    let now = now_ms();
    let due = plane.store.foreign().await?.into_iter().filter(|foreign| foreign.next_at <= now);
    let due: Vec<_> = due.map(|foreign| foreign.trust_domain).collect();
    for some in due.chunks(AT_ONCE) {
        let until = now_ms() + millis(LEASE);
        let Some(lease) = plane.store.lease("federation", &plane.replica, now_ms(), until).await? else {
            return Ok(());
        };
        let mut fetches = tokio::task::JoinSet::new();
        for trust_domain in some {
            let (plane, trust_domain) = (Arc::clone(plane), trust_domain.clone());
            fetches.spawn(async move {
                let own = plane.own_bundle();
                refresh(&plane.store, &own, &trust_domain, plane.federation_floor, "control", Some(&lease))
                    .await
            });
        }
        let mut changed = false;
        while let Some(done) = fetches.join_next().await {
            match done {
                Ok(Ok(news)) => changed |= news,
                // It is noted where `federation list` shows it.
                Ok(Err(error)) => tracing::debug!(%error, "a foreign bundle was not refreshed"),
                Err(error) => tracing::error!(%error, "a fetch of a foreign bundle panicked"),
            }
        }
        if changed {
            plane.publisher.catch_up().await?;
        }
    }
    Ok(())
}
