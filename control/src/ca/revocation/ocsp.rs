//! OCSP (RFC 6960, and RFC 9654 for nonces): is this certificate of ours still good? Signed by the CA that issued it.
//!
//! "Good" is said of certificates that are on record alone; what was never issued is unknown, not good.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use postern_config::file::control::RevocationConfig;
use rcgen::PublicKeyData as _;
use tokio::sync::Semaphore;
use x509_cert::Certificate;
use x509_cert::der::asn1::{BitString, GeneralizedTime, ObjectIdentifier, OctetString};
use x509_cert::der::{DateTime, Decode as _, Encode as _};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::CrlReason;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspRequest, OcspResponse, ResponderId,
    ResponseData, RevokedInfo, SingleResponse, Version,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::ca::{Ca, CaError, Issuing};
use crate::clock::now_ms;
use crate::digest::{hex, serial_hex};
use crate::store::{Standing, Store};

/// The largest request, in bytes.
pub const MAX_REQUEST: usize = 4 * 1024;
/// How many certificates one request may ask about.
const MAX_ASKED: usize = 8;
/// The longest nonce (RFC 9654 §2.1 asks for 32 at least, and allows 128).
const MAX_NONCE: usize = 128;
/// How many answers are made at once; beyond, the caller is told to try later. Each costs a signature, maybe of a token.
const AT_ONCE: usize = 16;

const SHA1_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const NONCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.2");

/// Answers for the issuing CAs whose keys are here.
#[derive(Debug)]
pub struct Responder {
    ca: Arc<Ca>,
    store: Store,
    validity: i64,
    turns: Semaphore,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// OCSPResponse, DER.
    pub der: Vec<u8>,
    /// How long others may keep it, in seconds; zero for one that was made for one caller.
    pub max_age: i64,
}

/// Why there is no answer with a body.
enum Fault {
    Malformed,
    Unauthorized,
    Later,
}

impl Responder {
    /// A responder over this store.
    pub fn new(ca: Arc<Ca>, store: Store, config: &RevocationConfig) -> Self {
        let validity = crate::ca::secs(config.validity.as_duration());
        Self { ca, store, validity, turns: Semaphore::new(AT_ONCE) }
    }

    /// Answers a request (OCSPRequest, DER). There is always an answer; most mistakes are one without a body.
    pub async fn answer(&self, request: &[u8]) -> Answer {
        let refused = match self.respond(request).await {
            Ok(answer) => return answer,
            Err(Fault::Malformed) => OcspResponse::malformed_request(),
            Err(Fault::Unauthorized) => OcspResponse::unauthorized(),
            Err(Fault::Later) => OcspResponse::try_later(),
        };
        Answer { der: refused.to_der().unwrap_or_default(), max_age: 0 }
    }

    async fn respond(&self, request: &[u8]) -> Result<Answer, Fault> {
        if request.len() > MAX_REQUEST {
            return Err(Fault::Malformed);
        }
        let request = OcspRequest::from_der(request).map_err(|_| Fault::Malformed)?.tbs_request;
        if request.request_list.is_empty() || request.request_list.len() > MAX_ASKED {
            return Err(Fault::Malformed);
        }
        let nonce = nonce(request.request_extensions.as_deref().unwrap_or_default())?;
        let _turn = self.turns.try_acquire().map_err(|_| Fault::Later)?;
        let now = now_ms() / 1000;
        let issuers = self.ca.issuers(now).map_err(|error| later(&error))?;
        let first = &request.request_list[0].req_cert;
        // One signature is for one issuer. Whose certificates these are not, for them we have no word (RFC 6960 §2.3).
        let issuing = issuers.iter().find(|issuing| is_of(first, issuing)).ok_or(Fault::Unauthorized)?;
        let mut responses = Vec::with_capacity(request.request_list.len());
        for asked in &request.request_list {
            if !is_of(&asked.req_cert, issuing) {
                return Err(Fault::Unauthorized);
            }
            responses.push(self.single(&asked.req_cert, issuing, now).await?);
        }
        let max_age = if nonce.is_some() { 0 } else { self.validity / 2 };
        let data = ResponseData {
            version: Version::V1,
            responder_id: ResponderId::ByKey(
                OctetString::new(key_hash(&SHA1_FOR_LEGACY_USE_ONLY, issuing)).map_err(|_| Fault::Later)?,
            ),
            produced_at: time(now)?,
            responses,
            response_extensions: nonce.map(|nonce| vec![nonce]),
        };
        Ok(Answer { der: sign(issuing, data)?, max_age })
    }

    async fn single(&self, asked: &CertId, issuing: &Issuing, now: i64) -> Result<SingleResponse, Fault> {
        let serial = serial_hex(asked.serial_number.as_bytes());
        let standing = self.store.standing(&hex(&issuing.key_id), &serial).await;
        let cert_status = match standing.map_err(|error| later(&error.into()))? {
            Standing::Good => CertStatus::good(),
            Standing::Unknown => CertStatus::unknown(),
            Standing::Revoked(revoked) => CertStatus::Revoked(RevokedInfo {
                revocation_time: time(revoked.at.div_euclid(1000).min(now))?,
                revocation_reason: reason(&revoked.reason),
            }),
        };
        Ok(SingleResponse {
            cert_id: asked.clone(),
            cert_status,
            this_update: time(now)?,
            next_update: Some(time(now + self.validity)?),
            single_extensions: None,
        })
    }
}

/// Whether a request is about a certificate of this CA.
fn is_of(asked: &CertId, issuing: &Issuing) -> bool {
    let algorithm = match asked.hash_algorithm.oid {
        SHA1_OID => &SHA1_FOR_LEGACY_USE_ONLY,
        SHA256_OID => &SHA256,
        _ => return false,
    };
    let Ok((_, certificate)) = X509Certificate::from_der(&issuing.certificate) else { return false };
    asked.issuer_name_hash.as_bytes() == digest(algorithm, certificate.subject().as_raw()).as_ref()
        && asked.issuer_key_hash.as_bytes() == key_hash(algorithm, issuing)
}

/// The digest of the public key's bits, without its algorithm.
fn key_hash(algorithm: &'static aws_lc_rs::digest::Algorithm, issuing: &Issuing) -> Vec<u8> {
    digest(algorithm, issuing.signer.key().der_bytes()).as_ref().to_vec()
}

/// The nonce's extension, to be sent back as it came.
fn nonce(extensions: &[Extension]) -> Result<Option<Extension>, Fault> {
    let mut found = extensions.iter().filter(|e| e.extn_id == NONCE);
    let (nonce, None) = (found.next(), found.next()) else { return Err(Fault::Malformed) };
    // Any other critical extension asks for something that is not done here.
    if extensions.iter().any(|e| e.critical && e.extn_id != NONCE) {
        return Err(Fault::Malformed);
    }
    match nonce {
        Some(nonce) if nonce.extn_value.as_bytes().len() > MAX_NONCE + 3 => Err(Fault::Malformed),
        Some(nonce) => Ok(Some(Extension { critical: false, ..nonce.clone() })),
        None => Ok(None),
    }
}

fn sign(issuing: &Issuing, data: ResponseData) -> Result<Vec<u8>, Fault> {
    let broken = |_| Fault::Later;
    let key = issuing.signer.key();
    let oid = match key.der_bytes().len() {
        65 => ECDSA_SHA256,
        97 => ECDSA_SHA384,
        _ => return Err(Fault::Later),
    };
    let signature = key.signature(&data.to_der().map_err(broken)?).map_err(|error| later(&error.into()))?;
    let basic = BasicOcspResponse {
        tbs_response_data: data,
        signature_algorithm: AlgorithmIdentifierOwned { oid, parameters: None },
        signature: BitString::from_bytes(&signature).map_err(broken)?,
        // For verifiers that hold the root alone.
        certs: Certificate::from_der(&issuing.certificate).ok().map(|certificate| vec![certificate]),
    };
    OcspResponse::successful(basic).and_then(|response| response.to_der()).map_err(broken)
}

fn time(secs: i64) -> Result<OcspGeneralizedTime, Fault> {
    let since = std::time::Duration::from_secs(u64::try_from(secs).unwrap_or_default());
    let time = DateTime::from_unix_duration(since).map_err(|_| Fault::Later)?;
    Ok(OcspGeneralizedTime(GeneralizedTime::from_date_time(time)))
}

fn reason(word: &str) -> Option<CrlReason> {
    Some(match word {
        "keyCompromise" => CrlReason::KeyCompromise,
        "affiliationChanged" => CrlReason::AffiliationChanged,
        "superseded" => CrlReason::Superseded,
        "cessationOfOperation" => CrlReason::CessationOfOperation,
        "privilegeWithdrawn" => CrlReason::PrivilegeWithdrawn,
        _ => return None,
    })
}

fn later(error: &CaError) -> Fault {
    tracing::warn!(%error, "an OCSP request cannot be answered for now");
    Fault::Later
}
