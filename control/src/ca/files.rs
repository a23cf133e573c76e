//! Key files: written atomically with mode 0600, and refused when anybody else can read them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use zeroize::Zeroizing;

/// Why a key file is not used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Others can read it.
    #[error("{path} can be read by others (mode {mode:04o}); run: chmod {wanted:04o} {path}", path = path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it should have.
        wanted: u32,
    },
    /// Somebody else owns it.
    #[error("{path} belongs to uid {owner}, and this process runs as uid {own}; run: chown {own} {path}", path = path.display())]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// It holds no usable key.
    #[error("{}: no usable private key (PKCS#8 PEM is expected)", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Creates a directory with mode 0700, or checks that it has one.
pub fn private_directory(path: &Path) -> Result<(), KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
    check(path, &fs::metadata(path).map_err(io)?, 0o700)
}

/// Reads a private key; `None` if there is no such file.
pub(crate) fn read_key(path: &Path) -> Result<Option<KeyPair>, KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    check(path, &file.metadata().map_err(io)?, 0o600)?;
    let mut text = Zeroizing::new(String::new());
    io::Read::read_to_string(&mut file, &mut text).map_err(io)?;
    KeyPair::from_pem(&text).map(Some).map_err(|_| KeyFileError::NoKey { path: path.to_owned() })
}

/// Reads a secret of at most 64 KiB (a PIN, a token) from a file that nobody else may read.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    check(path, &file.metadata().map_err(io)?, 0o600)?;
    let mut text = Zeroizing::new(String::new());
    io::Read::read_to_string(&mut io::Read::take(file, 64 * 1024), &mut text).map_err(io)?;
    Ok(text)
}

/// Removes a file; one that is not there was removed already.
pub(super) fn remove(path: &Path) -> Result<(), KeyFileError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(KeyFileError::Io { path: path.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// Writes a whole file so that a crash leaves the old one or the new one: beside it, synced, renamed, directory synced.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    let beside = path.with_extension("new");
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(io)?;
    file.write_all(content).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&beside, path).map_err(io)?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|d| d.sync_all()).map_err(io)
}

fn check(path: &Path, found: &fs::Metadata, wanted: u32) -> Result<(), KeyFileError> {
    let own = nix::unistd::geteuid().as_raw();
    if found.uid() != own {
        return Err(KeyFileError::Owner { path: path.to_owned(), owner: found.uid(), own });
    }
    if found.mode() & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode: found.mode() & 0o7777, wanted });
    }
    Ok(())
}
