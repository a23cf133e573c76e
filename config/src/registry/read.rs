//! Reading declared identities so that a mistake has its place: values are checked where they stand, and what is wrong between two
//! of them is looked up by its field.

use std::collections::BTreeMap;

use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use super::{Identity, is_dns_name, is_word};
use crate::file::{Piece, YamlError};
use crate::service::check_name;

/// A document of a YAML text and the line on which it begins.
#[derive(Debug, Clone)]
pub struct Placed {
    /// What it says.
    pub identity: Identity,
    /// Its first line, from 1.
    pub line: u64,
}

/// Where the fields of a document stand.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    spec: BTreeMap<String, Spanned<IgnoredAny>>,
}

impl Placed {
    /// Reads one document and checks it. Lines are those of the whole text.
    pub fn read(piece: &Piece<'_>) -> Result<Self, YamlError> {
        let identity: Identity = piece.parse()?;
        let place = |field: &str| {
            let outline: Outline = piece.parse().ok()?;
            let at = outline.spec.get(field)?.referenced;
            Some((at.line() + piece.lines_before(), at.column()))
        };
        let line = piece.lines_before() + 1;
        match identity.check() {
            Ok(()) => Ok(Self { identity, line }),
            Err(why) => {
                let field = why.field();
                let place = place(field).unwrap_or((line, 1));
                Err(YamlError::at(place, format!("spec.{field}: {why}")))
            }
        }
    }
}

fn checked<'de, D: Deserializer<'de>>(
    deserializer: D,
    good: impl Fn(&str) -> bool,
    cure: &str,
) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match good(&text) {
        true => Ok(text),
        false => {
            let shown: String = text.chars().take(80).collect();
            Err(D::Error::custom(format_args!("{shown:?} {cure}")))
        }
    }
}

pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let good = |text: &str| check_name(text).is_ok();
    checked(deserializer, good, "is not a name: use letters, digits, `.`, `-` and `_`, at most 253 bytes")
}

pub(super) fn word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, is_word, "is not a word or a name of 1 to 253 bytes")
}

pub(super) fn optional_word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Word>::deserialize(deserializer)?.map(|word| word.0))
}

pub(super) fn dns_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Vec::<DnsName>::deserialize(deserializer)?.into_iter().map(|name| name.0).collect())
}

struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        word(deserializer).map(Self)
    }
}

struct DnsName(String);

impl<'de> Deserialize<'de> for DnsName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let cure = "is not a DNS name (letters, digits, `-` and dots; `*` only as the whole first label)";
        checked(deserializer, is_dns_name, cure).map(Self)
    }
}
