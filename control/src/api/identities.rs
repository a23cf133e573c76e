//! Identities as operators see and declare them.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::StatusCode;
use postern_config::registry;

use super::Plane;
use super::admin::{Body, By, Failed, Named, Shared, publish};
use super::model::{Applied, Changed, Identity, RemoveIdentity, RevokedView};
use super::roles::Access;
use crate::clock::{now_ms, rfc3339};
use crate::revoke;
use crate::store::Change;

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
    let live = plane.store.live_lineages(now_ms()).await?;
    let view = live.into_iter().filter(|live| live.lineage.ended_at.is_none()).map(|live| {
        // What a connected proxy said last may not be in the store yet.
        let said = plane.proxies.said(&live.lineage.id);
        Identity {
            connected: said.is_some() || !live.replica.is_empty(),
            generation: said.as_ref().map_or(live.generation, |s| s.generation),
            last_seen: rfc3339(said.as_ref().map_or(live.last_seen, |s| s.last_seen.max(live.last_seen))),
            error: said.map_or(live.error, |s| s.error),
            owner: declared.of(&live.lineage.spiffe_id).map(|own| own.spec.owner.clone()),
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
    Extension(access): Extension<Access>,
    Body(wanted): Body<RemoveIdentity>,
) -> Result<Json<RevokedView>, Failed> {
    if plane.role(&wanted.id).is_some() {
        access.admin("it is an operator")?;
    }
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
    Ok(Json(plane.store.declared().await?.all().to_vec()))
}

/// All of them or none.
async fn declare(
    State(plane): Shared,
    Extension(operator): By,
    Extension(access): Extension<Access>,
    Body(wanted): Body<Vec<registry::Identity>>,
) -> Result<Json<Applied>, Failed> {
    let mut names = HashSet::new();
    // The later one would replace the earlier, and with it the terms of another identity.
    if let Some(twice) = wanted.iter().map(|i| &i.metadata.name).find(|name| !names.insert(*name)) {
        return Err(Failed::bad(format!("the name {twice:?} stands twice in the input")));
    }
    let mut change = plane.store.change().await?;
    for identity in &wanted {
        put(&plane, &mut change, access, identity).await?;
    }
    let applied = wanted.into_iter().map(|i| i.metadata.name).collect();
    publish(&plane, change, &operator, "identity apply", applied).await
}

/// Declares one identity, and says what that changes.
pub(super) async fn put(
    plane: &Plane,
    change: &mut Change,
    access: Access,
    wanted: &registry::Identity,
) -> Result<Changed, Failed> {
    wanted.check().map_err(|why| Failed::bad(format!("spec.{}: {why}", why.field())))?;
    let (own, pattern) = (plane.ca.trust_domain(), wanted.pattern());
    if pattern.trust_domain() != own {
        return Err(Failed::bad(format!("{pattern} is not of this trust domain, which is {own}")));
    }
    let before = change.declared_like(wanted).await?;
    let (before, others): (Vec<_>, Vec<_>) =
        before.into_iter().partition(|one| one.metadata.name == wanted.metadata.name);
    if let Some(other) = others.first() {
        let other = &other.metadata.name;
        return Err(Failed::bad(format!("{pattern} is declared by {other:?} already; delete that first")));
    }
    if before.first() == Some(wanted) {
        return Ok(Changed::Unchanged);
    }
    // Whoever may say who becomes an operator has that operator's rights.
    let declared = plane.store.declared().await?;
    let of_operators = declared.all().iter().filter(|one| one.spec.role.is_some()).filter_map(|one| one.id());
    let listed = plane.operators.iter().map(|operator| operator.id.clone());
    let reaches = !wanted.spec.selectors.is_empty() || wanted.id().is_some();
    let mut reached = of_operators.chain(listed).filter(|id| reaches && pattern.covers(id));
    if wanted.spec.role.is_some() || before.iter().any(|b| b.spec.role.is_some()) || reached.next().is_some()
    {
        access.admin("it says who is an operator")?;
    }
    change.put_identity(wanted).await?;
    Ok(if before.is_empty() { Changed::Created } else { Changed::Changed })
}

async fn withdraw(
    State(plane): Shared,
    Extension(operator): By,
    Extension(access): Extension<Access>,
    Named(name): Named<String>,
) -> Result<Json<Applied>, Failed> {
    let mut change = plane.store.change().await?;
    let Some(before) = change.declaration(&name).await? else {
        let message = format!("no identity is declared by the name {name:?}");
        return Err(Failed::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    if before.spec.role.is_some() || before.id().is_some_and(|id| plane.role(&id).is_some()) {
        access.admin("it says who is an operator")?;
    }
    change.remove_identity(&name).await?;
    publish(&plane, change, &operator, "identity delete", vec![name]).await
}
