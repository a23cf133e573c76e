//! What is kept of ACME: the account with its key, each certificate with its key, and when a failed order may be tried again.

use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::private::{Private, PrivateError};
use crate::tls::acme::{Leaf, read_pair};

/// The account's file.
const ACCOUNT: &str = "account.json";
/// The largest file that is read.
const MAX: u64 = 1024 * 1024;

/// Why what is kept is not used.
#[derive(Debug, thiserror::Error)]
#[error("ACME storage {0}")]
pub struct StorageError(#[from] PrivateError);

/// One issuer's directory.
#[derive(Debug)]
pub struct Storage(Private);

/// A series of failures, kept so that a restart does not begin it anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many in a row.
    pub count: u32,
    /// Not before this moment again, milliseconds since 1970.
    pub wait_until_ms: i64,
}

/// The name of a certificate's file.
pub fn file_name(first_name: &str) -> String {
    format!("{first_name}.pem")
}

impl Storage {
    /// Opens the directory, or makes it.
    pub fn open(directory: &Path) -> Result<Self, StorageError> {
        Ok(Self(Private::open(directory)?))
    }

    /// The account of an earlier run.
    pub fn account(&self) -> Result<Option<Zeroizing<String>>, StorageError> {
        Ok(self.0.read(ACCOUNT, MAX)?)
    }

    /// Keeps the account.
    pub fn keep_account(&self, json: &str) -> Result<(), StorageError> {
        Ok(self.0.replace(ACCOUNT, json)?)
    }

    /// The certificate of this name, if there is one that can be used; what cannot is reported and ordered anew.
    pub fn certificate(&self, first_name: &str) -> Option<Leaf> {
        let name = file_name(first_name);
        let found = self.0.read(&name, MAX).map_err(|e| e.to_string());
        let leaf = found.and_then(|text| text.map(|text| read_pair(text.as_bytes())).transpose());
        leaf.unwrap_or_else(|why| {
            tracing::warn!(certificate = first_name, why, "the kept certificate cannot be used");
            None
        })
    }

    /// Replaces the certificate of this name, together with its key.
    pub fn keep_certificate(&self, first_name: &str, pem: &str) -> Result<(), StorageError> {
        Ok(self.0.replace(&file_name(first_name), pem)?)
    }

    /// The failures since the last success.
    pub fn failures(&self, first_name: &str) -> Failures {
        let text = self.0.read(&failures_name(first_name), MAX).ok().flatten();
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// Keeps them; without any, the file goes.
    pub fn keep_failures(&self, first_name: &str, failures: Failures) -> Result<(), StorageError> {
        let name = failures_name(first_name);
        match failures.count {
            0 => Ok(self.0.remove(&name)?),
            _ => Ok(self.0.replace(&name, &serde_json::to_string(&failures).unwrap_or_default())?),
        }
    }

    /// Where the failures of this name are kept, for the log.
    pub fn failures_path(&self, first_name: &str) -> std::path::PathBuf {
        self.0.path(&failures_name(first_name))
    }
}

fn failures_name(first_name: &str) -> String {
    format!("{first_name}.failures.json")
}
