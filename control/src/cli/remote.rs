//! The operators' port as the command reaches it: mutual TLS with an operator's certificate, and a control plane that proves its own
//! identity by the trust domain's root. Names and addresses prove nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::id::TrustDomain;
use postern_config::revocation::Revocations;
use postern_config::svid::{self, Algorithms, Peer, Role};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::CliError;
use crate::digest::sha256;

/// How long a connection may take to come about.
const PATIENCE: Duration = Duration::from_secs(10);

/// The operators' port, and who asks.
#[derive(Debug)]
pub(super) struct Remote {
    address: String,
    tls: Arc<ClientConfig>,
}

/// Where an operator's certificate, key and roots lie. The certificate's file may hold all three.
#[derive(Debug)]
pub(super) struct Files<'a> {
    pub(super) certificate: &'a Path,
    pub(super) key: Option<&'a PathBuf>,
    pub(super) roots: Option<&'a PathBuf>,
}

impl Remote {
    /// `https://host:port`, asked with these files.
    pub(super) fn new(url: &str, files: &Files<'_>) -> Result<Self, CliError> {
        let address = url.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
        let address = address.filter(|a| postern_config::service::is_host_port(a)).ok_or_else(|| {
            CliError::Failed(format!("{url:?} is not an operators' port; write https://host:port"))
        })?;
        let all = certificates(files.certificate)?;
        let (own_roots, chain): (Vec<_>, Vec<_>) = all.into_iter().partition(is_root);
        let roots = files.roots.map_or(Ok(own_roots), |path| certificates(path))?;
        if chain.is_empty() || roots.is_empty() {
            return Err(CliError::Failed(format!(
                "{}: there must be an operator's certificate in it, and the trust domain's root; or name the root's file with --api-ca",
                files.certificate.display()
            )));
        }
        let key_file = files.key.map_or(files.certificate, PathBuf::as_path);
        let key = PrivateKeyDer::from_pem_file(key_file)
            .map_err(|e| CliError::Failed(format!("{}: no private key: {e}", key_file.display())))?;
        let own = own_identity(&chain, &roots)
            .map_err(|why| CliError::Failed(format!("{}: {why}", files.certificate.display())))?;
        let trust = Trust { domain: own.id.trust_domain(), roots };
        let tls = config(trust, chain, key)?;
        Ok(Self { address: address.to_owned(), tls })
    }

    pub(super) async fn connect(&self) -> Result<TlsStream<TcpStream>, CliError> {
        connect(&self.address, Arc::clone(&self.tls)).await
    }
}

/// Whom an operator's file speaks for, by the roots beside it.
fn own_identity(chain: &[CertificateDer<'_>], roots: &[CertificateDer<'static>]) -> Result<Peer, String> {
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).map_err(|e| e.to_string())?;
    let names = leaf.subject_alternative_name().ok().flatten();
    let uri = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
    });
    let id: postern_config::id::SpiffeId = uri
        .ok_or("its certificate names no SPIFFE ID")?
        .parse()
        .map_err(|why| format!("not a SPIFFE ID: {why}"))?;
    verify(chain, &id.trust_domain(), roots, Role::Client, UnixTime::now())
}

fn verify(
    chain: &[CertificateDer<'_>],
    domain: &TrustDomain,
    roots: &[CertificateDer<'static>],
    role: Role,
    now: UnixTime,
) -> Result<Peer, String> {
    let bundle = TrustBundle::new(domain.clone(), 1, roots.iter().cloned()).map_err(|e| e.to_string())?;
    let bundles: BundleSet = [bundle].into_iter().collect();
    let signatures = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let algorithms = Algorithms { signatures, sha256 };
    svid::verify(chain, &bundles, &Revocations::default(), role, now, algorithms).map_err(|e| e.to_string())
}

/// Connects, and is sure of who answers.
async fn connect(address: &str, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, CliError> {
    let failed = |why: &dyn std::fmt::Display| CliError::Failed(format!("{address}: {why}"));
    let connected = async {
        let tcp = TcpStream::connect(address).await.map_err(|e| failed(&e))?;
        // What the other side proves is an identity; the name is for nobody.
        let name = ServerName::try_from("postern.invalid").map_err(|e| failed(&e))?;
        TlsConnector::from(tls).connect(name, tcp).await.map_err(|e| failed(&why(&e)))
    };
    tokio::time::timeout(PATIENCE, connected).await.map_err(|_| failed(&"no answer within 10 s"))?
}

/// What we found wrong with the other side in our own words; anything else as it is said.
fn why(error: &std::io::Error) -> String {
    let ours = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match ours {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => why.to_string(),
        _ => error.to_string(),
    }
}

/// By what the control plane is recognised.
#[derive(Debug)]
struct Trust {
    domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
}

/// TLS 1.3 towards the control plane, with an operator's certificate.
fn config(
    trust: Trust,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, CliError> {
    let failed = |e: rustls::Error| CliError::Failed(format!("TLS: {e}"));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(ControlPlane { trust, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = builder.with_client_auth_cert(chain, key).map_err(failed)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Accepts the control plane of one trust domain, and no workload of it.
#[derive(Debug)]
struct ControlPlane {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ControlPlane {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust { domain, roots } = &self.trust;
        let chain: Vec<_> =
            std::iter::once(leaf).chain(more.iter().filter(|c| !is_root(c))).cloned().collect();
        let wrong = |why: String| CertificateError::Other(OtherError(Arc::new(NotControlPlane(why))));
        let peer = verify(&chain, domain, roots, Role::Server, now).map_err(wrong)?;
        match peer.id == domain.control_plane() {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(wrong(format!("it is {}", peer.id)).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whoever answers is not the control plane.
#[derive(Debug, thiserror::Error)]
#[error("this is not the control plane of the trust domain: {0}")]
struct NotControlPlane(String);

/// Whether a certificate is its own issuer's.
fn is_root(der: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(der).is_ok_and(|(_, c)| c.subject() == c.issuer() && c.is_ca())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CliError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.map_err(|e| CliError::Failed(format!("{}: {e}", path.display())))
}
