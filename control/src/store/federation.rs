//! Foreign trust domains and the last good bundle of each.

use postern_config::id::TrustDomain;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Change, Store, StoreError, json, parsed};

/// One foreign trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Its name.
    pub trust_domain: TrustDomain,
    /// Where its bundle is fetched.
    pub url: String,
    /// `https_web` or `https_spiffe`.
    pub profile: String,
    /// Whom the endpoint has to prove to be, in the second profile; else empty.
    pub endpoint_id: String,
    /// CAs of the endpoint in the first profile, PEM; empty for the host's own.
    pub ca: String,
    /// SPIFFE IDs and namespaces that get the bundle.
    pub members: Vec<String>,
    /// The last good bundle document; empty before there is one.
    pub document: String,
    /// When it was fetched, milliseconds since 1970; 0 for never.
    pub fetched_at: i64,
    /// When it is asked for again.
    pub next_at: i64,
    /// Why the last attempt failed; empty if it did not.
    pub error: String,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// Who asked for it.
    pub created_by: String,
}

const ALL: &str = "SELECT trust_domain, url, profile, endpoint_id, ca, members, document, fetched_at, next_at, error, \
                   created_at, created_by FROM federation ORDER BY trust_domain";
const ONE: &str = "SELECT trust_domain, url, profile, endpoint_id, ca, members, document, fetched_at, next_at, error, \
                   created_at, created_by FROM federation WHERE trust_domain = $1";

impl Store {
    /// All of them, by name.
    pub async fn foreign(&self) -> Result<Vec<Foreign>, StoreError> {
        sqlx::query(ALL).fetch_all(&self.read).await?.iter().map(foreign).collect()
    }
}

impl Change {
    /// All of them, by name, as this change sees them.
    pub async fn foreign(&mut self) -> Result<Vec<Foreign>, StoreError> {
        sqlx::query(ALL).fetch_all(&mut *self.tx).await?.iter().map(foreign).collect()
    }

    /// One of them.
    pub async fn foreign_of(&mut self, trust_domain: &TrustDomain) -> Result<Option<Foreign>, StoreError> {
        let row = sqlx::query(ONE).bind(trust_domain.as_str()).fetch_optional(&mut *self.tx).await?;
        row.as_ref().map(foreign).transpose()
    }

    /// Creates or replaces one.
    pub async fn put_foreign(&mut self, foreign: &Foreign) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO federation (trust_domain, url, profile, endpoint_id, ca, members, document, fetched_at, next_at, \
             error, created_at, created_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
             ON CONFLICT (trust_domain) DO UPDATE SET url = excluded.url, profile = excluded.profile, \
             endpoint_id = excluded.endpoint_id, ca = excluded.ca, members = excluded.members, \
             document = excluded.document, fetched_at = excluded.fetched_at, next_at = excluded.next_at, \
             error = excluded.error, created_at = excluded.created_at, created_by = excluded.created_by",
        )
        .bind(foreign.trust_domain.as_str())
        .bind(foreign.url.as_str())
        .bind(foreign.profile.as_str())
        .bind(foreign.endpoint_id.as_str())
        .bind(foreign.ca.as_str())
        .bind(serde_json::json!(foreign.members).to_string())
        .bind(foreign.document.as_str())
        .bind(foreign.fetched_at)
        .bind(foreign.next_at)
        .bind(foreign.error.as_str())
        .bind(foreign.created_at)
        .bind(foreign.created_by.as_str())
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Removes one and says whether it was there.
    pub async fn remove_foreign(&mut self, trust_domain: &TrustDomain) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM federation WHERE trust_domain = $1")
            .bind(trust_domain.as_str())
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() == 1)
    }
}

fn foreign(row: &AnyRow) -> Result<Foreign, StoreError> {
    Ok(Foreign {
        trust_domain: parsed(row, "trust_domain", "trust domain")?,
        url: row.try_get("url")?,
        profile: row.try_get("profile")?,
        endpoint_id: row.try_get("endpoint_id")?,
        ca: row.try_get("ca")?,
        members: json(row, "members", "list of members")?,
        document: row.try_get("document")?,
        fetched_at: row.try_get("fetched_at")?,
        next_at: row.try_get("next_at")?,
        error: row.try_get("error")?,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
    })
}
