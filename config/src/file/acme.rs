//! Certificates that are obtained and renewed by ACME (RFC 8555): whose, and how the names are proven.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::proxy::ConfigError;
use super::url::WebUrl;

#[cfg(test)]
mod tests;

/// Somebody who issues certificates by ACME, with one account there. Hosts name it; nothing is issued for names that stand
/// nowhere in this file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcmeIssuer {
    /// Its name in hosts, metrics and logs.
    pub name: String,
    /// The server's directory, such as `https://acme-v02.api.letsencrypt.org/directory`.
    pub directory: WebUrl,
    /// A PEM file with the CAs that the ACME server's own certificate may lead to; left out, the host's store of CAs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Whom the issuer writes to, such as `mailto:ops@example.com`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contact: Vec<String>,
    /// Must be `true`: you have read the issuer's terms of service and agree. Nobody can do that in your place.
    pub terms_of_service_agreed: bool,
    /// A directory (0700) for the account's key, the certificates and their keys (0600). It is made if there is none.
    pub storage: PathBuf,
    /// How the issuer finds out that the names lead here.
    #[serde(default)]
    pub challenge: AcmeChallenge,
    /// Lets the directory lead to a loopback address.
    #[serde(default)]
    pub allow_loopback: bool,
}

/// How names are proven.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AcmeChallenge {
    /// By a handshake on port 443 (RFC 8737): needs a listener of protocol `https` that is reached there.
    #[default]
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// By a page on port 80 (RFC 8555 §8.3): needs a listener of protocol `http` that is reached there.
    #[serde(rename = "http-01")]
    Http01,
    /// By a handshake, and by a page when that has failed, in turn.
    #[serde(rename = "both")]
    Both,
}

/// Checks what the types alone do not say. `at` is where the list stands.
pub fn check(at: &str, issuers: &[AcmeIssuer]) -> Result<(), ConfigError> {
    for (i, issuer) in issuers.iter().enumerate() {
        let fail = |why: String| Err(ConfigError { at: format!("{at}[{i}]"), why });
        if issuer.name.is_empty() || issuer.name.len() > 63 {
            return fail("`name` must have 1 to 63 characters".to_owned());
        }
        for earlier in &issuers[..i] {
            if earlier.name == issuer.name {
                return fail(format!("the name {:?} is taken by an earlier issuer", issuer.name));
            }
            if earlier.storage == issuer.storage {
                return fail(format!(
                    "`storage` is that of {:?} too; each account needs its own",
                    earlier.name
                ));
            }
        }
        if !issuer.terms_of_service_agreed {
            return fail("`terms_of_service_agreed` must be true: read the issuer's terms first".to_owned());
        }
        if issuer.storage.as_os_str().is_empty() {
            return fail("`storage` is empty; name a directory that lasts".to_owned());
        }
        if let Some(bad) = issuer.contact.iter().find(|c| !is_contact(c)) {
            return fail(format!("the contact {bad:?} is not of the form `mailto:name@example.com`"));
        }
    }
    Ok(())
}

fn is_contact(text: &str) -> bool {
    let address = text.strip_prefix("mailto:").unwrap_or_default();
    address.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
        && address.bytes().all(|b| b.is_ascii_graphic() && !b"?,".contains(&b))
}

/// Whether a certificate can be ordered for this name: a DNS name in lower case, without a star.
pub fn is_orderable(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label) && !name.split('.').all(|l| l.parse::<u32>().is_ok())
}
