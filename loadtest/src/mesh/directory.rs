//! A temporary directory that goes with its handle, unless a failed test shall leave it.

use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

/// A directory (0700) below the system's temporary one. Stays after a panic if `POSTERN_KEEP` is set.
#[derive(Debug)]
pub struct Directory(TempDir);

impl Directory {
    /// A new one; its path is short, since it carries Unix sockets.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("postern-").tempdir().context("no temporary directory")?;
        Ok(Self(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("POSTERN_KEEP").is_some() {
            self.0.disable_cleanup(true);
            eprintln!("kept: {}", self.path().display());
        }
    }
}
