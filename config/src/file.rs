//! Configuration files: one strict YAML loader for both planes, whose mistakes name file, line, column, cause and cure.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_saphyr::MessageFormatter as _;

pub mod acme;
pub mod attest;
pub mod control;
pub mod gateway;
pub mod http;
pub mod jwt;
pub mod proxy;
mod suggest;
#[cfg(test)]
mod tests;
pub mod url;

/// The largest file that is read, in bytes.
pub const MAX_FILE: u64 = 8 * 1024 * 1024;

/// A mistake in a YAML text, with its place where that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlError {
    place: Option<(u64, u64)>,
    message: String,
}

impl YamlError {
    /// A mistake that belongs to the text as a whole.
    pub fn without_place(message: String) -> Self {
        Self { place: None, message }
    }

    /// A mistake at (line, column), both from 1.
    pub fn at(place: (u64, u64), message: String) -> Self {
        Self { place: Some(place), message }
    }

    /// (line, column), both from 1.
    pub fn place(&self) -> Option<(u64, u64)> {
        self.place
    }

    /// Cause and cure, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "{line}:{column}  error: {}", self.message),
            None => write!(f, "  error: {}", self.message),
        }
    }
}

impl std::error::Error for YamlError {}

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is larger than [`MAX_FILE`].
    #[error("{}: larger than 8 MiB", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It says something wrong. Printed as `file:line:column  error: …`.
    #[error("{}:{source}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// The mistake.
        source: YamlError,
    },
}

/// Reads one YAML document from a file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    parse(&read(path)?).map_err(|source| FileError::Yaml { path: path.to_owned(), source })
}

/// Reads every YAML document of a file.
pub fn load_stream<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, FileError> {
    parse_stream(&read(path)?).map_err(|source| FileError::Yaml { path: path.to_owned(), source })
}

/// A file's text, at most [`MAX_FILE`] bytes of it.
pub fn read(path: &Path) -> Result<String, FileError> {
    use std::io::Read as _;
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    std::fs::File::open(path).map_err(io)?.take(MAX_FILE + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_FILE {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

/// Reads one YAML document.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    serde_saphyr::from_str(text).map_err(|e| explain(&e))
}

/// One document of a YAML text, not read yet.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    text: &'a str,
    /// How many lines of the whole text stand before it.
    lines_before: u64,
}

impl Piece<'_> {
    /// Reads it; a mistake's line is that of the whole text.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, YamlError> {
        parse(self.text).map_err(|mut error| {
            error.place = error.place.map(|(line, column)| (line + self.lines_before, column));
            error
        })
    }

    /// Whether nothing stands in it but comments.
    pub fn is_empty(&self) -> bool {
        matches!(self.parse::<Option<serde::de::IgnoredAny>>(), Ok(None))
    }

    /// How many lines of the whole text stand before it.
    pub fn lines_before(&self) -> u64 {
        self.lines_before
    }
}

/// The documents of a YAML text, for those who must look at one before they know its type. A line that begins with `---`
/// begins a document wherever it stands (YAML 1.2 §9.1.2).
pub fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = Some((text, 0));
    std::iter::from_fn(move || {
        let (text, lines_before) = rest.take()?;
        let mut at = 0;
        for (count, line) in (0..).zip(text.split_inclusive('\n')) {
            let marks = line
                .strip_prefix("---")
                .is_some_and(|more| more.trim_start().len() < more.len() || more.is_empty());
            if marks && at > 0 {
                rest = Some((&text[at..], lines_before + count));
                break;
            }
            at += line.len();
        }
        Some(Piece { text: &text[..at], lines_before })
    })
}

/// Reads every YAML document of a text; empty ones are skipped.
pub fn parse_stream<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, YamlError> {
    serde_saphyr::from_str_multiple::<T, Vec<T>>(text).map_err(|e| explain(&e))
}

fn explain(error: &serde_saphyr::Error) -> YamlError {
    use serde_saphyr::Error as E;
    let place = error.location().map(|l| (l.line(), l.column())).filter(|(line, _)| *line > 0);
    let mut cause = error;
    while let E::WithSnippet { error, .. } | E::AliasError { error, .. } = cause {
        cause = error;
    }
    let message = match cause {
        E::SerdeUnknownField { field, expected, .. } => suggest::unknown("field", field, expected),
        E::SerdeUnknownVariant { variant, expected, .. } => suggest::unknown("value", variant, expected),
        other => suggest::cure(&serde_saphyr::UserMessageFormatter.format_message(other)),
    };
    // What the file says must not reach into the terminal that shows the mistake.
    let printable = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    YamlError { place, message: message.chars().map(printable).collect() }
}

/// A length of time as people write it: `500ms`, `10s`, `5m`, `1h`, `7d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    /// This many milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// This many seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }

    /// As the standard library's type.
    pub const fn as_duration(self) -> Duration {
        self.0
    }
}

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is not a length of time; write a number and a unit, such as 500ms, 10s, 5m, 1h or 7d"
            )
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = text[..digits].parse().map_err(|_| bad())?;
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &text[digits..]).ok_or_else(bad)?;
        number.checked_mul(*unit).map(Self::from_millis).ok_or_else(bad)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let fits = |(_, unit): &&(&str, u64)| ms > 0 && ms.is_multiple_of(u128::from(*unit));
        let (name, unit) = UNITS.iter().rev().find(fits).unwrap_or(&UNITS[1]);
        write!(f, "{}{name}", ms / u128::from(*unit))
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[0-9]+(ms|s|m|h|d)$",
            "description": "A length of time: a number and a unit, such as 500ms, 10s, 5m, 1h or 7d."
        })
    }
}
