//! The root's rotation and the taint of a key, as operators ask for them and watch them.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;

use super::Plane;
use super::admin::{Body, By, Failed, Shared};
use super::model::{AuthorityView, BeginRotation, RotationView, TaintIssuing, TaintedView};
use crate::ca::rotation::{self, Rotation, Stage, Step, Straggler, Waiting};
use crate::ca::turn::{self, RotateError};
use crate::clock::{now_ms, rfc3339};
use crate::publish;
use crate::store::Kind;

/// The routes.
pub(super) fn routes() -> Router<Arc<Plane>> {
    Router::new()
        .route("/v1/ca/authorities", get(authorities))
        .route("/v1/ca/rotation", get(show).post(begin))
        .route("/v1/ca/taint", post(taint))
}

async fn authorities(State(plane): Shared) -> Result<Json<Vec<AuthorityView>>, Failed> {
    let view = plane.store.authorities().await?.into_iter().map(|a| AuthorityView {
        key_id: a.key_id,
        kind: if a.kind == Kind::Root { "root" } else { "issuing" }.to_owned(),
        state: a.state.as_str().to_owned(),
        name: a.name,
        replica: a.replica,
        issuer: a.issuer,
        not_before: rfc3339(a.not_before * 1000),
        not_after: rfc3339(a.not_after * 1000),
    });
    Ok(Json(view.collect()))
}

async fn begin(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<BeginRotation>,
) -> Result<Json<RotationView>, Failed> {
    let begun = plane.ca.begin_rotation(&plane.store, wanted.force, wanted.taint, &operator.0).await?;
    plane.publisher.catch_up().await?;
    Ok(Json(view(&plane, begun).await?))
}

async fn show(State(plane): Shared) -> Result<Json<Option<RotationView>>, Failed> {
    match plane.store.rotation().await? {
        None => Ok(Json(None)),
        Some(rotation) => Ok(Json(Some(view(&plane, rotation).await?))),
    }
}

async fn taint(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<TaintIssuing>,
) -> Result<Json<TaintedView>, Failed> {
    let at_ms = now_ms();
    let generation = turn::taint_issuing(&plane.store, &wanted.key_id, &operator.0).await?;
    plane.publisher.catch_up().await?;
    if plane.ca.is_due(now_ms() / 1000) {
        plane.rotate(&operator.0).await.map_err(|e| Failed::internal(&e))?;
    }
    Ok(Json(TaintedView { key_id: wanted.key_id, generation, at_ms }))
}

async fn view(plane: &Plane, rotation: Rotation) -> Result<RotationView, Failed> {
    let holding = publish::rollout(&plane.store, &plane.proxies, rotation.generation).await?;
    let facts = turn::facts(&plane.store, &rotation, &holding).await.map_err(|e| Failed::internal(&e))?;
    let waiting = match rotation::next(&rotation, &facts, now_ms()) {
        Step::Wait(waiting) => waiting,
        Step::Activate | Step::Prune => Waiting::Proxies(Vec::new()),
    };
    let name = |s: &Straggler| match s.is_connected {
        true => s.instance.clone(),
        false => format!("{} (not connected)", s.instance),
    };
    let (what, names, until) = match waiting {
        Waiting::Proxies(stragglers) => ("proxies", stragglers.iter().map(name).collect(), None),
        Waiting::Replicas(replicas) => ("replicas", replicas, None),
        Waiting::Tokens(until) => ("tokens", Vec::new(), Some(rfc3339(until))),
        Waiting::Leaves(until) => ("leaves", Vec::new(), Some(rfc3339(until))),
    };
    let stage = match (rotation.stage, what) {
        (Stage::Prepared, "proxies") => 2,
        (Stage::Prepared, _) => 3,
        (Stage::Active, _) => 4,
        (Stage::Pruned, _) => 5,
    };
    Ok(RotationView {
        id: rotation.id,
        stage,
        state: rotation.stage.as_str().to_owned(),
        old_root: rotation.old_root,
        new_root: rotation.new_root,
        proxies: holding.len() as u64,
        confirmed: holding.iter().filter(|h| h.acked_at.is_some()).count() as u64,
        waiting_for: what.to_owned(),
        waiting_names: names,
        waiting_until: until,
        began_at: rfc3339(rotation.began_at),
    })
}

impl From<RotateError> for Failed {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Ca(error) => Self::internal(&error),
            RotateError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "not_found", error.to_string()),
            RotateError::UnderWay(_) | RotateError::NotHere | RotateError::Place => {
                Self::new(StatusCode::CONFLICT, "conflict", error.to_string())
            }
        }
    }
}
