//! A running `postern serve`, its operator's command, and a proxy's side of the wire.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::enroll::{EXPORTER_LABEL, JoinString, Pin, proof_message};
use postern_config::revocation::Revocations;
use postern_config::svid::{self, Algorithms, Peer, Role};
use postern_config::wire::v1;
use postern_config::wire::v1::enroll_request::Credential;
use postern_control::api::stubs::control_client::ControlClient;
use postern_control::digest::sha256;
use rcgen::{CertificateParams, KeyPair, SigningKey as _};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(crate) const TD: &str = "corp.example";
/// Another trust domain.
pub(crate) const OTHER: &str = "other.example";
/// Nothing in these tests takes this long unless it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A control plane of one's own. Killed when dropped.
pub(crate) struct Control {
    child: Child,
    pub(crate) listen: SocketAddr,
    pub(crate) ready: Value,
    dir: Arc<tempfile::TempDir>,
}

impl Control {
    pub(crate) fn start() -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), &["--trust-domain", TD])
    }

    /// With this configuration file.
    pub(crate) fn configured(yaml: &str) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let path = dir.path().join("control.yaml");
        std::fs::write(&path, yaml).unwrap();
        Self::start_in(
            dir,
            &["--trust-domain", TD, "--config", path.to_str().unwrap(), "--log-level", "debug"],
        )
    }

    /// Starts over what an earlier process left.
    pub(crate) fn restart(mut self) -> Self {
        let dir = Arc::clone(&self.dir);
        self.kill();
        drop(self);
        Self::start_in(dir, &[])
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The root's pin, as it is printed at the start.
    pub(crate) fn pin(&self) -> Pin {
        self.ready["root"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn start_in(dir: Arc<tempfile::TempDir>, more: &[&str]) -> Self {
        let command = serve(dir.path(), more);
        Self::spawn(dir, command)
    }

    /// Starts what [`serve`] made of `dir`, with whatever was added to it.
    pub(crate) fn spawn(dir: Arc<tempfile::TempDir>, command: Command) -> Self {
        Self::spawn_waiting(dir, command, |waiting| panic!("it waits: {waiting}"))
    }

    /// Starts one that waits for its issuing CA; `waits` sees to that.
    pub(crate) fn spawn_waiting(
        dir: Arc<tempfile::TempDir>,
        mut command: Command,
        waits: impl FnOnce(&Value),
    ) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(dir.path().join("log")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut read = || {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            serde_json::from_str::<Value>(&line).unwrap_or_else(|_| panic!("no ready line: {line:?}"))
        };
        let mut ready = read();
        if ready["event"] == "waiting" {
            waits(&ready);
            ready = read();
        }
        assert_eq!(ready["event"], "ready");
        let listen = ready["listen"].as_str().unwrap().parse().unwrap();
        Self { child, listen, ready, dir }
    }

    /// SIGKILL: no handler runs, nothing is flushed.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn dir(&self) -> Arc<tempfile::TempDir> {
        Arc::clone(&self.dir)
    }

    /// What a probe answers: status and body.
    pub(crate) async fn probe(&self, path: &str) -> (u16, String) {
        use http_body_util::BodyExt as _;
        let stream = TcpStream::connect(self.ready["metrics"].as_str().unwrap()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "probe").body(String::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("pki")
    }

    /// Runs an operator's command.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        command(self.dir.path()).args(arguments).output().unwrap()
    }

    /// Runs an operator's command that has to succeed, and reads its JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.cli(&[arguments, &["--json"]].concat());
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        serde_json::from_str(&out).unwrap()
    }

    pub(crate) fn token(&self, path: &str, more: &[&str]) -> JoinString {
        let id = format!("spiffe://{TD}{path}");
        let created = self.json(&[&["token", "create", "--id", &id], more].concat());
        created["join"].as_str().unwrap().parse().unwrap()
    }

    /// The reasons of refused records, oldest first.
    pub(crate) fn refusals(&self, action: &str) -> Vec<String> {
        let records = self.json(&["audit", "--last", "1000"]);
        let refused =
            records.as_array().unwrap().iter().filter(|r| r["action"] == action && r["outcome"] == "refused");
        refused.map(|r| r["detail"]["reason"].as_str().unwrap().to_owned()).collect()
    }

    /// How many certificates were issued by this call.
    pub(crate) fn issued(&self, action: &str) -> usize {
        let records = self.json(&["audit", "--last", "1000"]);
        records.as_array().unwrap().iter().filter(|r| r["action"] == action && r["outcome"] == "done").count()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `postern` with nothing of this process's environment that it would read.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.current_dir(dir).env_clear().env("POSTERN_DATA", dir.join("pki"));
    command
}

pub(crate) fn serve(dir: &Path, more: &[&str]) -> Command {
    let mut command = command(dir);
    command
        .env("POSTERN_LOG_LEVEL", "warn")
        .args(["serve", "--json", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
        .args(more);
    command
}

/// A key and the request for it.
pub(crate) struct Keys {
    pub(crate) key: KeyPair,
    pub(crate) csr: Vec<u8>,
}

impl Keys {
    pub(crate) fn new() -> Self {
        Self::asking(|_| {})
    }

    /// A request that asks for more.
    pub(crate) fn asking(wish: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        wish(&mut params);
        let csr = params.serialize_request(&key).unwrap().der().to_vec();
        Self { key, csr }
    }
}

/// A certificate with its key.
pub(crate) struct Svid {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivatePkcs8KeyDer<'static>,
}

impl Svid {
    pub(crate) fn new(message: Option<v1::Svid>, key: &KeyPair) -> Self {
        let chain = message.unwrap().chain.into_iter().map(CertificateDer::from).collect();
        Self { chain, key: key.serialize_der().into() }
    }
}

/// One TLS connection to the control plane.
pub(crate) struct Connection {
    pub(crate) client: ControlClient<H2>,
    pub(crate) exporter: [u8; 32],
}

impl Connection {
    /// Connects as a proxy that knows nothing but a join string's pin.
    pub(crate) async fn open(address: SocketAddr, pin: Pin, svid: Option<&Svid>) -> std::io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("control.test").unwrap();
        let tls = TlsConnector::from(client_config(pin, svid)).connect(name, tcp).await?;
        let exporter = tls.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap();
        // A small window: who does not read is felt by the server at once.
        let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(16 * 1024)
            .handshake(TokioIo::new(tls))
            .await;
        let (sender, connection) = handshake.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self { client: ControlClient::new(H2(sender)), exporter })
    }

    pub(crate) async fn to(control: &Control, join: &JoinString, svid: Option<&Svid>) -> Self {
        Self::open(control.listen, join.pins[0], svid).await.unwrap()
    }

    /// A complete request to enroll over this connection.
    pub(crate) fn request(&self, join: &JoinString, keys: &Keys) -> v1::EnrollRequest {
        let nonce = b"0123456789abcdef".to_vec();
        let proof = keys.key.sign(&proof_message(&self.exporter, &nonce, &keys.csr)).unwrap();
        v1::EnrollRequest {
            token_id: join.token_id.clone(),
            token_secret: join.secret.to_vec(),
            csr: keys.csr.clone(),
            nonce,
            proof,
            ttl_ms: 0,
            instance: "test".into(),
            credential: None,
        }
    }

    /// A complete request to enroll by another credential.
    pub(crate) fn attested(&self, credential: Credential, keys: &Keys) -> v1::EnrollRequest {
        let nonce = b"0123456789abcdef".to_vec();
        let proof = keys.key.sign(&proof_message(&self.exporter, &nonce, &keys.csr)).unwrap();
        let credential = Some(credential);
        let csr = keys.csr.clone();
        v1::EnrollRequest { csr, nonce, proof, credential, instance: "test".into(), ..Default::default() }
    }

    pub(crate) async fn enroll(
        &mut self,
        join: &JoinString,
        keys: &Keys,
    ) -> Result<v1::EnrollResponse, tonic::Status> {
        let request = self.request(join, keys);
        self.client.enroll(request).await.map(tonic::Response::into_inner)
    }
}

/// Enrolls a workload and says what it got.
pub(crate) async fn enrolled(control: &Control, path: &str, more: &[&str]) -> (JoinString, Svid) {
    let join = control.token(path, more);
    let keys = Keys::new();
    let response = Connection::to(control, &join, None).await.enroll(&join, &keys).await.unwrap();
    let svid = Svid::new(response.svid, &keys.key);
    (join, svid)
}

/// Verifies a chain by the one root that has this pin, as both kinds of peer do.
pub(crate) fn verify(chain: &[CertificateDer<'_>], root: CertificateDer<'static>, role: Role) -> Peer {
    let bundle = |domain: &str| TrustBundle::new(domain.parse().unwrap(), 1, [root.clone()]).unwrap();
    let bundles: BundleSet = [TD, OTHER].map(bundle).into_iter().collect();
    let signatures = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let algorithms = Algorithms { signatures, sha256 };
    svid::verify(chain, &bundles, &Revocations::default(), role, UnixTime::now(), algorithms).unwrap()
}

fn client_config(pin: Pin, svid: Option<&Svid>) -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(pin)));
    let mut config = match svid {
        None => builder.with_no_client_auth(),
        Some(svid) => {
            let key = PrivateKeyDer::Pkcs8(svid.key.clone_key());
            // Not `with_client_auth_cert`, which asks whether they belong together: a thief does not.
            let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).unwrap();
            let certified = rustls::sign::CertifiedKey::new(svid.chain.clone(), key);
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Accepts the control plane of the pinned root, and nobody else.
#[derive(Debug)]
struct Pinned(Pin);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The root may be preceded by its successor, as it signed that one.
        assert!((2..=3).contains(&more.len()), "leaf, issuing CA and root are presented");
        let (above, root) = (&more[..more.len() - 1], more[more.len() - 1].clone().into_owned());
        let (_, parsed) = x509_parser::parse_x509_certificate(&root).unwrap();
        if sha256(parsed.public_key().raw) != self.0.0 {
            return Err(rustls::CertificateError::UnknownIssuer.into());
        }
        let chain: Vec<_> = std::iter::once(leaf).chain(above).cloned().collect();
        let peer = verify(&chain, root.clone(), Role::Server);
        assert_eq!(peer.id, peer.id.trust_domain().control_plane());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 alone is offered")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// One HTTP/2 connection as the stubs want it.
#[derive(Clone)]
pub(crate) struct H2(SendRequest<tonic::body::Body>);

impl tower_service::Service<Request<tonic::body::Body>> for H2 {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<tonic::body::Body>) -> Self::Future {
        let path = request.uri().path_and_query().unwrap().clone();
        *request.uri_mut() = format!("https://control.test{path}").parse().unwrap();
        Box::pin(self.0.send_request(request))
    }
}

/// What a command that fails says, and that it says nothing else.
pub(crate) fn failed(output: &Output, code: i32, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(why), "{said:?} does not say {why:?}");
    assert!(output.stdout.is_empty());
}

/// DER as PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
