//! Where the control plane keeps its durable facts: a file of its own, or a PostgreSQL that several replicas share.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::YamlError;

/// The store. Without `url` it is a SQLite file in `data`, for one process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// `postgres://user@host:port/database`, with libpq's parameters such as `?sslmode=verify-full&sslrootcert=/etc/ca.pem`. Several
    /// replicas of `postern serve` may share it, each with a `data` directory of its own.
    pub url: Option<String>,
    /// A file that holds the password alone; a password in `url` would stand in a configuration file.
    pub password_file: Option<PathBuf>,
}

impl StoreConfig {
    pub(super) fn check(&self) -> Result<(), YamlError> {
        let wrong = |message: &str| Err(YamlError::without_place(message.to_owned()));
        let Some(url) = &self.url else {
            return match self.password_file {
                Some(_) => wrong("store.password_file is for PostgreSQL; store.url is missing"),
                None => Ok(()),
            };
        };
        let Some(rest) = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")) else {
            return wrong("store.url starts with `postgres://`; leave it out for SQLite");
        };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        match authority.rsplit_once('@') {
            Some((user, _)) if user.contains(':') => {
                wrong("store.url holds a password; put it into a file and name that in store.password_file")
            }
            _ => Ok(()),
        }
    }
}
