//! The proxies' calls. Each refusal becomes a status that says what the caller may know, and no more.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_config::enroll::proof_message;
use postern_config::wire::v1;
use postern_config::wire::v1::enroll_request::Credential as Sent;
use prost::Message as _;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Plane;
use super::callers::{Caller, Reached};
use super::stubs::control_server::Control;
use super::watch;
use crate::attest::{Answer, Challenge, Credential};
use crate::clock::now_ms;
use crate::jwt::{JwtRefusal, Wish};
use crate::line::Busy;
use crate::registry::{Attempt, Issued, Proof, Refusal, Renewal};

/// How long a caller waits for its answer that does not say so.
const UNSAID: Duration = Duration::from_secs(10);
/// What is left of a caller's patience for the answer itself.
const ANSWER: Duration = Duration::from_secs(1);

/// The calls, for one connection.
#[derive(Debug)]
pub struct ControlService {
    plane: Arc<Plane>,
    /// Cancelled when the connection has to end.
    ending: CancellationToken,
    challenges: Mutex<Challenges>,
}

/// The challenges of one connection: one open at a time, a few in all.
#[derive(Debug, Default)]
struct Challenges {
    asked: u8,
    open: Option<Challenge>,
}

/// Each costs an encryption to the caller's key, and who needs more has a TPM that does not work.
const MAX_CHALLENGES: u8 = 4;

impl ControlService {
    /// For one connection, whose streams end with `ending`.
    pub fn new(plane: Arc<Plane>, ending: CancellationToken) -> Self {
        Self { plane, ending, challenges: Mutex::default() }
    }

    fn challenges(&self) -> MutexGuard<'_, Challenges> {
        self.challenges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn challenge(
        &self,
        request: Request<v1::ChallengeRequest>,
    ) -> Result<Response<v1::ChallengeResponse>, Status> {
        let caller = caller(&request)?;
        {
            let mut challenges = self.challenges();
            challenges.open = None;
            if challenges.asked == MAX_CHALLENGES {
                return Err(status(Refusal::TooMany));
            }
            challenges.asked += 1;
        }
        let made = self.plane.registry.challenge(request.get_ref(), caller.remote.ip()).await;
        let (challenge, response) = made.map_err(status)?;
        self.challenges().open = Some(challenge);
        Ok(Response::new(response))
    }

    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.get_ref();
        // Taken whatever comes of it: each is good for one try.
        let challenge = self.challenges().open.take();
        let proof_message = match message.credential {
            Some(Sent::Tpm(_)) => proof_message(&caller.exporter, &message.nonce, &message.csr),
            _ => Vec::new(),
        };
        let proof_of_identity = match &message.credential {
            Some(Sent::Tpm(answer)) => Proof::Attested(Credential::Tpm(Answer {
                challenge: challenge.as_ref(),
                message: answer,
                proof_message: &proof_message,
            })),
            None => Proof::Token { id: &message.token_id, secret: &message.token_secret },
            Some(Sent::KubernetesToken(token)) => Proof::Attested(Credential::Kubernetes(token)),
            Some(Sent::OidcToken(token)) => Proof::Attested(Credential::Oidc(token)),
            Some(Sent::X509(_)) => Proof::Attested(Credential::X509(caller.foreign.as_ref())),
        };
        let attempt = Attempt {
            proof_of_identity,
            csr: &message.csr,
            nonce: &message.nonce,
            proof: &message.proof,
            ttl_ms: message.ttl_ms,
            instance: &message.instance,
            patience: patience(&request),
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
        let renewal = Renewal {
            leaf: &caller.leaf,
            csr: &message.csr,
            ttl_ms: message.ttl_ms,
            patience: patience(&request),
        };
        let issued = self.plane.registry.renew(&peer, renewal).await.map_err(status)?;
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

/// How long the caller waits in line: it has to have its answer before it gives up.
fn patience<T>(request: &Request<T>) -> Duration {
    let said = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    said.and_then(timeout).unwrap_or(UNSAID).saturating_sub(ANSWER)
}

/// `grpc-timeout`: at most eight digits and a unit.
fn timeout(said: &str) -> Option<Duration> {
    let (number, unit) = said.split_at_checked(said.len().checked_sub(1)?)?;
    let number: u64 = (1..=8).contains(&number.len()).then(|| number.parse().ok())??;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// A status that says when to come again.
pub(super) fn come_again(busy: &Busy, message: impl Into<String>) -> Status {
    let retry_after_ms = u64::try_from(busy.retry_after.as_millis()).unwrap_or(u64::MAX);
    let details = v1::ComeAgain { retry_after_ms }.encode_to_vec();
    Status::with_details(Code::ResourceExhausted, message, details.into())
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
        | Refusal::BeforeRestore
        | Refusal::Proof
        | Refusal::Superseded
        | Refusal::UnknownSerial
        | Refusal::Revoked
        | Refusal::Ended
        | Refusal::Environment => Status::permission_denied(message),
        Refusal::TooMany => Status::resource_exhausted(message),
        Refusal::Busy(busy) => come_again(&busy, message),
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
