//! JWT-SVIDs: short tokens that say who a workload is, for verifiers that cannot see its certificate.
//!
//! [`keys`] holds this replica's signing keys and publishes them through the store; [`Tokens`] signs for a workload that its
//! certificate has proven, and puts each token on record, never its text.

use std::path::Path;
use std::time::Duration;

use postern_config::file::control::JwtConfig;
use postern_config::id::SpiffeId;
use postern_config::jwt_svid::{Statement, signing_input};
use serde_json::json;
use zeroize::Zeroizing;

use crate::audit::Entry;
use crate::clock::{millis, now_ms};
use crate::limits::{Buckets, Rate};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;

pub mod keys;

use keys::{Keyring, KeysError};

/// The most audiences of one token: each of them can use it against the others.
const MAX_AUDIENCES: usize = 16;
/// The longest audience, in bytes.
const MAX_AUDIENCE: usize = 512;
/// Tokens of one identity: enough for a busy workload that caches none of them for long.
const PER_IDENTITY: Rate = Rate { burst: 120.0, per_second: 10.0 };

/// A signed token.
pub struct Signed {
    /// Its text, which is a secret until it ends.
    pub token: Zeroizing<String>,
    /// Seconds since 1970.
    pub expires: i64,
}

impl std::fmt::Debug for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signed(until {})", self.expires)
    }
}

/// What a token shall be for.
#[derive(Debug)]
pub struct Wish<'a> {
    /// Whose.
    pub id: &'a SpiffeId,
    /// For whom; empty ones are dropped.
    pub audiences: &'a [String],
    /// 0 takes the default.
    pub ttl: Duration,
    /// A bound beside the configured one, seconds since 1970: a token never outlives what it was given for.
    pub not_after: i64,
    /// The audit record's action: `jwt`, `exchange`.
    pub action: &'static str,
    /// Who asks, for the audit record.
    pub actor: &'a str,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum JwtRefusal {
    /// Nobody is named, or too many, or names that are none.
    #[error("{0}")]
    Audience(&'static str),
    /// More than [`PER_IDENTITY`].
    #[error("too many tokens of this identity; keep one until it is about to end")]
    TooMany,
    /// The identity was revoked.
    #[error("this identity was revoked; nothing is issued to it")]
    Revoked,
    /// What it would be given for has ended.
    #[error("what the token would be given for has ended")]
    Ended,
    /// The key is too young: not every verifier has seen it.
    #[error(
        "this control plane's key for tokens is published, but not long enough yet; try again, or ask another replica"
    )]
    NotYet,
    /// A fault on this side.
    #[error("internal error")]
    Store(#[from] StoreError),
    /// A fault on this side.
    #[error("internal error")]
    Key(#[from] KeysError),
}

impl JwtRefusal {
    /// The closed word for logs, metrics and audit records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Audience(_) => "audience",
            Self::TooMany => "too_many",
            Self::Revoked => "revoked",
            Self::Ended => "ended",
            Self::NotYet => "key_not_yet_published",
            Self::Store(_) | Self::Key(_) => "internal",
        }
    }
}

/// Signs tokens.
#[derive(Debug)]
pub struct Tokens {
    store: Store,
    metrics: Metrics,
    terms: JwtConfig,
    issuer: Option<String>,
    keyring: Keyring,
    limits: Buckets,
}

impl Tokens {
    /// Opens this replica's keys below `dir`, and makes and publishes one if there is none.
    pub async fn open(
        dir: &Path,
        replica: &str,
        terms: JwtConfig,
        store: Store,
        metrics: Metrics,
    ) -> Result<Self, KeysError> {
        let keyring = Keyring::open(dir, replica, &terms, &store).await?;
        let (issuer, limits) = (terms.issuer(), Buckets::new(PER_IDENTITY));
        Ok(Self { store, metrics, terms, issuer, keyring, limits })
    }

    /// The `iss` of tokens.
    pub fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    /// Publishes the next key if it is due; whether the bundle has changed.
    pub async fn turn(&self) -> Result<bool, KeysError> {
        self.keyring.turn(&self.terms, &self.store, now_ms(), None).await
    }

    /// Publishes the next key of this replica now; it signs as soon as it has been published for long enough.
    pub async fn rotate(&self, by: &str) -> Result<(), KeysError> {
        self.keyring.turn(&self.terms, &self.store, now_ms(), Some(by)).await.map(drop)
    }

    /// Takes a key back, whichever replica holds it: it leaves the bundle, and what it signed is good nowhere. The generation that says
    /// so; `None` if there is no such key.
    pub async fn taint(&self, kid: &str, by: &str) -> Result<Option<u64>, KeysError> {
        let mut change = self.store.change().await?;
        if !change.remove_jwt_key(kid).await? {
            return Ok(None);
        }
        change.advance("bundle").await?;
        let generation = change.advance("generation").await?;
        let entry = Entry::done(by, "jwt taint", kid, json!({ "generation": generation }));
        entry.append(&mut change).await?;
        change.commit().await?;
        entry.log();
        self.turn().await?;
        Ok(Some(generation))
    }

    /// Signs a token and puts it, or its refusal, on record.
    pub async fn issue(&self, wish: &Wish<'_>) -> Result<Signed, JwtRefusal> {
        let result = self.sign(wish, now_ms()).await;
        match &result {
            Ok(_) => self.metrics.issued(wish.action, "issued"),
            Err(refusal) => {
                let reason = refusal.reason();
                self.metrics.issued(wish.action, if reason == "internal" { "failed" } else { "refused" });
                self.metrics.refused(wish.action, reason);
                if let JwtRefusal::Store(StoreError::Database(error)) = refusal {
                    tracing::error!(%error, action = wish.action, "the store failed");
                }
                // Beyond the limit a flood is only counted: records must not fill the disk.
                if !matches!(refusal, JwtRefusal::TooMany | JwtRefusal::Store(_)) {
                    Entry::refused(wish.actor, wish.action, wish.id.as_str(), reason)
                        .write(&self.store)
                        .await;
                }
            }
        }
        result
    }

    async fn sign(&self, wish: &Wish<'_>, now: i64) -> Result<Signed, JwtRefusal> {
        if !self.limits.take(wish.id.as_str(), now) {
            return Err(JwtRefusal::TooMany);
        }
        let audiences = audiences(wish.audiences)?;
        let key = self.keyring.signing(now).ok_or(JwtRefusal::NotYet)?;
        let ttl = if wish.ttl.is_zero() { self.terms.ttl.as_duration() } else { wish.ttl };
        let ttl = ttl.clamp(Duration::from_secs(1), self.terms.max_ttl.as_duration());
        let issued = now.div_euclid(1000);
        let ends = now.saturating_add(millis(ttl)).div_euclid(1000);
        let expires = ends.min(wish.not_after).min(key.ends_at.div_euclid(1000));
        if expires <= issued {
            return Err(JwtRefusal::Ended);
        }
        let mut change = self.store.change_rows().await?;
        if change.subject(wish.id, now).await?.is_banned {
            return Err(JwtRefusal::Revoked);
        }
        // Another replica may have taken it back a moment ago.
        if !change.has_jwt_key(&key.kid).await? {
            return Err(JwtRefusal::NotYet);
        }
        let jti = self.terms.jti.then(|| ulid::Ulid::new().to_string());
        let statement = Statement {
            id: wish.id,
            audiences: &audiences,
            issued,
            expires,
            issuer: self.issuer.as_deref(),
            jti: jti.as_deref(),
        };
        let token = key.sign(&signing_input(&key.kid, &statement))?;
        let detail =
            json!({ "audiences": audiences, "kid": key.kid, "expires_at": expires * 1000, "jti": jti });
        let entry = Entry::done(wish.actor, wish.action, wish.id.as_str(), detail);
        entry.append(&mut change).await?;
        change.commit().await?;
        entry.log();
        Ok(Signed { token, expires })
    }
}

/// Those that are not empty (JWT-SVID §3.2 wants one at least), each once.
fn audiences(wanted: &[String]) -> Result<Vec<String>, JwtRefusal> {
    let mut audiences: Vec<String> = Vec::new();
    for audience in wanted.iter().filter(|a| !a.is_empty()) {
        if audience.len() > MAX_AUDIENCE || audience.chars().any(char::is_control) {
            return Err(JwtRefusal::Audience(
                "an audience is a text of at most 512 bytes without control characters",
            ));
        }
        if audiences.len() == MAX_AUDIENCES {
            return Err(JwtRefusal::Audience("a token has at most 16 audiences"));
        }
        if !audiences.contains(audience) {
            audiences.push(audience.clone());
        }
    }
    match audiences.is_empty() {
        true => {
            Err(JwtRefusal::Audience("say whom the token is for: at least one audience that is not empty"))
        }
        false => Ok(audiences),
    }
}
