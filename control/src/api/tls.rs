//! TLS on the proxies' port: 1.3 alone, no resumption, a client certificate where there is one, and the control plane's own
//! identity, replaced in memory.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use postern_config::bundle::BundleSet;
use postern_config::reason::Reason;
use postern_config::revocation::Revocations;
use postern_config::svid::foreign::{self, Certificate};
use postern_config::svid::{self, Algorithms, Peer, Role, VerifyError};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme,
};
use tokio::sync::watch;

use super::callers::{Grace, Standing};
use crate::attest::Pki;
use crate::ca::{Authorities, Ca, CaError};
use crate::clock::now_ms;
use crate::issue::{self, Wish};
use crate::publish::World;

/// How long the control plane's own certificate lives; it is replaced at half of that, and with every issuing CA.
const OWN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Why the TLS side cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The own certificate cannot be made.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The provider refuses.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The control plane's own certificate, as it is presented now.
#[derive(Debug)]
pub struct Presented {
    provider: Arc<CryptoProvider>,
    certified: ArcSwap<CertifiedKey>,
    renew_at: ArcSwap<i64>,
    authorities: ArcSwap<Authorities>,
}

impl Presented {
    /// Makes the first one.
    pub fn new(ca: &Ca) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let (certified, renew_at) = own_certificate(ca, &provider)?;
        Ok(Self {
            provider,
            certified: ArcSwap::from_pointee(certified),
            renew_at: ArcSwap::from_pointee(renew_at),
            authorities: ArcSwap::new(ca.authorities()),
        })
    }

    /// Makes a new one under the issuing CA of now.
    pub fn replace(&self, ca: &Ca) -> Result<(), TlsError> {
        let authorities = ca.authorities();
        let (certified, renew_at) = own_certificate(ca, &self.provider)?;
        self.authorities.store(authorities);
        self.certified.store(Arc::new(certified));
        self.renew_at.store(Arc::new(renew_at));
        Ok(())
    }

    /// Whether half of its life is over at `now` (seconds since 1970), or other roots stand above it than when it was made.
    pub fn is_due(&self, ca: &Ca, now: i64) -> bool {
        now >= **self.renew_at.load() || *ca.authorities() != **self.authorities.load()
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified.load_full())
    }
}

/// Leaf, issuing CA *and root*: a proxy that joins knows nothing but the root's pin, and one that was away during a rotation
/// knows the root before, which has signed its successor.
fn own_certificate(ca: &Ca, provider: &CryptoProvider) -> Result<(CertifiedKey, i64), TlsError> {
    let key = rcgen::KeyPair::generate().map_err(CaError::from)?;
    let issuing = ca.issuing();
    let id = ca.trust_domain().control_plane();
    // It begins with its issuing CA, not with this moment: made while the clock was ahead, it must be good when that is right again.
    let wish = Wish { id: &id, dns_names: &[], ttl: OWN_TTL, backdate: Duration::MAX, earliest: i64::MIN };
    let leaf = issue::sign(&issuing, &key, &wish, now_ms())?;
    let mut chain = vec![CertificateDer::from(leaf.der), issuing.certificate.clone()];
    chain.extend(ca.authorities().above(&issuing));
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = provider.key_provider.load_private_key(private)?;
    let now = now_ms() / 1000;
    Ok((CertifiedKey::new(chain, signing), now + (leaf.not_after - now) / 2))
}

fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    }
}

/// The server's configuration, built once.
pub fn server_config(
    presented: Arc<Presented>,
    worlds: watch::Receiver<Arc<World>>,
    pki: Option<Arc<Pki>>,
    grace: Grace,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::clone(&presented.provider);
    let verifier = Arc::new(Callers { worlds, pki, provider: Arc::clone(&provider), grace });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(presented);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // rustls never runs the client verifier on a resumed session, so there is none to resume.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Verifies callers by the newest bundles.
#[derive(Debug)]
struct Callers {
    worlds: watch::Receiver<Arc<World>>,
    pki: Option<Arc<Pki>>,
    provider: Arc<CryptoProvider>,
    grace: Grace,
}

/// Who presented this chain, by the bundles of `world`. One that ended within the grace is verified as of its last second, and
/// one whose CA was tainted as if it had not been: what such a caller may still call is decided for each call.
pub fn verify(
    chain: &[CertificateDer<'_>],
    world: &World,
    now: UnixTime,
    grace: Grace,
) -> Result<(Peer, Standing), VerifyError> {
    let signatures = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let algorithms = Algorithms { signatures, sha256: crate::digest::sha256 };
    let believed = (&*world.bundles, &*world.revocations);
    let at = |(bundles, revoked): (&BundleSet, &Revocations), at| {
        svid::verify(chain, bundles, revoked, Role::Client, at, algorithms)
    };
    match at(believed, now) {
        Ok(peer) => Ok((peer, Standing::Good)),
        Err(expired @ VerifyError::Expired { not_after, now }) if !grace.is_off() => {
            let last = Duration::from_secs(u64::try_from(not_after).unwrap_or(0));
            let peer = at(believed, UnixTime::since_unix_epoch(last))?;
            if grace.covers(&peer, now) { Ok((peer, Standing::Last)) } else { Err(expired) }
        }
        Err(lost @ (VerifyError::UnknownIssuer | VerifyError::Revoked { .. })) => {
            let (bundles, named) = &*world.before_taint;
            at((bundles, named), now).map(|peer| (peer, Standing::Last)).map_err(|_| lost)
        }
        Err(other) => Err(other),
    }
}

/// Whom a chain speaks for.
#[derive(Debug)]
pub enum Identified {
    /// A workload.
    Peer(Box<Peer>, Standing),
    /// Somebody whom an existing PKI knows: good for an enrollment, and for nothing else.
    Foreign(Certificate),
}

/// Who presented this chain. One that names a trust domain with a bundle here, or any while there is no other PKI, is a
/// workload's or nobody's: no foreign root ever speaks for a name of the mesh.
pub fn identify(
    chain: &[CertificateDer<'_>],
    world: &World,
    pki: Option<&Pki>,
    now: UnixTime,
    grace: Grace,
) -> Result<Identified, VerifyError> {
    match pki.filter(|_| foreign::is_foreign(chain, &world.bundles)) {
        Some(pki) => pki.verify(chain, now).map(Identified::Foreign),
        None => verify(chain, world, now, grace).map(|(peer, how)| Identified::Peer(Box::new(peer), how)),
    }
}

impl ClientCertVerifier for Callers {
    fn client_auth_mandatory(&self) -> bool {
        false // Enroll has no certificate yet; each method names its required caller.
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        let world = Arc::clone(&self.worlds.borrow());
        match identify(&chain, &world, self.pki.as_deref(), now, self.grace) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(error) => Err(as_alert(error).into()),
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

/// The alert tells the peer what it can mend itself; the rest stays in our log.
fn as_alert(error: VerifyError) -> CertificateError {
    match error.reason() {
        Reason::Expired => CertificateError::Expired,
        Reason::NotYetValid => CertificateError::NotValidYet,
        Reason::Revoked => CertificateError::Revoked,
        Reason::UnknownIssuer | Reason::WrongTrustDomain => CertificateError::UnknownIssuer,
        Reason::BadSignature => CertificateError::BadSignature,
        _ => CertificateError::Other(OtherError(Arc::new(error))),
    }
}

/// The closed reason of a failed handshake.
pub fn reason(error: &std::io::Error) -> Reason {
    use rustls::Error;
    let Some(error) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) else { return Reason::Reset };
    match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Reason::Expired
        }
        Error::InvalidCertificate(CertificateError::NotValidYet) => Reason::NotYetValid,
        Error::InvalidCertificate(CertificateError::Revoked) => Reason::Revoked,
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => Reason::UnknownIssuer,
        Error::InvalidCertificate(CertificateError::BadSignature) => Reason::BadSignature,
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => {
            other.downcast_ref::<VerifyError>().map_or(Reason::BadCertificate, VerifyError::reason)
        }
        Error::InvalidCertificate(_) => Reason::BadCertificate,
        Error::InvalidMessage(_) => Reason::NotTls,
        Error::NoApplicationProtocol => Reason::Alpn,
        Error::PeerIncompatible(_) => Reason::ProtocolVersion,
        _ => Reason::BadCertificate,
    }
}
