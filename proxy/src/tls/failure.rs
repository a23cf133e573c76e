//! A failed handshake in one closed reason and one sentence for the log.

use std::io;

use postern_config::reason::Reason;
use postern_config::svid::VerifyError;
use rustls::{AlertDescription, CertificateError, Error};

/// Why a handshake failed. The text is for the log: it never holds bytes that the peer chose.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// The closed reason.
    pub reason: Reason,
    text: String,
}

impl Failure {
    /// A failure with its sentence.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    /// The handshake's deadline passed.
    pub fn timeout() -> Self {
        Self::new(Reason::Timeout, "the handshake did not end before its deadline")
    }

    /// There is no certificate to present.
    pub fn no_identity() -> Self {
        Self::new(Reason::NoIdentity, "this proxy holds no valid identity")
    }

    /// A fault on this side.
    pub fn internal(text: &str) -> Self {
        Self::new(Reason::Internal, text)
    }
}

impl From<VerifyError> for Failure {
    fn from(why: VerifyError) -> Self {
        Self { reason: why.reason(), text: why.to_string() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
            return classify(tls);
        }
        let reason = match error.kind() {
            io::ErrorKind::TimedOut => Reason::Timeout,
            io::ErrorKind::OutOfMemory => Reason::Internal,
            // Whatever else a socket says, such as that the host is unreachable by now: the connection is lost.
            _ => Reason::Reset,
        };
        Self::new(reason, format!("the connection was lost during the handshake: {}", error.kind()))
    }
}

fn classify(error: &Error) -> Failure {
    let (reason, text) = match error {
        Error::NoCertificatesPresented => (Reason::NoCertificate, "the peer presented no certificate"),
        Error::InvalidMessage(_) => (Reason::NotTls, "the peer does not speak TLS"),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            (Reason::NotTls, "the peer sent a TLS message where none of its kind is allowed")
        }
        Error::PeerMisbehaved(_) => (Reason::NotTls, "the peer broke a rule of TLS"),
        Error::PeerSentOversizedRecord | Error::DecryptError => {
            (Reason::NotTls, "the peer sent a damaged TLS record")
        }
        Error::PeerIncompatible(_) => {
            (Reason::ProtocolVersion, "the peer offers no TLS version and algorithms in common")
        }
        Error::NoApplicationProtocol => (Reason::Alpn, "no application protocol in common"),
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            (Reason::BadSignature, "the peer does not hold the key of its certificate")
        }
        Error::InvalidCertificate(why) => return invalid(why),
        Error::AlertReceived(alert) => return received(*alert),
        _ => (Reason::Internal, "TLS failed on this side"),
    };
    Failure::new(reason, text)
}

/// What the stock verifier says of a client's certificate; only a gateway uses it.
fn invalid(why: &CertificateError) -> Failure {
    use CertificateError as E;
    let (reason, text) = match why {
        E::Expired | E::ExpiredContext { .. } => (Reason::Expired, "the peer's certificate has expired"),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            (Reason::NotYetValid, "the peer's certificate is not valid yet")
        }
        E::Revoked => (Reason::Revoked, "the peer's certificate is revoked"),
        E::UnknownIssuer => {
            (Reason::UnknownIssuer, "no path leads from the peer's certificate to a given CA")
        }
        E::UnknownRevocationStatus => {
            (Reason::Revoked, "no revocation list speaks for a CA of the peer's certificate")
        }
        E::ExpiredRevocationList | E::ExpiredRevocationListContext { .. } => {
            (Reason::Revoked, "the revocation list for the peer's certificate is past its next update")
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            (Reason::BadCertificate, "the peer's certificate is not for TLS clients")
        }
        _ => (Reason::BadCertificate, "the peer's certificate cannot be used"),
    };
    Failure::new(reason, text)
}

/// The peer's refusal, where an error on an established stream carries one: in TLS 1.3 a client learns only with its
/// first read that the server did not like its certificate.
pub fn received_alert(error: &io::Error) -> Option<Failure> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::AlertReceived(alert) => Some(received(*alert)),
        _ => None,
    }
}

fn received(alert: AlertDescription) -> Failure {
    use AlertDescription as A;
    let reason = match alert {
        A::CertificateExpired => Reason::Expired,
        A::UnknownCA => Reason::UnknownIssuer,
        A::CertificateRequired => Reason::NoCertificate,
        A::CertificateRevoked => Reason::Revoked,
        A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown => Reason::BadCertificate,
        A::AccessDenied => Reason::WrongIdentity,
        A::ProtocolVersion | A::HandshakeFailure | A::InsufficientSecurity => Reason::ProtocolVersion,
        A::NoApplicationProtocol => Reason::Alpn,
        A::DecryptError => Reason::BadSignature,
        A::UnexpectedMessage | A::DecodeError | A::IllegalParameter => Reason::NotTls,
        _ => Reason::Reset,
    };
    Failure::new(reason, format!("the peer refused: {alert:?}"))
}
