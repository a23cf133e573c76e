//! A snapshot of the store for `postern backup`, which packs it.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::routing::post;
use axum::{Json, Router};
use http::StatusCode;
use serde_json::json;

use super::Plane;
use super::admin::{Body, By, Failed, Shared};
use super::model::{SnapshotMade, TakeSnapshot};
use crate::audit::Entry;

/// The routes.
pub(super) fn routes() -> Router<Arc<Plane>> {
    Router::new().route("/v1/snapshots", post(create))
}

async fn create(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<TakeSnapshot>,
) -> Result<Json<SnapshotMade>, Failed> {
    let file = format!("snapshot-{}.db", ulid::Ulid::new());
    let entry = Entry::done(
        &*operator.0,
        "backup",
        plane.ca.trust_domain().as_str(),
        json!({ "with_keys": wanted.with_keys }),
    );
    // On record before it is made, so that the copy itself says that it was.
    let mut change = plane.store.change_rows().await?;
    entry.append(&mut change).await?;
    change.commit().await?;
    entry.log();
    if !plane.store.snapshot(&plane.data.join(&file)).await? {
        let message = "the store is PostgreSQL: back it up with pg_dump (one consistent dump of the whole database) or base backups, and \
                       save beside it, of each replica's data directory, `replica`, `chain` if it is there, `ca/`, `jwt/` and `audit/` \
                       (they hold private keys, unless those lie in a token or a Vault). A dump that is loaded again is older than what \
                       was lost, as after `postern restore`: repeat revocations made since then, and let `postern ca rotate --root` follow";
        return Err(Failed::new(StatusCode::CONFLICT, "conflict", message));
    }
    Ok(Json(SnapshotMade { file, trust_domain: plane.ca.trust_domain().to_string() }))
}
