//! JWTs (RFC 7519, RFC 8725) as both planes verify them: which algorithms, by which keys, for whom, until when.

pub mod keys;
pub mod verify;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+) => {
        /// Why a token is not taken.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[doc = $doc])+ $variant,)+ }

        impl Reason {
            /// Every reason, in order of declaration; `Reason as usize` is an index into it.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];

            /// The word that stands in logs and labels.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $word,)+ }
            }
        }
    };
}

reasons! {
    /// There is none, and one is required.
    Missing = "missing",
    /// It is no JWT, or one that says things which are not understood here.
    Malformed = "malformed",
    /// There are several: whose request would it be?
    Several = "several_tokens",
    /// No provider has its issuer, or not where it stands.
    UnknownIssuer = "unknown_issuer",
    /// Its algorithm is none of the asymmetric ones.
    Algorithm = "bad_algorithm",
    /// No key of its issuer has its `kid` and fits its algorithm.
    UnknownKey = "unknown_key",
    /// Its signature is not by the key.
    BadSignature = "bad_signature",
    /// It has expired.
    Expired = "expired",
    /// It is not valid yet.
    NotYetValid = "not_yet_valid",
    /// It is for somebody else.
    WrongAudience = "wrong_audience",
    /// Its issuer's keys are not known here, or too old.
    KeysUnavailable = "keys_unavailable",
}
