//! Federation: how often foreign bundles are fetched.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::{Span, YamlError};

/// Fetching of other trust domains' bundles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FederationConfig {
    /// The shortest pause between two fetches of one bundle, whatever its document asks for.
    pub min_interval: Span,
}

impl FederationConfig {
    pub(super) fn check(&self) -> Result<(), YamlError> {
        match self.min_interval < Span::from_secs(1) || self.min_interval > Span::from_secs(24 * 3600) {
            true => Err(YamlError::without_place("federation.min_interval is between 1s and 24h".to_owned())),
            false => Ok(()),
        }
    }
}

impl Default for FederationConfig {
    fn default() -> Self {
        Self { min_interval: Span::from_secs(60) }
    }
}
