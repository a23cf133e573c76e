//! How the identity thread begins: with the cached identity where a valid one is kept, with a join string otherwise.

use std::sync::Arc;

use postern_config::enroll::JoinString;
use postern_config::file::proxy::ProxyConfig;
use postern_config::wire::v1;

use super::apply::Held;
use super::cache::Cache;
use super::control::{self, ControlError};
use super::join::JoinSource;
use super::key::{Issued, Request};
use super::renewal::Schedule;
use super::{Driver, IdentityError, instance, ttl_ms};
use crate::clock::Steps;
use crate::readiness::Readiness;
use crate::snapshot::Snapshots;
use crate::succession::Pen;
use crate::telemetry::Metrics;
use crate::tls::Tls;

/// What [`Driver::begin`] needs.
pub struct Setup {
    /// The whole configuration.
    pub config: Arc<ProxyConfig>,
    /// Where results go.
    pub snapshots: Arc<Snapshots>,
    /// TLS configs.
    pub tls: Tls,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What is still missing.
    pub readiness: Arc<Readiness>,
    /// Where the join string comes from.
    pub join: Option<JoinSource>,
    /// Endpoints to announce.
    pub endpoints: Vec<v1::Announcement>,
    /// The right to renew and to write the cache, which another process of this identity may hold.
    pub pen: Pen,
}

impl Driver {
    /// Obtains the first identity: from the cache where a valid one lies there, by the join string otherwise. A control
    /// plane that does not answer is waited for; one that refuses ends this.
    pub async fn begin(setup: Setup) -> Result<Self, IdentityError> {
        let cache = setup.config.identity.cache.as_deref().map(Cache::open).transpose()?;
        let cached = cache.as_ref().map(Cache::read).transpose()?.flatten();
        let mut spent_token = None;
        let mut resumed_from = None;
        let (address, trust_domain, issued, restored) = match cached {
            Some(cached) if !cached.is_expired(setup.snapshots.clock.now()) => {
                tracing::info!("resuming with the cached identity");
                resumed_from.clone_from(&setup.config.identity.cache);
                (cached.address, cached.trust_domain, cached.issued, cached.state)
            }
            other => {
                if other.is_some() {
                    tracing::warn!("the cached identity has expired; a join string is needed");
                }
                let source = setup.join.as_ref().ok_or(IdentityError::NothingToBeginWith)?;
                let join = source.read()?;
                spent_token = Some(join.token_id.clone());
                let address = setup.config.control.address.clone().unwrap_or_else(|| join.address.clone());
                let (issued, bundle) = enroll(&setup, &address, &join).await?;
                let state = v1::WatchResponse {
                    bundles: Some(v1::BundleSet { bundles: vec![bundle] }),
                    ..v1::WatchResponse::default()
                };
                (address, join.trust_domain, issued, state)
            }
        };
        let address = setup.config.control.address.clone().unwrap_or(address);
        let control = setup.tls.control_connector(trust_domain.control_plane());
        let control = control.map_err(|e| IdentityError::Unusable(e.to_string()))?;
        let mut driver = Self {
            held: Held::new(trust_domain.clone()),
            config: setup.config,
            snapshots: setup.snapshots,
            tls: setup.tls,
            control,
            metrics: setup.metrics,
            readiness: setup.readiness,
            endpoints: setup.endpoints,
            join: setup.join,
            cache,
            address,
            trust_domain,
            issued,
            schedule: Schedule::new(0, 0, None, 0.0),
            steps: Steps::default(),
            failures: 0,
            spent_token,
            redeeming: None,
            pen: setup.pen,
            writing: None,
            unsaved: false,
        };
        let begun = driver.apply(&restored).and_then(|()| driver.publish_identity());
        begun.map_err(|why| match resumed_from {
            Some(path) => IdentityError::CacheUnusable { path, why },
            None => IdentityError::Unusable(why),
        })?;
        Ok(driver)
    }
}

/// Enrolls with a join string; waits for a control plane that does not answer.
async fn enroll(
    setup: &Setup,
    address: &str,
    join: &JoinString,
) -> Result<(Issued, v1::Bundle), IdentityError> {
    let mut failures = 0;
    let request = Request::new().map_err(IdentityError::Unusable)?;
    let patience = Schedule::new(0, 0, None, 0.0);
    loop {
        match control::enroll(address, join, &request, ttl_ms(&setup.config), instance()).await {
            Ok(answer) => return Ok((answer.issued, answer.bundle)),
            Err(ControlError::Refused(why)) => return Err(IdentityError::TokenRefused(why)),
            Err(ControlError::Local(why)) => return Err(IdentityError::Unusable(why)),
            Err(error @ ControlError::NotTrusted(_)) => {
                return Err(IdentityError::Unusable(error.to_string()));
            }
            Err(why @ (ControlError::Away(_) | ControlError::Silent)) => {
                let pause = patience.retry_after(failures, rand::random());
                failures += 1;
                tracing::warn!(%why, %address, retry_ms = pause.as_millis() as u64, "waiting for the control plane");
                tokio::time::sleep(pause).await;
            }
        }
    }
}
