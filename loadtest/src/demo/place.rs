//! The demo's directory: made for it, marked as its own, and removed with it.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Says that everything beside it may be removed; carries the pid of the demo.
const MARK: &str = ".postern-demo";

/// A claimed directory. Dropped, it is removed unless it shall stay.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    keep: bool,
}

impl Place {
    /// Makes the directory; one that an earlier demo left is replaced, anything else is refused.
    pub(super) fn claim(path: &Path, keep: bool) -> Result<Self> {
        let shown = path.display();
        match fs::read_to_string(path.join(MARK)) {
            Ok(pid) if is_demo(pid.trim()) => {
                bail!("a demo is running in {shown} (process {}); choose another with --data", pid.trim())
            }
            Ok(_) => fs::remove_dir_all(path).with_context(|| format!("{shown} of an earlier demo"))?,
            Err(_) if path.symlink_metadata().is_ok() => {
                bail!("{shown} exists and is not a demo's; remove it, or choose another with --data")
            }
            Err(_) => {}
        }
        fs::DirBuilder::new().mode(0o700).create(path).with_context(|| format!("{shown}"))?;
        let place = Self { path: path.to_owned(), keep };
        fs::write(path.join(MARK), std::process::id().to_string())?;
        Ok(place)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("{} stays behind: {error}", self.path.display());
        }
    }
}

/// Whether this process runs the same program as we do: pids are used again.
fn is_demo(pid: &str) -> bool {
    let program = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    pid.parse::<u32>().is_ok_and(|p| p != std::process::id())
        && program(pid).is_some_and(|other| Some(other) == program("self"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_demo_left_is_replaced() {
        let dir = crate::mesh::Directory::new().unwrap();
        let path = dir.path().join("demo");
        drop(Place::claim(&path, true).unwrap());
        fs::write(path.join("rest"), "").unwrap();
        let place = Place::claim(&path, false).unwrap();
        assert!(!path.join("rest").exists());
        drop(place);
        assert!(!path.exists());

        fs::create_dir(&path).unwrap();
        assert!(Place::claim(&path, false).unwrap_err().to_string().contains("not a demo's"));
        assert!(path.exists());
    }
}
