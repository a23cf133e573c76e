//! TLS at the edge: one prebuilt config per host, chosen by the name in the ClientHello. Clients are ordinary X.509 ones.
//!
//! A host's config never changes; where its files do, a new one is built, checked and put in its place. What the mesh
//! speaks (SPIFFE, TLS 1.3 alone) stays in the parent module.

use std::sync::{Arc, LazyLock};

use postern_config::reason::Reason;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, UnixTime};
use zeroize::Zeroizing;

use super::{ALPN_H2, ALPN_HTTP1, Failure, Stream};
use crate::snapshot::Snapshots;

mod hello;
mod material;
#[cfg(test)]
mod tests;

pub use hello::{Hello, MAX_HELLO};
pub use material::MaterialError;
use material::{Anchors, Served};

/// The mesh's algorithms, with the curves that clients of companies with a list of allowed ones ask for.
static TLS13: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| provider(&[]));

/// And with TLS 1.2: forward secrecy and AES-GCM alone.
static TLS12: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::cipher_suite as suite;
    provider(&[
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ])
});

fn provider(further: &[rustls::SupportedCipherSuite]) -> Arc<CryptoProvider> {
    use aws_lc_rs::kx_group;
    let mut provider = CryptoProvider::clone(&super::PROVIDER);
    provider.cipher_suites.extend_from_slice(further);
    provider.kx_groups.extend_from_slice(&[kx_group::SECP256R1, kx_group::SECP384R1]);
    Arc::new(provider)
}

/// What a host proves itself with.
pub enum Proof<'a> {
    /// The contents of a PEM file with the chain, the host's own certificate first, and of one with its key.
    Files {
        /// The chain.
        chain: &'a [u8],
        /// The private key.
        key: &'a Zeroizing<Vec<u8>>,
    },
    /// This proxy's own identity, whatever it is when a handshake asks.
    Identity,
}

/// What a host asks of its clients' certificates.
pub struct ClientRule<'a> {
    /// Whether a client without one is refused.
    pub required: bool,
    /// The contents of PEM files with CAs.
    pub ca: &'a [Vec<u8>],
    /// The contents of PEM files with revocation lists.
    pub crl: &'a [Vec<u8>],
}

/// What a host's config is built from.
pub struct Recipe<'a> {
    /// What it proves itself with.
    pub proof: Proof<'a>,
    /// What it asks of clients; none: no certificate.
    pub clients: Option<ClientRule<'a>>,
    /// Whether TLS 1.2 is spoken too.
    pub tls12: bool,
    /// The names that it answers for.
    pub names: &'a [&'a str],
}

/// Why a host lets nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    /// Every CA of its clients has ended.
    NoClientCa,
    /// Its certificate has not been issued yet.
    NotIssued,
}

impl Closed {
    fn failure(self) -> Failure {
        match self {
            Self::NoClientCa => {
                Failure::new(Reason::UnknownIssuer, "no CA of this host's clients is in date")
            }
            Self::NotIssued => {
                Failure::new(Reason::NotIssued, "the host's certificate has not been issued yet")
            }
        }
    }
}

/// One host's TLS, ready for handshakes.
#[derive(Clone)]
pub struct Server {
    /// Why nobody is let in, where that is so.
    config: Result<Arc<ServerConfig>, Closed>,
    /// What judges clients' certificates, where any are asked for.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    snapshots: Arc<Snapshots>,
    /// The notAfter of its own certificate, seconds since 1970; none where that is the proxy's identity.
    pub not_after: Option<i64>,
    /// When it must be built again although no file has changed, because a client CA begins or ends; seconds since 1970.
    pub rebuild_at: Option<i64>,
    /// What an operator should know although it works.
    pub warnings: Vec<String>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server(until {:?})", self.not_after)
    }
}

impl Server {
    /// Checks everything and builds; nothing that is half good comes out.
    pub fn build(recipe: &Recipe<'_>, snapshots: &Arc<Snapshots>) -> Result<Self, MaterialError> {
        let now = snapshots.clock.now();
        let provider = if recipe.tls12 { &TLS12 } else { &TLS13 };
        let mut warnings = Vec::new();
        let mut rebuild_at = None;
        let versions: &[&rustls::SupportedProtocolVersion] = match recipe.tls12 {
            true => &[&rustls::version::TLS13, &rustls::version::TLS12],
            false => &[&rustls::version::TLS13],
        };
        let time = Arc::new(CheckedTime(Arc::clone(snapshots)));
        let builder = ServerConfig::builder_with_details(Arc::clone(provider), time)
            .with_protocol_versions(versions)
            .map_err(MaterialError::Settings)?;
        let mut clients = None;
        let builder = match &recipe.clients {
            None => builder.with_no_client_auth(),
            Some(rule) => {
                let anchors = Anchors::read(rule.ca, now)?;
                let lists = material::revocation_lists(rule.crl, now, &mut warnings)?;
                warnings.extend(anchors.warnings);
                rebuild_at = anchors.next_change;
                let mut verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(anchors.store),
                    Arc::clone(provider),
                )
                // The names of the CAs would tell anyone who connects with whom this host deals.
                .clear_root_hint_subjects();
                if !lists.is_empty() {
                    // The default refuses a certificate that no list speaks of; an outdated list must not do less.
                    verifier = verifier.with_crls(lists).enforce_revocation_expiration();
                }
                if !rule.required {
                    verifier = verifier.allow_unauthenticated();
                }
                let verifier = verifier.build().map_err(MaterialError::Verifier)?;
                clients = Some(Arc::clone(&verifier));
                builder.with_client_cert_verifier(verifier)
            }
        };
        let (resolver, not_after): (Arc<dyn ResolvesServerCert>, _) = match &recipe.proof {
            Proof::Identity => (Arc::new(super::credentials::Resolver(Arc::clone(snapshots))), None),
            Proof::Files { chain, key } => {
                let served = Served::read(chain, key, provider, now)?;
                warnings.extend(served.uncovered(recipe.names));
                (Arc::new(Fixed(Arc::new(served.certified))), Some(served.not_after))
            }
        };
        let mut config = builder.with_cert_resolver(resolver);
        // A resumed session would skip the client's certificate, and one host's ticket must not open another.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.require_ems = true;
        config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()];
        Ok(Self {
            config: Ok(Arc::new(config)),
            clients,
            snapshots: Arc::clone(snapshots),
            not_after,
            rebuild_at,
            warnings,
        })
    }
}

impl Server {
    /// In place of one whose client CAs have all ended, until good files come: it refuses everybody.
    pub fn closed(&self) -> Self {
        let snapshots = Arc::clone(&self.snapshots);
        let not_after = self.not_after;
        Self { not_after, ..Self::without(Closed::NoClientCa, snapshots) }
    }

    /// In place of one whose certificate is still to be issued: it refuses everybody.
    pub fn awaiting(snapshots: &Arc<Snapshots>) -> Self {
        Self::without(Closed::NotIssued, Arc::clone(snapshots))
    }

    fn without(why: Closed, snapshots: Arc<Snapshots>) -> Self {
        let warnings = Vec::new();
        Self { config: Err(why), clients: None, snapshots, not_after: None, rebuild_at: None, warnings }
    }

    /// Whether it refuses everybody.
    pub fn is_closed(&self) -> bool {
        self.config.is_err()
    }

    /// Whether a handshake would believe this chain now.
    pub fn accepts(&self, chain: &ClientChain) -> bool {
        let (Some(clients), Some((leaf, rest))) = (&self.clients, chain.0.split_first()) else {
            return false;
        };
        clients.verify_client_cert(leaf, rest, self.snapshots.clock.unix_time()).is_ok()
    }
}

/// The certificates that a client presented and proved, its own first.
pub struct ClientChain(Vec<CertificateDer<'static>>, i64);

impl ClientChain {
    /// The chain of an established connection; none where the client presented none.
    pub fn of(stream: &Stream) -> Option<Self> {
        let chain = stream.get_ref().1.peer_certificates()?;
        let leaf = chain.first()?;
        Some(Self(chain.to_vec(), material::not_after(leaf)?))
    }

    /// The client's own certificate in DER.
    pub fn leaf(&self) -> &[u8] {
        self.0.first().map_or(&[], |leaf| leaf.as_ref())
    }

    /// The notAfter of the client's own certificate, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.1
    }
}

/// One certificate, whatever the client asks for.
#[derive(Debug)]
struct Fixed(Arc<rustls::sign::CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// The proxy's clock, which a jump of the host's does not turn back.
#[derive(Debug)]
struct CheckedTime(Arc<Snapshots>);

impl TimeProvider for CheckedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.clock.unix_time())
    }
}
