//! The closed set of reasons for which a handshake or a connection is refused: the same word in the log,
//! the metric label, the admin page and the docs.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+) => {
        /// Why a connection was refused or lost before it could be used.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[doc = $doc])+ $variant,)+ }

        impl Reason {
            /// Every reason, in order of declaration; `Reason as usize` is an index into it.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];

            /// The word that stands in logs, labels and pages.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $word,)+ }
            }
        }
    };
}

reasons! {
    /// The peer presented no certificate.
    NoCertificate = "no_certificate",
    /// A certificate of the path, or its anchor, has expired.
    Expired = "expired",
    /// A certificate of the path, or its anchor, is not valid yet.
    NotYetValid = "not_yet_valid",
    /// No path leads to an anchor of the peer's trust domain.
    UnknownIssuer = "unknown_issuer",
    /// The peer's trust domain has no bundle here.
    WrongTrustDomain = "wrong_trust_domain",
    /// Not exactly one URI SAN, or one that is no SPIFFE ID.
    BadSpiffeId = "bad_spiffe_id",
    /// The certificate breaks a rule of X509-SVID or of RFC 5280.
    BadCertificate = "bad_certificate",
    /// The certificate, its identity or a CA of its path is revoked.
    Revoked = "revoked",
    /// A valid identity, but not the expected one.
    WrongIdentity = "wrong_identity",
    /// This proxy holds no identity (yet, or any more).
    NoIdentity = "no_identity",
    /// A signature of a certificate or of the handshake does not verify.
    BadSignature = "bad_signature",
    /// The bytes are no TLS.
    NotTls = "not_tls",
    /// No TLS version in common; within the mesh 1.3 is the only one spoken.
    ProtocolVersion = "protocol_version",
    /// No application protocol in common.
    Alpn = "alpn",
    /// The client names no host, or one that this gateway does not serve.
    UnknownHost = "unknown_host",
    /// The host's certificate has not been issued yet.
    NotIssued = "not_issued",
    /// A load balancer's connection does not begin with a good PROXY protocol header.
    ProxyProtocol = "proxy_protocol",
    /// The handshake did not end before its deadline.
    Timeout = "timeout",
    /// The connection was lost during the handshake.
    Reset = "reset",
    /// A limit on handshakes was reached.
    Overload = "overload",
    /// A fault on this side.
    Internal = "internal",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
