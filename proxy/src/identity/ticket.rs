//! What an enrollment shows and whom it believes: out of a join string, or out of the configuration and the files that the
//! platform keeps fresh.

use std::io::Read as _;
use std::path::Path;

use postern_config::enroll::{JoinString, Pin};
use postern_config::file::proxy::Control;
use postern_config::id::TrustDomain;
use postern_config::wire::v1::{self, enroll_request::Credential as Sent};
use zeroize::Zeroizing;

use crate::tls::enroll::ClientCertificate;

/// No token that a control plane takes is larger, bytes.
const MAX_TOKEN: u64 = 16 * 1024;

/// What a build says that was made with `--no-default-features`.
#[cfg(not(feature = "tpm"))]
const WITHOUT_TPM: &str = "control.attest.tpm: this postern-proxy was built without the cargo feature `tpm`";

/// Everything that one try to enroll needs.
pub(super) struct Ticket {
    pub(super) trust_domain: TrustDomain,
    pub(super) pins: Vec<Pin>,
    pub(super) credential: Credential,
}

/// What proves who this proxy is.
pub(super) enum Credential {
    Join {
        id: String,
        secret: Zeroizing<[u8; 32]>,
    },
    Kubernetes(Zeroizing<String>),
    Oidc(Zeroizing<String>),
    X509(ClientCertificate),
    /// Spoken to once the control plane is there to make a challenge.
    #[cfg(feature = "tpm")]
    Tpm(postern_config::file::attest::Tpm),
}

impl From<&JoinString> for Ticket {
    fn from(join: &JoinString) -> Self {
        let (id, secret) = (join.token_id.clone(), join.secret.clone());
        Self {
            trust_domain: join.trust_domain.clone(),
            pins: join.pins.clone(),
            credential: Credential::Join { id, secret },
        }
    }
}

impl Ticket {
    /// By what the platform says; `None` where the configuration names no such thing. Files are read now.
    pub(super) fn attested(config: &Control) -> Option<Result<Self, String>> {
        let (attest, trust) = (config.attest.as_ref()?, config.trust.as_ref()?);
        let credential = match (&attest.kubernetes, &attest.oidc, &attest.x509, &attest.tpm) {
            (Some(from), _, _, _) => token(&from.token_file).map(Credential::Kubernetes),
            (_, Some(from), _, _) => token(&from.token_file).map(Credential::Oidc),
            (_, _, Some(files), _) => {
                ClientCertificate::read(&files.certificate_file, &files.key_file).map(Credential::X509)
            }
            #[cfg(feature = "tpm")]
            (_, _, _, Some(tpm)) => Ok(Credential::Tpm(tpm.clone())),
            #[cfg(not(feature = "tpm"))]
            (_, _, _, Some(_)) => Err(WITHOUT_TPM.to_owned()),
            _ => return None,
        };
        let (trust_domain, pins) = (trust.trust_domain.clone(), trust.pins.clone());
        Some(credential.map(|credential| Self { trust_domain, pins, credential }))
    }
}

impl Credential {
    /// For the handshake.
    pub(super) fn certificate(&self) -> Option<&ClientCertificate> {
        match self {
            Self::X509(certificate) => Some(certificate),
            _ => None,
        }
    }

    /// Writes itself into the message.
    pub(super) fn fill(&self, message: &mut v1::EnrollRequest) {
        message.credential = match self {
            Self::Join { id, secret } => {
                message.token_id.clone_from(id);
                message.token_secret = secret.to_vec();
                None
            }
            Self::Kubernetes(token) => Some(Sent::KubernetesToken(token.to_string())),
            Self::Oidc(token) => Some(Sent::OidcToken(token.to_string())),
            Self::X509(_) => Some(Sent::X509(v1::ClientCertificate {})),
            // Its answer comes with the challenge.
            #[cfg(feature = "tpm")]
            Self::Tpm(_) => None,
        };
    }
}

fn token(path: &Path) -> Result<Zeroizing<String>, String> {
    let wrong = |why: String| format!("token file {}: {why}", path.display());
    let mut text = Zeroizing::new(String::new());
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN + 1).read_to_string(&mut text));
    match read {
        Err(error) => Err(wrong(error.to_string())),
        Ok(length) if length as u64 > MAX_TOKEN => Err(wrong("larger than any token".to_owned())),
        Ok(_) if text.trim().is_empty() => Err(wrong("it is empty".to_owned())),
        Ok(_) => Ok(Zeroizing::new(text.trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_read_anew_and_bounded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(token(file.path()).unwrap_err().contains("empty"));
        std::fs::write(file.path(), "one\n").unwrap();
        assert_eq!(token(file.path()).unwrap().as_str(), "one");
        std::fs::write(file.path(), "two").unwrap();
        assert_eq!(token(file.path()).unwrap().as_str(), "two");
        std::fs::write(file.path(), "x".repeat(20_000)).unwrap();
        assert!(token(file.path()).unwrap_err().contains("larger"));
        assert!(token(Path::new("/nonexistent")).unwrap_err().contains("/nonexistent"));
    }
}
