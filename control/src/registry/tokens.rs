//! Making join tokens: one identity, one use, a hash at rest.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use postern_config::enroll::JoinString;
use postern_config::id::{SpiffeId, TrustDomain};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Registry, declared};
use crate::audit::Entry;
use crate::clock::{millis, now_ms};
use crate::digest::{random, sha256};
use crate::store::{StoreError, Token};

/// The longest life of an unused token: a bearer secret that waits longer than a week is forgotten somewhere.
const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many labels a token may carry, and how long each key and value may be, in bytes.
const MAX_LABELS: usize = 32;
const MAX_LABEL: usize = 253;

/// What a new token shall be.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// The one identity that it can become.
    pub id: SpiffeId,
    /// How long it waits for its use.
    pub ttl: Duration,
    /// Where it may be redeemed from.
    pub cidr: Option<IpNet>,
    /// The environment that it is for; none takes the identity's own.
    pub environment: Option<String>,
    /// Labels that policy selectors see.
    pub labels: BTreeMap<String, String>,
    /// Upper bound for every certificate of the enrollment.
    pub svid_ttl: Option<Duration>,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// An identity of another trust domain.
    #[error("{id} is not of this trust domain, which is {own}")]
    ForeignTrustDomain {
        /// The wanted identity.
        id: SpiffeId,
        /// Ours.
        own: TrustDomain,
    },
    /// The control plane's own part of the names.
    #[error(
        "{0} is reserved: identities below /postern/ belong to the control plane and are never issued to a workload"
    )]
    Reserved(SpiffeId),
    /// It was revoked.
    #[error("{0} was revoked; to let it have certificates again: postern revoke --lift {0}")]
    Revoked(SpiffeId),
    /// It is declared with an end, and that has come.
    #[error("{0} is declared with an end that has come; declare it anew first: postern apply")]
    Ended(SpiffeId),
    /// It is declared in another environment.
    #[error("{id} is declared in {declared}; a token for {wanted} would not yield it")]
    Environment {
        /// The wanted identity.
        id: SpiffeId,
        /// Where it lives.
        declared: String,
        /// What was asked for.
        wanted: String,
    },
    /// No time, or too much.
    #[error("a token lives between 1s and 7d")]
    Ttl,
    /// A bound below the shortest lifetime.
    #[error("svid_ttl is shorter than the shortest lifetime that is issued")]
    SvidTtl,
    /// Too many or too long labels.
    #[error("at most 32 labels, each key and value at most 253 bytes")]
    Labels,
    /// No randomness.
    #[error("no randomness from the system")]
    Random(#[from] aws_lc_rs::error::Unspecified),
    /// A fault on this side.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Registry {
    /// Makes a token and its join string, the only copy of the secret.
    pub async fn create_token(
        &self,
        new: NewToken,
        address: &str,
        actor: &str,
    ) -> Result<(Token, JoinString), TokenError> {
        self.check_token(&new)?;
        let secret = Zeroizing::new(random::<32>()?);
        let now = now_ms();
        let mut token = Token {
            id: ulid::Ulid::new().to_string(),
            secret_hash: sha256(secret.as_slice()).to_vec(),
            spiffe_id: new.id,
            labels: new.labels,
            environment: String::new(),
            cidr: new.cidr,
            max_ttl_ms: new.svid_ttl.map(millis),
            created_at: now,
            created_by: actor.to_owned(),
            expires_at: now.saturating_add(millis(new.ttl)),
            redeemed_spki: None,
            lineage: None,
        };
        let detail = json!({ "token": token.id, "expires_at": token.expires_at });
        let entry = Entry::done(actor, "token create", token.spiffe_id.as_str(), detail);
        let mut change = self.store.change_rows().await?;
        if change.subject(&token.spiffe_id, now).await?.is_banned {
            return Err(TokenError::Revoked(token.spiffe_id));
        }
        let declared = change.declared(&token.spiffe_id).await?;
        token.environment = declared::environment(&token.spiffe_id, declared.as_ref(), new.environment)?;
        if declared.is_some_and(|d| d.has_ended(now)) {
            return Err(TokenError::Ended(token.spiffe_id));
        }
        change.add_token(&token).await?;
        entry.append(&mut change).await?;
        change.commit().await?;
        entry.log();
        let join = JoinString {
            token_id: token.id.clone(),
            secret,
            pins: self.ca.authorities().pins(),
            trust_domain: self.ca.trust_domain().clone(),
            address: address.to_owned(),
        };
        Ok((token, join))
    }

    fn check_token(&self, new: &NewToken) -> Result<(), TokenError> {
        let own = self.ca.trust_domain();
        if new.id.trust_domain_str() != own.as_str() {
            return Err(TokenError::ForeignTrustDomain { id: new.id.clone(), own: own.clone() });
        }
        if new.id.is_reserved() {
            return Err(TokenError::Reserved(new.id.clone()));
        }
        if new.ttl < Duration::from_secs(1) || new.ttl > MAX_TTL {
            return Err(TokenError::Ttl);
        }
        if new.svid_ttl.is_some_and(|ttl| ttl < self.terms.min_ttl.as_duration()) {
            return Err(TokenError::SvidTtl);
        }
        let fits = |text: &String| !text.is_empty() && text.len() <= MAX_LABEL;
        if new.labels.len() > MAX_LABELS || !new.labels.iter().all(|(k, v)| fits(k) && v.len() <= MAX_LABEL) {
            return Err(TokenError::Labels);
        }
        Ok(())
    }
}
