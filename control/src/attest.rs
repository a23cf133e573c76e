//! What a caller proves by other means than a join token, and by whose word: its cluster's, its CI system's, an existing PKI's, its TPM's.
//!
//! Nothing is believed that was not covered by a signature which was checked: where somebody else checks it (an API server's
//! TokenReview), what is read afterwards is the very token that was asked about. Nothing that a credential says of itself
//! decides where anything is fetched from. What callers are told is one sentence; the audit record has the reason.

use std::net::IpAddr;
use std::sync::Arc;

use postern_config::attest::{NotAdmitted, Rule, Selectors};
use postern_config::file::control::attest::AttestConfig;
use postern_config::id::{SpiffeId, TrustDomain};
use postern_config::jwt::Reason;
use postern_config::registry::{self, Declarations};
use postern_config::svid::foreign;
use postern_config::wire::v1;
use rustls::pki_types::UnixTime;

use crate::fetch::{Fetcher, Trust, TrustError};

mod jwks;
mod kubernetes;
mod oidc;
mod tpm;
mod x509;

use kubernetes::Cluster;
use oidc::Issuer;
use tpm::Tpms;
pub use tpm::{Answer, Challenge, TpmFault};
pub use x509::Pki;

/// How far clocks may be apart; a token is taken for so long after its end, seconds.
const LEEWAY: i64 = postern_config::jwt::verify::LEEWAY;

/// What a credential proved.
#[derive(Debug, Clone)]
pub struct Attested {
    /// `kubernetes`, `oidc`, `x509` or `tpm`.
    pub kind: &'static str,
    /// What was proven, by dotted words.
    pub selectors: Selectors,
    /// What may have one live key: a pod, a token. `None` where every key is as good as another.
    pub binding: Option<String>,
    /// When the credential was issued, seconds since 1970, where it says so.
    pub issued_at: Option<i64>,
    /// When the credential ends and `binding` with it, seconds since 1970.
    pub not_after: Option<i64>,
    /// The environment of whoever enrolls by this attestor.
    pub environment: Option<String>,
}

/// A credential as it came.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// A projected service-account token.
    Kubernetes(&'a str),
    /// An OIDC token.
    Oidc(&'a str),
    /// The connection's client certificate; `None` where it has none of the PKI that is believed.
    X509(Option<&'a foreign::Certificate>),
    /// The answer to a TPM's challenge.
    Tpm(Answer<'a>),
}

impl Credential<'_> {
    /// Which kind it is, for records.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Kubernetes(_) => "kubernetes",
            Self::Oidc(_) => "oidc",
            Self::X509(_) => "x509",
            Self::Tpm(_) => "tpm",
        }
    }
}

/// Why a credential proves nothing. For the audit record; a caller learns at most whether to come back.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// This kind is not configured.
    #[error("no credential of this kind is taken here")]
    Off,
    /// The token itself.
    #[error("the token is not taken ({})", .0.as_str())]
    Token(Reason),
    /// The connection has no client certificate of the PKI that is believed.
    #[error("the connection has no client certificate of the PKI that is believed")]
    NoCertificate,
    /// A TPM, its keys or its answer.
    #[error("the TPM is not taken: {0}")]
    Tpm(TpmFault),
    /// It lives for longer than it may.
    #[error("the token lives too long")]
    Life,
    /// A claim is missing, or contradicts another.
    #[error("the token's claims do not fit ({0})")]
    Claims(&'static str),
    /// The API server does not know the token, or not for this audience.
    #[error("the API server does not authenticate the token")]
    NotAuthenticated,
    /// The pod is gone, or on its way.
    #[error("the pod is gone or has ended")]
    PodGone,
    /// Another pod has this name by now.
    #[error("the pod is not the one that the token was made for")]
    OtherPod,
    /// The caller comes from elsewhere.
    #[error("the caller does not come from its pod's address")]
    Address,
    /// Whoever has to be asked does not answer.
    #[error("{what}: {why}")]
    Unavailable {
        /// Who.
        what: String,
        /// Why.
        why: String,
    },
}

impl Fault {
    /// The closed word for logs, metrics and audit records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Off => "attest_off",
            Self::Token(Reason::Expired) => "credential_expired",
            Self::Token(reason) => reason.as_str(),
            Self::NoCertificate => "no_certificate",
            Self::Tpm(fault) => fault.reason(),
            Self::Life => "token_life",
            Self::Claims(_) => "token_claims",
            Self::NotAuthenticated => "token_review",
            Self::PodGone => "pod_gone",
            Self::OtherPod => "other_pod",
            Self::Address => "other_address",
            Self::Unavailable { .. } => "attestor_unavailable",
        }
    }
}

/// Why credentials cannot be judged at all; the process does not start.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// A rule gives an identity of somebody else.
    #[error("configuration{0}")]
    Config(#[from] postern_config::file::YamlError),
    /// The roots of a PKI cannot be used.
    #[error("{of}: {}: {why}", path.display())]
    Roots {
        /// Where the configuration names them.
        of: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Nobody can be asked.
    #[error("attest: {0}")]
    Trust(#[from] TrustError),
}

/// Whom a credential admits, by the rules that stand beside its issuer.
#[derive(Debug)]
pub struct Admission {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// Labels that policy selectors see.
    pub labels: std::collections::BTreeMap<String, String>,
    /// The longest lifetime of a certificate, milliseconds.
    pub max_ttl_ms: Option<i64>,
    /// The environment of the rule; empty for none.
    pub environment: String,
}

/// Everybody whose word counts.
#[derive(Debug)]
pub struct Attestors {
    clusters: Vec<Cluster>,
    issuers: Vec<Issuer>,
    pki: Option<Arc<Pki>>,
    tpms: Option<Tpms>,
}

impl Attestors {
    /// By this section of the configuration.
    pub fn new(config: &AttestConfig, own: &TrustDomain) -> Result<Self, AttestError> {
        config.check_trust_domain(own)?;
        let config = &config.clone().with_environments();
        Ok(Self {
            clusters: config.kubernetes.iter().map(Cluster::new).collect::<Result<_, _>>()?,
            issuers: config.oidc.iter().map(Issuer::new).collect::<Result<_, _>>()?,
            pki: config.x509.as_ref().map(Pki::new).transpose()?.map(Arc::new),
            tpms: config.tpm.as_ref().map(Tpms::new).transpose()?,
        })
    }

    /// The PKI whose client certificates are taken, for the TLS side.
    pub fn pki(&self) -> Option<Arc<Pki>> {
        self.pki.clone()
    }

    /// A challenge for a TPM, if it is known at `now`.
    pub fn challenge(
        &self,
        message: &v1::ChallengeRequest,
        now: UnixTime,
    ) -> Result<(Challenge, v1::ChallengeResponse), Fault> {
        self.tpms.as_ref().ok_or(Fault::Off)?.challenge(message, now)
    }

    /// Judges a credential that came from `remote` at `now` (milliseconds since 1970), and says what it proves and which rules
    /// hold for it.
    pub async fn attest(
        &self,
        credential: Credential<'_>,
        remote: IpAddr,
        now: i64,
    ) -> Result<(Attested, &[Rule]), Fault> {
        match credential {
            Credential::Kubernetes(token) => kubernetes::attest(&self.clusters, token, remote, now).await,
            Credential::Oidc(token) => oidc::attest(&self.issuers, token, now).await,
            Credential::X509(certificate) => match &self.pki {
                Some(pki) => pki.attest(certificate),
                None => Err(Fault::Off),
            },
            Credential::Tpm(answer) => self.tpms.as_ref().ok_or(Fault::Off)?.attest(answer),
        }
    }
}

/// Which identity these rules, and what is declared, give for what was attested.
pub fn admit(rules: &[Rule], declared: &Declarations, attested: &Attested) -> Result<Admission, NotAdmitted> {
    let environment = attested.environment.as_deref();
    let (rule, spiffe_id) = registry::admit(rules, declared, environment, &attested.selectors)?;
    let max_ttl_ms = rule.max_ttl.map(|ttl| crate::clock::millis(ttl.as_duration()));
    let environment = rule.environment.clone().unwrap_or_default();
    Ok(Admission { spiffe_id, labels: rule.labels.clone(), max_ttl_ms, environment })
}

fn fetcher(ca: Option<&std::path::Path>) -> Result<Arc<Fetcher>, TrustError> {
    let trust = ca.map_or(Ok(Trust::System), Trust::from_pem_file)?;
    Fetcher::new(trust).map(Arc::new)
}

/// When a token was issued and when it ends; refuses one that lives for more than `longest` seconds.
fn check_life(
    claims: &serde_json::Map<String, serde_json::Value>,
    longest: i64,
) -> Result<(i64, i64), Fault> {
    let seconds = |name| claims.get(name).and_then(serde_json::Value::as_f64).map(|at| at.floor() as i64);
    let (issued, ends) =
        (seconds("iat").ok_or(Fault::Claims("iat"))?, seconds("exp").ok_or(Fault::Claims("exp"))?);
    if ends.saturating_sub(issued) > longest { Err(Fault::Life) } else { Ok((issued, ends)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_what_the_issuer_gave_and_not_what_is_left_of_it() {
        let claims =
            |iat: i64, exp: i64| serde_json::json!({ "iat": iat, "exp": exp }).as_object().cloned().unwrap();
        assert_eq!(check_life(&claims(1000, 1600), 600).unwrap(), (1000, 1600));
        assert!(matches!(check_life(&claims(1000, 1601), 600), Err(Fault::Life)));
        assert!(matches!(check_life(&serde_json::Map::new(), 600), Err(Fault::Claims("iat"))));
    }
}
