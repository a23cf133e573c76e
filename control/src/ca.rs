//! The trust domain's own keys: one long-lived root, whose pin users distribute, and the short-lived issuing CA that signs
//! workloads.
//!
//! The root signs issuing CAs and nothing else. An issuing CA is replaced while half of its life is left, so a leaf is
//! never cut short by its issuer; leaves of the old one stay valid, because they carry their issuer with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use postern_config::bundle::{BundleError, TrustBundle};
use postern_config::enroll::Pin;
use postern_config::file::control::ControlConfig;
use postern_config::id::TrustDomain;
use rcgen::{Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use crate::digest::{hex, sha256};

pub mod files;
mod profile;

use files::KeyFileError;
pub(crate) use profile::{serial, set_validity};

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A key file is missing, exposed or unreadable.
    #[error("{0}")]
    KeyFile(#[from] KeyFileError),
    /// A stored certificate is damaged or belongs to another key.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Key generation or signing failed.
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
    /// The system gave no randomness.
    #[error("no randomness from the system")]
    Random(#[from] aws_lc_rs::error::Unspecified),
    /// By this host's clock the issuing CA is not valid, so nothing that it signs would be.
    #[error(
        "this host's clock says {now}, but the issuing CA is valid from {from} until {until}: set the clock right; nothing \
         is issued until then"
    )]
    Clock {
        /// RFC 3339.
        now: String,
        /// RFC 3339.
        from: String,
        /// RFC 3339.
        until: String,
    },
    /// The root has ended.
    #[error("the root of this trust domain ended at {0}; a new one has to be created and distributed")]
    RootEnded(String),
}

/// An issuing CA that can sign.
pub struct Issuing {
    /// Its certificate, signed by the root.
    pub certificate: CertificateDer<'static>,
    /// Its subject key identifier.
    pub key_id: Vec<u8>,
    /// Its common name, such as `issuing 2026-11-22 3fa85f64`.
    pub name: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Signs with its key.
    pub signer: Issuer<'static, KeyPair>,
}

/// The trust domain's CA.
pub struct Ca {
    dir: PathBuf,
    trust_domain: TrustDomain,
    issuing_ttl: Duration,
    backdate: Duration,
    root: CertificateDer<'static>,
    root_ends: i64,
    pin: Pin,
    issuing: ArcSwap<Issuing>,
}

impl Ca {
    /// Opens the keys below `dir`, creating what is not there yet.
    pub fn open(
        dir: &Path,
        trust_domain: &TrustDomain,
        config: &ControlConfig,
        now: i64,
    ) -> Result<Self, CaError> {
        files::private_directory(dir)?;
        let backdate = config.svid.backdate.as_duration();
        let ends = at_end(now, config.ca.root_ttl.as_duration());
        let (root, _) = root(dir, trust_domain, (now - secs(backdate), ends))?;
        let (pin, root_ends) = pin_and_end(&root, &dir.join(ROOT_CERTIFICATE))?;
        if now >= root_ends {
            return Err(CaError::RootEnded(crate::clock::rfc3339(root_ends * 1000)));
        }
        let issuing_ttl = config.ca.issuing_ttl.as_duration();
        let issuing = match stored_issuing(dir)? {
            Some(issuing) if now < issuing.renew_at() && issuing.is_signed_by(&root) => issuing,
            _ => {
                let validity = (now - secs(backdate), at_end(now, issuing_ttl));
                new_issuing(dir, trust_domain, validity)?
            }
        };
        Ok(Self {
            dir: dir.to_owned(),
            trust_domain: trust_domain.clone(),
            issuing_ttl,
            backdate,
            root,
            root_ends,
            pin,
            issuing: ArcSwap::from_pointee(issuing),
        })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root's certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The root's notAfter, seconds since 1970.
    pub fn root_ends(&self) -> i64 {
        self.root_ends
    }

    /// SHA-256 of the root's public key: what a join string carries.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// The issuing CA that signs now.
    pub fn issuing(&self) -> Arc<Issuing> {
        self.issuing.load_full()
    }

    /// How far notBefore lies in the past.
    pub fn backdate(&self) -> Duration {
        self.backdate
    }

    /// The trust bundle: the root alone.
    pub fn bundle(&self, sequence: u64) -> Result<TrustBundle, BundleError> {
        TrustBundle::new(self.trust_domain.clone(), sequence, [self.root.clone()])
    }

    /// Creates a new issuing CA, which signs from now on. The root stays.
    pub fn rotate(&self, now: i64) -> Result<Arc<Issuing>, CaError> {
        let validity = (now - secs(self.backdate), at_end(now, self.issuing_ttl));
        let issuing = Arc::new(new_issuing(&self.dir, &self.trust_domain, validity)?);
        self.issuing.store(Arc::clone(&issuing));
        Ok(issuing)
    }
}

impl Issuing {
    /// When a successor should take over: half of the life is left (seconds since 1970).
    pub fn renew_at(&self) -> i64 {
        self.not_before + (self.not_after - self.not_before) / 2
    }

    fn is_signed_by(&self, root: &CertificateDer<'_>) -> bool {
        match (X509Certificate::from_der(&self.certificate), X509Certificate::from_der(root)) {
            (Ok((_, own)), Ok((_, root))) => {
                authority_key_id(&own).is_some_and(|id| Some(id) == subject_key_id(&root))
            }
            _ => false,
        }
    }
}

const ROOT_KEY: &str = "root.key";
const ROOT_CERTIFICATE: &str = "root.pem";
const ISSUING_KEY: &str = "issuing.key";
const ISSUING_CERTIFICATE: &str = "issuing.pem";

/// The root as stored, or a new one. The key is written first: a key without certificate is a first start that was
/// interrupted and is taken up again, a certificate without key is a loss that nobody should paper over.
fn root(
    dir: &Path,
    trust_domain: &TrustDomain,
    validity: (i64, i64),
) -> Result<(CertificateDer<'static>, KeyPair), CaError> {
    let (key_path, path) = (dir.join(ROOT_KEY), dir.join(ROOT_CERTIFICATE));
    let key = match files::read_key(&key_path)? {
        Some(key) => key,
        None if path.exists() => {
            return Err(CaError::Unusable { path: key_path, why: "the root's key is missing".to_owned() });
        }
        None => {
            let key = KeyPair::generate()?;
            files::write(&key_path, key.serialize_pem().as_bytes())?;
            key
        }
    };
    if !path.exists() {
        let certificate = profile::root(trust_domain, &key, validity)?.self_signed(&key)?;
        files::write(&path, certificate.pem().as_bytes())?;
    }
    let certificate = read_certificate(&path)?;
    check_key(&certificate, &key, &path)?;
    let subject = format!("spiffe://{trust_domain}");
    if !profile::names(&certificate).contains(&subject) {
        return Err(CaError::Unusable { path, why: format!("it is not the root of {trust_domain}") });
    }
    Ok((certificate, key))
}

/// The issuing CA as stored, if it is whole. Key and certificate are two files: a crash between them leaves a pair that does
/// not fit, and then a new one is made. A key that others can read is never passed over.
fn stored_issuing(dir: &Path) -> Result<Option<Issuing>, CaError> {
    let path = dir.join(ISSUING_CERTIFICATE);
    let key = match files::read_key(&dir.join(ISSUING_KEY)) {
        Ok(Some(key)) => key,
        Ok(None) | Err(KeyFileError::NoKey { .. }) => return Ok(None),
        Err(refused) => return Err(refused.into()),
    };
    let Ok(certificate) = read_certificate(&path) else { return Ok(None) };
    let fits = check_key(&certificate, &key, &path).is_ok();
    Ok(fits.then(|| issuing_from(certificate, key).ok()).flatten())
}

fn new_issuing(dir: &Path, trust_domain: &TrustDomain, validity: (i64, i64)) -> Result<Issuing, CaError> {
    let (root, root_key) = root(dir, trust_domain, validity)?;
    let (root_begins, root_ends) = match X509Certificate::from_der(&root) {
        Ok((_, c)) => (c.validity().not_before.timestamp(), c.validity().not_after.timestamp()),
        Err(_) => validity,
    };
    let validity = (validity.0.max(root_begins), validity.1.min(root_ends));
    let signer = Issuer::from_ca_cert_der(&root, root_key)?;
    let key = KeyPair::generate()?;
    let certificate = profile::issuing(trust_domain, &key, validity)?.signed_by(&key, &signer)?;
    files::write(&dir.join(ISSUING_KEY), key.serialize_pem().as_bytes())?;
    files::write(&dir.join(ISSUING_CERTIFICATE), certificate.pem().as_bytes())?;
    issuing_from(certificate.der().clone(), key)
}

fn issuing_from(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Issuing, CaError> {
    let unusable = |why: &str| CaError::Unusable { path: ISSUING_CERTIFICATE.into(), why: why.to_owned() };
    let (_, parsed) =
        X509Certificate::from_der(&certificate).map_err(|_| unusable("it is no certificate"))?;
    let key_id = subject_key_id(&parsed).ok_or_else(|| unusable("it has no subject key identifier"))?;
    let name =
        parsed.subject().iter_common_name().find_map(|cn| cn.as_str().ok()).unwrap_or_default().to_owned();
    let (not_before, not_after) =
        (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let signer = Issuer::from_ca_cert_der(&certificate, key)?;
    Ok(Issuing { key_id, name, not_before, not_after, signer, certificate })
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_file(path).map_err(|why| CaError::Unusable {
        path: path.to_owned(),
        why: format!("no readable certificate: {why}"),
    })
}

fn check_key(certificate: &CertificateDer<'_>, key: &KeyPair, path: &Path) -> Result<(), CaError> {
    use rcgen::PublicKeyData as _;
    match X509Certificate::from_der(certificate) {
        Ok((_, c)) if c.public_key().raw == key.subject_public_key_info() => Ok(()),
        Ok(_) => {
            Err(CaError::Unusable { path: path.to_owned(), why: "it belongs to another key".to_owned() })
        }
        Err(_) => Err(CaError::Unusable { path: path.to_owned(), why: "it is no certificate".to_owned() }),
    }
}

fn pin_and_end(root: &CertificateDer<'_>, path: &Path) -> Result<(Pin, i64), CaError> {
    let (_, parsed) = X509Certificate::from_der(root)
        .map_err(|_| CaError::Unusable { path: path.to_owned(), why: "it is no certificate".to_owned() })?;
    Ok((Pin(sha256(parsed.public_key().raw)), parsed.validity().not_after.timestamp()))
}

fn subject_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn authority_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0.to_vec()),
        _ => None,
    })
}

fn secs(span: Duration) -> i64 {
    i64::try_from(span.as_secs()).unwrap_or(i64::MAX)
}

fn at_end(now: i64, ttl: Duration) -> i64 {
    now.saturating_add(secs(ttl))
}

impl std::fmt::Debug for Issuing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuing({}, {})", self.name, hex(&self.key_id))
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ca({}, root {})", self.trust_domain, self.pin)
    }
}
