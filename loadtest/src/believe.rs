//! Whom the rig believes: a judge of chains as rustls' verifier, and what the judges of SPIFFE chains share.

use std::fmt::Debug;
use std::sync::Arc;

use postern_config::id::SpiffeId;
use postern_config::svid::{Algorithms, Peer, VerifyError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, PeerIncompatible, SignatureScheme};

/// What a server shows, and for whom it was taken.
pub(crate) struct Shown<'a> {
    pub(crate) leaf: &'a CertificateDer<'a>,
    /// The rest of its chain.
    pub(crate) more: &'a [CertificateDer<'a>],
    pub(crate) name: &'a ServerName<'a>,
    pub(crate) ocsp: &'a [u8],
    pub(crate) now: UnixTime,
}

impl Shown<'_> {
    /// Leaf first.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &CertificateDer<'_>> {
        std::iter::once(self.leaf).chain(self.more)
    }
}

/// Says whether a chain is believed; that the server holds the leaf's key is no matter of the chain.
pub(crate) trait Judge: Debug + Send + Sync {
    /// An error tells why not.
    fn judge(&self, shown: &Shown<'_>) -> Result<(), rustls::Error>;
}

/// A [`Judge`] as rustls' verifier. The proof of the leaf's key is checked at each handshake.
#[derive(Debug)]
pub(crate) struct Believer<J> {
    pub(crate) judge: J,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl<J: Judge> ServerCertVerifier for Believer<J> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge.judge(&Shown { leaf, more, name, ocsp, now })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.provider.cipher_suites.iter().all(|suite| suite.tls13().is_some()) {
            return Err(PeerIncompatible::Tls12NotOffered.into());
        }
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Believes a peer that was `found` if it is the `expected` one.
pub(crate) fn only(expected: &SpiffeId, found: Result<Peer, VerifyError>) -> Result<(), rustls::Error> {
    let why = match found {
        Ok(peer) if peer.id == *expected => return Ok(()),
        Ok(peer) => VerifyError::WrongIdentity { presented: peer.id, expected: expected.clone() },
        Err(why) => why,
    };
    Err(CertificateError::Other(OtherError(Arc::new(why))).into())
}

/// What a SPIFFE chain is verified with.
pub(crate) fn algorithms(provider: &CryptoProvider) -> Algorithms<'static> {
    Algorithms { signatures: provider.signature_verification_algorithms.all, sha256 }
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}
