//! Whom a light client believes: before enrollment the pinned root's control plane, afterwards the one of its bundle.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::enroll::Pin;
use postern_config::id::{SpiffeId, TrustDomain};
use postern_config::revocation::Revocations;
use postern_config::svid::{self, Algorithms, Anchor, Peer, Role, VerifyError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};

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
        svid::verify(chain, &self.bundles, &self.revoked, role, UnixTime::now(), algorithms())
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
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier(expected)));
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

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}

fn algorithms() -> Algorithms<'static> {
    Algorithms { signatures: PROVIDER.signature_verification_algorithms.all, sha256 }
}

#[derive(Debug)]
struct Verifier(Expected);

impl Verifier {
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<(), VerifyError> {
        let (peer, expected) = match &self.0 {
            Expected::Pinned { trust_domain, pins } => {
                let root = chain.iter().find_map(|der| {
                    let anchor = Anchor::new(der.clone().into_owned()).ok()?;
                    pins.contains(&Pin(sha256(anchor.spki()))).then(|| der.clone().into_owned())
                });
                let root = root.ok_or(VerifyError::RootNotPinned)?;
                let bundle = TrustBundle::new(trust_domain.clone(), 0, [root])
                    .map_err(|_| VerifyError::RootNotPinned)?;
                let bundles = Arc::new([bundle].into_iter().collect());
                let trust = Trust { bundles, revoked: Arc::default() };
                (trust.verify(chain, Role::Server)?, trust_domain.control_plane())
            }
            Expected::Known { trust, control } => (trust.verify(chain, Role::Server)?, control.clone()),
        };
        if peer.id == expected {
            Ok(())
        } else {
            Err(VerifyError::WrongIdentity { presented: peer.id, expected })
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(more).cloned().collect();
        match self.judge(&chain) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(why) => Err(CertificateError::Other(OtherError(Arc::new(why))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone is offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &PROVIDER.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}
