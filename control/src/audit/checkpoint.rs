//! Signed checkpoints: a replica vouches for the heads of all chains at a moment, so that a record whose end was cut off shows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use postern_config::file::control::AuditConfig;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Entry;
use super::chain::framed;
use crate::ca::files::{self, KeyFileError};
use crate::clock::now_ms;
use crate::digest::{hex, sha256, unhex};
use crate::store::{Head, Store, StoreError};

/// What is signed here, and in which form.
const DOMAIN: &str = "postern audit checkpoint v1";
/// The key's file below its directory.
const KEY: &str = "checkpoint.key";

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The key's file cannot be used.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The key cannot be made or does not sign.
    #[error("the audit record's key: {0}")]
    Key(#[from] rcgen::Error),
    /// The heads cannot be read, or the checkpoint not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is no JSON; cannot happen with these types.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// The directory for copies cannot be used.
    #[error("audit.checkpoints: {}: {source}", path.display())]
    Export {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The heads of all chains, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// A ULID: checkpoints of one replica grow.
    pub checkpoint: String,
    /// Milliseconds since 1970.
    pub at: i64,
    /// Who signed.
    pub replica: String,
    /// The heads of all chains that it saw, by name.
    pub heads: Vec<Head>,
    /// The signer's public key: a point on P-256, uncompressed, hex.
    pub key: String,
    /// ECDSA with SHA-256 over [`Checkpoint::message`], DER, hex.
    pub signature: String,
}

impl Checkpoint {
    /// What is signed: domain, `checkpoint`, `at`, `replica`, and chain, seq and hash of each head, framed like a record.
    fn message(&self) -> Vec<u8> {
        let mut fields: Vec<Vec<u8>> = vec![
            DOMAIN.into(),
            self.checkpoint.as_bytes().into(),
            self.at.to_be_bytes().into(),
            self.replica.as_bytes().into(),
        ];
        for head in &self.heads {
            fields.extend([
                head.chain.as_bytes().into(),
                head.seq.to_be_bytes().into(),
                head.hash.as_bytes().into(),
            ]);
        }
        framed(&fields.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    /// SHA-256 of the signer's public key, hex: the name that its audit record has.
    pub fn key_id(&self) -> String {
        unhex(&self.key).map(|key| hex(&sha256(&key))).unwrap_or_default()
    }

    /// Whether the key that it names has signed it.
    pub fn is_signed(&self) -> bool {
        let (Some(key), Some(signature)) = (unhex(&self.key), unhex(&self.signature)) else { return false };
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(&self.message(), &signature).is_ok()
    }
}

/// Signs for one replica.
pub struct Signer {
    key: KeyPair,
    replica: String,
    exported: Option<PathBuf>,
    period: Duration,
    last: Vec<Head>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("replica", &self.replica).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads this replica's key in `dir`, or makes it and puts it on record; and proves that copies can be written.
    pub async fn open(
        dir: &Path,
        replica: &str,
        config: &AuditConfig,
        store: &Store,
    ) -> Result<Self, CheckpointError> {
        files::private_directory(dir)?;
        if let Some(path) = &config.checkpoints {
            let usable = std::fs::create_dir_all(path).and_then(|()| {
                let probe = path.join(format!(".probe-{replica}"));
                std::fs::write(&probe, b"")?;
                std::fs::remove_file(probe)
            });
            usable.map_err(|source| CheckpointError::Export { path: path.clone(), source })?;
        }
        let path = dir.join(KEY);
        let key = match files::read_key(&path)? {
            Some(key) => key,
            None => {
                let key = KeyPair::generate()?;
                let id = hex(&sha256(key.der_bytes()));
                // On record first: a key that nobody knows must not sign.
                let entry = Entry::done("control", "audit key", id, json!({ "replica": replica }));
                let mut change = store.change_rows().await?;
                entry.append(&mut change).await?;
                change.commit().await?;
                entry.log();
                files::write(&path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        Ok(Self {
            key,
            replica: replica.to_owned(),
            exported: config.checkpoints.clone(),
            period: config.period.as_duration(),
            last: Vec::new(),
        })
    }

    /// Signs at every period and once more on a stop. What fails is logged and tried again at the next.
    pub async fn run(mut self, store: Store, shutdown: CancellationToken) {
        let mut rounds = tokio::time::interval(self.period);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let stopped = tokio::select! {
                () = shutdown.cancelled() => true,
                _ = rounds.tick() => false,
            };
            if let Err(error) = self.sign(&store).await {
                tracing::error!(%error, "no checkpoint of the audit record could be signed and copied");
            }
            if stopped {
                return;
            }
        }
    }

    async fn sign(&mut self, store: &Store) -> Result<(), CheckpointError> {
        let heads = store.audit_heads().await?;
        if heads == self.last {
            return Ok(());
        }
        let mut checkpoint = Checkpoint {
            checkpoint: ulid::Ulid::new().to_string(),
            at: now_ms(),
            replica: self.replica.clone(),
            heads,
            key: hex(self.key.der_bytes()),
            signature: String::new(),
        };
        checkpoint.signature = hex(&self.key.sign(&checkpoint.message())?);
        let document = serde_json::to_string(&checkpoint)?;
        let mut change = store.change_rows().await?;
        change.put_checkpoint(&checkpoint.checkpoint, &document).await?;
        change.commit().await?;
        if let Some(dir) = &self.exported {
            files::write(
                &dir.join(format!("checkpoint-{}.json", checkpoint.checkpoint)),
                document.as_bytes(),
            )?;
        }
        tracing::info!(target: "audit", id = checkpoint.checkpoint, %document, "checkpoint");
        self.last = checkpoint.heads;
        Ok(())
    }
}
