//! This proxy's own certificate and key: validated as a peer would before they are published, resolved by a load.

use std::sync::Arc;

use postern_config::bundle::BundleSet;
use postern_config::id::SpiffeId;
use postern_config::revocation::Revocations;
use postern_config::svid::{self, Peer, Role, VerifyError};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::snapshot::{Snapshots, Trust};

/// A certificate with its key, as it is presented to peers.
pub struct Credentials {
    certified: Arc<CertifiedKey>,
    leaf: Peer,
    /// When it was received, milliseconds since 1970 by this proxy's clock; renewal counts from here.
    pub received_ms: i64,
}

/// What peers make of the own certificate by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// They believe it.
    Good,
    /// The CA above it is no longer believed: a new one is needed at once.
    Orphan,
    /// It was taken back; presenting it any longer would be wrong.
    Revoked,
}

/// Why a received certificate is not taken into use.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Peers would refuse it.
    #[error("the certificate that was issued would not be believed: {0}")]
    Verify(#[from] VerifyError),
    /// The key cannot be used, or is not the certificate's.
    #[error("the certificate and the private key do not go together: {0}")]
    Key(#[from] rustls::Error),
    /// Another identity than before.
    #[error("the certificate is for {issued}, but this proxy is {expected}")]
    OtherIdentity {
        /// What came.
        issued: SpiffeId,
        /// What was expected.
        expected: SpiffeId,
    },
}

impl Credentials {
    /// Checks a chain (leaf first) and its PKCS#8 key exactly as a peer will: nothing is published that peers would refuse.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivatePkcs8KeyDer<'_>,
        bundles: &BundleSet,
        now: UnixTime,
    ) -> Result<Self, CredentialError> {
        let revoked = Revocations::default();
        let leaf = svid::verify(&chain, bundles, &revoked, Role::Server, now, super::algorithms())?;
        let key = super::PROVIDER.key_provider.load_private_key(PrivateKeyDer::Pkcs8(key.clone_key()))?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match()?;
        let received_ms = i64::try_from(now.as_secs()).unwrap_or(i64::MAX).saturating_mul(1000);
        Ok(Self { certified: Arc::new(certified), leaf, received_ms })
    }

    /// Who this proxy is.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// What peers with this trust make of it.
    pub fn standing(&self, trust: &Trust, now: i64) -> Standing {
        let revoked = &trust.revoked;
        let own = Revocations {
            serials: revoked.serials.clone(),
            identities: revoked.identities.clone(),
            ..Revocations::default()
        };
        if self.leaf.check_revoked(&own).is_err() {
            return Standing::Revoked;
        }
        match self.leaf.recheck(&trust.bundles, revoked, now) {
            Ok(()) | Err(VerifyError::Expired { .. }) => Standing::Good,
            Err(_) => Standing::Orphan,
        }
    }

    /// The least notAfter of its chain, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.leaf.not_after
    }

    /// The leaf's serial number in hexadecimal.
    pub fn serial(&self) -> String {
        self.leaf.serial.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The key identifier of the authority that signed it.
    pub fn authority(&self) -> &[u8] {
        &self.leaf.issuer_key_id
    }

    /// The chain as it is presented.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, until {})", self.leaf.id, self.leaf.not_after)
    }
}

/// Presents whatever credentials are live when a handshake asks.
#[derive(Debug)]
pub(super) struct Resolver(pub(super) Arc<Snapshots>);

impl Resolver {
    fn live(&self) -> Option<Arc<CertifiedKey>> {
        self.0.usable_credentials().map(|c| Arc::clone(&c.certified))
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.live()
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // An expired certificate may still ask the control plane for the next one: whether it may is decided there.
        self.0.credentials.load_full().map(|c| Arc::clone(&c.certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
