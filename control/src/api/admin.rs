//! What operators ask for, over the socket that only they can open.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Extension, FromRequest, FromRequestParts, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::StatusCode;
use http::request::Parts;
use postern_config::policy::{Document, DocumentKind, Metadata};
use postern_config::service::Service;
use serde::Deserialize;
use serde_json::json;

use super::Plane;
use super::model::{
    Applied, ApplyPolicies, Behind, CreateToken, CreatedToken, IssuingView, ProxiesView, Refused,
    ServiceView, Status,
};
use super::roles::Access;
use crate::audit::{self, Entry};
use crate::clock::{now_ms, rfc3339};
use crate::digest::hex;
use crate::publish::PublishError;
use crate::registry::{NewToken, TokenError};
use crate::store::{Change, StoreError};

/// The largest body, in bytes: the policies of a large mesh.
const MAX_BODY: usize = 16 * 1024 * 1024;
/// How many lagging proxies a status names.
const MAX_BEHIND: usize = 100;

/// Who is on the other end of the socket, as it stands in audit records.
#[derive(Debug, Clone)]
pub struct Operator(pub String);

pub(super) type Shared = State<Arc<Plane>>;
pub(super) type By = Extension<Operator>;

/// The routes.
pub fn router(plane: Arc<Plane>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/tokens", post(create_token))
        .route("/v1/services", get(services).post(apply_services))
        .route("/v1/services/{name}", delete(delete_service))
        .route("/v1/policies", get(policies).post(apply_policies))
        .route("/v1/policies/{namespace}/{name}", delete(delete_policy))
        .route("/v1/ca/rotate", post(rotate))
        .fallback(|| async { Failed::new(StatusCode::NOT_FOUND, "not_found", "no such resource") })
        .merge(super::identities::routes())
        .merge(super::federation::routes())
        .merge(super::revocations::routes())
        .merge(super::rotation::routes())
        .merge(super::jwt::routes())
        .merge(super::openapi::routes())
        .merge(super::records::routes())
        .merge(super::backup::routes())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&plane), super::roles::guard))
        .layer(axum::middleware::from_fn(correlate))
        .with_state(plane)
}

/// Gives every request an id, which its records, their log lines and the answer carry.
pub(super) async fn correlate(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    let id = audit::correlation();
    let mut response = audit::correlated(id.clone(), next.run(request)).await;
    if let Ok(value) = http::HeaderValue::try_from(id) {
        response.headers_mut().insert("x-correlation-id", value);
    }
    response
}

async fn status(State(plane): Shared) -> Result<Json<Status>, Failed> {
    let issuing = plane.ca.issuing();
    let generation = plane.publisher.world().generation;
    let live = plane.store.live_lineages(now_ms()).await?;
    let said = plane.proxies.all();
    let (connected, mut behind) = (said.len(), said);
    behind.retain(|said| said.generation != generation || !said.error.is_empty());
    let current = connected - behind.len();
    behind.truncate(MAX_BEHIND);
    let behind = behind.into_iter().map(|said| Behind {
        instance: said.instance,
        lineage: said.lineage,
        generation: said.generation,
        error: said.error,
        last_seen: rfc3339(said.last_seen),
    });
    Ok(Json(Status {
        trust_domain: plane.ca.trust_domain().to_string(),
        root: plane.ca.authorities().active().pin.to_string(),
        root_expires_at: rfc3339(plane.ca.authorities().active().not_after * 1000),
        issuing: issuing_view(&issuing),
        generation,
        proxies: ProxiesView {
            connected: connected as u64,
            current: current as u64,
            behind: behind.collect(),
        },
        identities: live.len() as u64,
        rotations: plane.store.rotations().await?.iter().map(rotation_line).collect(),
        nearest_expiry: live.iter().map(|l| l.not_after).min().map(rfc3339),
        advertise: plane.advertise.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}

async fn create_token(
    State(plane): Shared,
    Extension(operator): By,
    Extension(access): Extension<Access>,
    Body(wanted): Body<CreateToken>,
) -> Result<Json<CreatedToken>, Failed> {
    if plane.role(&wanted.id).is_some() {
        access.admin("whoever redeems a token of an operator becomes that operator")?;
    }
    let new = NewToken {
        id: wanted.id,
        ttl: wanted.ttl.as_duration(),
        cidr: wanted.cidr,
        labels: wanted.labels,
        environment: wanted.environment,
        svid_ttl: wanted.svid_ttl.map(|ttl| ttl.as_duration()),
    };
    let (token, join) = plane.registry.create_token(new, &plane.advertise, &operator.0).await?;
    Ok(Json(CreatedToken {
        join: join.reveal().to_string(),
        token_id: token.id,
        id: token.spiffe_id,
        expires_at: rfc3339(token.expires_at),
    }))
}

async fn services(State(plane): Shared) -> Json<Vec<ServiceView>> {
    let world = plane.publisher.world();
    let view = world.services().iter().map(|service| ServiceView {
        name: service.name.clone(),
        identity: service.spiffe_id.clone(),
        endpoints: service.endpoints.clone(),
    });
    Json(view.collect())
}

async fn apply_services(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<Vec<Service>>,
) -> Result<Json<Applied>, Failed> {
    let mut change = plane.store.change().await?;
    for service in &wanted {
        service.check().map_err(|why| Failed::bad(why.to_string()))?;
        change.put_service(service).await?;
    }
    let applied = wanted.into_iter().map(|s| s.name).collect();
    publish(&plane, change, &operator, "service apply", applied).await
}

async fn delete_service(
    State(plane): Shared,
    Extension(operator): By,
    Named(name): Named<String>,
) -> Result<Json<Applied>, Failed> {
    let mut change = plane.store.change().await?;
    if !change.remove_service(&name).await? {
        return Err(Failed::new(StatusCode::NOT_FOUND, "not_found", format!("there is no service {name:?}")));
    }
    publish(&plane, change, &operator, "service delete", vec![name]).await
}

async fn policies(State(plane): Shared) -> Json<Vec<serde_json::Value>> {
    let world = plane.publisher.world();
    let policies = world.policies().map(|policy| json!(policy));
    Json(policies.chain(world.peers().map(|peer| json!(peer))).collect())
}

async fn apply_policies(
    State(plane): Shared,
    Extension(operator): By,
    Body(wanted): Body<ApplyPolicies>,
) -> Result<Json<Applied>, Failed> {
    let mut change = plane.store.change().await?;
    let mut applied = Vec::with_capacity(wanted.documents.len());
    for document in &wanted.documents {
        let document = Document::from_json(document).map_err(|why| Failed::bad(why.to_string()))?;
        if let Document::Peer(peer) = &document
            && peer.is_void(plane.publisher.root_namespace())
        {
            return Err(Failed::bad(peer.void_message()));
        }
        let Metadata { namespace, name, .. } = document.metadata();
        change.put_document(document.kind(), namespace, name, &document.to_json()).await?;
        applied.push(document.metadata().full_name());
    }
    publish(&plane, change, &operator, "policy apply", applied).await
}

async fn delete_policy(
    State(plane): Shared,
    Extension(operator): By,
    Named((namespace, name)): Named<(String, String)>,
    Asked(wanted): Asked<OfKind>,
) -> Result<Json<Applied>, Failed> {
    let kinds = [DocumentKind::AuthorizationPolicy, DocumentKind::PeerAuthentication];
    let mut change = plane.store.change().await?;
    let mut removed = Vec::new();
    for kind in kinds.into_iter().filter(|kind| wanted.kind.is_none_or(|wanted| wanted == *kind)) {
        if change.remove_document(kind, &namespace, &name).await? {
            removed.push(kind);
        }
    }
    match removed.as_slice() {
        [_] => publish(&plane, change, &operator, "policy delete", vec![format!("{namespace}/{name}")]).await,
        [] => {
            let message = format!("there is no policy {namespace}/{name}");
            Err(Failed::new(StatusCode::NOT_FOUND, "not_found", message))
        }
        // Nothing is committed.
        _ => Err(Failed::bad(format!(
            "{namespace}/{name} is an AuthorizationPolicy and a PeerAuthentication; say which: --kind"
        ))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfKind {
    kind: Option<DocumentKind>,
}

/// Ends a change that proxies must hear of: record, number, commit, push.
pub(super) async fn publish(
    plane: &Plane,
    mut change: Change,
    operator: &Operator,
    action: &str,
    applied: Vec<String>,
) -> Result<Json<Applied>, Failed> {
    if applied.is_empty() {
        return Err(Failed::bad("there is nothing in it to apply"));
    }
    let generation = change.advance("generation").await?;
    let entry = Entry::done(&*operator.0, action, applied.join(" "), json!({ "generation": generation }));
    entry.append(&mut change).await?;
    change.commit().await?;
    entry.log();
    plane.publisher.publish().await?;
    Ok(Json(Applied { applied, generation }))
}

async fn rotate(State(plane): Shared, Extension(operator): By) -> Result<Json<IssuingView>, Failed> {
    if plane.store.rotations().await?.iter().any(|r| r.concerns(&plane.replica)) {
        let why = "a canary is watched; it has to end first: postern ca list";
        return Err(Failed::new(StatusCode::CONFLICT, "conflict", why));
    }
    plane.rotate(&operator.0).await.map_err(|error| Failed::internal(&error))?;
    Ok(Json(issuing_view(&plane.ca.issuing())))
}

fn rotation_line(rotation: &crate::ca::rotation::Rotation) -> String {
    let (kind, stage) = (rotation.kind.as_str(), rotation.stage.as_str());
    match rotation.reason.as_str() {
        "" => format!("{kind}: {stage}"),
        why => format!("{kind}: {stage}: {why}"),
    }
}

fn issuing_view(issuing: &crate::ca::Issuing) -> IssuingView {
    IssuingView {
        name: issuing.name.clone(),
        key_id: hex(&issuing.key_id),
        expires_at: rfc3339(issuing.not_after * 1000),
    }
}

/// A JSON body whose mistakes are answered in the API's own form.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failed;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Failed> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(Failed::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is larger than 16 MiB"))
            }
            Err(rejection) if rejection.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE => Err(Failed::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "send JSON, as content-type application/json",
            )),
            Err(rejection) => Err(Failed::bad(rejection.body_text())),
        }
    }
}

/// A query whose mistakes are answered in the API's own form.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failed> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(value)| Self(value)).map_err(|rejection| Failed::bad(rejection.body_text()))
    }
}

/// Names in the path, likewise.
pub(super) struct Named<T>(pub(super) T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failed> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(value)| Self(value)).map_err(|rejection| Failed::bad(rejection.body_text()))
    }
}

/// A refusal on its way out.
pub(super) struct Failed(StatusCode, Refused);

impl Failed {
    pub(super) fn new(status: StatusCode, kind: &str, error: impl Into<String>) -> Self {
        Self(status, Refused { error: error.into(), kind: kind.to_owned() })
    }

    pub(super) fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", error)
    }

    /// The operator on this host may know the cause; the log has it as well.
    pub(super) fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "an operator's request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::internal(&error)
    }
}

impl From<PublishError> for Failed {
    fn from(error: PublishError) -> Self {
        Self::internal(&error)
    }
}

impl From<TokenError> for Failed {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Store(_) | TokenError::Random(_) => Self::internal(&error),
            _ => Self::bad(error.to_string()),
        }
    }
}
