//! Which certificate the public port shows: that of the web to who asks for one of its names, the control plane's X.509-SVID to
//! everybody else.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::api::tls::Presented;
use crate::digest::sha256;

/// Why a certificate of the web cannot be shown.
#[derive(Debug, thiserror::Error)]
#[error("public: {}: {why}", path.display())]
pub struct WebError {
    path: PathBuf,
    why: String,
}

/// The two certificates.
#[derive(Debug)]
pub struct Faces {
    files: Option<(PathBuf, PathBuf)>,
    web: ArcSwapOption<Web>,
    spiffe: Arc<Presented>,
}

#[derive(Debug)]
struct Web {
    certified: Arc<CertifiedKey>,
    /// Of both files, so that a change is seen.
    digest: [u8; 32],
}

impl Faces {
    /// Loads certificate and key, if any are given.
    pub fn load(files: Option<(PathBuf, PathBuf)>, spiffe: Arc<Presented>) -> Result<Self, WebError> {
        let web = files.as_ref().map(|(certificate, key)| Web::load(certificate, key)).transpose()?;
        Ok(Self { files, web: ArcSwapOption::from_pointee(web), spiffe })
    }

    /// Reads the files again; the last good certificate stays where they cannot be used.
    pub fn reload(&self) {
        let Some((certificate, key)) = &self.files else { return };
        match Web::load(certificate, key) {
            Ok(web) => {
                if self.web.load().as_ref().is_none_or(|now| now.digest != web.digest) {
                    tracing::info!(file = %certificate.display(), "a new certificate for the public port");
                    self.web.store(Some(Arc::new(web)));
                }
            }
            Err(error) => tracing::warn!(%error, "the certificate for the public port stays as it was"),
        }
    }

    /// TLS 1.3 and 1.2, without resumption and without a request for a client's certificate.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Faces {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let web = self.web.load();
        match (web.as_ref(), hello.server_name()) {
            (Some(web), Some(name)) if web.is_called(name) => Some(Arc::clone(&web.certified)),
            _ => self.spiffe.resolve(hello),
        }
    }
}

impl Web {
    fn load(certificate: &Path, key: &Path) -> Result<Self, WebError> {
        let fail = |path: &Path, why: String| WebError { path: path.to_owned(), why };
        let read = |path: &Path| fs::read(path).map(Zeroizing::new).map_err(|e| fail(path, e.to_string()));
        let (chain, private) = (read(certificate)?, read(key)?);
        let digest = sha256(&Zeroizing::new([chain.as_slice(), &private].concat()));
        let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|e| fail(certificate, e.to_string()))?;
        if chain.is_empty() {
            return Err(fail(certificate, "it holds no certificate".to_owned()));
        }
        let private = PrivateKeyDer::from_pem_slice(&private)
            .map_err(|_| fail(key, "no usable private key (PEM is expected)".to_owned()))?;
        let certified = CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider())
            .map_err(|e| fail(key, format!("it does not fit {}: {e}", certificate.display())))?;
        Ok(Self { certified: Arc::new(certified), digest })
    }

    /// Whether `name` is one of the certificate's, wildcards included.
    fn is_called(&self, name: &str) -> bool {
        let Ok(name) = ServerName::try_from(name) else { return false };
        self.certified
            .cert
            .first()
            .and_then(|leaf| ParsedCertificate::try_from(leaf).ok())
            .is_some_and(|leaf| verify_server_name(&leaf, &name).is_ok())
    }
}
