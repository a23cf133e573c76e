//! Token exchange (RFC 8693): a JWT-SVID of this trust domain, or a token of a configured issuer, for a short JWT-SVID that is
//! bound to the audiences that rules allow. The caller is nobody but the bearer of its token.

use std::net::IpAddr;
use std::time::Duration;

use postern_config::file::control::ExchangeConfig;
use postern_config::id::{SpiffeId, TrustDomain};
use postern_config::jwt::verify::{LEEWAY, peek};
use postern_config::jwt_svid::{self, JwtSvidError};
use postern_config::registry::Declarations;
use rustls::crypto::aws_lc_rs;

use crate::api::Plane;
use crate::attest::{self, AttestError, Attestors, Credential, Fault};
use crate::audit::Entry;
use crate::clock::now_ms;
use crate::jwt::{JwtRefusal, Signed, Wish};
use crate::limits::{Buckets, Rate};

mod form;

pub use form::{Form, FormError};

/// Attempts from one address: verification costs a signature check, and whoever fails need not be listened to for long.
const PER_ADDRESS: Rate = Rate { burst: 120.0, per_second: 10.0 };
/// Refusals that get an audit record: a flood must not fill the disk. Beyond it they are only counted.
const AUDITED: Rate = Rate { burst: 256.0, per_second: 10.0 };

/// Why nothing is given. The caller learns a word of RFC 6749 §5.2 and one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The request is none.
    #[error("{0}")]
    Form(#[from] FormError),
    /// The subject token is no good JWT-SVID for this.
    #[error("the subject token is not taken")]
    Svid(JwtSvidError),
    /// The subject token is no good token of its issuer.
    #[error("the subject token is not taken")]
    External(Fault),
    /// No rule gives its bearer an identity.
    #[error("the subject token is not taken")]
    NoIdentity(&'static str),
    /// What it says was revoked.
    #[error("the subject token is not taken")]
    Revoked,
    /// No rule gives this identity a token for this audience.
    #[error("no rule gives this subject a token for this audience")]
    Target,
    /// Too many attempts from one address.
    #[error("too many requests")]
    TooMany,
    /// Nothing was signed.
    #[error("{0}")]
    Issue(#[from] JwtRefusal),
}

impl ExchangeError {
    /// The closed word for logs, metrics and audit records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Form(_) => "malformed",
            Self::Svid(error) => error.reason(),
            Self::External(fault) => fault.reason(),
            Self::NoIdentity(reason) => reason,
            Self::Revoked => "revoked",
            Self::Target => "no_rule",
            Self::TooMany => "too_many",
            Self::Issue(refusal) => refusal.reason(),
        }
    }

    /// The word of RFC 6749 §5.2 and RFC 8693 §2.2.2, and the status that goes with it.
    pub fn answer(&self) -> (u16, &'static str) {
        match self {
            Self::Form(error) => (400, error.word()),
            Self::Target | Self::Issue(JwtRefusal::Audience(_)) => (400, "invalid_target"),
            Self::TooMany | Self::Issue(JwtRefusal::TooMany) => (429, "temporarily_unavailable"),
            Self::External(Fault::Unavailable { .. })
            | Self::Issue(JwtRefusal::NotYet | JwtRefusal::Store(_) | JwtRefusal::Key(_)) => {
                (503, "temporarily_unavailable")
            }
            _ => (400, "invalid_request"),
        }
    }
}

/// Who may exchange what.
#[derive(Debug)]
pub struct Exchange {
    config: ExchangeConfig,
    issuers: Attestors,
    addresses: Buckets,
    records: Buckets,
}

/// Who a subject token speaks for.
struct Bearer {
    id: SpiffeId,
    /// For the audit record: the token's own subject.
    actor: String,
    /// Seconds since 1970.
    not_after: i64,
    max_ttl: Duration,
}

impl Exchange {
    /// By this section of the configuration; `None` where it is off.
    pub fn new(config: &ExchangeConfig, own: &TrustDomain) -> Result<Option<Self>, AttestError> {
        if !config.is_on() {
            return Ok(None);
        }
        config.check_trust_domain(own)?;
        Ok(Some(Self {
            issuers: Attestors::new(&config.as_attest(), own)?,
            config: config.clone(),
            addresses: Buckets::new(PER_ADDRESS),
            records: Buckets::new(AUDITED),
        }))
    }

    /// Trades the token in `body` for another, and puts it, or the refusal, on record.
    pub async fn exchange(
        &self,
        plane: &Plane,
        remote: IpAddr,
        body: &[u8],
    ) -> Result<Signed, ExchangeError> {
        let result = self.attempt(plane, remote, body).await;
        if let Err(error) = &result {
            if let ExchangeError::External(Fault::Unavailable { what, why }) = error {
                tracing::warn!(%what, %why, "a token could not be judged");
            }
            // What reached the signer was put on record there.
            if !matches!(error, ExchangeError::Issue(_)) {
                plane.metrics.refused("exchange", error.reason());
                if !matches!(error, ExchangeError::TooMany) && self.records.take("", now_ms()) {
                    let actor = remote.to_string();
                    Entry::refused(actor, "exchange", "", error.reason()).write(&plane.store).await;
                }
            }
        }
        result
    }

    async fn attempt(&self, plane: &Plane, remote: IpAddr, body: &[u8]) -> Result<Signed, ExchangeError> {
        if !self.addresses.take(&remote.to_string(), now_ms()) {
            return Err(ExchangeError::TooMany);
        }
        let form = Form::parse(body)?;
        let bearer = self.bearer(plane, &form.subject_token, remote).await?;
        // One that is not allowed refuses the whole: a caller must not find out later which of them it got.
        if !form.audiences.iter().all(|audience| self.config.admits(&bearer.id, audience)) {
            return Err(ExchangeError::Target);
        }
        let wish = Wish {
            id: &bearer.id,
            audiences: &form.audiences,
            ttl: bearer.max_ttl.min(self.config.max_ttl.as_duration()),
            not_after: bearer.not_after,
            action: "exchange",
            actor: &bearer.actor,
        };
        Ok(plane.tokens.issue(&wish).await?)
    }

    /// A token whose `iss` is configured is judged by that issuer and nobody else; any other has to be a JWT-SVID.
    async fn bearer(&self, plane: &Plane, token: &str, remote: IpAddr) -> Result<Bearer, ExchangeError> {
        let named = peek(token).ok().map(|peeked| peeked.issuer);
        match self.config.issuers.iter().any(|issuer| Some(&issuer.issuer) == named.as_ref()) {
            true => self.external(plane, token, remote, named.unwrap_or_default()).await,
            false => self.svid(plane, token),
        }
    }

    fn svid(&self, plane: &Plane, token: &str) -> Result<Bearer, ExchangeError> {
        let world = plane.publisher.world();
        let signatures = aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let now = now_ms() / 1000;
        let svid = jwt_svid::validate(token, &self.config.audience, &world.bundles, now, signatures)
            .map_err(ExchangeError::Svid)?;
        let before = world.revocations.identities.get(&svid.id).copied();
        if before.is_some_and(|before| svid.issued.is_none_or(|issued| issued < before)) {
            return Err(ExchangeError::Revoked);
        }
        Ok(Bearer {
            actor: svid.id.to_string(),
            id: svid.id,
            not_after: svid.expires,
            max_ttl: Duration::MAX,
        })
    }

    async fn external(
        &self,
        plane: &Plane,
        token: &str,
        remote: IpAddr,
        issuer: String,
    ) -> Result<Bearer, ExchangeError> {
        let judged = self.issuers.attest(Credential::Oidc(token), remote, now_ms()).await;
        let (attested, rules) = judged.map_err(ExchangeError::External)?;
        // By the rules of this section alone: what is declared says who gets certificates.
        let admission = attest::admit(rules, &Declarations::default(), &attested)
            .map_err(|why| ExchangeError::NoIdentity(why.reason()))?;
        let environment = Some(&*admission.environment).filter(|e| !e.is_empty());
        match plane.publisher.world().declared.of(&admission.spiffe_id) {
            Some(own) if own.has_ended(now_ms()) => return Err(ExchangeError::NoIdentity("identity_ended")),
            Some(own) if !own.admits(environment) => return Err(ExchangeError::NoIdentity("environment")),
            _ => {}
        }
        let subject = attested.selectors.get("oidc.sub").map(String::as_str).unwrap_or_default();
        Ok(Bearer {
            id: admission.spiffe_id,
            actor: format!("{issuer} {subject}").chars().take(300).collect(),
            not_after: attested.not_after.unwrap_or(0).saturating_sub(LEEWAY),
            max_ttl: admission
                .max_ttl_ms
                .map_or(Duration::MAX, |ms| Duration::from_millis(ms.max(0).unsigned_abs())),
        })
    }
}
