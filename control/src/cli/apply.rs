//! `postern apply` and `postern delete`: declared identities from files, as they stand in a repository.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use postern_config::file;
use postern_config::registry::{Identity, Placed};

use super::policy::path_or_stdin;
use super::service::print;
use super::{CliError, Common};

/// Declare identities from files
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  postern apply -f identities.yaml
  postern apply -f identities/        every .yaml and .yml file of a folder, all or none
  cat payments.yaml | postern apply -f -")]
pub(super) struct Apply {
    /// YAML with one or more identities, a folder of such files, or `-` for standard input
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
}

/// Withdraw a declaration
#[derive(Debug, Subcommand)]
pub(super) enum Delete {
    /// Withdraw what was declared of an identity; whoever has it keeps it
    #[command(after_help = "Example:\n  postern delete identity payments")]
    Identity {
        /// The declaration's name
        name: String,
    },
}

impl Apply {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let mut wanted: Vec<Identity> = Vec::new();
        for path in self.files.iter().map(|path| expand(path)).collect::<Result<Vec<_>, _>>()?.concat() {
            let text = file::read(&path_or_stdin(&path))?;
            for piece in file::pieces(&text).filter(|piece| !piece.is_empty()) {
                let placed = Placed::read(&piece);
                let placed = placed.map_err(|why| CliError::File(format!("{}:{why}", path.display())))?;
                wanted.push(placed.identity);
            }
        }
        print(common, &common.client()?.post("/v1/declarations", &wanted).await?, "applied")
    }
}

impl Delete {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let Self::Identity { name } = self;
        postern_config::service::check_name(&name).map_err(|why| CliError::Failed(why.to_string()))?;
        print(common, &common.client()?.delete(&format!("/v1/declarations/{name}")).await?, "deleted")
    }
}

/// A folder's files in the alphabet's order; anything else as it is.
fn expand(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |error: std::io::Error| CliError::Failed(format!("{}: {error}", path.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            files.push(path);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(CliError::Failed(format!("{}: there is no .yaml or .yml file in it", path.display()))),
        false => Ok(files),
    }
}
