//! The keys for JWT-SVIDs, as operators see them, replace them and take them back.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;

use super::Plane;
use super::admin::{Body, By, Failed, Shared};
use super::model::{JwtKeyView, TaintIssuing, TaintedView};
use crate::clock::{now_ms, rfc3339};

/// The routes.
pub(super) fn routes() -> Router<Arc<Plane>> {
    Router::new()
        .route("/v1/jwt/keys", get(keys))
        .route("/v1/jwt/rotate", post(rotate))
        .route("/v1/jwt/taint", post(taint))
}

async fn keys(State(plane): Shared) -> Result<Json<Vec<JwtKeyView>>, Failed> {
    view(&plane).await
}

async fn rotate(State(plane): Shared, Extension(operator): By) -> Result<Json<Vec<JwtKeyView>>, Failed> {
    plane.tokens.rotate(&operator.0).await.map_err(|error| Failed::internal(&error))?;
    plane.publisher.catch_up().await?;
    view(&plane).await
}

async fn taint(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<TaintIssuing>,
) -> Result<Json<TaintedView>, Failed> {
    let at_ms = now_ms();
    let tainted = plane.tokens.taint(&wanted.key_id, &operator.0).await;
    let Some(generation) = tainted.map_err(|error| Failed::internal(&error))? else {
        let message =
            format!("no key for tokens is published by the name {:?}; see `postern jwt list`", wanted.key_id);
        return Err(Failed::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    plane.publisher.catch_up().await?;
    Ok(Json(TaintedView { key_id: wanted.key_id, generation, at_ms }))
}

async fn view(plane: &Plane) -> Result<Json<Vec<JwtKeyView>>, Failed> {
    let now = now_ms();
    let view = plane.store.jwt_keys().await?.into_iter().map(|published| JwtKeyView {
        kid: published.key.kid().to_owned(),
        state: match () {
            () if now < published.signs_from => "published",
            () if now < published.signs_until => "signs",
            () => "retired",
        }
        .to_owned(),
        replica: published.replica,
        published_at: rfc3339(published.published_at),
        signs_from: rfc3339(published.signs_from),
        signs_until: rfc3339(published.signs_until),
        ends_at: rfc3339(published.ends_at),
    });
    Ok(Json(view.collect()))
}
