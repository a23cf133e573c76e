//! The audit record as it is read: the newest records, whole chains in pages, checkpoints.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;

use super::Plane;
use super::admin::{Asked, Failed, Shared};
use super::model::{ChainView, Checkpoints};
use crate::store::Record;

/// The most records of one answer.
pub(super) const MAX_PAGE: u32 = 1000;

/// The routes.
pub(super) fn routes() -> Router<Arc<Plane>> {
    Router::new()
        .route("/v1/audit", get(last))
        .route("/v1/audit/chains", get(chains))
        .route("/v1/audit/records", get(records))
        .route("/v1/audit/checkpoints", get(checkpoints))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    #[serde(default = "Last::default_count")]
    last: u32,
}

impl Last {
    fn default_count() -> u32 {
        50
    }
}

async fn last(State(plane): Shared, Asked(query): Asked<Last>) -> Result<Json<Vec<Record>>, Failed> {
    Ok(Json(plane.store.audit(query.last.min(10_000)).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    #[serde(default)]
    since: i64,
}

async fn chains(State(plane): Shared, Asked(query): Asked<Since>) -> Result<Json<Vec<ChainView>>, Failed> {
    // Heads first: a record that is appended meanwhile must not look like one behind the end.
    let heads = plane.store.audit_heads().await?;
    let starts = plane.store.audit_starts(query.since).await?;
    let view = starts.into_iter().map(|(chain, first)| {
        let head = heads.iter().find(|head| head.chain == chain);
        ChainView { first, head: head.cloned(), chain }
    });
    Ok(Json(view.collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    chain: String,
    #[serde(default)]
    after: u64,
    #[serde(default = "Page::default_size")]
    page_size: u32,
}

impl Page {
    fn default_size() -> u32 {
        100
    }
}

async fn records(State(plane): Shared, Asked(page): Asked<Page>) -> Result<Json<Vec<Record>>, Failed> {
    let size = page_size(page.page_size)?;
    Ok(Json(plane.store.audit_records(&page.chain, page.after, size).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointPage {
    #[serde(default)]
    after: String,
    #[serde(default = "Page::default_size")]
    page_size: u32,
}

async fn checkpoints(
    State(plane): Shared,
    Asked(page): Asked<CheckpointPage>,
) -> Result<Json<Checkpoints>, Failed> {
    let size = page_size(page.page_size)?;
    Ok(Json(Checkpoints { checkpoints: plane.store.checkpoints(&page.after, size).await? }))
}

fn page_size(wanted: u32) -> Result<u32, Failed> {
    match wanted {
        1..=MAX_PAGE => Ok(wanted),
        _ => Err(Failed::bad(format!("page_size is between 1 and {MAX_PAGE}"))),
    }
}
