//! Rotations and the taint of a key, as operators ask for them and watch them.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;

use super::Plane;
use super::admin::{Body, By, Failed, Shared};
use super::model::{AuthorityView, BeginRotation, RotationView, TaintIssuing, TaintedView};
use crate::ca::rotation::{self, Rotation, Stage, Step, Straggler, Waiting};
use crate::ca::turn::{self, Begin, RotateError};
use crate::clock::{now_ms, rfc3339};
use crate::publish;
use crate::store::Kind;

/// The routes.
pub(super) fn routes() -> Router<Arc<Plane>> {
    Router::new()
        .route("/v1/ca/authorities", get(authorities))
        .route("/v1/ca/rotation", get(show).post(begin))
        .route("/v1/ca/rotations", get(last))
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
    let usual = Begin::by_schedule(plane.ca.canary());
    let share = wanted.share.unwrap_or(usual.share);
    if share > 100 || wanted.issuing && share == 0 {
        let why = "share is from 0 to 100 per cent, and an issuing CA without a canary is POST /v1/ca/rotate";
        return Err(Failed::bad(why));
    }
    let begin = Begin { force: wanted.force, taint: wanted.taint, share, ..usual };
    let begun = match wanted.issuing {
        true => plane.begin_trial(&begin, &operator.0).await?,
        false => plane.ca.begin_rotation(&plane.store, &begin, &operator.0).await?,
    };
    plane.publisher.catch_up().await?;
    Ok(Json(view(&plane, begun).await?))
}

async fn show(State(plane): Shared) -> Result<Json<Option<RotationView>>, Failed> {
    match plane.store.rotation().await? {
        None => Ok(Json(None)),
        Some(rotation) => Ok(Json(Some(view(&plane, rotation).await?))),
    }
}

/// The last ones, newest first.
async fn last(State(plane): Shared) -> Result<Json<Vec<RotationView>>, Failed> {
    let mut views = Vec::new();
    for rotation in plane.store.last_rotations().await? {
        views.push(view(&plane, rotation).await?);
    }
    Ok(Json(views))
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
    let mut holding = Vec::new();
    let mut waiting = Waiting::Leaves(0);
    if !rotation.stage.is_end() {
        holding = publish::rollout(&plane.store, &plane.proxies, rotation.generation).await?;
        let facts = turn::facts(&plane.store, &rotation, &holding, plane.ca.canary()).await;
        let facts = facts.map_err(|e| Failed::internal(&e))?;
        waiting = match rotation::next(&rotation, &facts, now_ms()) {
            Step::Wait(waiting) => waiting,
            _ => Waiting::Proxies(Vec::new()),
        };
    }
    let name = |s: &Straggler| match s.is_connected {
        true => s.instance.clone(),
        false => format!("{} (not connected)", s.instance),
    };
    let (what, names, until) = match waiting {
        Waiting::Proxies(stragglers) => ("proxies", stragglers.iter().map(name).collect(), None),
        Waiting::Replicas(replicas) => ("replicas", replicas, None),
        Waiting::Tokens(until) => ("tokens", Vec::new(), Some(rfc3339(until))),
        Waiting::Canary(silent, until) => ("canary", silent, Some(rfc3339(until))),
        Waiting::Leaves(0) => ("leaves", Vec::new(), None),
        Waiting::Leaves(until) => ("leaves", Vec::new(), Some(rfc3339(until))),
    };
    let stage = match (rotation.stage, what) {
        (Stage::Prepared, "proxies") => 2,
        (Stage::Prepared | Stage::Canary | Stage::RollingBack | Stage::RolledBack, _) => 3,
        (Stage::Active, _) => 4,
        (Stage::Pruned, _) => 5,
    };
    Ok(RotationView {
        id: rotation.id,
        kind: rotation.kind.as_str().to_owned(),
        replica: rotation.replica,
        stage,
        state: rotation.stage.as_str().to_owned(),
        share: rotation.trial.share,
        reason: rotation.reason,
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
            RotateError::UnderWay(_) | RotateError::NotHere => {
                Self::new(StatusCode::CONFLICT, "conflict", error.to_string())
            }
        }
    }
}
