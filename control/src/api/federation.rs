//! Foreign trust domains as operators see and change them.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::StatusCode;
use postern_config::bundle::TrustBundle;
use postern_config::id::TrustDomain;

use super::Plane;
use super::admin::{Body, By, Failed, Named, Shared};
use super::model::{Applied, FederationView, Refreshed};
use crate::clock::rfc3339;
use crate::federation::{self, FederationError, Wanted};
use crate::store::Foreign;

/// The routes.
pub(super) fn routes() -> Router<Arc<Plane>> {
    Router::new()
        .route("/v1/federation", get(list).post(add))
        .route("/v1/federation/{trust_domain}", delete(remove))
        .route("/v1/federation/{trust_domain}/refresh", post(refresh))
}

impl Plane {
    /// The bundle of this trust domain, as it is published now.
    pub(crate) fn own_bundle(&self) -> TrustBundle {
        let (world, own) = (self.publisher.world(), self.ca.trust_domain());
        match world.bundles.of(own.as_str()) {
            Some(bundle) => TrustBundle::clone(bundle),
            None => TrustBundle::nobody(own.clone()),
        }
    }
}

async fn list(State(plane): Shared) -> Result<Json<Vec<FederationView>>, Failed> {
    let all = plane.store.foreign().await?;
    Ok(Json(all.iter().map(view).collect()))
}

async fn add(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<Wanted>,
) -> Result<Json<Refreshed>, Failed> {
    let trust_domain = wanted.trust_domain.clone();
    federation::add(&plane.store, &plane.own_bundle(), wanted, &operator.0).await?;
    plane.publisher.catch_up().await?;
    fetch(&plane, &trust_domain, &operator.0).await
}

async fn refresh(
    State(plane): Shared,
    Extension(operator): By,
    Named(trust_domain): Named<String>,
) -> Result<Json<Refreshed>, Failed> {
    fetch(&plane, &name(&trust_domain)?, &operator.0).await
}

async fn remove(
    State(plane): Shared,
    Extension(operator): By,
    Named(trust_domain): Named<String>,
) -> Result<Json<Applied>, Failed> {
    federation::remove(&plane.store, &name(&trust_domain)?, &operator.0).await?;
    plane.publisher.catch_up().await?;
    Ok(Json(Applied { applied: vec![trust_domain], generation: plane.publisher.world().generation }))
}

/// Fetches once. An endpoint that does not answer is no mistake of the request: it stands in the answer.
async fn fetch(plane: &Plane, trust_domain: &TrustDomain, actor: &str) -> Result<Json<Refreshed>, Failed> {
    let own = plane.own_bundle();
    let floor = plane.federation_floor;
    let done = federation::refresh(&plane.store, &own, trust_domain, floor, actor, None).await;
    let error = match done {
        Ok(_) => String::new(),
        Err(error @ FederationError::Unknown(_)) => return Err(error.into()),
        Err(error) if error.is_internal() => return Err(error.into()),
        Err(error) => error.to_string(),
    };
    plane.publisher.catch_up().await?;
    let all = plane.store.foreign().await?;
    let found = all.iter().find(|foreign| foreign.trust_domain == *trust_domain);
    let federation = found.map(view).ok_or_else(|| FederationError::Unknown(trust_domain.clone()))?;
    Ok(Json(Refreshed { federation, error, generation: plane.publisher.world().generation }))
}

fn name(text: &str) -> Result<TrustDomain, Failed> {
    text.parse().map_err(|why| Failed::bad(format!("{text:?}: {why}")))
}

fn view(foreign: &Foreign) -> FederationView {
    let bundle = federation::held(foreign).ok().flatten();
    FederationView {
        trust_domain: foreign.trust_domain.to_string(),
        url: foreign.url.clone(),
        profile: foreign.profile.clone(),
        endpoint_id: (!foreign.endpoint_id.is_empty()).then(|| foreign.endpoint_id.clone()),
        members: foreign.members.clone(),
        sequence: bundle.as_ref().map(TrustBundle::sequence),
        authorities: bundle.as_ref().map_or(0, |b| b.anchors().len() as u64),
        jwt_keys: bundle.as_ref().map_or(0, |b| b.jwt_keys().len() as u64),
        fetched_at: (foreign.fetched_at > 0).then(|| rfc3339(foreign.fetched_at)),
        next_at: rfc3339(foreign.next_at),
        error: foreign.error.clone(),
    }
}

impl From<FederationError> for Failed {
    fn from(error: FederationError) -> Self {
        match &error {
            FederationError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "not_found", error.to_string()),
            _ if error.is_internal() => Self::internal(&error),
            _ => Self::bad(error.to_string()),
        }
    }
}
