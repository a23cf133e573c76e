//! Why a chain is not believed, in words for an operator; each belongs to one closed reason.

use std::fmt;

use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::reason::Reason;

/// Why [`super::verify`] refuses a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The peer presented nothing.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// Some notAfter of the path lies in the past.
    #[error(
        "expired: the certificate ended at {} and this host's clock says {}",
        Clock(*not_after),
        Clock(*now)
    )]
    Expired {
        /// The least notAfter, seconds since 1970.
        not_after: i64,
        /// The time of the check.
        now: i64,
    },
    /// Some notBefore of the path lies more than the tolerance in the future.
    #[error(
        "not yet valid: the certificate starts at {} and this host's clock says {}",
        Clock(*not_before),
        Clock(*now)
    )]
    NotYetValid {
        /// The greatest notBefore, seconds since 1970.
        not_before: i64,
        /// The time of the check.
        now: i64,
    },
    /// No path to an anchor of the bundle.
    #[error("no path leads from the certificate to a root of its trust domain's bundle")]
    UnknownIssuer,
    /// An enrolling proxy was not shown the root that its join string pins.
    #[error(
        "the control plane does not present the root that the join string pins: the address is wrong, or somebody is in \
         between"
    )]
    RootNotPinned,
    /// The peer names a trust domain without a bundle here.
    #[error("the peer is of trust domain {presented}, for which there is no bundle here")]
    WrongTrustDomain {
        /// The trust domain that the leaf names.
        presented: TrustDomain,
    },
    /// The one URI SAN is no workload's SPIFFE ID.
    #[error("the certificate's URI name is not a SPIFFE ID: {0}")]
    BadSpiffeId(IdError),
    /// The leaf has no URI SAN.
    #[error("the certificate has no URI name  (X509-SVID §2)")]
    NoUriName,
    /// The leaf has several URI SANs.
    #[error("the certificate has more than one URI name  (X509-SVID §2)")]
    ManyUriNames,
    /// A rule of the certificate profile is broken.
    #[error("{0}")]
    Flaw(#[from] Flaw),
    /// Revoked by serial, by identity or by key.
    #[error("{id} is revoked")]
    Revoked {
        /// Whose certificate.
        id: SpiffeId,
    },
    /// A signature in the path does not verify.
    #[error("a signature in the certificate's path does not verify")]
    BadSignature,
    /// A valid identity, but another one was expected.
    #[error("the peer proved {presented}, but {expected} was expected")]
    WrongIdentity {
        /// Who it is.
        presented: SpiffeId,
        /// Who it should be.
        expected: SpiffeId,
    },
}

/// A broken rule of the X509-SVID profile or of RFC 5280.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the documentation")]
pub enum Flaw {
    #[error("more than 4 certificates, or more than 16 KiB of them, were presented")]
    ChainTooLarge,
    #[error("a presented certificate cannot be read")]
    Unreadable,
    #[error("the certificate's names can be read in two ways")]
    Ambiguous,
    #[error("the leaf has no basicConstraints  (X509-SVID §4.1)")]
    NoBasicConstraints,
    #[error("a CA certificate was presented as a leaf  (X509-SVID §3.2)")]
    CaAsLeaf,
    #[error("a certificate has no keyUsage  (X509-SVID §4.3)")]
    NoKeyUsage,
    #[error("a certificate's keyUsage is not marked critical  (X509-SVID §4.3)")]
    KeyUsageNotCritical,
    #[error(
        "the leaf's keyUsage must hold digitalSignature and neither keyCertSign nor cRLSign  (X509-SVID §4.3)"
    )]
    LeafKeyUsage,
    #[error("the leaf's extendedKeyUsage must hold both serverAuth and clientAuth  (X509-SVID §4.4)")]
    ExtendedKeyUsage,
    #[error("the client certificate's extendedKeyUsage must hold clientAuth")]
    NoClientAuth,
    #[error("the subject is empty, so the subjectAltName must be critical  (RFC 5280 §4.2.1.6)")]
    SanNotCritical,
    #[error("an RSA key has fewer than 2048 or more than 4096 bits")]
    RsaKeySize,
    #[error("the leaf's key is of a kind that is not accepted here")]
    KeyKind,
    #[error("an issuer in the path lacks keyCertSign  (X509-SVID §4.3)")]
    IssuerMayNotSign,
    #[error("an issuer in the path carries a name that is not its trust domain's  (X509-SVID §3.2)")]
    IssuerName,
    #[error("path validation failed: {0}")]
    Path(&'static str),
}

impl VerifyError {
    /// The closed reason.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoCertificate => Reason::NoCertificate,
            Self::Expired { .. } => Reason::Expired,
            Self::NotYetValid { .. } => Reason::NotYetValid,
            Self::UnknownIssuer | Self::RootNotPinned => Reason::UnknownIssuer,
            Self::WrongTrustDomain { .. } => Reason::WrongTrustDomain,
            Self::BadSpiffeId(_) | Self::NoUriName | Self::ManyUriNames => Reason::BadSpiffeId,
            Self::Flaw(_) => Reason::BadCertificate,
            Self::Revoked { .. } => Reason::Revoked,
            Self::BadSignature => Reason::BadSignature,
            Self::WrongIdentity { .. } => Reason::WrongIdentity,
        }
    }
}

/// webpki's refusals in our words.
pub(super) fn from_webpki(error: webpki::Error) -> VerifyError {
    use webpki::Error as E;
    let seconds = |t: rustls_pki_types::UnixTime| i64::try_from(t.as_secs()).unwrap_or(i64::MAX);
    match error {
        E::CertExpired { time, not_after } => {
            VerifyError::Expired { not_after: seconds(not_after), now: seconds(time) }
        }
        E::CertNotValidYet { time, not_before } => {
            VerifyError::NotYetValid { not_before: seconds(not_before), now: seconds(time) }
        }
        E::UnknownIssuer => VerifyError::UnknownIssuer,
        E::InvalidSignatureForPublicKey => VerifyError::BadSignature,
        E::CaUsedAsEndEntity => Flaw::CaAsLeaf.into(),
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Flaw::ExtendedKeyUsage.into(),
        E::NameConstraintViolation | E::MalformedNameConstraint => {
            Flaw::Path("a name constraint excludes it, or is of a kind that is not supported").into()
        }
        E::PathLenConstraintViolated => Flaw::Path("an issuer's path length is exceeded").into(),
        E::EndEntityUsedAsCa => Flaw::Path("a leaf certificate was used as an issuer").into(),
        E::UnsupportedCriticalExtension => Flaw::Path("an unknown extension is marked critical").into(),
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            Flaw::Path("a signature algorithm or key type is not accepted here").into()
        }
        E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded => Flaw::Path("building the path took too many steps").into(),
        E::BadDer | E::BadDerTime | E::TrailingData(_) => Flaw::Unreadable.into(),
        _ => Flaw::Path("a certificate of the path is malformed").into(),
    }
}

/// Seconds since 1970, printed as RFC 3339 in UTC.
struct Clock(i64);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "{} s after 1970", self.0),
        }
    }
}
