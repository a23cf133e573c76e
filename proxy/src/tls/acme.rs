//! The part of ACME that is TLS: the answer to a tls-alpn-01 challenge (RFC 8737), and whether a certificate that came goes
//! with its key and its names.

use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::PROVIDER;

/// The application protocol of a challenge (RFC 8737 §6.2). Nobody else offers it, and whoever does offers nothing else.
pub const ALPN_ACME: &[u8] = b"acme-tls/1";

/// The answer to a challenge for one name, ready for a handshake. Nothing is said over the connection once it is made.
#[derive(Clone)]
pub struct Answer(Arc<ServerConfig>);

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer")
    }
}

/// What a certificate with its key says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Its DNS names, in lower case.
    pub names: Vec<String>,
    /// In DER.
    pub der: CertificateDer<'static>,
}

impl Answer {
    /// The self-signed certificate that proves control over `name`: `digest` is the SHA-256 of the key authorization.
    pub fn new(name: &str, digest: &[u8; 32]) -> Result<Self, String> {
        let key = KeyPair::generate().map_err(|e| e.to_string())?;
        let mut params = CertificateParams::new([name.to_owned()]).map_err(|e| e.to_string())?;
        params.distinguished_name = DistinguishedName::new();
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let certificate = params.self_signed(&key).map_err(|e| e.to_string())?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        // With the curves of the web: issuers look from hosts of all kinds.
        let groups = rustls::crypto::aws_lc_rs::default_provider().kx_groups;
        let provider = rustls::crypto::CryptoProvider {
            kx_groups: groups,
            ..rustls::crypto::CryptoProvider::clone(&PROVIDER)
        };
        let key = provider.key_provider.load_private_key(key.into()).map_err(|e| e.to_string())?;
        // Not by the builder's own way: it refuses the critical extension, which only the issuer knows.
        let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| e.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![ALPN_ACME.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self(Arc::new(config)))
    }

    /// The config of the handshake.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0)
    }
}

/// The name that a challenge asks for; `None` for every ClientHello that is none: the protocol must be the only one that is
/// offered (RFC 8737 §3).
pub fn challenged<'a>(hello: &'a ClientHello<'_>) -> Option<&'a str> {
    let mut offered = hello.alpn()?;
    (offered.next() == Some(ALPN_ACME) && offered.next().is_none()).then(|| hello.server_name()).flatten()
}

/// Reads a PEM text with a chain, leaf first, and its private key; says why if they do not go together.
pub fn read_pair(pem: &[u8]) -> Result<Leaf, String> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| format!("chain: {e}"))?;
    let leaf = chain.first().cloned().ok_or("it holds no certificate")?;
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| format!("key: {e}"))?;
    let key = PROVIDER.key_provider.load_private_key(key).map_err(|e| format!("key: {e}"))?;
    CertifiedKey::new(chain, key)
        .keys_match()
        .map_err(|e| format!("chain and key do not go together: {e}"))?;
    let (_, parsed) = X509Certificate::from_der(&leaf).map_err(|e| format!("chain: {e}"))?;
    let names = parsed.subject_alternative_name().map_err(|e| format!("chain: {e}"))?;
    let names = names.iter().flat_map(|san| &san.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Ok(Leaf {
        not_before: parsed.validity().not_before.timestamp(),
        not_after: parsed.validity().not_after.timestamp(),
        names: names.collect(),
        der: leaf.clone(),
    })
}
