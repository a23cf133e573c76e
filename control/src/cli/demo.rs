//! `postern demo`: hands over to the sibling binary that runs a whole mesh.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use clap::Args;

use super::CliError;

const SIBLING: &str = "postern-loadtest";

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Arguments of `postern-loadtest demo`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) arguments: Vec<OsString>,
}

/// Becomes `postern-loadtest demo …`; returns only if that cannot be.
pub(super) fn hand_over(arguments: &[OsString]) -> CliError {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return CliError::Failed(format!("this program does not find itself: {error}")),
    };
    let sibling = own.with_file_name(SIBLING);
    if !sibling.is_file() {
        let place = sibling.parent().unwrap_or(&sibling).display();
        return CliError::Failed(format!(
            "`postern demo` needs {SIBLING} beside it, and {place} has none; build it with: cargo build --release --workspace --bins"
        ));
    }
    let error = std::process::Command::new(&sibling).arg("demo").args(arguments).exec();
    CliError::Failed(format!("{}: {error}", sibling.display()))
}
