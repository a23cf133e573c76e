//! A light client's connection to the control plane: TCP, TLS 1.3, one HTTP/2 connection, the three calls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_config::enroll::{EXPORTER_LABEL, EXPORTER_LEN, JoinString, proof_message};
use postern_config::wire::v1::watch_request::Message;
use postern_config::wire::{self, v1};
use prost::Message as _;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SigningKey as _};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::trust::{Credentials, Expected, client_config};

#[expect(unreachable_pub, unused_qualifications, reason = "generated; the .proto file documents each call")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/postern.control.v1.rs"));
}

use generated::control_client::ControlClient;

/// For TCP and TLS, each; the real proxy's patience.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For the answer to an enrollment.
const ENROLL_TIMEOUT: Duration = Duration::from_secs(20);
/// A silent connection is asked for a sign of life this often, and given up after as long again.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Messages to the control plane that may wait.
const QUEUE: usize = 16;

/// Why a call brought nothing.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// Not reached, broken off, or asked to come again: worth another try.
    Away(String),
    /// It has too many callers: the turn of this one comes in a while.
    Busy(String, Duration),
    /// It answered, and refused.
    Refused(String),
}

impl From<tonic::Status> for Fault {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::FailedPrecondition => Self::Refused(status.message().to_owned()),
            code => match v1::ComeAgain::decode(status.details()) {
                Ok(v1::ComeAgain { retry_after_ms }) if retry_after_ms > 0 => {
                    Self::Busy(status.message().to_owned(), Duration::from_millis(retry_after_ms))
                }
                _ => Self::Away(format!("{code}: {}", status.message())),
            },
        }
    }
}

fn away(what: &str) -> impl Fn(&dyn std::fmt::Display) -> Fault + '_ {
    move |error| Fault::Away(format!("{what}: {error}"))
}

/// A fresh P-256 key and the CSR that goes with it.
pub(super) struct NewKey {
    key: KeyPair,
    csr: Vec<u8>,
}

impl NewKey {
    pub(super) fn generate() -> Result<Self, Fault> {
        let broken = |e: rcgen::Error| Fault::Away(format!("no key: {e}"));
        let key = KeyPair::generate().map_err(broken)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(broken)?.der().to_vec();
        Ok(Self { key, csr })
    }

    fn with_chain(&self, svid: Option<v1::Svid>) -> Credentials {
        let svid = svid.unwrap_or_default();
        let (after, by) = (svid.renew_after_ms, svid.renew_by_ms);
        let chain = svid.chain.into_iter().map(CertificateDer::from).collect();
        let window = (by > 0).then(|| (Duration::from_millis(after), Duration::from_millis(by)));
        Credentials { chain, key: self.key.serialize_der().into(), window }
    }
}

/// One connection. Dropped, it is cut.
pub(super) struct Connection {
    client: ControlClient<Http2>,
    exporter: [u8; EXPORTER_LEN],
    _driver: Driver,
}

/// What an enrollment brings.
pub(super) struct Enrolled {
    pub(super) credentials: Credentials,
    pub(super) bundle: v1::Bundle,
}

impl Connection {
    /// Connects to `address`, whoever is there must be whom `expected` says.
    pub(super) async fn open(
        address: SocketAddr,
        expected: Expected,
        own: Option<&Credentials>,
    ) -> Result<Self, Fault> {
        let config = client_config(expected, own).map_err(|e| away("TLS")(&e))?;
        let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let tcp = tcp.map_err(|e| away("connect")(&e))?.map_err(|e| away("connect")(&e))?;
        let _ = tcp.set_nodelay(true);
        let name = ServerName::IpAddress(address.ip().into());
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let tls = timeout(CONNECT_TIMEOUT, handshake).await;
        let tls = tls.map_err(|e| away("handshake")(&e))?.map_err(|e| away("handshake")(&e))?;
        let exporter = tls
            .get_ref()
            .1
            .export_keying_material([0; EXPORTER_LEN], EXPORTER_LABEL, None)
            .map_err(|e| away("exporter")(&e))?;
        let begun = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(tls));
        let (sender, connection) = begun.await.map_err(|e| away("HTTP/2")(&e))?;
        let driver = tokio::spawn(async move {
            // How it ended is told by the calls that were on it.
            let _ = connection.await;
        });
        let client = ControlClient::new(Http2(sender)).max_decoding_message_size(wire::MAX_MESSAGE);
        Ok(Self { client, exporter, _driver: Driver(driver) })
    }

    /// Redeems a join string with the proof over this very connection. Every try for one join string brings the same key.
    pub(super) async fn enroll(
        &mut self,
        join: &JoinString,
        key: &NewKey,
        ttl: Duration,
        instance: String,
    ) -> Result<Enrolled, Fault> {
        let nonce: [u8; 32] = rand::random();
        let signed = key.key.sign(&proof_message(&self.exporter, &nonce, &key.csr));
        let proof = signed.map_err(|e| away("proof")(&e))?;
        let request = message(|request: &mut v1::EnrollRequest| {
            request.token_id.clone_from(&join.token_id);
            request.token_secret = join.secret.to_vec();
            request.csr.clone_from(&key.csr);
            request.nonce = nonce.to_vec();
            request.proof = proof;
            request.ttl_ms = millis(ttl);
            request.instance = instance;
        });
        let answer = call(ENROLL_TIMEOUT, self.client.enroll(patient(request, ENROLL_TIMEOUT))).await?;
        let bundle = answer.bundle.ok_or_else(|| Fault::Away("an answer without a bundle".to_owned()))?;
        Ok(Enrolled { credentials: key.with_chain(answer.svid), bundle })
    }

    /// Asks for the next certificate.
    pub(super) async fn renew(&mut self, key: NewKey, ttl: Duration) -> Result<Credentials, Fault> {
        let request = message(|request: &mut v1::RenewRequest| {
            request.csr.clone_from(&key.csr);
            request.ttl_ms = millis(ttl);
        });
        let answer = call(CALL_TIMEOUT, self.client.renew(patient(request, CALL_TIMEOUT))).await?;
        Ok(key.with_chain(answer.svid))
    }

    /// Opens the stream of pushes.
    pub(super) async fn watch(mut self, hello: v1::Hello) -> Result<Session, Fault> {
        let (requests, queue) = mpsc::channel(QUEUE);
        for message in [Message::Hello(hello), Message::Announce(v1::Announce::default())] {
            let _ = requests.send(v1::WatchRequest { message: Some(message) }).await;
        }
        let pushes = call(CALL_TIMEOUT, self.client.watch(ReceiverStream::new(queue))).await?;
        Ok(Session { connection: self, requests, pushes })
    }
}

/// A connection with the stream of pushes on it.
pub(super) struct Session {
    /// For renewals, while the stream goes on.
    pub(super) connection: Connection,
    requests: mpsc::Sender<v1::WatchRequest>,
    pushes: tonic::Streaming<v1::WatchResponse>,
}

impl Session {
    /// The next push; the fault that ended the stream otherwise.
    pub(super) async fn next(&mut self) -> Result<v1::WatchResponse, Fault> {
        match self.pushes.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Fault::Away("the stream ended".to_owned())),
            Err(status) => Err(status.into()),
        }
    }

    /// Says what became of a push; an empty error means that it is in force.
    pub(super) async fn acknowledge(&self, generation: u64, error: String) -> Result<(), Fault> {
        let ack = v1::WatchRequest { message: Some(Message::Ack(v1::Ack { generation, error })) };
        match timeout(CALL_TIMEOUT, self.requests.send(ack)).await {
            // A closed queue means that the stream is over, which `next` reports.
            Ok(_) => Ok(()),
            Err(_) => Err(Fault::Away("acknowledgements are not taken".to_owned())),
        }
    }
}

impl Session {
    /// Says how handshakes have ended; where so much waits already, the next report says it.
    pub(super) fn report(&self, report: v1::Report) {
        let _ = self.requests.try_send(v1::WatchRequest { message: Some(Message::Report(report)) });
    }
}

/// A message of which a light client sets what it knows; the contract may have more.
pub(super) fn message<T: Default>(set: impl FnOnce(&mut T)) -> T {
    let mut message = T::default();
    set(&mut message);
    message
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A request that says how long its answer is waited for.
fn patient<T>(message: T, patience: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(patience);
    request
}

async fn call<T>(
    patience: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Fault> {
    match timeout(patience, answer).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Fault::Away("no answer in time".to_owned())),
    }
}

/// Carries the bytes of one connection until that is dropped.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One HTTP/2 connection as the generated client wants it.
#[derive(Clone)]
struct Http2(SendRequest<tonic::body::Body>);

impl tower_service::Service<Request<tonic::body::Body>> for Http2 {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<tonic::body::Body>) -> Self::Future {
        // The generated client names the path alone; HTTP/2 wants an authority as well.
        let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let whole = Uri::builder().scheme("https").authority("control.postern").path_and_query(path).build();
        if let Ok(uri) = whole {
            *request.uri_mut() = uri;
        }
        Box::pin(self.0.send_request(request))
    }
}
