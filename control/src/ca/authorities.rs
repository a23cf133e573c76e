//! The trust domain's certificates as the store has them: which roots are believed, which one signs, and what stands above an
//! issuing CA.

use postern_config::bundle::{BundleError, TrustBundle};
use postern_config::enroll::Pin;
use postern_config::id::TrustDomain;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{CaError, Issuing};
use crate::digest::{hex, sha256};
use crate::store::{Authority, Kind, State, Store};

/// A root.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    /// Its certificate, signed by itself.
    pub certificate: CertificateDer<'static>,
    /// The same key and name, signed by the root before it: for whoever believes in that one alone.
    pub cross: Option<CertificateDer<'static>>,
    /// Key id of the root before it, which signed `cross`; hex.
    pub before: Option<String>,
    /// Subject key identifier, hex.
    pub key_id: String,
    /// SHA-256 of its public key: what a join string carries.
    pub pin: Pin,
    /// Where it is in its life.
    pub state: State,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// Every root that is not pruned, oldest first; one of them is active.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorities {
    roots: Vec<Root>,
    active: usize,
    /// Key ids of issuing CAs that were tainted, hex.
    tainted: Vec<String>,
    /// Key ids of issuing CAs that sign no more, hex.
    retired: Vec<String>,
}

impl Authorities {
    /// What the store has now.
    pub async fn load(store: &Store) -> Result<Self, CaError> {
        Self::new(&store.authorities().await?)
    }

    /// From the store's rows.
    pub fn new(rows: &[Authority]) -> Result<Self, CaError> {
        let roots =
            rows.iter().filter(|a| a.kind == Kind::Root).map(Root::read).collect::<Result<Vec<_>, _>>()?;
        let active = roots.iter().rposition(|r| r.state == State::Active);
        let missing =
            || CaError::Authority { name: "root".to_owned(), why: "there is no active one".to_owned() };
        let issuing = |state| {
            let those = rows.iter().filter(move |a| a.kind == Kind::Issuing && a.state == state);
            those.map(|a| a.key_id.clone()).collect()
        };
        let (tainted, retired) = (issuing(State::Tainted), issuing(State::Retired));
        Ok(Self { active: active.ok_or_else(missing)?, roots, tainted, retired })
    }

    /// The root that signs issuing CAs now.
    pub fn active(&self) -> &Root {
        &self.roots[self.active]
    }

    /// The root that comes next, while a rotation prepares it.
    pub fn prepared(&self) -> Option<&Root> {
        self.roots.iter().rfind(|r| r.state == State::Prepared)
    }

    /// The root with this key id.
    pub fn root(&self, key_id: &str) -> Option<&Root> {
        self.roots.iter().find(|r| r.key_id == key_id)
    }

    /// All roots that are believed.
    pub fn trusted(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter().filter(|r| r.state.is_trusted())
    }

    /// What a join string carries: the pin of the active root, and of the next one.
    pub fn pins(&self) -> Vec<Pin> {
        std::iter::once(self.active()).chain(self.prepared()).map(|r| r.pin).collect()
    }

    /// The trust bundle.
    pub fn bundle(&self, trust_domain: &TrustDomain, sequence: u64) -> Result<TrustBundle, BundleError> {
        TrustBundle::new(trust_domain.clone(), sequence, self.trusted().map(|r| r.certificate.clone()))
    }

    /// The trust bundle with roots that were tainted: what they have signed may be replaced, if it is on record.
    pub fn bundle_with_tainted(&self, trust_domain: &TrustDomain) -> Result<TrustBundle, BundleError> {
        let all = self.roots.iter().filter(|r| r.state.is_trusted() || r.state == State::Tainted);
        TrustBundle::new(trust_domain.clone(), 0, all.map(|r| r.certificate.clone()))
    }

    /// Whether the key of this issuing CA is known to others.
    pub fn is_tainted(&self, issuing: &Issuing) -> bool {
        self.tainted.contains(&hex(&issuing.key_id))
    }

    /// Whether another issuing CA has taken this one's place.
    pub fn is_superseded(&self, issuing: &Issuing) -> bool {
        self.retired.contains(&hex(&issuing.key_id))
    }

    /// Whether `issuing` was signed by a root that is believed.
    pub fn vouches(&self, issuing: &Issuing) -> bool {
        self.trusted().any(|r| r.key_id == issuing.issuer_id) && !self.is_tainted(issuing)
    }

    /// What stands above `issuing`, for a peer that knows one root only, be it this one or the one before: the root, or the root as
    /// signed by the one before, with that one. A pin of either fits one of them, and a chain has four members at most.
    pub fn above(&self, issuing: &Issuing) -> Vec<CertificateDer<'static>> {
        let Some(root) = self.roots.iter().find(|r| r.key_id == issuing.issuer_id) else { return Vec::new() };
        let Some(cross) = &root.cross else { return vec![root.certificate.clone()] };
        let before = self.trusted().find(|r| Some(&r.key_id) == root.before.as_ref());
        vec![cross.clone(), before.map_or(&root.certificate, |r| &r.certificate).clone()]
    }
}

impl Root {
    fn read(row: &Authority) -> Result<Self, CaError> {
        let unusable = |why: &str| CaError::Authority { name: row.name.clone(), why: why.to_owned() };
        let (_, parsed) =
            X509Certificate::from_der(&row.der).map_err(|_| unusable("it is no certificate"))?;
        let cross = (!row.cross_der.is_empty()).then(|| CertificateDer::from(row.cross_der.clone()));
        Ok(Self {
            pin: Pin(sha256(parsed.public_key().raw)),
            certificate: CertificateDer::from(row.der.clone()),
            before: cross.as_ref().and_then(|c| issuer_of(c)),
            cross,
            key_id: row.key_id.clone(),
            state: row.state,
            not_before: row.not_before,
            not_after: row.not_after,
        })
    }
}

fn issuer_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    super::authority_key_id(&parsed).map(|id| hex(&id))
}

/// A certificate as PEM.
pub(super) fn pem(der: &[u8]) -> String {
    super::ceremony::pem("CERTIFICATE", der)
}
