//! Client certificates of an existing PKI: the connection's handshake is the proof that the caller holds the key.

use std::path::Path;

use postern_config::attest::Rule;
use postern_config::file::control::attest::X509;
use postern_config::svid::foreign::{self, Certificate, Roots};
use postern_config::svid::{Algorithms, VerifyError};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::{AttestError, Attested, Fault};
use crate::digest::sha256;

/// A PKI whose client certificates are taken.
#[derive(Debug)]
pub struct Pki {
    roots: Roots,
    rules: Vec<Rule>,
    environment: Option<String>,
}

impl Pki {
    pub(super) fn new(config: &X509) -> Result<Self, AttestError> {
        let wrong = |why| AttestError::Roots { of: "attest.x509.roots", path: config.roots.clone(), why };
        let roots = read_roots(&config.roots).map_err(wrong)?;
        Ok(Self { roots, rules: config.rules.clone(), environment: config.environment.clone() })
    }

    /// Verifies a chain that was presented in a handshake.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Certificate, VerifyError> {
        let signatures = aws_lc_rs::default_provider().signature_verification_algorithms.all;
        foreign::verify(chain, &self.roots, now, Algorithms { signatures, sha256 })
    }

    /// What the connection's certificate proves. The same machine may enroll again with another key whenever it likes: the
    /// key that proves it is its own, not a bearer's.
    pub(super) fn attest(&self, certificate: Option<&Certificate>) -> Result<(Attested, &[Rule]), Fault> {
        let certificate = certificate.ok_or(Fault::NoCertificate)?;
        let attested = Attested {
            kind: "x509",
            selectors: certificate.selectors.clone(),
            binding: None,
            issued_at: None,
            not_after: Some(certificate.not_after),
            environment: self.environment.clone(),
        };
        Ok((attested, &self.rules))
    }
}

/// CA certificates out of a PEM file that has to hold some.
pub(super) fn read_roots(path: &Path) -> Result<Roots, String> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let roots = Roots::new(certificates.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(roots) }
}
