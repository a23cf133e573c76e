//! `postern backup` and `postern restore`: the store in one file, and back.

use std::path::PathBuf;

use clap::Args;

use super::{CliError, Common, output};
use crate::api::model::{SnapshotMade, TakeSnapshot};
use crate::backup::{self, Manifest};
use crate::clock::rfc3339;

#[derive(Debug, Args)]
#[command(after_help = "Example:
  postern backup /var/backups/postern-2026-11-22.backup

Without --with-keys the file holds no private key: keys of their own backup, a token or a Vault belong to it.")]
pub(super) struct Backup {
    /// The file to write; it must not exist
    file: PathBuf,
    /// Put private keys into it, too: whoever has the file then is the trust domain
    #[arg(long)]
    with_keys: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  postern restore /var/backups/postern-2026-11-22.backup --data /var/lib/postern

Counters are lifted, so that no proxy ever sees a generation or bundle sequence go backwards. Join tokens that were open are
ended, and platforms' tokens from before the restore are refused: they may have been used since. What was revoked after the backup has
to be revoked again: the command says how.")]
pub(super) struct Restore {
    /// The backup
    file: PathBuf,
}

impl Backup {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        if self.file.exists() {
            return Err(CliError::Failed(format!("{} exists; it is not overwritten", self.file.display())));
        }
        let wanted = TakeSnapshot { with_keys: self.with_keys };
        let made: SnapshotMade = common.client()?.post("/v1/snapshots", &wanted).await?;
        let snapshot = common.data().join(&made.file);
        let packed = backup::pack(common.data(), &snapshot, &made.trust_domain, self.with_keys, &self.file);
        let _ = std::fs::remove_file(&snapshot);
        let manifest = packed.map_err(|e| CliError::Failed(e.to_string()))?;
        if common.is_json() {
            return output::json(&manifest);
        }
        let keys = if manifest.with_keys {
            "WITH PRIVATE KEYS: whoever reads this file is the trust domain"
        } else {
            "without private keys"
        };
        output::print(&format!("{} of {}, {keys}", self.file.display(), rfc3339(manifest.at)))
    }
}

impl Restore {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let manifest: Manifest =
            backup::restore(&self.file, common.data()).await.map_err(|e| CliError::Failed(e.to_string()))?;
        if common.is_json() {
            return output::json(&manifest);
        }
        let data = common.data().display();
        let at = rfc3339(manifest.at);
        output::print(&format!(
            "{data} holds {} as of {at}
lost: what was REVOKED, BANNED or TAINTED after {at} is believed again. Before `postern serve` is reachable, read what came since from
  exported audit records (`postern audit export`, syslog) and repeat it: `postern revoke`, `postern ca taint`. If nobody knows what came
  since, begin with `postern ca rotate --root --force`: it cuts off every certificate of before.
ended: join tokens that were open; tokens of Kubernetes and CI systems from before this restore are refused (`before_restore`), since
  they may have been used already: kubelets and CI jobs bring new ones by themselves.
refused: renewals of certificates that were issued after {at} (`unknown_serial`): those workloads enroll anew.",
            manifest.trust_domain,
        ))?;
        if !manifest.with_keys {
            output::print(&format!(
                "private keys were not in the backup: put them into {data}/ca before `postern serve`"
            ))?;
        }
        Ok(())
    }
}
