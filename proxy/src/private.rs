//! Directories (0700) and files (0600) that are this user's alone. What others could have read or written is refused, not
//! repaired: the secret may be out already.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Why a directory or a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Directory or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others can read or write it.
    #[error(
        "{}: mode {mode:04o} lets other users in; run `chmod {wanted:04o} {}` and replace what is in it if they are \
         not trusted",
        path.display(),
        path.display()
    )]
    Mode {
        /// Directory or file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it should be.
        wanted: u32,
    },
    /// It belongs to somebody else.
    #[error("{}: it belongs to user {owner}, not to this process", path.display())]
    Owner {
        /// Directory or file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
}

/// A directory that was checked.
#[derive(Debug, Clone)]
pub struct Private {
    directory: PathBuf,
}

impl Private {
    /// Opens it, or makes it.
    pub fn open(directory: &Path) -> Result<Self, PrivateError> {
        if !directory.exists() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|source| PrivateError::Io { path: directory.to_owned(), source })?;
        }
        check(directory, 0o700)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where a file of it lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// At most `limit` bytes of a file; `None` where there is none.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Zeroizing<String>>, PrivateError> {
        let path = self.path(name);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(PrivateError::Io { path, source }),
        };
        check(&path, 0o600)?;
        let mut text = Zeroizing::new(String::new());
        file.take(limit).read_to_string(&mut text).map_err(|source| PrivateError::Io { path, source })?;
        Ok(Some(text))
    }

    /// Replaces a file as a whole: a crash leaves the old one or the new one.
    pub fn replace(&self, name: &str, text: &str) -> Result<(), PrivateError> {
        let path = self.path(name);
        let next = self.path(&format!("{name}.next"));
        let written = (|| {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&next)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&next, &path)?;
            std::fs::File::open(&self.directory)?.sync_all()
        })();
        written.map_err(|source| PrivateError::Io { path, source })
    }

    /// Removes a file, if there is one.
    pub fn remove(&self, name: &str) -> Result<(), PrivateError> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(PrivateError::Io { path, source })
            }
            _ => Ok(()),
        }
    }
}

fn check(path: &Path, wanted: u32) -> Result<(), PrivateError> {
    let io = |source| PrivateError::Io { path: path.to_owned(), source };
    let metadata = std::fs::symlink_metadata(path).map_err(io)?;
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(PrivateError::Owner { path: path.to_owned(), owner: metadata.uid() });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PrivateError::Mode { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}
