//! Why an operation failed, in closed words.

use std::io;

use postern_config::svid::VerifyError;
use rustls::{AlertDescription, CertificateError};
use serde::{Deserialize, Serialize};

/// The words, as they stand in results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nobody listens.
    Refused,
    /// No way to the address.
    Unreachable,
    /// The rig itself is out of ports or open files.
    RigLimit,
    /// The connection was reset.
    Reset,
    /// The connection ended before the answer was whole.
    Closed,
    /// No whole answer before the deadline.
    Timeout,
    /// The server sent a TLS alert: it refuses the rig.
    Alert,
    /// The server's certificate does not lead to the given CA.
    UnknownIssuer,
    /// The server's certificate holds another name or identity.
    WrongIdentity,
    /// The server's certificate has ended or has not begun.
    Expired,
    /// The server's certificate is wrong in another way.
    BadCertificate,
    /// No common version, suite, key exchange or ALPN.
    Incompatible,
    /// What answers does not speak TLS, or not as it should.
    NotTls,
    /// A status that is no success; of gRPC as well.
    Status,
    /// An answer that is no HTTP, or not the bytes that were sent.
    BadAnswer,
    /// Too many operations were waiting: it was not sent.
    Overload,
}

impl Reason {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::RigLimit => "rig_limit",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Alert => "alert",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongIdentity => "wrong_identity",
            Self::Expired => "expired",
            Self::BadCertificate => "bad_certificate",
            Self::Incompatible => "incompatible",
            Self::NotTls => "not_tls",
            Self::Status => "status",
            Self::BadAnswer => "bad_answer",
            Self::Overload => "overload",
        }
    }
}

/// A word with what was seen.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The word.
    pub reason: Reason,
    /// What was seen, for the first of each word.
    pub detail: String,
}

impl Failure {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let within = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        let reason = match within {
            Some(tls) => of_tls(tls),
            None => of_io(&error),
        };
        Self::new(reason, error.to_string())
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        let mut text = error.to_string();
        let mut reason = None;
        while let Some(error) = source {
            text = format!("{error}");
            if let Some(io) = error.downcast_ref::<io::Error>() {
                let tls = io.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
                reason = Some(tls.map_or_else(|| of_io(io), of_tls));
            }
            source = error.source();
        }
        let otherwise = match () {
            () if error.is_incomplete_message() || error.is_closed() || error.is_canceled() => Reason::Closed,
            () if error.is_timeout() => Reason::Timeout,
            () => Reason::BadAnswer,
        };
        Self::new(reason.unwrap_or(otherwise), text)
    }
}

fn of_io(error: &io::Error) -> Reason {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused => Reason::Refused,
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => Reason::Reset,
        Kind::UnexpectedEof | Kind::NotConnected => Reason::Closed,
        Kind::TimedOut => Reason::Timeout,
        Kind::AddrNotAvailable | Kind::AddrInUse => Reason::RigLimit,
        Kind::InvalidData => Reason::NotTls,
        _ if error.raw_os_error().is_some_and(|code| {
            use nix::errno::Errno;
            [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM].contains(&Errno::from_raw(code))
        }) =>
        {
            Reason::RigLimit
        }
        _ => Reason::Unreachable,
    }
}

fn of_tls(error: &rustls::Error) -> Reason {
    use rustls::Error as E;
    match error {
        E::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::NoApplicationProtocol) => {
            Reason::Incompatible
        }
        E::AlertReceived(_) => Reason::Alert,
        E::InvalidCertificate(why) => of_certificate(why),
        E::NoCertificatesPresented => Reason::BadCertificate,
        E::PeerIncompatible(_) | E::NoApplicationProtocol => Reason::Incompatible,
        _ => Reason::NotTls,
    }
}

fn of_certificate(why: &CertificateError) -> Reason {
    use CertificateError as C;
    match why {
        C::UnknownIssuer => Reason::UnknownIssuer,
        C::NotValidForName | C::NotValidForNameContext { .. } => Reason::WrongIdentity,
        C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. } => {
            Reason::Expired
        }
        C::Other(other) => match other.0.downcast_ref::<VerifyError>() {
            Some(VerifyError::UnknownIssuer) => Reason::UnknownIssuer,
            Some(VerifyError::WrongTrustDomain { .. } | VerifyError::WrongIdentity { .. }) => {
                Reason::WrongIdentity
            }
            Some(VerifyError::Expired { .. } | VerifyError::NotYetValid { .. }) => Reason::Expired,
            _ => Reason::BadCertificate,
        },
        _ => Reason::BadCertificate,
    }
}
