//! Machines by their TPM 2.0: a challenge that only the TPM with a known endorsement key (EK) can open, and a quote that binds its
//! answer to the certificate request.
//!
//! The challenge is a credential for the name of the attestation key (AK): TPM2_ActivateCredential gives its secret only where
//! both keys are loaded in one TPM, and the name covers the AK's attributes. The AK is restricted: what it signs its TPM has made,
//! so a quote whose extraData covers secret, connection and request says that all three belong together. The EK alone would say
//! nothing of the request, and a plain signature could be had by whoever may use the AK for something else.

use std::path::Path;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use postern_config::attest::{Rule, Selectors};
use postern_config::enroll::Pin;
use postern_config::file::control::attest::Tpm as Config;
use postern_config::svid::endorsement;
use postern_config::svid::foreign::Roots;
use postern_config::svid::{Algorithms, VerifyError};
use postern_config::tpm::{AttestationKey, Endorsement, Point, TpmError, quote_message, quoted, signature};
use postern_config::wire::v1;
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::{AttestError, Attested, Fault};
use crate::digest::{hex, random, sha256};

mod credential;

/// A TPM answers within a second or two; the connection ends soon anyway.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a TPM proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum TpmFault {
    /// What it sent, or which keys it has.
    #[error(transparent)]
    Message(#[from] TpmError),
    /// Nobody knows its endorsement key.
    #[error("its endorsement key is not listed, and no certificate of a known CA came with it")]
    UnknownEk,
    /// Its certificate.
    #[error("the certificate of its endorsement key: {0}")]
    Certificate(VerifyError),
    /// The certificate is another key's.
    #[error("the certificate is of another endorsement key")]
    OtherEk,
    /// A key that nothing can be encrypted to.
    #[error("nothing can be encrypted to its endorsement key")]
    Key,
    /// An answer to nothing: the connection has no challenge open.
    #[error("this connection has no challenge open")]
    NoChallenge,
    /// The challenge was opened too late.
    #[error("the answer came too late")]
    Late,
    /// Whoever answers has not opened this challenge.
    #[error("the secret is not this challenge's")]
    Secret,
    /// The quote is not the attestation key's.
    #[error("the quote is not signed by the attestation key")]
    Signature,
    /// The quote was made for another connection, request or challenge.
    #[error("the quote was made for something else")]
    OtherRequest,
}

impl TpmFault {
    /// The closed word for logs and audit records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Message(error) => error.reason(),
            Self::UnknownEk => "tpm_ek_unknown",
            Self::Certificate(_) => "tpm_ek_certificate",
            Self::OtherEk => "tpm_ek_other",
            Self::Key => "tpm_ek_key",
            Self::NoChallenge => "tpm_no_challenge",
            Self::Late => "tpm_late",
            Self::Secret => "tpm_secret",
            Self::Signature => "tpm_signature",
            Self::OtherRequest => "tpm_other_request",
        }
    }
}

impl From<TpmError> for Fault {
    fn from(error: TpmError) -> Self {
        Self::Tpm(error.into())
    }
}

impl From<TpmFault> for Fault {
    fn from(fault: TpmFault) -> Self {
        Self::Tpm(fault)
    }
}

/// TPMs that are known.
#[derive(Debug)]
pub(super) struct Tpms {
    roots: Option<Roots>,
    known: Vec<Pin>,
    rules: Vec<Rule>,
    environment: Option<String>,
}

/// What one connection was asked, and what the right answer proves. Good for one try.
pub struct Challenge {
    secret: [u8; 32],
    key: Point,
    selectors: Selectors,
    made: Instant,
}

impl std::fmt::Debug for Challenge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Challenge(secret hidden, {:?})", self.selectors)
    }
}

/// An answer as it came, with what its quote has to cover.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// What this connection was asked.
    pub challenge: Option<&'a Challenge>,
    /// The answer.
    pub message: &'a v1::Tpm,
    /// What the certificate request's key has signed, too.
    pub proof_message: &'a [u8],
}

impl Tpms {
    pub(super) fn new(config: &Config) -> Result<Self, AttestError> {
        let roots = config.ek_roots.as_deref().map(read_roots).transpose()?;
        let (known, rules) = (config.ek_hashes.clone(), config.rules.clone());
        Ok(Self { roots, known, rules, environment: config.environment.clone() })
    }

    /// A challenge that only this TPM can open, if it is known.
    pub(super) fn challenge(
        &self,
        message: &v1::ChallengeRequest,
        now: UnixTime,
    ) -> Result<(Challenge, v1::ChallengeResponse), Fault> {
        let endorsement = Endorsement::parse(&message.ek_public)?;
        let key = AttestationKey::parse(&message.ak_public)?;
        let selectors = self.recognise(&endorsement, &message.ek_certificate, now)?;
        let secret = random().map_err(|_| TpmFault::Key)?;
        let made = credential::make(&endorsement, &key.name(sha256), &secret).map_err(|_| TpmFault::Key)?;
        let challenge = Challenge { secret, key: *key.point(), selectors, made: Instant::now() };
        let (credential_blob, encrypted_secret) = (made.blob, made.encrypted_seed);
        Ok((challenge, v1::ChallengeResponse { credential_blob, encrypted_secret }))
    }

    /// What an answer proves.
    pub(super) fn attest(&self, answer: Answer<'_>) -> Result<(Attested, &[Rule]), Fault> {
        let challenge = answer.challenge.ok_or(TpmFault::NoChallenge)?;
        if challenge.made.elapsed() > PATIENCE {
            return Err(TpmFault::Late.into());
        }
        let v1::Tpm { secret, quote, signature: signed } = answer.message;
        aws_lc_rs::constant_time::verify_slices_are_equal(secret, &challenge.secret)
            .map_err(|_| TpmFault::Secret)?;
        let (extra, signed) = (quoted(quote)?, signature(signed)?);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, challenge.key.uncompressed())
            .verify(quote, &signed)
            .map_err(|_| TpmFault::Signature)?;
        if extra != sha256(&quote_message(secret, answer.proof_message)) {
            return Err(TpmFault::OtherRequest.into());
        }
        let selectors = challenge.selectors.clone();
        // The machine may enroll again with another key whenever it likes: what proves it is no bearer's.
        Ok((
            Attested {
                kind: "tpm",
                selectors,
                environment: self.environment.clone(),
                binding: None,
                issued_at: None,
                not_after: None,
            },
            &self.rules,
        ))
    }

    /// Who the TPM with this key is. A certificate that does not hold says nothing for or against a key that is listed.
    fn recognise(&self, key: &Endorsement, certificate: &[u8], now: UnixTime) -> Result<Selectors, TpmFault> {
        let spki = key.spki();
        let hash = sha256(&spki);
        let endorsed = match &self.roots {
            Some(roots) if !certificate.is_empty() => verify(certificate, &spki, roots, now),
            _ => Err(TpmFault::UnknownEk),
        };
        let mut selectors = match endorsed {
            Ok(selectors) => selectors,
            Err(_) if self.known.contains(&Pin(hash)) => Selectors::new(),
            Err(fault) => return Err(fault),
        };
        selectors.insert("tpm.ek".to_owned(), hex(&hash));
        Ok(selectors)
    }
}

fn verify(certificate: &[u8], spki: &[u8], roots: &Roots, now: UnixTime) -> Result<Selectors, TpmFault> {
    let signatures = provider::default_provider().signature_verification_algorithms.all;
    let algorithms = Algorithms { signatures, sha256 };
    let endorsed = endorsement::verify(&CertificateDer::from(certificate), roots, now, algorithms)
        .map_err(TpmFault::Certificate)?;
    if endorsed.spki == spki { Ok(endorsed.selectors) } else { Err(TpmFault::OtherEk) }
}

fn read_roots(path: &Path) -> Result<Roots, AttestError> {
    super::x509::read_roots(path).map_err(|why| AttestError::Roots {
        of: "attest.tpm.ek_roots",
        path: path.to_owned(),
        why,
    })
}
