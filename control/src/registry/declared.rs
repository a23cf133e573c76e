//! What a declared identity's document makes of a credential: the terms that bind each certificate, by whichever way it comes.

use postern_config::id::SpiffeId;
use postern_config::registry::Identity;

use super::{Refusal, TokenError};
use crate::clock::millis;
use crate::store::{Change, Lineage};

/// The terms of one certificate.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// Names beside the identity.
    pub(super) dns_names: Vec<String>,
    /// Upper bound of its lifetime, milliseconds.
    pub(super) max_ttl_ms: Option<i64>,
}

impl Terms {
    /// The terms of a lineage's next certificate at `now` (milliseconds since 1970): its credential's, and those of the document
    /// that declares its identity. They are asked for every certificate, so a new document binds who is there already.
    pub(super) async fn of(change: &mut Change, lineage: &Lineage, now: i64) -> Result<Self, Refusal> {
        let Some(declared) = change.declared(&lineage.spiffe_id).await? else {
            return Ok(Self { dns_names: Vec::new(), max_ttl_ms: lineage.max_ttl_ms });
        };
        if declared.has_ended(now) {
            return Err(Refusal::Ended);
        }
        if !declared.admits(Some(&*lineage.environment).filter(|e| !e.is_empty())) {
            return Err(Refusal::Environment);
        }
        let until_end = declared.spec.expires.map(|end| end.millis().saturating_sub(now));
        let by_document = declared.spec.max_ttl.map(|ttl| millis(ttl.as_duration()));
        let max_ttl_ms = [lineage.max_ttl_ms, by_document, until_end].into_iter().flatten().min();
        Ok(Self { dns_names: declared.spec.dns_names, max_ttl_ms })
    }
}

/// The environment of a new token: the identity's own where none is asked for. What is asked for has to be the identity's, if
/// that is declared.
pub(super) fn environment(
    id: &SpiffeId,
    declared: Option<&Identity>,
    wanted: Option<String>,
) -> Result<String, TokenError> {
    let own = declared.map(|d| d.spec.environment.clone());
    match (own, wanted) {
        (Some(own), None) => Ok(own.unwrap_or_default()),
        (None, wanted) => Ok(wanted.unwrap_or_default()),
        (Some(own), Some(wanted)) if own.as_ref() == Some(&wanted) => Ok(wanted),
        (Some(own), Some(wanted)) => {
            let declared = own.unwrap_or_else(|| "no environment".to_owned());
            Err(TokenError::Environment { id: id.clone(), declared, wanted })
        }
    }
}
