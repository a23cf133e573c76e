//! Identities as operators see and declare them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::StatusCode;
use postern_config::id::SpiffeId;
use postern_config::registry;

use super::Plane;
use super::admin::{Body, By, Failed, Named, Shared, publish};
use super::model::{Applied, Identity, RemoveIdentity, RevokedView};
use crate::clock::{now_ms, rfc3339};
use crate::revoke;

/// The routes.
pub(super) fn routes() -> Router<Arc<Plane>> {
    Router::new()
        .route("/v1/identities", get(live))
        .route("/v1/identities/remove", post(remove))
        .route("/v1/declarations", get(declared).post(declare))
        .route("/v1/declarations/{name}", delete(withdraw))
}

async fn live(State(plane): Shared) -> Result<Json<Vec<Identity>>, Failed> {
    let declared = plane.store.declared().await?;
    let owners: HashMap<&SpiffeId, &str> =
        declared.iter().map(|d| (&d.spec.spiffe_id, d.spec.owner.as_str())).collect();
    let live = plane.store.live_lineages(now_ms()).await?;
    let view = live.into_iter().filter(|live| live.lineage.ended_at.is_none()).map(|live| {
        // What a connected proxy said last may not be in the store yet.
        let said = plane.proxies.said(&live.lineage.id);
        Identity {
            connected: said.is_some() || !live.replica.is_empty(),
            generation: said.as_ref().map_or(live.generation, |s| s.generation),
            last_seen: rfc3339(said.as_ref().map_or(live.last_seen, |s| s.last_seen.max(live.last_seen))),
            error: said.map_or(live.error, |s| s.error),
            owner: owners.get(&live.lineage.spiffe_id).map(|owner| (*owner).to_owned()),
            environment: Some(live.lineage.environment).filter(|e| !e.is_empty()),
            id: live.lineage.spiffe_id,
            instance: live.lineage.instance,
            lineage: live.lineage.id,
            serial: live.lineage.current_serial,
            expires_at: rfc3339(live.not_after),
        }
    });
    Ok(Json(view.collect()))
}

async fn remove(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<RemoveIdentity>,
) -> Result<Json<RevokedView>, Failed> {
    if !plane.store.is_in_service(&wanted.id, now_ms()).await? {
        let message = format!("{} has no enrollment and no token here", wanted.id);
        return Err(Failed::new(StatusCode::NOT_FOUND, "not_found", message));
    }
    let done = revoke::retire(plane.store.change().await?, &wanted.id, "removed", &operator.0).await?;
    plane.publisher.publish().await?;
    Ok(Json(RevokedView {
        id: done.id,
        certificates: done.certificates,
        generation: done.generation,
        at_ms: done.at,
    }))
}

async fn declared(State(plane): Shared) -> Result<Json<Vec<registry::Identity>>, Failed> {
    Ok(Json(plane.store.declared().await?))
}

/// All of them or none.
async fn declare(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<Vec<registry::Identity>>,
) -> Result<Json<Applied>, Failed> {
    let own = plane.ca.trust_domain();
    let mut names = HashSet::new();
    // The later one would replace the earlier, and with it the terms of another identity.
    if let Some(twice) = wanted.iter().map(|i| &i.metadata.name).find(|name| !names.insert(*name)) {
        return Err(Failed::bad(format!("the name {twice:?} stands twice in the input")));
    }
    let mut change = plane.store.change().await?;
    for identity in &wanted {
        identity.check().map_err(|why| Failed::bad(why.to_string()))?;
        let id = &identity.spec.spiffe_id;
        if id.trust_domain_str() != own.as_str() {
            return Err(Failed::bad(format!("{id} is not of this trust domain, which is {own}")));
        }
        let name = &identity.metadata.name;
        match change.declared(id).await? {
            Some(other) if other.metadata.name != *name => {
                let other = other.metadata.name;
                return Err(Failed::bad(format!("{id} is declared by {other:?} already; delete that first")));
            }
            _ => change.put_identity(identity).await?,
        }
    }
    let applied = wanted.into_iter().map(|i| i.metadata.name).collect();
    publish(&plane, change, &operator, "identity apply", applied).await
}

async fn withdraw(
    State(plane): Shared,
    Extension(operator): By,
    Named(name): Named<String>,
) -> Result<Json<Applied>, Failed> {
    let mut change = plane.store.change().await?;
    if !change.remove_identity(&name).await? {
        let message = format!("no identity is declared by the name {name:?}");
        return Err(Failed::new(StatusCode::NOT_FOUND, "not_found", message));
    }
    publish(&plane, change, &operator, "identity delete", vec![name]).await
}
