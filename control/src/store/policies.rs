//! Policies and peer authentications, each a JSON document under its namespace and name.

use postern_config::policy::{AuthorizationPolicy, DocumentKind, PeerAuthentication, PolicyError};
use sqlx::Row as _;

use super::{Change, Store, StoreError};

/// The statements of one kind's table: a table's name cannot be bound.
struct Statements {
    all: &'static str,
    put: &'static str,
    remove: &'static str,
}

macro_rules! statements {
    ($table:literal) => {
        Statements {
            all: concat!("SELECT document FROM ", $table, " ORDER BY namespace, name"),
            put: concat!(
                "INSERT INTO ",
                $table,
                " (namespace, name, document) VALUES ($1, $2, $3) \
                 ON CONFLICT (namespace, name) DO UPDATE SET document = excluded.document"
            ),
            remove: concat!("DELETE FROM ", $table, " WHERE namespace = $1 AND name = $2"),
        }
    };
}

const fn of(kind: DocumentKind) -> Statements {
    match kind {
        DocumentKind::AuthorizationPolicy => statements!("policies"),
        DocumentKind::PeerAuthentication => statements!("peer_authentications"),
    }
}

impl Store {
    /// All policies, by namespace and name.
    pub async fn policies(&self) -> Result<Vec<AuthorizationPolicy>, StoreError> {
        self.documents(DocumentKind::AuthorizationPolicy, AuthorizationPolicy::from_json).await
    }

    /// All peer authentications, by namespace and name.
    pub async fn peer_authentications(&self) -> Result<Vec<PeerAuthentication>, StoreError> {
        self.documents(DocumentKind::PeerAuthentication, PeerAuthentication::from_json).await
    }

    async fn documents<T>(
        &self,
        kind: DocumentKind,
        read: fn(&str) -> Result<T, PolicyError>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = sqlx::query(of(kind).all).fetch_all(&self.read).await?;
        rows.iter()
            .map(|row| {
                let text: String = row.try_get("document")?;
                read(&text).map_err(|_| StoreError::Unreadable { what: kind.as_str(), value: text })
            })
            .collect()
    }
}

impl Change {
    /// Creates or replaces a document.
    pub async fn put_document(
        &mut self,
        kind: DocumentKind,
        namespace: &str,
        name: &str,
        document: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(of(kind).put).bind(namespace).bind(name).bind(document).execute(&mut *self.tx).await?;
        Ok(())
    }

    /// Removes a document and says whether it was there.
    pub async fn remove_document(
        &mut self,
        kind: DocumentKind,
        namespace: &str,
        name: &str,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(of(kind).remove).bind(namespace).bind(name).execute(&mut *self.tx).await?;
        Ok(done.rows_affected() == 1)
    }
}
