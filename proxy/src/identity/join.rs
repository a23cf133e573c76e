//! Where the join string comes from: a file or standard input, never the command line, which every user of the host can read.

use std::io::Read as _;
use std::path::PathBuf;

use postern_config::enroll::{JoinError, JoinString};
use zeroize::Zeroizing;

/// A join string has about 200 bytes; what is much longer is something else.
const MAX_JOIN: u64 = 4096;

/// A place to read a join string from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinSource {
    /// A file.
    File(PathBuf),
    /// Standard input, read once.
    Stdin,
}

/// Why no join string could be read.
#[derive(Debug, thiserror::Error)]
pub enum JoinSourceError {
    /// The source cannot be read.
    #[error("join string {place}: {source}")]
    Io {
        /// Which source.
        place: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// What was read is no join string.
    #[error("join string {place}: {source}")]
    Join {
        /// Which source.
        place: String,
        /// What is wrong with it.
        source: JoinError,
    },
}

impl JoinSource {
    /// Reads and parses it.
    pub fn read(&self) -> Result<JoinString, JoinSourceError> {
        let place = match self {
            Self::File(path) => format!("@{}", path.display()),
            Self::Stdin => "from standard input".to_owned(),
        };
        let mut text = Zeroizing::new(String::new());
        let read = match self {
            Self::File(path) => {
                std::fs::File::open(path).and_then(|f| f.take(MAX_JOIN).read_to_string(&mut text))
            }
            Self::Stdin => std::io::stdin().take(MAX_JOIN).read_to_string(&mut text),
        };
        read.map_err(|source| JoinSourceError::Io { place: place.clone(), source })?;
        text.parse().map_err(|source| JoinSourceError::Join { place, source })
    }

    /// Reads a file again, in case it holds a new token by now.
    pub fn reread(&self) -> Option<JoinString> {
        match self {
            Self::File(_) => self.read().ok(),
            Self::Stdin => None,
        }
    }
}

impl std::str::FromStr for JoinSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix('@')) {
            ("-", _) => Ok(Self::Stdin),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("a join string never stands on a command line, where every user can read it: \
                      write it to a file and pass @FILE, or pass - for standard input"
                .to_owned()),
        }
    }
}
