//! The client of the control plane: one TLS connection, one HTTP/2 channel over it, a handful of calls.

use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use postern_config::enroll::proof_message;
use postern_config::wire::{self, v1};
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

#[cfg(feature = "tpm")]
use super::chip::Chip;
use super::key::{Issued, Request};
#[cfg(feature = "tpm")]
use super::ticket::Credential;
use super::ticket::Ticket;
use crate::tls::{self, Alpn, Connector, Failure, Stream};

/// The generated client.
#[expect(unreachable_pub, unused_qualifications, reason = "generated; the .proto file documents each call")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/postern.control.v1.rs"));
}

use generated::control_client::ControlClient;

/// For reaching the control plane, each address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For the answer to an enrollment: everybody at once is served in order, and whoever comes anew is the last.
const ENROLL_TIMEOUT: Duration = Duration::from_secs(20);
/// A silent connection is asked for a sign of life this often, and given up after as long again.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// For an orderly end of the stream: a process that ends is not held up by a control plane that does not listen.
const GOODBYE: Duration = Duration::from_secs(1);
/// Messages to the control plane that may wait.
const QUEUE: usize = 16;
/// The longest error text that goes into an acknowledgement.
const MAX_ERROR: usize = 1024;

/// Why the control plane could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be reached, or broke off: worth trying again.
    #[error("{0}")]
    Away(String),
    /// It has too many callers, and says when the turn of this one comes.
    #[error("{why}")]
    Busy {
        /// What it said.
        why: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// It did not answer in time: this connection is not waited on again, another one may do better.
    #[error("no answer in time")]
    Silent,
    /// Whoever answered is not the control plane of this trust domain.
    #[error("{0}")]
    NotTrusted(String),
    /// It answered, and refused.
    #[error("{0}")]
    Refused(String),
    /// A fault on this side, or an answer that cannot be used.
    #[error("{0}")]
    Local(String),
}

impl ControlError {
    /// Whether a call that ended so says nothing against the stream on the same connection. Where the connection itself is
    /// gone, the stream tells.
    pub fn leaves_the_stream(&self) -> bool {
        !matches!(self, Self::Silent)
    }

    /// When the control plane expects this caller again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

impl From<tonic::Status> for ControlError {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::FailedPrecondition => Self::Refused(status.message().to_owned()),
            Code::ResourceExhausted => match v1::ComeAgain::decode(status.details()) {
                Ok(v1::ComeAgain { retry_after_ms }) if retry_after_ms > 0 => Self::Busy {
                    why: status.message().to_owned(),
                    retry_after: Duration::from_millis(retry_after_ms),
                },
                _ => Self::Away(format!("{}: {}", status.code(), status.message())),
            },
            _ => Self::Away(format!("{}: {}", status.code(), status.message())),
        }
    }
}

impl From<Failure> for ControlError {
    fn from(failure: Failure) -> Self {
        use postern_config::reason::Reason;
        match failure.reason {
            Reason::Reset | Reason::Timeout | Reason::Overload => Self::Away(failure.to_string()),
            _ => Self::NotTrusted(format!("{} ({})", failure, failure.reason)),
        }
    }
}

/// What an enrollment brings.
pub struct Enrollment {
    /// Key and chain.
    pub issued: Issued,
    /// The trust domain's bundle.
    pub bundle: v1::Bundle,
    /// The server's clock.
    pub server_time_ms: i64,
}

/// Enrolls over a connection that the ticket's pin authenticates.
///
/// Every try for one credential brings the same `request`: the token is spent by its key, so that a try whose answer got
/// lost is answered again, and one with another key would be refused for good.
pub(super) async fn enroll(
    address: &str,
    ticket: &Ticket,
    request: &Request,
    ttl_ms: u64,
    instance: String,
) -> Result<Enrollment, ControlError> {
    // Keys take a chip longer than the control plane waits on a connection.
    #[cfg(feature = "tpm")]
    let chip = match &ticket.credential {
        Credential::Tpm(config) => Some(Chip::open(config.clone()).await?),
        _ => None,
    };
    let (tcp, to) = dial(address).await?;
    let handshake = tls::enroll::connect(
        tcp,
        to.ip(),
        &ticket.trust_domain,
        &ticket.pins,
        ticket.credential.certificate(),
    );
    let pinned = timeout(CONNECT_TIMEOUT, handshake).await.map_err(|_| Failure::timeout())??;
    let mut client = client(pinned.stream).await?;
    let nonce: [u8; 32] = rand::random();
    let proven = proof_message(&pinned.exporter, &nonce, &request.csr);
    let proof = request.prove(&proven).map_err(ControlError::Local)?;
    let mut message = v1::EnrollRequest {
        csr: request.csr.clone(),
        nonce: nonce.to_vec(),
        proof,
        ttl_ms,
        instance,
        ..v1::EnrollRequest::default()
    };
    ticket.credential.fill(&mut message);
    #[cfg(feature = "tpm")]
    if let Some(chip) = chip {
        let challenge = call(CALL_TIMEOUT, client.challenge(chip.asks.clone())).await?;
        let answer = chip.answer(challenge, proven).await?;
        message.credential = Some(v1::enroll_request::Credential::Tpm(answer));
    }
    let answer = call(ENROLL_TIMEOUT, client.enroll(patient(message, ENROLL_TIMEOUT))).await?;
    let missing =
        || ControlError::Local("the control plane's answer holds no certificate or bundle".to_owned());
    Ok(Enrollment {
        issued: request.issued(answer.svid.ok_or_else(missing)?),
        bundle: answer.bundle.ok_or_else(missing)?,
        server_time_ms: answer.server_time_ms,
    })
}

/// A connection to the control plane with the workload's own certificate.
pub struct Connection(ControlClient<Channel>);

impl Connection {
    /// Connects; whoever answers must be whom `connector` demands.
    pub async fn open(connector: &Connector, address: &str) -> Result<Self, ControlError> {
        let (tcp, to) = dial(address).await?;
        let handshake = connector.connect(to.ip(), tcp, Alpn::Http2);
        let (stream, _) = timeout(CONNECT_TIMEOUT, handshake).await.map_err(|_| Failure::timeout())??;
        client(stream).await.map(Self)
    }

    /// Asks for the next certificate.
    pub async fn renew(&mut self, csr: Vec<u8>, ttl_ms: u64) -> Result<v1::RenewResponse, ControlError> {
        let request = patient(v1::RenewRequest { csr, ttl_ms }, CALL_TIMEOUT);
        call(CALL_TIMEOUT, self.0.renew(request)).await
    }
}

/// A connection with the stream of pushes on it.
pub struct Session {
    /// For renewals, while the stream goes on.
    pub connection: Connection,
    requests: mpsc::Sender<v1::WatchRequest>,
    pushes: tonic::Streaming<v1::WatchResponse>,
}

impl Session {
    /// Says hello and announces.
    pub async fn open(
        mut connection: Connection,
        hello: v1::Hello,
        announce: v1::Announce,
    ) -> Result<Self, ControlError> {
        let (requests, queue) = mpsc::channel(QUEUE);
        for message in
            [v1::watch_request::Message::Hello(hello), v1::watch_request::Message::Announce(announce)]
        {
            send(&requests, message).await;
        }
        let pushes = call(CALL_TIMEOUT, connection.0.watch(ReceiverStream::new(queue))).await?;
        Ok(Self { connection, requests, pushes })
    }

    /// The next push; `None` once the stream is over.
    pub async fn next(&mut self) -> Option<v1::WatchResponse> {
        match self.pushes.message().await {
            Ok(message) => message,
            Err(status) => {
                tracing::debug!(code = %status.code(), message = status.message(), "the stream of pushes ended");
                None
            }
        }
    }

    /// Replaces what was announced before.
    pub async fn announce(&self, announce: v1::Announce) -> Result<(), ControlError> {
        let sending = send(&self.requests, v1::watch_request::Message::Announce(announce));
        timeout(CALL_TIMEOUT, sending).await.map_err(|_| ControlError::Silent)
    }

    /// Says nothing more, and waits until what was said has been read; not for long.
    pub async fn leave(self) {
        let Self { connection: _until_then, requests, mut pushes } = self;
        drop(requests);
        let read = async { while let Ok(Some(_)) = pushes.message().await {} };
        let _ = timeout(GOODBYE, read).await;
    }

    /// Says what became of a push; an empty error means that it is in force.
    ///
    /// Fails where so many wait to be taken that this one cannot: a control plane that reads nothing must not hold up
    /// renewals.
    pub async fn acknowledge(&self, generation: u64, mut error: String) -> Result<(), ControlError> {
        error.truncate(error.floor_char_boundary(MAX_ERROR));
        let sending = send(&self.requests, v1::watch_request::Message::Ack(v1::Ack { generation, error }));
        timeout(CALL_TIMEOUT, sending).await.map_err(|_| ControlError::Silent)
    }
}

impl Session {
    /// Says how handshakes have ended. Where so much waits already, the next report says it.
    pub fn report(&self, report: v1::Report) {
        let message = Some(v1::watch_request::Message::Report(report));
        let _ = self.requests.try_send(v1::WatchRequest { message });
    }
}

async fn send(requests: &mpsc::Sender<v1::WatchRequest>, message: v1::watch_request::Message) {
    // A closed queue means that the stream is over, which `next` reports.
    let _ = requests.send(v1::WatchRequest { message: Some(message) }).await;
}

/// A request that says how long its answer is waited for, so that its place in line is worth something.
fn patient<T>(message: T, patience: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(patience);
    request
}

async fn call<T>(
    patience: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, ControlError> {
    match timeout(patience, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(ControlError::Silent),
    }
}

/// A TCP connection to the first address of `host:port` that answers.
async fn dial(address: &str) -> Result<(TcpStream, SocketAddr), ControlError> {
    let away = |e: std::io::Error| ControlError::Away(format!("{address}: {e}"));
    let mut last = ControlError::Away(format!("{address}: the name has no address"));
    let found = timeout(CONNECT_TIMEOUT, tokio::net::lookup_host(address)).await;
    for to in found.map_err(|_| ControlError::Silent)?.map_err(away)? {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await {
            Ok(Ok(tcp)) => return Ok((tcp, to)),
            Ok(Err(error)) => last = away(error),
            Err(_) => last = ControlError::Away(format!("{to}: no answer")),
        }
    }
    Err(last)
}

async fn client(stream: Stream) -> Result<ControlClient<Channel>, ControlError> {
    let endpoint = Endpoint::from_static("http://control.postern")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    let connected = endpoint.connect_with_connector(Ready(Some(stream))).await;
    let channel = connected.map_err(|e| ControlError::Away(format!("HTTP/2 cannot be begun: {e}")))?;
    Ok(ControlClient::new(channel).max_decoding_message_size(wire::MAX_MESSAGE))
}

/// A connector that hands out one connection made before; a second try fails, and the session with it.
struct Ready(Option<Stream>);

impl tower_service::Service<Uri> for Ready {
    type Response = TokioIo<Stream>;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().map(TokioIo::new);
        std::future::ready(stream.ok_or_else(|| std::io::ErrorKind::NotConnected.into()))
    }
}
