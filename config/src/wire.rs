//! Protobuf messages and their way into and out of the model. A message that cannot be read in full changes nothing.

use std::collections::{HashMap, HashSet};

use crate::bundle::{BundleError, BundleSet, TrustBundle};
use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::policy::{AuthorizationPolicy, MtlsModes, PeerAuthentication, PolicyError};
use crate::revocation::Revocations;
use crate::service::{Service, ServiceError};

/// The generated messages of `proto/control.proto`.
#[expect(missing_docs, reason = "generated; the .proto file documents each field")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/postern.control.v1.rs"));
}

impl std::fmt::Debug for v1::FetchJwtSvidResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FetchJwtSvidResponse")
            .field("expires_at_ms", &self.expires_at_ms)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for v1::EnrollRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EnrollRequest({:?}, secrets hidden)", self.instance)
    }
}

impl std::fmt::Debug for v1::enroll_request::Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::KubernetesToken(_) => "KubernetesToken(hidden)",
            Self::OidcToken(_) => "OidcToken(hidden)",
            Self::X509(_) => "X509",
            Self::Tpm(_) => "Tpm(hidden)",
        })
    }
}

/// The largest gRPC message that either side accepts, in bytes: policies of a large mesh fit, a bomb does not.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// The largest message from a proxy to the control plane, in bytes: a CSR, an acknowledgement, a few addresses.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A name is no trust domain or SPIFFE ID.
    #[error("{0:?}: {1}")]
    Id(String, IdError),
    /// A bundle document cannot be used.
    #[error("bundle of {0}: {1}")]
    Bundle(String, BundleError),
    /// A policy document cannot be used.
    #[error("{0}")]
    Policy(#[from] PolicyError),
    /// A service cannot be used.
    #[error("{0}")]
    Service(#[from] ServiceError),
    /// Two bundles of one trust domain, or two services of one name: neither is the right one.
    #[error("{0} stands twice in one message")]
    Twice(String),
    /// A tainted key is not named by 32 bytes.
    #[error("a revoked key is named by {0} bytes instead of 32")]
    Spki(usize),
}

fn parse_id(text: &str) -> Result<SpiffeId, WireError> {
    text.parse().map_err(|e| WireError::Id(text.to_owned(), e))
}

impl TryFrom<&v1::Bundle> for TrustBundle {
    type Error = WireError;

    fn try_from(message: &v1::Bundle) -> Result<Self, WireError> {
        let name = &message.trust_domain;
        let trust_domain: TrustDomain = name.parse().map_err(|e| WireError::Id(name.clone(), e))?;
        Self::parse(trust_domain, &message.document).map_err(|e| WireError::Bundle(name.clone(), e))
    }
}

impl From<&TrustBundle> for v1::Bundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self { trust_domain: bundle.trust_domain().to_string(), document: bundle.to_document() }
    }
}

impl TryFrom<&v1::BundleSet> for BundleSet {
    type Error = WireError;

    fn try_from(message: &v1::BundleSet) -> Result<Self, WireError> {
        refuse_twice(message.bundles.iter().map(|b| &b.trust_domain))?;
        message.bundles.iter().map(TrustBundle::try_from).collect()
    }
}

impl From<&BundleSet> for v1::BundleSet {
    fn from(set: &BundleSet) -> Self {
        Self { bundles: set.iter().map(|b| v1::Bundle::from(b.as_ref())).collect() }
    }
}

/// The policies of a message, in order, and the modes that its peer authentications come to.
pub fn policies(message: &v1::PolicySet) -> Result<(Vec<AuthorizationPolicy>, MtlsModes), WireError> {
    let policies = message.documents.iter().map(|d| Ok(AuthorizationPolicy::from_json(d)?));
    let peers = message.peer_authentications.iter().map(|d| Ok(PeerAuthentication::from_json(d)?));
    let policies = policies.collect::<Result<_, WireError>>()?;
    let peers = peers.collect::<Result<Vec<_>, WireError>>()?;
    Ok((policies, MtlsModes::effective(&peers, &message.root_namespace)))
}

impl TryFrom<&v1::RevocationSet> for Revocations {
    type Error = WireError;

    fn try_from(message: &v1::RevocationSet) -> Result<Self, WireError> {
        let mut identities = HashMap::new();
        for revoked in &message.identities {
            // Said twice, the later date holds: it refuses more.
            let before = identities.entry(parse_id(&revoked.spiffe_id)?).or_insert(i64::MIN);
            *before = revoked.issued_before.max(*before);
        }
        let spkis = message
            .spkis
            .iter()
            .map(|s| <[u8; 32]>::try_from(s.as_slice()).map_err(|_| WireError::Spki(s.len())));
        Ok(Self {
            serials: message.serials.iter().map(|r| (r.issuer_key_id.clone(), r.serial.clone())).collect(),
            identities,
            spkis: spkis.collect::<Result<HashSet<_>, WireError>>()?,
        })
    }
}

impl From<&Revocations> for v1::RevocationSet {
    fn from(revoked: &Revocations) -> Self {
        let serial = |(key, serial): &(Vec<u8>, Vec<u8>)| v1::RevokedSerial {
            issuer_key_id: key.clone(),
            serial: serial.clone(),
        };
        let identity = |(id, before): (&SpiffeId, &i64)| v1::RevokedIdentity {
            spiffe_id: id.to_string(),
            issued_before: *before,
        };
        Self {
            serials: revoked.serials.iter().map(serial).collect(),
            identities: revoked.identities.iter().map(identity).collect(),
            spkis: revoked.spkis.iter().map(|s| s.to_vec()).collect(),
        }
    }
}

/// The services of a message, each with the endpoints that are known now; none at all is allowed.
pub fn services(message: &v1::ServiceSet) -> Result<Vec<Service>, WireError> {
    let service = |s: &v1::Service| {
        let service = Service {
            name: s.name.clone(),
            identity: parse_id(&s.spiffe_id)?,
            endpoints: s.endpoints.clone(),
        };
        service.check()?;
        Ok(service)
    };
    refuse_twice(message.services.iter().map(|s| &s.name))?;
    message.services.iter().map(service).collect()
}

fn refuse_twice<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), WireError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(WireError::Twice(name.clone()));
        }
    }
    Ok(())
}
