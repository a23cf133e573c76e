//! A YAML stream of documents of both kinds, read as a whole or not at all.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{AuthorizationPolicy, Metadata, PeerAuthentication, PolicyError};
use crate::file;

/// One document of either kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Document {
    /// Who may do what.
    Policy(AuthorizationPolicy),
    /// Which ports want mutual TLS.
    Peer(PeerAuthentication),
}

/// A document's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum DocumentKind {
    /// An [`AuthorizationPolicy`].
    AuthorizationPolicy,
    /// A [`PeerAuthentication`].
    PeerAuthentication,
}

/// As much of a document as says what the rest is.
#[derive(Deserialize)]
struct Kinded {
    kind: DocumentKind,
}

/// Reads every document of a YAML text; the first mistake refuses them all.
pub fn read_stream(text: &str) -> Result<Vec<Document>, PolicyError> {
    Ok(read(text)?.into_iter().map(|(document, _)| document).collect())
}

/// The same, each with the text that it was read from.
pub(super) fn read(text: &str) -> Result<Vec<(Document, file::Piece<'_>)>, PolicyError> {
    let mut documents = Vec::new();
    let mut names = HashSet::new();
    for piece in file::pieces(text) {
        let Some(document) = Document::read(&piece)? else { continue };
        let kind = document.kind();
        let name = document.metadata().full_name();
        if !names.insert((kind, name.clone())) {
            return Err(PolicyError::Twice(kind.as_str(), name));
        }
        documents.push((document, piece));
    }
    Ok(documents)
}

impl Document {
    /// Reads one document of a YAML text; `None` if nothing stands in it.
    pub fn read(piece: &file::Piece<'_>) -> Result<Option<Self>, PolicyError> {
        let Some(Kinded { kind }) = piece.parse::<Option<Kinded>>()? else { return Ok(None) };
        Ok(Some(match kind {
            DocumentKind::AuthorizationPolicy => Self::Policy(piece.parse()?),
            DocumentKind::PeerAuthentication => Self::Peer(piece.parse()?),
        }))
    }

    /// Reads one JSON document of either kind.
    pub fn from_json(text: &str) -> Result<Self, PolicyError> {
        Ok(match super::document::read_json::<Kinded>(text)?.kind {
            DocumentKind::AuthorizationPolicy => Self::Policy(AuthorizationPolicy::from_json(text)?),
            DocumentKind::PeerAuthentication => Self::Peer(PeerAuthentication::from_json(text)?),
        })
    }

    /// Its kind.
    pub fn kind(&self) -> DocumentKind {
        match self {
            Self::Policy(_) => DocumentKind::AuthorizationPolicy,
            Self::Peer(_) => DocumentKind::PeerAuthentication,
        }
    }

    /// Its name and namespace.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Policy(policy) => &policy.metadata,
            Self::Peer(peer) => &peer.metadata,
        }
    }

    /// One JSON document.
    pub fn to_json(&self) -> String {
        match self {
            Self::Policy(policy) => policy.to_json(),
            Self::Peer(peer) => peer.to_json(),
        }
    }
}

impl DocumentKind {
    /// The word that stands in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }
}

impl std::str::FromStr for DocumentKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::AuthorizationPolicy, Self::PeerAuthentication]
            .into_iter()
            .find(|kind| kind.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                format!("{text:?} is no kind; there are AuthorizationPolicy and PeerAuthentication")
            })
    }
}
