//! Connections to servers of the web that this proxy asks something by itself: issuers of JWTs, ACME servers. Their
//! certificates lead to given CAs or to the host's own; nothing here is ever a peer of the mesh.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{ALPN_HTTP1, PROVIDER};

/// A TLS stream to a server of the web.
pub type WebStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Where distributions keep the CAs of the web: Debian and Alpine, Red Hat, SUSE, and the two older places.
const HOST_STORES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Why nobody can be believed.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file cannot be read, or is no PEM.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It holds no CA.
    #[error("{}: holds no certificate", .0.display())]
    Empty(PathBuf),
    /// The host has no store.
    #[error("this host has no store of CAs (looked for {}); name a PEM file in `ca`", HOST_STORES.join(", "))]
    NoStore,
}

/// Whom to believe, as a config.
#[derive(Clone)]
pub struct WebConnector(Arc<ClientConfig>);

impl WebConnector {
    /// Believes the CAs of a PEM file, or those of `SSL_CERT_FILE`, or the host's store. TLS 1.3 alone, HTTP/1.1.
    pub fn new(ca: Option<&Path>) -> Result<Self, RootsError> {
        let from_environment = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let path = match ca.or(from_environment.as_deref()) {
            Some(path) => path,
            None => HOST_STORES.iter().map(Path::new).find(|p| p.exists()).ok_or(RootsError::NoStore)?,
        };
        let file = |why: String| RootsError::File { path: path.to_owned(), why };
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_file_iter(path).map_err(|e| file(e.to_string()))? {
            // A host's store may hold an odd old CA; one that is given must be good.
            match roots.add(der.map_err(|e| file(e.to_string()))?) {
                Err(why) if ca.is_some() => return Err(file(why.to_string())),
                _ => {}
            }
        }
        if roots.is_empty() {
            return Err(RootsError::Empty(path.to_owned()));
        }
        // Servers of the web may know neither of the two groups that the mesh speaks.
        let groups = aws_lc_rs::default_provider().kx_groups;
        let provider = CryptoProvider { kx_groups: groups, ..CryptoProvider::clone(&PROVIDER) };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| file(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }

    /// Connects to `host`, a name or an IP address, over `tcp`.
    pub async fn connect(&self, host: &str, tcp: TcpStream) -> io::Result<WebStream> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not the name of a host"))?;
        TlsConnector::from(Arc::clone(&self.0)).connect(name, tcp).await
    }
}

impl std::fmt::Debug for WebConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebConnector")
    }
}
