//! What files hold: chains, keys, CAs and revocation lists, each checked before anything is built from it.

use rustls::RootCertStore;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::server::{ParsedCertificate, VerifierBuilderError};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// Certificates of one chain; real ones have two or three.
const MAX_CHAIN: usize = 10;
/// CAs that one host believes.
const MAX_ANCHORS: usize = 256;

/// Why a host's files are not taken into use. The text says which part and why; the caller knows the files.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A chain that is no chain.
    #[error("chain: {0}")]
    Chain(String),
    /// A key that is no key, or not the chain's.
    #[error("key: {0}")]
    Key(String),
    /// Client CAs that are none.
    #[error("client CA: {0}")]
    Ca(String),
    /// Revocation lists that are none.
    #[error("revocation list: {0}")]
    Crl(String),
    /// The verifier of clients cannot be built.
    #[error("client certificates: {0}")]
    Verifier(#[source] VerifierBuilderError),
    /// The TLS library refused its settings.
    #[error("TLS settings: {0}")]
    Settings(#[source] rustls::Error),
}

/// A host's own certificate with its key.
pub(super) struct Served {
    pub(super) certified: CertifiedKey,
    pub(super) not_after: i64,
}

impl Served {
    /// Reads and checks both files.
    pub(super) fn read(
        chain: &[u8],
        key: &Zeroizing<Vec<u8>>,
        provider: &CryptoProvider,
        now: i64,
    ) -> Result<Self, MaterialError> {
        let chain = certificates(chain).map_err(MaterialError::Chain)?;
        if chain.len() > MAX_CHAIN {
            return Err(MaterialError::Chain(format!("has more than {MAX_CHAIN} certificates")));
        }
        let leaf = chain.first().ok_or_else(|| MaterialError::Chain("holds no certificate".to_owned()))?;
        let not_after = check_leaf(leaf, now).map_err(MaterialError::Chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            MaterialError::Key("holds no private key in PEM (PKCS#8, SEC1 or PKCS#1)".to_owned())
        })?;
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|_| {
            MaterialError::Key(
                "cannot be used; take ECDSA P-256 or P-384, Ed25519, or RSA from 2048 bits".to_owned(),
            )
        })?;
        let certified = CertifiedKey::new(chain, key);
        certified
            .keys_match()
            .map_err(|_| MaterialError::Key("is not the key of the chain's first certificate".to_owned()))?;
        Ok(Self { certified, not_after })
    }

    /// A sentence for each name that the certificate does not speak for.
    pub(super) fn uncovered(&self, names: &[&str]) -> Vec<String> {
        let leaf = self.certified.cert.first();
        let covers = |name: &str| {
            // A wildcard is tried with a label that nobody has.
            let tried = name
                .strip_prefix("*.")
                .map_or_else(|| name.to_owned(), |rest| format!("postern-probe.{rest}"));
            let (Some(leaf), Ok(tried)) = (leaf, ServerName::try_from(tried)) else { return false };
            ParsedCertificate::try_from(leaf).is_ok_and(|leaf| verify_server_name(&leaf, &tried).is_ok())
        };
        let missing = names.iter().filter(|name| !covers(name));
        missing
            .map(|name| format!("the certificate does not speak for {name}: clients will refuse it"))
            .collect()
    }
}

/// Its notAfter, if clients will take it as a server's.
fn check_leaf(leaf: &CertificateDer<'_>, now: i64) -> Result<i64, String> {
    let certificate = parse(leaf)?;
    let validity = certificate.validity();
    let not_after = validity.not_after.timestamp();
    if now > not_after {
        return Err(format!("the certificate expired at {}", validity.not_after));
    }
    if now < validity.not_before.timestamp() {
        return Err(format!("the certificate is not valid before {}", validity.not_before));
    }
    if certificate.is_ca() {
        return Err("its first certificate is a CA's; put the host's own first".to_owned());
    }
    let usage = certificate.extended_key_usage().map_err(|_| "its extended key usage cannot be read")?;
    if usage.is_some_and(|u| !u.value.server_auth && !u.value.any) {
        return Err("the certificate is not for TLS servers (extended key usage)".to_owned());
    }
    Ok(not_after)
}

/// A certificate's notAfter, seconds since 1970.
pub(super) fn not_after(der: &CertificateDer<'_>) -> Option<i64> {
    parse(der).ok().map(|c| c.validity().not_after.timestamp())
}

/// The CAs that a host believes now.
pub(super) struct Anchors {
    pub(super) store: RootCertStore,
    /// When one of them begins or ends.
    pub(super) next_change: Option<i64>,
    pub(super) warnings: Vec<String>,
}

impl Anchors {
    /// Reads PEM files. The stock verifier does not look at the dates of an anchor, so one that is not in date is left out.
    pub(super) fn read(files: &[Vec<u8>], now: i64) -> Result<Self, MaterialError> {
        let mut store = RootCertStore::empty();
        let (mut next_change, mut warnings, mut seen) = (None::<i64>, Vec::new(), 0);
        let mut changes_at = |at: i64| next_change = Some(next_change.map_or(at, |next| next.min(at)));
        for file in files {
            let found = certificates(file).map_err(MaterialError::Ca)?;
            if found.is_empty() {
                return Err(MaterialError::Ca("holds no certificate".to_owned()));
            }
            for der in found {
                seen += 1;
                let certificate = parse(&der).map_err(MaterialError::Ca)?;
                if !certificate.is_ca() {
                    return Err(MaterialError::Ca(format!(
                        "{} is not a CA's certificate",
                        certificate.subject()
                    )));
                }
                let (from, to) = (
                    certificate.validity().not_before.timestamp(),
                    certificate.validity().not_after.timestamp(),
                );
                if now > to {
                    warnings
                        .push(format!("the client CA {} has expired and is left out", certificate.subject()));
                    continue;
                }
                if now < from {
                    changes_at(from);
                    warnings.push(format!(
                        "the client CA {} is not valid yet and is left out",
                        certificate.subject()
                    ));
                    continue;
                }
                changes_at(to.saturating_add(1));
                let unusable =
                    |e| MaterialError::Ca(format!("{} cannot be used: {e}", certificate.subject()));
                store.add(der.clone()).map_err(unusable)?;
            }
        }
        if seen > MAX_ANCHORS {
            return Err(MaterialError::Ca(format!("more than {MAX_ANCHORS} certificates")));
        }
        if store.is_empty() {
            return Err(MaterialError::Ca("none is in date: no client could be believed".to_owned()));
        }
        Ok(Self { store, next_change, warnings })
    }
}

/// The lists of PEM files. One that is outdated is kept: it refuses, where its absence might not.
pub(super) fn revocation_lists(
    files: &[Vec<u8>],
    now: i64,
    warnings: &mut Vec<String>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, MaterialError> {
    let mut lists = Vec::new();
    for file in files {
        let before = lists.len();
        for list in CertificateRevocationListDer::pem_slice_iter(file) {
            let list = list.map_err(|_| MaterialError::Crl("cannot be read as PEM".to_owned()))?;
            let Ok((_, parsed)) = CertificateRevocationList::from_der(&list) else {
                return Err(MaterialError::Crl("is no X.509 revocation list".to_owned()));
            };
            if parsed.next_update().is_none_or(|next| next.timestamp() < now) {
                warnings.push(format!(
                    "the revocation list of {} is past its next update: its clients are refused until a new one comes",
                    parsed.issuer()
                ));
            }
            lists.push(list);
        }
        if lists.len() == before {
            return Err(MaterialError::Crl("holds no X509 CRL in PEM".to_owned()));
        }
    }
    Ok(lists)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<_, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.map_err(|_| "cannot be read as PEM".to_owned())
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err("holds something that is no X.509 certificate".to_owned()),
    }
}
