//! The trust domain's own keys: one long-lived root, whose pin users distribute, and the short-lived issuing CA that signs
//! workloads.
//!
//! The root signs issuing CAs and nothing else. An issuing CA is replaced while half of its life is left, so a leaf is
//! never cut short by its issuer; leaves of the old one stay valid, because they carry their issuer with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use postern_config::file::control::{CanaryConfig, ControlConfig};
use postern_config::id::TrustDomain;
use rcgen::Issuer;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use crate::clock::now_ms;
use crate::digest::hex;
use crate::store::{Store, StoreError};

mod authorities;
pub mod canary;
pub mod ceremony;
pub mod files;
pub mod keys;
mod places;
mod profile;
mod requests;
pub mod revocation;
mod root;
pub mod rotation;
mod trial;
pub mod turn;
mod upstream;

pub use authorities::{Authorities, Root};
use files::KeyFileError;
use keys::{Key, KeyError};
use places::Places;
pub(crate) use profile::{key_id, serial, set_validity};
use requests::Asking;
pub use requests::install;
pub use trial::{OnTrial, Trials};

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
    /// A key cannot be used now.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// A certificate that was signed elsewhere cannot be used.
    #[error("this certificate cannot sign for the mesh: {0}")]
    Chain(#[from] ceremony::ChainFault),
    /// Nobody waits for a certificate.
    #[error(
        "no replica waits for an issuing CA: `postern serve` asks for one when it starts without and when half of its life is over"
    )]
    NoRequest,
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
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's certificates cannot be used.
    #[error("the store's authority {name:?} cannot be used: {why}")]
    Authority {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The key of the own issuing CA, or of its root, is known to others, and its successor is not there yet.
    #[error("this replica's issuing CA or its root was tainted; nothing is issued until it has another one")]
    Tainted,
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
    /// Subject key identifier of the root that signed it, hex.
    pub issuer_id: String,
    /// Its common name, such as `issuing 2026-11-22 3fa85f64`.
    pub name: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Where its revocation list and its OCSP responder are, for the certificates that it signs.
    pub published: Option<Published>,
    /// Signs with its key.
    pub signer: Issuer<'static, Key>,
}

/// Where others learn what a CA has taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// `http://host:port`, without a slash at its end.
    pub url: String,
    /// How many lists its certificates are spread over.
    pub shards: u16,
}

/// The trust domain's CA, as this replica has it.
pub struct Ca {
    places: Places,
    trust_domain: TrustDomain,
    replica: String,
    terms: Terms,
    authorities: ArcSwap<Authorities>,
    issuing: ArcSwap<Issuing>,
    /// The issuing CA of a rotation's canary.
    trial: ArcSwapOption<OnTrial>,
    canary: CanaryConfig,
}

impl Ca {
    /// Opens the keys below `dir`. On a trust domain's first start the root is made here; on others a replica without the
    /// root's key waits until whoever holds it has signed its issuing CA, and says so by `waiting`.
    pub async fn open(
        dir: &Path,
        config: &ControlConfig,
        trust_domain: &TrustDomain,
        replica: &str,
        store: &Store,
        waiting: impl FnMut(&str),
    ) -> Result<Self, CaError> {
        files::private_directory(dir)?;
        let places = Places::new(dir, config);
        let now = now_ms() / 1000;
        let terms = Terms::new(config);
        let authorities = root::ensure(&places, trust_domain, &terms, store, now).await?;
        let root = authorities.active();
        if now >= root.not_after {
            return Err(CaError::RootEnded(crate::clock::rfc3339(root.not_after * 1000)));
        }
        let stored = stored_issuing(&places)?.filter(|i| now < i.renew_at() && authorities.vouches(i));
        let issuing = match stored {
            Some(issuing) => issuing,
            None => {
                let (places, terms, actor) = (&places, &terms, "control");
                let asking = Asking { places, trust_domain, replica, terms, store, actor, trial: None };
                requests::obtain(&asking, waiting).await?
            }
        };
        let ca = Self {
            places,
            trust_domain: trust_domain.clone(),
            replica: replica.to_owned(),
            terms,
            authorities: ArcSwap::from_pointee(Authorities::load(store).await?),
            issuing: ArcSwap::from_pointee(issuing),
            trial: ArcSwapOption::empty(),
            canary: config.ca.rotation.canary.clone(),
        };
        ca.keep_trial(store).await?;
        Ok(ca)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The trust domain's certificates, as the store had them when the last generation was built.
    pub fn authorities(&self) -> Arc<Authorities> {
        self.authorities.load_full()
    }

    /// Takes over what the store has now.
    pub(crate) fn set_authorities(&self, authorities: Authorities) {
        self.authorities.store(Arc::new(authorities));
    }

    /// The issuing CA that signs now.
    pub fn issuing(&self) -> Arc<Issuing> {
        self.issuing.load_full()
    }

    /// The issuing CA that signs now, unless nobody would believe what it signs.
    pub fn signing(&self) -> Result<Arc<Issuing>, CaError> {
        let issuing = self.issuing.load_full();
        if self.authorities.load().vouches(&issuing) { Ok(issuing) } else { Err(CaError::Tainted) }
    }

    /// How far notBefore lies in the past.
    pub fn backdate(&self) -> Duration {
        self.terms.backdate
    }

    /// Whether a new issuing CA is due at `now` (seconds since 1970): half of the life is over, it does not come from the
    /// root that signs now, or its successor has proven good. As long as one is on trial, time alone is no reason.
    pub fn is_due(&self, now: i64) -> bool {
        let issuing = self.issuing.load();
        let authorities = self.authorities.load();
        let is_old = issuing.issuer_id != authorities.active().key_id || authorities.is_superseded(&issuing);
        let is_time = now >= issuing.renew_at() && self.trial.load().is_none();
        is_time || is_old || authorities.is_tainted(&issuing)
    }

    /// What counts as a failure of a canary, and how it is done unless somebody asks for another way.
    pub fn canary(&self) -> &CanaryConfig {
        &self.canary
    }

    /// Lets a new issuing CA sign from now on, if this replica can have one at once; `false` if it has asked for one and waits.
    pub async fn rotate(&self, store: &Store, actor: &str) -> Result<bool, CaError> {
        let current = self.issuing.load_full();
        let asking = self.asking(store, actor, None);
        let Some(issuing) = requests::ask(&asking, Some(&current)).await? else { return Ok(false) };
        self.issuing.store(Arc::new(issuing));
        self.trial.store(None);
        Ok(true)
    }

    fn asking<'a>(
        &'a self,
        store: &'a Store,
        actor: &'a str,
        trial: Option<&'a rotation::Rotation>,
    ) -> Asking<'a> {
        Asking {
            places: &self.places,
            trust_domain: &self.trust_domain,
            replica: &self.replica,
            terms: &self.terms,
            store,
            actor,
            trial,
        }
    }

    /// The issuing CAs whose certificates may still be valid and whose keys are here: the one that signs now, then those of
    /// before. Without published lists nobody needs the latter, and they are not kept.
    pub fn issuers(&self, now: i64) -> Result<Vec<Arc<Issuing>>, CaError> {
        let mut all = vec![self.issuing.load_full()];
        all.extend(self.trial.load_full().map(|trial| Arc::clone(&trial.issuing)));
        all.extend(self.places.retired(now)?.into_iter().map(Arc::new));
        Ok(all)
    }

    /// The active root's certificate, and its key if that is here.
    pub fn root_signer(&self) -> Result<(CertificateDer<'static>, Option<Key>), CaError> {
        let authorities = self.authorities.load();
        let root = authorities.active();
        Ok((root.certificate.clone(), root::key_of(&self.places, root)?))
    }

    /// Asks the places of the keys whether they could sign: the issuing CA's, and the root's where that is here. Blocks.
    pub fn probe_keys(&self) -> [(&'static str, Result<(), KeyError>); 2] {
        let issuing = self.issuing.load().signer.key().probe();
        let root = match root::key_of(&self.places, self.authorities.load().active()) {
            Ok(Some(key)) => key.probe(),
            Err(CaError::Key(error)) => Err(error),
            // Elsewhere; or a certificate that cannot be read, which is said where it is used.
            Ok(None) | Err(_) => Ok(()),
        };
        [("issuing", issuing), ("root", root)]
    }

    /// Begins the root's rotation if that is due and its key is here.
    pub async fn rotate_root_if_due(&self, store: &Store, now: i64) -> Result<bool, CaError> {
        let authorities = self.authorities.load_full();
        if now < self.terms.root_due(authorities.active()) || authorities.prepared().is_some() {
            return Ok(false);
        }
        // What was rolled back once needs somebody who looks into it before it is tried again.
        let last = store.last_rotations().await?.into_iter().find(|r| r.kind == crate::store::Kind::Root);
        let is_fresh =
            |r: &rotation::Rotation| !r.reason.is_empty() && now - r.changed_at / 1000 < secs(AGAIN);
        if last.as_ref().is_some_and(is_fresh) {
            return Ok(false);
        }
        match self.begin_rotation(store, &turn::Begin::by_schedule(&self.canary), "control").await {
            Ok(_) => Ok(true),
            Err(turn::RotateError::Ca(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Signs the issuing CAs that other replicas wait for, if the root's key is here. Says whose it signed.
    pub async fn serve_requests(&self, store: &Store) -> Result<Vec<String>, CaError> {
        requests::serve(&self.places, &self.trust_domain, &self.terms, store).await
    }
}

/// How long a root's rotation that was rolled back is not begun again by itself.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// How long the trust domain's own certificates live, and how far they are backdated.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    root_ttl: Duration,
    issuing_ttl: Duration,
    backdate: Duration,
}

impl Terms {
    fn new(config: &ControlConfig) -> Self {
        Self {
            root_ttl: config.ca.root_ttl.as_duration(),
            issuing_ttl: config.ca.issuing_ttl.as_duration(),
            backdate: config.svid.backdate.as_duration(),
        }
    }

    fn root(&self, now: i64) -> (i64, i64) {
        (now - secs(self.backdate), at_end(now, self.root_ttl))
    }

    /// When a root's successor has to be on its way, seconds since 1970: a tenth of its life is left, or two lives of an issuing CA if
    /// that is more, but never before half of it is over.
    fn root_due(&self, root: &Root) -> i64 {
        let life = root.not_after - root.not_before;
        root.not_after - (life / 10).max(2 * secs(self.issuing_ttl)).min(life / 2)
    }

    /// Within the life of its root.
    fn issuing(&self, now: i64, root: &Root) -> (i64, i64) {
        ((now - secs(self.backdate)).max(root.not_before), at_end(now, self.issuing_ttl).min(root.not_after))
    }
}

impl Issuing {
    /// When a successor should take over: half of the life is left (seconds since 1970).
    pub fn renew_at(&self) -> i64 {
        self.not_before + (self.not_after - self.not_before) / 2
    }
}

const ISSUING_CERTIFICATE: &str = "issuing.pem";

/// The issuing CA as stored, if it is whole. Key and certificate are stored apart: a crash between them leaves a pair that does
/// not fit, and then a new one is made. A key that others can read is never passed over, nor is a token that does not answer.
fn stored_issuing(places: &Places) -> Result<Option<Issuing>, CaError> {
    let Ok(certificate) = read_certificate(&places.dir.join(ISSUING_CERTIFICATE)) else { return Ok(None) };
    let Some(key) = places.issuing_key(&certificate)? else { return Ok(None) };
    Ok(issuing_from(certificate, key).ok().map(|issuing| places.publish(issuing)))
}

fn issuing_from(certificate: CertificateDer<'static>, key: Key) -> Result<Issuing, CaError> {
    let unusable = |why: &str| CaError::Unusable { path: ISSUING_CERTIFICATE.into(), why: why.to_owned() };
    let (_, parsed) =
        X509Certificate::from_der(&certificate).map_err(|_| unusable("it is no certificate"))?;
    let key_id = subject_key_id(&parsed).ok_or_else(|| unusable("it has no subject key identifier"))?;
    let issuer_id =
        hex(&authority_key_id(&parsed).ok_or_else(|| unusable("it does not name its issuer's key"))?);
    let name =
        parsed.subject().iter_common_name().find_map(|cn| cn.as_str().ok()).unwrap_or_default().to_owned();
    let (not_before, not_after) =
        (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let signer = Issuer::from_ca_cert_der(&certificate, key)?;
    Ok(Issuing { key_id, issuer_id, name, not_before, not_after, published: None, signer, certificate })
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_file(path).map_err(|why| CaError::Unusable {
        path: path.to_owned(),
        why: format!("no readable certificate: {why}"),
    })
}

fn check_key(
    certificate: &CertificateDer<'_>,
    key: &impl rcgen::PublicKeyData,
    path: &Path,
) -> Result<(), CaError> {
    match X509Certificate::from_der(certificate) {
        Ok((_, c)) if c.public_key().raw == key.subject_public_key_info() => Ok(()),
        Ok(_) => {
            Err(CaError::Unusable { path: path.to_owned(), why: "it belongs to another key".to_owned() })
        }
        Err(_) => Err(CaError::Unusable { path: path.to_owned(), why: "it is no certificate".to_owned() }),
    }
}

/// SHA-256 of an authority's public key.
fn public_key(authority: &crate::store::Authority) -> Result<[u8; 32], CaError> {
    let unusable =
        |_| CaError::Authority { name: authority.name.clone(), why: "it is no certificate".to_owned() };
    let (_, parsed) = X509Certificate::from_der(&authority.der).map_err(unusable)?;
    Ok(crate::digest::sha256(parsed.public_key().raw))
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

pub(crate) fn secs(span: Duration) -> i64 {
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
        write!(f, "Ca({}, root {})", self.trust_domain, self.authorities.load().active().pin)
    }
}
