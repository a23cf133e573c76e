//! Whom the client believes: the CAs of the web, given CAs, or one SPIFFE identity.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::id::SpiffeId;
use postern_config::revocation::Revocations;
use postern_config::svid::{self, Algorithms, Role};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use tokio_rustls::TlsConnector;

/// Where distributions keep the CAs of the web: Debian and Alpine, Red Hat, SUSE, and the two older places.
const HOST_STORES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Whom to believe.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The CAs of `SSL_CERT_FILE`, or of the host's store; the server's name must fit.
    System,
    /// These CAs alone; the server's name must fit.
    Pem(Vec<CertificateDer<'static>>),
    /// An X509-SVID of exactly this identity by this bundle of its trust domain; the server's DNS name does not matter
    /// (SPIFFE Federation §5.2.2.2).
    Spiffe(SpiffeId, Box<TrustBundle>),
}

/// Why nobody can be believed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read, or is no PEM.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There is no CA in it.
    #[error("no usable CA certificate was given")]
    Empty,
    /// The host has no store.
    #[error("this host has no store of CAs (looked for {}); name a PEM file instead", HOST_STORES.join(", "))]
    NoStore,
    /// A given CA cannot be used.
    #[error("a given CA certificate cannot be used: {0}")]
    Ca(rustls::Error),
}

impl Trust {
    /// The CAs of a PEM file.
    pub fn from_pem_file(path: &Path) -> Result<Self, TrustError> {
        let found = read(path)?.into_iter().collect::<Result<Vec<_>, _>>();
        let file = |why: String| TrustError::File { path: path.to_owned(), why };
        match found {
            Ok(found) if found.is_empty() => Err(file("it holds no certificate".to_owned())),
            Ok(found) => Ok(Self::Pem(found)),
            Err(why) => Err(file(why.to_string())),
        }
    }

    pub(super) fn connector(&self) -> Result<TlsConnector, TrustError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(TrustError::Ca)?;
        let builder = match self {
            Self::System => builder.with_root_certificates(host_roots()?),
            Self::Pem(given) => builder.with_root_certificates(given_roots(given)?),
            Self::Spiffe(id, bundle) => {
                let bundles = [TrustBundle::clone(bundle)].into_iter().collect();
                let verifier = Identity { id: id.clone(), bundles, provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn given_roots(given: &[CertificateDer<'static>]) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    given.iter().try_for_each(|der| roots.add(der.clone())).map_err(TrustError::Ca)?;
    if roots.is_empty() { Err(TrustError::Empty) } else { Ok(roots) }
}

/// A host's store may hold an odd old CA, which is passed over; one that is given must be good.
fn host_roots() -> Result<RootCertStore, TrustError> {
    let from_environment = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let path = match from_environment {
        Some(path) => path,
        None => HOST_STORES.iter().map(PathBuf::from).find(|p| p.exists()).ok_or(TrustError::NoStore)?,
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read(&path)?.into_iter().flatten());
    if roots.is_empty() { Err(TrustError::Empty) } else { Ok(roots) }
}

type Read = Vec<Result<CertificateDer<'static>, rustls::pki_types::pem::Error>>;

fn read(path: &Path) -> Result<Read, TrustError> {
    let found = CertificateDer::pem_file_iter(path);
    let found = found.map_err(|e| TrustError::File { path: path.to_owned(), why: e.to_string() })?;
    Ok(found.collect())
}

/// Believes one SPIFFE identity.
#[derive(Debug)]
struct Identity {
    id: SpiffeId,
    bundles: BundleSet,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Identity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        let signatures = self.provider.signature_verification_algorithms.all;
        let algorithms = Algorithms { signatures, sha256: crate::digest::sha256 };
        let other = |error| CertificateError::Other(OtherError(error));
        let peer =
            svid::verify(&chain, &self.bundles, &Revocations::default(), Role::Server, now, algorithms)
                .map_err(|error| other(Arc::new(error)))?;
        if peer.id != self.id {
            let wrong = WrongIdentity { wanted: self.id.clone(), presented: peer.id };
            return Err(other(Arc::new(wrong)).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
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

/// A valid SVID of somebody else.
#[derive(Debug, thiserror::Error)]
#[error("the server is {presented}, not {wanted}")]
struct WrongIdentity {
    wanted: SpiffeId,
    presented: SpiffeId,
}
