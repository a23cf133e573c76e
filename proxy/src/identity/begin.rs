//! How the identity thread begins: with the cached identity where a valid one is kept, with a join string or by attestation
//! otherwise.

use std::sync::Arc;

use postern_config::enroll::JoinString;
use postern_config::file::proxy::ProxyConfig;
use postern_config::id::TrustDomain;
use postern_config::wire::v1;

use super::apply::Held;
use super::cache::Cache;
use super::control::{self, ControlError};
use super::handshakes::Accounts;
use super::join::JoinSource;
use super::key::{Issued, Request};
use super::renewal::Schedule;
use super::ticket::Ticket;
use super::{Driver, IdentityError, instance, ttl_ms};
use crate::clock::Steps;
use crate::readiness::Readiness;
use crate::snapshot::Snapshots;
use crate::succession::Pen;
use crate::telemetry::Metrics;
use crate::tls::Tls;

/// A refused credential is tried again as seldom as a certificate of this life, milliseconds, would be renewed after a failure.
const RELUCTANT_MS: i64 = 3_600_000;

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
        let mut redeeming = None;
        let (address, trust_domain, issued, restored) = match cached {
            Some(cached) if !cached.is_expired(setup.snapshots.clock.now()) => {
                tracing::info!("resuming with the cached identity");
                resumed_from.clone_from(&setup.config.identity.cache);
                (cached.address, cached.trust_domain, cached.issued, cached.state)
            }
            other => {
                if other.is_some() {
                    tracing::warn!("the cached identity has expired; enrolling anew");
                }
                let (address, trust_domain, enrolled) = if setup.config.control.attest.is_some() {
                    let address = setup.config.control.address.clone().unwrap_or_default();
                    let (trust_domain, enrolled, request) = attested(&setup, &address).await?;
                    redeeming = Some((String::new(), request));
                    (address, trust_domain, enrolled)
                } else {
                    let source = setup.join.as_ref().ok_or(IdentityError::NothingToBeginWith)?;
                    let join = source.read()?;
                    spent_token = Some(join.token_id.clone());
                    let address =
                        setup.config.control.address.clone().unwrap_or_else(|| join.address.clone());
                    let enrolled = enroll(&setup, &address, &join).await?;
                    (address, join.trust_domain, enrolled)
                };
                let (issued, bundle) = enrolled;
                let state = v1::WatchResponse {
                    bundles: Some(v1::BundleSet { bundles: vec![bundle] }),
                    ..v1::WatchResponse::default()
                };
                (address, trust_domain, issued, state)
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
            redeeming,
            pen: setup.pen,
            writing: None,
            unsaved: false,
            accounts: Accounts::begin(),
            reports: None,
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
    let ticket = Ticket::from(join);
    loop {
        match control::enroll(address, &ticket, &request, ttl_ms(&setup.config), instance()).await {
            Ok(answer) => return Ok((answer.issued, answer.bundle)),
            Err(ControlError::Refused(why)) => return Err(IdentityError::TokenRefused(why)),
            Err(ControlError::Local(why)) => return Err(IdentityError::Unusable(why)),
            Err(error @ ControlError::NotTrusted(_)) => {
                return Err(IdentityError::Unusable(error.to_string()));
            }
            Err(why @ (ControlError::Away(_) | ControlError::Silent | ControlError::Busy { .. })) => {
                let pause = match why.retry_after() {
                    Some(hint) => patience.come_again(hint, rand::random()),
                    None => patience.retry_after(failures, rand::random()),
                };
                failures += 1;
                tracing::warn!(%why, %address, retry_ms = pause.as_millis() as u64, "waiting for the control plane");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Enrolls by what the platform says. Files are read for each try; neither a missing one nor a refusal is final: the kubelet may
/// be late, and a pod whose proxy was restarted has to wait until the token that its earlier key was bound by has ended.
async fn attested(
    setup: &Setup,
    address: &str,
) -> Result<(TrustDomain, (Issued, v1::Bundle), Request), IdentityError> {
    let request = Request::new().map_err(IdentityError::Unusable)?;
    let (patience, reluctance) = (Schedule::new(0, 0, None, 0.0), Schedule::new(0, RELUCTANT_MS, None, 0.0));
    let mut failures = 0;
    loop {
        let ticket = Ticket::attested(&setup.config.control).ok_or(IdentityError::NothingToBeginWith)?;
        let mut hint = None;
        let (why, pause) = match ticket {
            Err(why) => (why, &patience),
            Ok(ticket) => {
                match control::enroll(address, &ticket, &request, ttl_ms(&setup.config), instance()).await {
                    Ok(answer) => {
                        return Ok((ticket.trust_domain, (answer.issued, answer.bundle), request));
                    }
                    Err(ControlError::Local(why)) => return Err(IdentityError::Unusable(why)),
                    Err(error @ ControlError::NotTrusted(_)) => {
                        return Err(IdentityError::Unusable(error.to_string()));
                    }
                    Err(ControlError::Refused(why)) => (why, &reluctance),
                    Err(why @ (ControlError::Away(_) | ControlError::Silent | ControlError::Busy { .. })) => {
                        hint = why.retry_after();
                        (why.to_string(), &patience)
                    }
                }
            }
        };
        let pause = match hint {
            Some(hint) => pause.come_again(hint, rand::random()),
            None => pause.retry_after(failures, rand::random()),
        };
        failures += 1;
        tracing::warn!(%why, %address, retry_ms = pause.as_millis() as u64, "not enrolled yet");
        tokio::time::sleep(pause).await;
    }
}
