//! The adapter between rustls' verifier traits and the one SPIFFE verifier, and the way its result comes out again.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use postern_config::id::SpiffeId;
use postern_config::svid::{self, Peer, Role, VerifyError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::chains::{ChainCounters, Chains, Key};
use super::{PROVIDER, algorithms};
use crate::snapshot::Snapshots;

thread_local! {
    /// The verifier's last result on this thread. rustls gives a verifier no way to hand its result on, and asking again
    /// after the handshake would do the signatures twice. A handshake step runs on one thread without a break, so whatever
    /// stands here after a step belongs to the handshake that was stepped.
    static VERIFIED: RefCell<Option<Found>> = const { RefCell::new(None) };

    /// This worker's verified chains. A worker is a thread, so nobody else ever waits for them.
    static CHAINS: RefCell<Chains> = RefCell::default();
}

/// What a verifier found.
pub(super) type Found = Result<Believed, VerifyError>;

/// A peer whose chain is believed; whether it holds the leaf's key, the handshake has yet to show.
#[derive(Debug, Clone)]
pub(super) struct Believed {
    peer: Arc<Peer>,
    /// What to remember it by once it has finished the handshake: the key, and how many are remembered.
    fresh: Option<(Key, usize)>,
}

impl Believed {
    /// Of a chain that is not to be remembered.
    pub(super) fn once(peer: Peer) -> Self {
        Self { peer: Arc::new(peer), fresh: None }
    }

    /// The peer of a handshake that has ended well.
    pub(super) fn finished(self) -> Arc<Peer> {
        if let Some((key, most)) = self.fresh {
            CHAINS.with_borrow_mut(|chains| chains.insert(key, Arc::clone(&self.peer), most));
        }
        self.peer
    }
}

/// What the last handshake step of this thread found; for handshakes that nobody captures.
pub(super) fn last_found() -> Option<Found> {
    VERIFIED.take()
}

/// Runs a handshake and catches what the verifier found in it.
///
/// No `async fn`: that would keep room for the handshake beside the box.
pub(super) fn capture<F: Future>(handshake: F) -> Capture<F> {
    Capture { handshake: Box::pin(handshake), found: None }
}

/// A handshake and what was found in it.
pub(super) struct Capture<F> {
    // Boxed: the handshake's state is large and gone once the connection carries data.
    handshake: Pin<Box<F>>,
    found: Option<Found>,
}

impl<F: Future> Future for Capture<F> {
    type Output = (F::Output, Option<Found>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        VERIFIED.take();
        let polled = self.handshake.as_mut().poll(cx);
        if let Some(found) = VERIFIED.take() {
            self.found = Some(found);
        }
        polled.map(|output| (output, self.found.take()))
    }
}

/// Believes peers whose chain the SPIFFE verifier accepts against the live bundles, and, where one is expected, only
/// that identity.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    snapshots: Arc<Snapshots>,
    role: Role,
    expected: Option<SpiffeId>,
    or_by_host_clock: bool,
    /// How many verified chains a worker remembers.
    remembers: usize,
    counters: ChainCounters,
}

impl PeerVerifier {
    /// `role` is what the peer is.
    pub(super) fn new(snapshots: Arc<Snapshots>, role: Role, expected: Option<SpiffeId>) -> Self {
        let counters = ChainCounters::default();
        Self { snapshots, role, expected, or_by_host_clock: false, remembers: 0, counters }
    }

    /// Remembers so many chains that it has verified.
    pub(super) fn remembering(self, remembers: usize, counters: ChainCounters) -> Self {
        Self { remembers, counters, ..self }
    }

    /// Accepts dates that are good by the host's clock although the proxy corrects that clock: for the control plane, which
    /// alone can say that the host is right again.
    pub(super) fn or_by_host_clock(self) -> Self {
        Self { or_by_host_clock: true, ..self }
    }

    /// By what was verified before, else by the verifier.
    fn believe(&self, chain: &[CertificateDer<'_>]) -> Found {
        if self.remembers == 0 {
            return self.verify(chain).map(Believed::once);
        }
        let key = Key::of(chain, self.role);
        if let Some(peer) = key.as_ref().and_then(|key| self.remembered(key)) {
            self.counters.hits.inc();
            return Ok(Believed { peer, fresh: None });
        }
        self.counters.misses.inc();
        let peer = Arc::new(self.verify(chain)?);
        Ok(Believed { peer, fresh: key.map(|key| (key, self.remembers)) })
    }

    fn remembered(&self, key: &Key) -> Option<Arc<Peer>> {
        let trust = self.snapshots.trust.load();
        CHAINS.with_borrow_mut(|chains| chains.find(key, &trust, self.snapshots.clock.now()))
    }

    fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, VerifyError> {
        let trust = self.snapshots.trust.load();
        let at = |now| svid::verify(chain, &trust.bundles, &trust.revoked, self.role, now, algorithms());
        let clock = &self.snapshots.clock;
        match at(clock.unix_time()) {
            Err(VerifyError::Expired { .. } | VerifyError::NotYetValid { .. })
                if self.or_by_host_clock && clock.is_corrected() =>
            {
                at(UnixTime::now())
            }
            other => other,
        }
    }
}

impl Judge for PeerVerifier {
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Found {
        let believed = self.believe(chain)?;
        match &self.expected {
            Some(expected) if *expected != believed.peer.id => {
                let presented = believed.peer.id.clone();
                Err(VerifyError::WrongIdentity { presented, expected: expected.clone() })
            }
            _ => Ok(believed),
        }
    }
}

/// Says whether a presented chain is believed.
pub(super) trait Judge: std::fmt::Debug + Send + Sync {
    /// Who the chain (leaf first) speaks for, or why nobody.
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Found;
}

/// A [`Judge`] as both of rustls' verifiers: for peers that connect and for peers that are connected to.
#[derive(Debug)]
pub(super) struct Adapter<J>(pub(super) J);

impl<J: Judge> Adapter<J> {
    /// Leaves the judge's result for [`capture`] and turns it into rustls' terms.
    fn verify(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), Error> {
        let mut chain = Vec::with_capacity(1 + rest.len());
        chain.push(CertificateDer::from(leaf.as_ref()));
        chain.extend(rest.iter().map(|c| CertificateDer::from(c.as_ref())));
        let result = self.0.judge(&chain);
        let answer = result.as_ref().map(|_| ()).map_err(to_rustls);
        VERIFIED.set(Some(result));
        answer
    }
}

/// The rustls error whose TLS alert tells the peer as much as RFC 8446 §6.2 lets it know.
fn to_rustls(why: &VerifyError) -> Error {
    let certificate = match why {
        VerifyError::NoCertificate => return Error::NoCertificatesPresented,
        VerifyError::Expired { .. } => CertificateError::Expired,
        VerifyError::NotYetValid { .. } => CertificateError::NotValidYet,
        VerifyError::UnknownIssuer | VerifyError::RootNotPinned | VerifyError::WrongTrustDomain { .. } => {
            CertificateError::UnknownIssuer
        }
        VerifyError::Revoked { .. } => CertificateError::Revoked,
        VerifyError::BadSignature => CertificateError::BadSignature,
        VerifyError::BadSpiffeId(_)
        | VerifyError::NoUriName
        | VerifyError::ManyUriNames
        | VerifyError::Flaw(_) => CertificateError::BadEncoding,
        VerifyError::WrongIdentity { .. } => CertificateError::Other(OtherError(Arc::new(why.clone()))),
    };
    Error::InvalidCertificate(certificate)
}

/// What both verifier traits ask besides the chain: TLS 1.3 handshake signatures by our provider. TLS 1.2 is not compiled
/// in; should a future rustls ask for it, the answer is no.
macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            PROVIDER.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl<J: Judge> ClientCertVerifier for Adapter<J> {
    // Names of our roots would tell anyone who connects which trust domains are known here.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, rest).map(|()| ClientCertVerified::assertion())
    }

    handshake_signatures!();
}

impl<J: Judge> ServerCertVerifier for Adapter<J> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, rest).map(|()| ServerCertVerified::assertion())
    }

    handshake_signatures!();
}
