//! The operators' port: REST over mutual TLS, for identities that have a role.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::YamlError;
use crate::id::SpiffeId;

/// REST for operators over mutual TLS. Off without `listen`. Whoever presents no certificate of an operator is refused and on record;
/// the socket in the data directory stays for this host's root.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Where it is served, such as `127.0.0.1:7080`.
    pub listen: Option<SocketAddr>,
    /// Who may call, and what; beside identities that are declared with a `role`. Where both name one, the lesser role holds.
    pub operators: Vec<OperatorConfig>,
}

/// One operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperatorConfig {
    /// Its identity, of this trust domain.
    pub id: SpiffeId,
    /// What it may do.
    #[serde(default)]
    pub role: OperatorRole,
}

/// What an operator may do: each role includes those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperatorRole {
    /// Read.
    #[default]
    Viewer,
    /// Change services and policies, make join tokens, revoke.
    Operator,
    /// Everything else: the CA, federation, lifting of revocations.
    Admin,
}

impl std::fmt::Display for OperatorRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

impl std::str::FromStr for OperatorRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = [Self::Viewer, Self::Operator, Self::Admin].into_iter().find(|r| r.to_string() == text);
        role.ok_or_else(|| format!("{text:?} is no role: viewer, operator or admin"))
    }
}

impl ApiConfig {
    pub(super) fn check(&self) -> Result<(), YamlError> {
        let wrong = |message: String| Err(YamlError::without_place(message));
        for (index, operator) in self.operators.iter().enumerate() {
            if operator.id.is_reserved() {
                return wrong(format!("api.operators: {} is reserved", operator.id));
            }
            if self.operators[..index].iter().any(|other| other.id == operator.id) {
                return wrong(format!("api.operators: {} stands there twice", operator.id));
            }
        }
        Ok(())
    }
}
