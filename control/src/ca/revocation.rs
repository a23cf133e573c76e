//! What a CA has taken back, for verifiers that are not told by push: signed lists (RFC 5280 §5) and OCSP (RFC 6960).
//!
//! A list is made when somebody asks for it and the one before is older than the newest revocation or half over, so it costs one
//! signature for all who ask. What stands in it comes from the same entries that proxies are told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use postern_config::file::control::RevocationConfig;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint,
    CrlScope, CustomExtension, Issuer, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use tokio::sync::Mutex;
use x509_cert::der::Encode as _;
use x509_cert::der::asn1::{Ia5String, ObjectIdentifier};
use x509_cert::ext::pkix::{AccessDescription, AuthorityInfoAccessSyntax, name::GeneralName};

use super::keys::Key;
use super::{Ca, CaError, Published};
use crate::clock::now_ms;
use crate::digest::{hex, unhex};
use crate::store::{Kind, RevokedCertificate, State, Store};

pub mod ocsp;

const AUTHORITY_INFO_ACCESS: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 1, 1];
const OCSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");

/// Which certificates of a CA a list is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All: for verifiers that are given files, such as nginx.
    All,
    /// Those whose serial falls to this shard: what their distribution point names.
    Shard(u16),
}

/// The lists as they were last signed.
#[derive(Debug)]
pub struct Lists {
    ca: Arc<Ca>,
    store: Store,
    config: RevocationConfig,
    made: Mutex<HashMap<(String, Scope), Made>>,
}

#[derive(Debug, Clone)]
struct Made {
    der: Vec<u8>,
    generation: u64,
    at: i64,
}

/// Says in a certificate where the list is that would hold it, and who answers for it.
pub(crate) fn point_to(
    params: &mut CertificateParams,
    published: &Published,
    key_id: &[u8],
    serial: &SerialNumber,
) {
    let shard = shard_of(serial.as_ref(), published.shards);
    params.crl_distribution_points =
        vec![CrlDistributionPoint { uris: vec![url_of(published, &hex(key_id), shard)] }];
    let responder =
        Ia5String::new(&format!("{}/ocsp", published.url)).map(GeneralName::UniformResourceIdentifier);
    let access = responder.and_then(|location| {
        AuthorityInfoAccessSyntax(vec![AccessDescription { access_method: OCSP, access_location: location }])
            .to_der()
    });
    // The URL was checked with the configuration: it is ASCII and short.
    if let Ok(der) = access {
        params.custom_extensions.push(CustomExtension::from_oid_content(AUTHORITY_INFO_ACCESS, der));
    }
}

fn url_of(published: &Published, key_id: &str, shard: u16) -> String {
    format!("{}/crl/{key_id}/{shard}.crl", published.url)
}

/// Serials are random, so their last byte spreads them evenly.
fn shard_of(serial: &[u8], shards: u16) -> u16 {
    u16::from(serial.last().copied().unwrap_or_default()) % shards.max(1)
}

impl Lists {
    /// Nothing is signed yet.
    pub fn new(ca: Arc<Ca>, store: Store, config: RevocationConfig) -> Self {
        Self { ca, store, config, made: Mutex::default() }
    }

    /// The list of the CA with this key identifier (hex), DER; `None` if its key is not here, or there is no such shard.
    pub async fn list(&self, key_id: &str, scope: Scope) -> Result<Option<Vec<u8>>, CaError> {
        if matches!(scope, Scope::Shard(shard) if shard >= self.config.shards) {
            return Ok(None);
        }
        let generation = self.store.counter("generation").await?;
        let now = now_ms() / 1000;
        let validity = super::secs(self.config.validity.as_duration());
        // Held while a list is made: whoever else asks for one waits, and finds it.
        let mut made = self.made.lock().await;
        let known = made.get(&(key_id.to_owned(), scope));
        let fresh = |m: &&Made| m.generation == generation && (0..validity / 2).contains(&(now - m.at));
        if let Some(known) = known.filter(fresh) {
            return Ok(Some(known.der.clone()));
        }
        let Some(der) = self.make(key_id, scope, (now, now + validity)).await? else { return Ok(None) };
        made.retain(|_, m| now - m.at < validity);
        made.insert((key_id.to_owned(), scope), Made { der: der.clone(), generation, at: now });
        Ok(Some(der))
    }

    async fn make(&self, key_id: &str, scope: Scope, span: (i64, i64)) -> Result<Option<Vec<u8>>, CaError> {
        let issuers = self.ca.issuers(span.0)?;
        if let Some(issuing) = issuers.iter().find(|i| hex(&i.key_id) == key_id) {
            let all = self.store.revoked_certificates(key_id, now_ms()).await?;
            return sign(&issuing.signer, &issuing.key_id, issuing.published.as_ref(), scope, &all, span)
                .map(Some);
        }
        let authorities = self.ca.authorities();
        let root = authorities.active();
        let (certificate, Some(key)) = self.ca.root_signer()? else { return Ok(None) };
        if root.key_id != key_id || scope != Scope::All {
            return Ok(None);
        }
        let signer = Issuer::from_ca_cert_der(&certificate, key)?;
        let tainted = self.tainted(&root.key_id).await?;
        let id = unhex(&root.key_id).unwrap_or_default();
        sign(&signer, &id, None, scope, &tainted, span).map(Some)
    }

    /// Issuing CAs of a root whose keys are known to others.
    async fn tainted(&self, root: &str) -> Result<Vec<RevokedCertificate>, CaError> {
        let all = self.store.authorities().await?;
        let tainted = all
            .into_iter()
            .filter(|a| a.kind == Kind::Issuing && a.state == State::Tainted && a.issuer == root);
        Ok(tainted
            .filter_map(|a| {
                let (_, parsed) = x509_parser::parse_x509_certificate(&a.der).ok()?;
                let serial = crate::digest::serial_hex(parsed.raw_serial());
                Some(RevokedCertificate { serial, reason: "cACompromise".to_owned(), at: now_ms() })
            })
            .collect())
    }
}

fn sign(
    signer: &Issuer<'_, Key>,
    key_id: &[u8],
    published: Option<&Published>,
    scope: Scope,
    all: &[RevokedCertificate],
    (now, until): (i64, i64),
) -> Result<Vec<u8>, CaError> {
    let shards = published.map_or(1, |p| p.shards);
    let is_in = |serial: &[u8]| match scope {
        Scope::All => true,
        Scope::Shard(shard) => shard_of(serial, shards) == shard,
    };
    let entries = all.iter().filter_map(|r| Some((unhex(&r.serial)?, r))).filter(|(serial, _)| is_in(serial));
    let point = match (scope, published) {
        (Scope::Shard(shard), Some(published)) => Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris: vec![url_of(published, &hex(key_id), shard)] },
            scope: Some(CrlScope::UserCertsOnly),
        }),
        _ => None,
    };
    let at =
        |secs: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(secs).unwrap_or(0));
    let list = CertificateRevocationListParams {
        this_update: at(now),
        next_update: at(until),
        // Grows with time, and so across restarts: nothing has to be remembered for it.
        crl_number: SerialNumber::from(u64::try_from(now_ms()).unwrap_or_default()),
        issuing_distribution_point: point,
        revoked_certs: entries
            .map(|(serial, revoked)| RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time: at(revoked.at.min(now_ms()) / 1000),
                reason_code: reason(&revoked.reason),
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: KeyIdMethod::PreSpecified(key_id.to_vec()),
    };
    let signed = list.signed_by(signer).map_err(|e| signer.key().failed(e))?;
    Ok(signed.der().to_vec())
}

/// `unspecified` is better left out (RFC 5280 §5.3.1).
fn reason(word: &str) -> Option<RevocationReason> {
    Some(match word {
        "keyCompromise" => RevocationReason::KeyCompromise,
        "cACompromise" => RevocationReason::CaCompromise,
        "affiliationChanged" => RevocationReason::AffiliationChanged,
        "superseded" => RevocationReason::Superseded,
        "cessationOfOperation" => RevocationReason::CessationOfOperation,
        "privilegeWithdrawn" => RevocationReason::PrivilegeWithdrawn,
        _ => return None,
    })
}
