//! The proxies' three calls. Each refusal becomes a status that says what the caller may know, and no more.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use postern_config::wire::v1;
use postern_config::wire::v1::enroll_request::Credential as Sent;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::Plane;
use super::callers::{Caller, Reached};
use super::stubs::control_server::Control;
use super::watch;
use crate::attest::Credential;
use crate::clock::now_ms;
use crate::jwt::{JwtRefusal, Wish};
use crate::registry::{Attempt, Issued, Proof, Refusal};

/// The calls, for one connection.
#[derive(Debug)]
pub struct ControlService {
    plane: Arc<Plane>,
    /// Cancelled when the connection has to end.
    ending: CancellationToken,
}

impl ControlService {
    /// For one connection, whose streams end with `ending`.
    pub fn new(plane: Arc<Plane>, ending: CancellationToken) -> Self {
        Self { plane, ending }
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.get_ref();
        let attempt = Attempt {
            proof_of_identity: proof_of_identity(message, &caller),
            csr: &message.csr,
            nonce: &message.nonce,
            proof: &message.proof,
            ttl_ms: message.ttl_ms,
            instance: &message.instance,
            exporter: caller.exporter,
            remote: caller.remote.ip(),
        };
        let issued = self.plane.registry.enroll(attempt).await.map_err(status)?;
        let world = self.plane.publisher.world();
        let bundle =
            world.bundles.of(self.plane.ca.trust_domain().as_str()).map(|b| v1::Bundle::from(b.as_ref()));
        Ok(Response::new(v1::EnrollResponse { svid: Some(svid(issued)), bundle, server_time_ms: now_ms() }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let caller = caller(&request)?;
        let peer = caller.peer.ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let message = request.get_ref();
        let issued = self
            .plane
            .registry
            .renew(&peer, &caller.leaf, &message.csr, message.ttl_ms)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::RenewResponse { svid: Some(svid(issued)), server_time_ms: now_ms() }))
    }

    async fn fetch_jwt_svid(
        &self,
        request: Request<v1::FetchJwtSvidRequest>,
    ) -> Result<Response<v1::FetchJwtSvidResponse>, Status> {
        let caller = caller(&request)?;
        let peer = caller.peer.ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let lineage = self.plane.registry.recognise(&peer).await.map_err(status)?;
        let message = request.get_ref();
        let wish = Wish {
            id: &lineage.spiffe_id,
            audiences: &message.audiences,
            ttl: Duration::from_millis(message.ttl_ms),
            not_after: i64::MAX,
            action: "jwt",
            actor: lineage.spiffe_id.as_str(),
        };
        let signed = self.plane.tokens.issue(&wish).await.map_err(jwt_status)?;
        Ok(Response::new(v1::FetchJwtSvidResponse {
            token: signed.token.to_string(),
            expires_at_ms: signed.expires * 1000,
            server_time_ms: now_ms(),
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request)?;
        let peer = caller.peer.ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let lineage = self.plane.registry.recognise(&peer).await.map_err(status)?;
        let stream = watch::open(
            Arc::clone(&self.plane),
            lineage,
            peer,
            request.into_inner(),
            self.ending.child_token(),
        );
        Ok(Response::new(Box::pin(stream)))
    }
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    if let Some(reached) = request.extensions().get::<Reached>() {
        reached.set();
    }
    request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::internal("internal error"))
}

fn proof_of_identity<'a>(message: &'a v1::EnrollRequest, caller: &'a Caller) -> Proof<'a> {
    match &message.credential {
        None => Proof::Token { id: &message.token_id, secret: &message.token_secret },
        Some(Sent::KubernetesToken(token)) => Proof::Attested(Credential::Kubernetes(token)),
        Some(Sent::OidcToken(token)) => Proof::Attested(Credential::Oidc(token)),
        Some(Sent::X509(_)) => Proof::Attested(Credential::X509(caller.foreign.as_ref())),
    }
}

fn svid(issued: Issued) -> v1::Svid {
    let (after, by) = issued.window;
    let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    v1::Svid { chain: issued.chain, renew_after_ms: ms(after), renew_by_ms: ms(by) }
}

fn status(refusal: Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::Malformed(_) | Refusal::Csr(_) | Refusal::SameKey => Status::invalid_argument(message),
        Refusal::Token(_)
        | Refusal::Credential(_)
        | Refusal::NotAdmitted(_)
        | Refusal::Bound
        | Refusal::Proof
        | Refusal::Superseded
        | Refusal::UnknownSerial
        | Refusal::Revoked
        | Refusal::Ended
        | Refusal::Environment => Status::permission_denied(message),
        Refusal::TooMany | Refusal::Busy => Status::resource_exhausted(message),
        // Unavailable, not Internal: the proxy shall come back, and the cause stands in our log.
        Refusal::Store(_) | Refusal::Ca(_) | Refusal::Unavailable(_) => Status::unavailable(message),
    }
}

fn jwt_status(refusal: JwtRefusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        JwtRefusal::Audience(_) => Status::invalid_argument(message),
        JwtRefusal::TooMany => Status::resource_exhausted(message),
        JwtRefusal::Revoked | JwtRefusal::Ended => Status::permission_denied(message),
        JwtRefusal::NotYet | JwtRefusal::Store(_) | JwtRefusal::Key(_) => Status::unavailable(message),
    }
}
