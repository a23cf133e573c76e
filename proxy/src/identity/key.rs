//! Private keys: made in memory for each certificate, shown to the TLS library and, where asked for, to the cache.

use std::sync::Arc;
use std::time::Duration;

use postern_config::wire::v1;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SigningKey as _};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// A fresh key and the CSR that goes with it.
pub(super) struct Request {
    key: KeyPair,
    /// PKCS#10, DER; it names nobody, since nothing but its key is believed.
    pub(super) csr: Vec<u8>,
}

/// A key with the chain that was issued for it.
#[derive(Clone)]
pub struct Issued {
    key: Arc<PrivatePkcs8KeyDer<'static>>,
    chain: Vec<Vec<u8>>,
    /// When the control plane wants it renewed, counted from its receipt; none if it does not say.
    window: Option<(Duration, Duration)>,
}

impl Request {
    /// Generates a P-256 key and its CSR.
    pub(super) fn new() -> Result<Self, String> {
        let wrong = |e: rcgen::Error| format!("a key cannot be generated: {e}");
        let key = KeyPair::generate().map_err(wrong)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(wrong)?.der().to_vec();
        Ok(Self { key, csr })
    }

    /// Signs the enrollment's proof of possession.
    pub(super) fn prove(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        self.key.sign(message).map_err(|e| format!("the proof cannot be signed: {e}"))
    }

    /// This key with what was issued for it.
    pub(super) fn issued(&self, svid: v1::Svid) -> Issued {
        let issued = Issued::new(PrivatePkcs8KeyDer::from(self.key.serialize_der()), svid.chain);
        let window = (Duration::from_millis(svid.renew_after_ms), Duration::from_millis(svid.renew_by_ms));
        Issued { window: (svid.renew_by_ms > 0).then_some(window), ..issued }
    }
}

impl Issued {
    /// A key (PKCS#8) and its chain, leaf first.
    pub(super) fn new(key: PrivatePkcs8KeyDer<'static>, chain: Vec<Vec<u8>>) -> Self {
        Self { key: Arc::new(key), chain, window: None }
    }

    /// The key.
    pub(super) fn key(&self) -> &PrivatePkcs8KeyDer<'static> {
        &self.key
    }

    /// When the control plane wants it renewed, counted from its receipt.
    pub(super) fn window(&self) -> Option<(Duration, Duration)> {
        self.window
    }

    /// The chain, leaf first.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().cloned().map(CertificateDer::from).collect()
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issued({} certificates, key hidden)", self.chain.len())
    }
}
