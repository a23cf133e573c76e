//! How a proxy enrolls by what its platform says of it, and whom it believes while it holds no bundle yet.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::enroll::Pin;
use crate::id::TrustDomain;

/// Whom to believe at the first connection: a join string carries this, another credential does not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// The trust domain to join.
    pub trust_domain: TrustDomain,
    /// The root's pin, as `postern serve` prints it; while the root is being replaced, the next one's as well.
    pub pins: Vec<Pin>,
}

/// What proves who this proxy is: one of these. Unlike a join token it is good again, so that a proxy whose certificate has
/// expired comes back by itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Attest {
    /// The pod's projected service-account token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<TokenFile>,
    /// An OIDC token of a CI system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oidc: Option<TokenFile>,
    /// A client certificate of an existing PKI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x509: Option<CertificateFiles>,
    /// This machine's TPM 2.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpm: Option<Tpm>,
}

/// A TPM 2.0 and which of its endorsement keys (EK) speaks for the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tpm {
    /// The device behind the kernel's resource manager, or the Unix socket of an emulated TPM.
    pub device: PathBuf,
    /// Which EK: the control plane knows the machine by it.
    pub ek: EkChoice,
    /// The EK's certificate, DER or PEM, where the TPM itself holds none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
}

impl Default for Tpm {
    fn default() -> Self {
        Self { device: PathBuf::from("/dev/tpmrm0"), ek: EkChoice::Rsa, certificate_file: None }
    }
}

/// One of the two endorsement keys that every TPM for PCs has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EkChoice {
    /// RSA 2048.
    #[default]
    Rsa,
    /// P-256.
    Ecc,
}

/// A token in a file, which is read again for each try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenFile {
    /// The file, such as a projected volume's.
    pub token_file: PathBuf,
}

/// A certificate and its key in files, which are read again for each try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate and the CAs between it and its root, PEM, leaf first.
    pub certificate_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
}

/// Checks what the types alone do not say: what goes with what.
pub fn check(
    address: Option<&String>,
    join_file: Option<&PathBuf>,
    trust: Option<&Trust>,
    attest: Option<&Attest>,
) -> Result<(), (&'static str, &'static str)> {
    let Some(attest) = attest else {
        return match trust {
            Some(_) => Err(("control.trust", "goes with `control.attest`; a join string carries its own")),
            None => Ok(()),
        };
    };
    let ways =
        [attest.kubernetes.is_some(), attest.oidc.is_some(), attest.x509.is_some(), attest.tpm.is_some()];
    if ways.into_iter().filter(|given| *given).count() != 1 {
        return Err(("control.attest", "give one of `kubernetes`, `oidc`, `x509` and `tpm`"));
    }
    if join_file.is_some() {
        return Err(("control", "give either `join_file` or `attest`"));
    }
    if address.is_none() {
        return Err(("control.address", "is needed with `attest`: write it as `host:port`"));
    }
    match trust {
        Some(trust) if (1..=2).contains(&trust.pins.len()) => Ok(()),
        Some(_) => Err(("control.trust.pins", "give the root's pin, or the root's and the next one's")),
        None => Err((
            "control.trust",
            "is needed with `attest`: `trust_domain` and `pins`, so that nobody else can pose as the control plane",
        )),
    }
}
