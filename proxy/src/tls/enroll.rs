//! The first connection to the control plane, before any bundle is held: believed by the pin that came with the credential
//! alone.
//!
//! Every workload's certificate leads to the same root and may serve, so "leads to the pinned root" would let any workload
//! pose as the control plane. Hence two demands: a path to a pinned root, and exactly the control plane's identity.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::enroll::{EXPORTER_LABEL, EXPORTER_LEN, Pin};
use postern_config::id::TrustDomain;
use postern_config::revocation::Revocations;
use postern_config::svid::{self, Anchor, Role, VerifyError};
use rustls::ClientConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::ahead::ReadAhead;

use super::verify::{self, Believed, Found, Judge};
use super::{Failure, PROVIDER, Stream, Tcp, WithPeerVerifier as _, algorithms, sha256};

/// A connection to the control plane that proved itself by a pinned root, and the keying material that both ends share.
pub struct PinnedConnection {
    /// The stream; HTTP/2 is agreed.
    pub stream: Stream,
    /// Bound into the enrollment's proof.
    pub exporter: [u8; EXPORTER_LEN],
}

/// Connects over `tcp` and demands the control plane of `trust_domain` under one of `pins`.
pub async fn connect(
    tcp: TcpStream,
    to: IpAddr,
    trust_domain: &TrustDomain,
    pins: &[Pin],
    certificate: Option<&ClientCertificate>,
) -> Result<PinnedConnection, Failure> {
    let verifier = PinnedVerifier { trust_domain: trust_domain.clone(), pins: pins.to_vec() };
    let internal = |_| Failure::internal("the TLS settings for enrollment cannot be built");
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(internal)?
        .dangerous_with(verify::Adapter(verifier));
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(ClientCertificate(certified)) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certified))))
        }
    };
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::IpAddress(to.into());
    let (connected, verified) =
        verify::capture(connector.connect(name, ReadAhead::from(Tcp::from(tcp)))).await;
    let exported = connected.as_ref().ok().and_then(|stream| {
        stream.get_ref().1.export_keying_material([0; EXPORTER_LEN], EXPORTER_LABEL, None).ok()
    });
    let (stream, _) = super::conclude(connected.map(super::boxed), verified)?;
    let exporter = exported.ok_or_else(|| Failure::internal("the TLS exporter is not available"))?;
    Ok(PinnedConnection { stream, exporter })
}

/// A client certificate of an existing PKI, with its key.
pub struct ClientCertificate(Arc<CertifiedKey>);

impl ClientCertificate {
    /// Reads both from PEM files; they have to belong together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let wrong = |path: &Path, why: String| format!("{}: {why}", path.display());
        let chain =
            CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|e| wrong(certificate, e.to_string()))?;
        if chain.is_empty() {
            return Err(wrong(certificate, "it holds no certificate".to_owned()));
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, e.to_string()))?;
        let certified =
            CertifiedKey::from_der(chain, private, &PROVIDER).map_err(|e| wrong(key, e.to_string()))?;
        Ok(Self(Arc::new(certified)))
    }
}

#[derive(Debug)]
struct PinnedVerifier {
    trust_domain: TrustDomain,
    pins: Vec<Pin>,
}

impl Judge for PinnedVerifier {
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Found {
        let now = UnixTime::now();
        let pinned = chain.iter().find_map(|der| {
            let anchor = Anchor::new(der.clone().into_owned()).ok()?;
            self.pins.contains(&Pin(sha256(anchor.spki()))).then(|| der.clone().into_owned())
        });
        let root = pinned.ok_or(VerifyError::RootNotPinned)?;
        let bundle =
            TrustBundle::new(self.trust_domain.clone(), 0, [root]).map_err(|_| VerifyError::RootNotPinned)?;
        let bundles: BundleSet = [bundle].into_iter().collect();
        let peer = svid::verify(chain, &bundles, &Revocations::default(), Role::Server, now, algorithms())?;
        let expected = self.trust_domain.control_plane();
        if peer.id != expected {
            return Err(VerifyError::WrongIdentity { presented: peer.id, expected });
        }
        Ok(Believed::once(peer))
    }
}
