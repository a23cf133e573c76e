//! The audit record: how often its state is signed, and where signatures go.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::{Span, YamlError};

/// The audit record is one chain of hashes for each replica. Each replica signs the heads of all chains from time to time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// A directory that signed checkpoints are copied to, as `checkpoint-ULID.json`. `postern audit verify --checkpoints` finds
    /// a record whose end was cut off by them; so they should lie where nobody who can write to the store can change them.
    pub checkpoints: Option<PathBuf>,
    /// How often a checkpoint is signed, if there is anything new; one more is signed on a stop.
    pub period: Span,
}

impl AuditConfig {
    pub(super) fn check(&self) -> Result<(), YamlError> {
        if self.period < Span::from_secs(1) {
            return Err(YamlError::without_place("audit.period is at least 1s".to_owned()));
        }
        Ok(())
    }
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { checkpoints: None, period: Span::from_secs(600) }
    }
}
