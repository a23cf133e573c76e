//! Whom a light client believes: before enrollment the pinned root's control plane, afterwards the one of its bundle.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::enroll::Pin;
use postern_config::id::{SpiffeId, TrustDomain};
use postern_config::revocation::Revocations;
use postern_config::svid::{self, Anchor, Peer, Role, VerifyError};
use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::believe::{self, Believer, Judge, Shown};

/// As the real proxy has it: AES-128 first, X25519 with and without its post-quantum half.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::{cipher_suite, kx_group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
});

/// Who has to answer.
#[derive(Debug, Clone)]
pub(super) enum Expected {
    /// The control plane under a root of one of these pins.
    Pinned {
        /// Its trust domain.
        trust_domain: TrustDomain,
        /// SHA-256 of the root's key.
        pins: Vec<Pin>,
    },
    /// The control plane as the held bundle vouches for it.
    Known {
        /// What is held.
        trust: Trust,
        /// Its identity.
        control: SpiffeId,
    },
}

/// The bundles and revocations that a client holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Trust {
    pub(super) bundles: Arc<BundleSet>,
    pub(super) revoked: Arc<Revocations>,
}

impl Trust {
    /// Whose chain this is, judged by what is held now.
    pub(super) fn verify(&self, chain: &[CertificateDer<'_>], role: Role) -> Result<Peer, VerifyError> {
        let algorithms = believe::algorithms(&PROVIDER);
        svid::verify(chain, &self.bundles, &self.revoked, role, UnixTime::now(), algorithms)
    }
}

/// A key with its chain, leaf first.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivatePkcs8KeyDer<'static>,
    /// When the control plane wants it renewed, counted from its receipt.
    pub(super) window: Option<(Duration, Duration)>,
}

/// The TLS settings of one connection.
pub(super) fn client_config(
    expected: Expected,
    own: Option<&Credentials>,
) -> Result<ClientConfig, rustls::Error> {
    let verifier = Believer { judge: expected, provider: Arc::clone(&PROVIDER) };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            builder.with_client_auth_cert(own.chain.clone(), PrivateKeyDer::Pkcs8(own.key.clone_key()))?
        }
    };
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

impl Judge for Expected {
    fn judge(&self, shown: &Shown<'_>) -> Result<(), rustls::Error> {
        let chain: Vec<_> = shown.chain().cloned().collect();
        match self {
            Self::Pinned { trust_domain, pins } => {
                let found = pinned(&chain, trust_domain, pins).and_then(|t| t.verify(&chain, Role::Server));
                believe::only(&trust_domain.control_plane(), found)
            }
            Self::Known { trust, control } => believe::only(control, trust.verify(&chain, Role::Server)),
        }
    }
}

/// Trust in the root of a chain that one of the pins is for.
fn pinned(
    chain: &[CertificateDer<'_>],
    trust_domain: &TrustDomain,
    pins: &[Pin],
) -> Result<Trust, VerifyError> {
    let root = chain.iter().find_map(|der| {
        let anchor = Anchor::new(der.clone().into_owned()).ok()?;
        pins.contains(&Pin(believe::sha256(anchor.spki()))).then(|| der.clone().into_owned())
    });
    let root = root.ok_or(VerifyError::RootNotPinned)?;
    let bundle = TrustBundle::new(trust_domain.clone(), 0, [root]).map_err(|_| VerifyError::RootNotPinned)?;
    Ok(Trust { bundles: Arc::new([bundle].into_iter().collect()), revoked: Arc::default() })
}
