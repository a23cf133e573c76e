//! Revocation as operators ask for it, how far proxies have come with it, and the approval of replicas' keys.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;

use super::Plane;
use super::admin::{Body, By, Failed, Named, Shared};
use super::model::{Approve, Approved, Lift, Progress, RevocationView, RevocationsView, Revoke, RevokedView};
use crate::audit::Entry;
use crate::clock::{now_ms, rfc3339};
use crate::publish;
use crate::revoke::{self, RevokeError, Target};
use crate::store::{Revocation, Revoked};

/// The routes.
pub(super) fn routes() -> Router<Arc<Plane>> {
    Router::new()
        .route("/v1/revocations", get(list).post(create))
        .route("/v1/revocations/lift", post(lift))
        .route("/v1/generations/{generation}/progress", get(progress))
        .route("/v1/ca/approve", post(approve))
}

async fn create(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<Revoke>,
) -> Result<Json<RevokedView>, Failed> {
    let target = match (wanted.id, wanted.serial) {
        (Some(id), None) if id.trust_domain_str() != plane.ca.trust_domain().as_str() => {
            return Err(Failed::bad(format!("{id} is not of this trust domain")));
        }
        (Some(id), None) => Target::Identity(id),
        (None, Some(serial)) => Target::Serial(serial),
        _ => return Err(Failed::bad("say either `id` or `serial`")),
    };
    let done = revoke::revoke(&plane.store, &target, wanted.reason, &operator.0).await?;
    plane.publisher.publish().await?;
    Ok(Json(RevokedView {
        id: done.id,
        certificates: done.certificates,
        generation: done.generation,
        at_ms: done.at,
    }))
}

async fn lift(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<Lift>,
) -> Result<Json<Lift>, Failed> {
    revoke::lift(&plane.store, &wanted.id, &operator.0).await?;
    Ok(Json(wanted))
}

async fn list(State(plane): Shared) -> Result<Json<RevocationsView>, Failed> {
    let entries = plane.store.revocations(now_ms()).await?;
    let banned = plane.store.banned().await?;
    Ok(Json(RevocationsView { entries: entries.into_iter().map(view).collect(), banned }))
}

fn view(entry: Revocation) -> RevocationView {
    let (kind, subject) = match entry.what {
        Revoked::Serial { issuer_key_id, serial } => ("serial", format!("{issuer_key_id}:{serial}")),
        Revoked::Identity { id, .. } => ("identity", id.to_string()),
        Revoked::Key { spki } => ("key", spki),
    };
    RevocationView {
        name: entry.id,
        kind: kind.to_owned(),
        subject,
        reason: entry.reason,
        created_at: rfc3339(entry.created_at),
        created_by: entry.created_by,
        ends_at: rfc3339(entry.ends_at),
    }
}

/// Every live enrollment, connected or not, and whether it has this generation.
async fn progress(
    State(plane): Shared,
    Named(generation): Named<u64>,
) -> Result<Json<Vec<Progress>>, Failed> {
    let holding = publish::rollout(&plane.store, &plane.proxies, generation).await?;
    let view = holding.into_iter().map(|one| Progress {
        id: one.id,
        instance: one.instance,
        lineage: one.lineage,
        connected: one.is_connected,
        acked_at_ms: one.acked_at,
        last_seen: rfc3339(one.last_seen),
        error: one.error,
    });
    Ok(Json(view.collect()))
}

async fn approve(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<Approve>,
) -> Result<Json<Approved>, Failed> {
    let key = wanted.key.to_ascii_lowercase();
    let mut change = plane.store.change().await?;
    let Some(replica) = change.approve_issuing(&key).await? else {
        let message = format!(
            "no replica waits with the key {key:?}; is it the whole fingerprint that the replica shows?"
        );
        return Err(Failed::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    let entry = Entry::done(&*operator.0, "ca approve", &*replica, serde_json::json!({ "key": key }));
    entry.append(&mut change).await?;
    change.commit().await?;
    entry.log();
    Ok(Json(Approved { replica }))
}

impl From<RevokeError> for Failed {
    fn from(error: RevokeError) -> Self {
        match error {
            RevokeError::Store(error) => error.into(),
            other => Self::new(StatusCode::NOT_FOUND, "not_found", other.to_string()),
        }
    }
}
