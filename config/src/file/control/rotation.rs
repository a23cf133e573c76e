//! How the trust domain's own authorities are replaced: with a share of the proxies first.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::{Span, YamlError};

/// How a new root, or a new issuing CA that is asked for with a canary, takes over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RotationConfig {
    /// Who goes first, and what is watched.
    pub canary: CanaryConfig,
}

/// A share of the proxies gets certificates of the new authority first. While their handshakes are watched, the others stay with the
/// old one; where failures rise, the new authority is withdrawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CanaryConfig {
    /// Which share goes first, such as `10%`; at least one proxy does. `0%`: all at once.
    pub share: Percent,
    /// How long their handshakes are watched; at least 1 s.
    pub watch: Span,
    /// By how much one proxy's share of failed handshakes may rise.
    pub failures: Percent,
    /// Which share of the proxies may fail without being believed: whoever lies about its handshakes neither holds up nor forces a
    /// rotation alone.
    pub doubted: Percent,
}

/// A whole number of per cent, from `0%` to `100%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Percent(u8);

impl Percent {
    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }

    /// From 0 to 1.
    pub fn as_share(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').and_then(|number| number.parse().ok()).filter(|n| *n <= 100);
        number.map(Self).ok_or_else(|| format!("{text:?} is no share; write a whole number such as 10%"))
    }
}

impl TryFrom<String> for Percent {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Percent> for String {
    fn from(percent: Percent) -> Self {
        percent.to_string()
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl RotationConfig {
    pub(super) fn check(&self) -> Result<(), YamlError> {
        if self.canary.watch < Span::from_secs(1) {
            return Err(YamlError::without_place("ca.rotation.canary.watch is at least 1s".to_owned()));
        }
        Ok(())
    }
}

impl Default for CanaryConfig {
    fn default() -> Self {
        Self { share: Percent(10), watch: Span::from_secs(300), failures: Percent(5), doubted: Percent(10) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_whole_number_of_per_cent() {
        assert_eq!("25%".parse::<Percent>().unwrap().to_string(), "25%");
        for wrong in ["25", "101%", "-1%", "2.5%", "%", "", "300%"] {
            assert!(wrong.parse::<Percent>().is_err(), "{wrong}");
        }
    }
}
