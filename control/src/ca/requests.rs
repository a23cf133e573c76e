//! How a replica gets its issuing CA: whoever holds the active root's key signs at once, the others ask through the store.
//!
//! A request is believed if the replica's issuing key of before has signed it, or if an operator has approved its key by
//! fingerprint on the host that holds the root (`postern ca approve`): writing to the store alone makes nobody a CA.

use std::time::Duration;

use postern_config::id::TrustDomain;
use rcgen::{Issuer, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::authorities::{Authorities, Root, pem};
use super::ceremony::{self, ChainFault};
use super::keys::Key;
use super::places::Places;
use super::rotation::Rotation;
use super::{CaError, Issuing, Terms, issuing_from, profile, root, upstream};
use crate::audit::Entry;
use crate::clock::now_ms;
use crate::digest::{hex, sha256};
use crate::issue::csr::{Csr, SubjectKey};
use crate::store::{Authority, IssuingRequest, Kind, State, Store};

/// How often a replica that cannot start without its issuing CA looks whether it is there.
const LOOK: Duration = Duration::from_millis(250);
/// What the key of before signs: separated from whatever else it signs.
const PROOF: &[u8] = b"postern-issuing-request-v1\0";

/// Who asks, and for what.
pub(super) struct Asking<'a> {
    pub(super) places: &'a Places,
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) replica: &'a str,
    pub(super) terms: &'a Terms,
    pub(super) store: &'a Store,
    pub(super) actor: &'a str,
    /// The rotation that shall try it; without, it signs at once.
    pub(super) trial: Option<&'a Rotation>,
}

/// Asks until there is an issuing CA. `waiting` is told the fingerprint that an operator has to approve, once.
pub(super) async fn obtain(asking: &Asking<'_>, mut waiting: impl FnMut(&str)) -> Result<Issuing, CaError> {
    let mut told = false;
    loop {
        if let Some(issuing) = ask(asking, None).await? {
            return Ok(issuing);
        }
        if !std::mem::replace(&mut told, true) {
            waiting(&hex(&sha256(&asking.places.next_key()?.subject_public_key_info())));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One step towards a new issuing CA: signs it if the root's key is here, takes the answer if there is one, asks otherwise.
pub(super) async fn ask(asking: &Asking<'_>, current: Option<&Issuing>) -> Result<Option<Issuing>, CaError> {
    let rows = asking.store.authorities().await?;
    let authorities = Authorities::new(&rows)?;
    let mut key = asking.places.next_key()?;
    // By its key: whoever signed it elsewhere may have made the key identifier by another method.
    let spki = key.subject_public_key_info();
    let is_answer = |a: &&Authority| {
        a.replica == asking.replica
            && X509Certificate::from_der(&a.der).is_ok_and(|(_, c)| c.public_key().raw == spki)
    };
    if let Some(answer) = rows.iter().find(is_answer) {
        let certificate = CertificateDer::from(answer.der.clone());
        let is_usable = matches!(answer.state, State::Active | State::Prepared);
        match asking.trial {
            _ if !is_usable || answer.not_after <= now_ms() / 1000 => {
                // An answer from long ago, to a process that did not live to see it; or one that was withdrawn after a trial.
                asking.places.keep_withdrawn(&key, &certificate)?;
                asking.places.forget_next()?;
                key = asking.places.next_key()?;
            }
            Some(trial) if trial.tries(answer) => {
                return Ok(Some(asking.places.publish(issuing_from(certificate, key)?)));
            }
            // It was asked for before the trial began, and is taken over first.
            Some(_) => return Ok(None),
            None => {
                if answer.state == State::Prepared {
                    let row = Authority { state: State::Active, ..answer.clone() };
                    record(asking.store, row, asking.actor).await?;
                }
                return take(asking.places, &certificate, key).map(Some);
            }
        }
    }
    // An issuing CA that is tried on its own was signed when its trial began; that its key is lost ends the trial, not more.
    let wanted = asking.trial.map(|trial| trial.new_root.as_str());
    let root = match wanted.map(|key_id| authorities.root(key_id)) {
        None => authorities.active(),
        Some(Some(root)) => root,
        Some(None) => return Ok(None),
    };
    if let Some(root_key) = root::key_of(asking.places, root)? {
        let certificate = sign(asking.trust_domain, asking.terms, root, root_key, &key)?;
        let row = row_of(&certificate, asking.replica)?;
        if wanted.is_some() {
            record(asking.store, Authority { state: State::Prepared, ..row }, asking.actor).await?;
            return Ok(Some(asking.places.publish(issuing_from(certificate, key)?)));
        }
        record(asking.store, row, asking.actor).await?;
        return take(asking.places, &certificate, key).map(Some);
    }
    if let Some(upstream) = &asking.places.upstream {
        let validity = asking.terms.issuing(now_ms() / 1000, root);
        let certificate = upstream::issuing(upstream, asking.trust_domain, &key, root, validity)?;
        let row = row_of(&certificate, asking.replica)?;
        record(asking.store, row, asking.actor).await?;
        return take(asking.places, &certificate, key).map(Some);
    }
    let asked = asking.store.issuing_requests().await?;
    let spki = hex(&sha256(&key.subject_public_key_info()));
    let is_same = |r: &IssuingRequest| {
        r.replica == asking.replica && r.spki == spki && r.root == wanted.unwrap_or_default()
    };
    if !asked.iter().any(is_same) {
        put(asking, &key, current).await?;
    }
    Ok(None)
}

/// An issuing CA that can be tried, signed and not on record yet; `None` where nobody can sign it at once.
pub(super) async fn prepare(asking: &Asking<'_>) -> Result<Option<Authority>, CaError> {
    let rows = asking.store.authorities().await?;
    let authorities = Authorities::new(&rows)?;
    let root = authorities.active();
    let mut key = asking.places.next_key()?;
    let spki = key.subject_public_key_info();
    let is_taken =
        |a: &Authority| X509Certificate::from_der(&a.der).is_ok_and(|(_, c)| c.public_key().raw == spki);
    if rows.iter().any(is_taken) {
        asking.places.forget_next()?;
        key = asking.places.next_key()?;
    }
    let certificate = match (root::key_of(asking.places, root)?, &asking.places.upstream) {
        (Some(root_key), _) => sign(asking.trust_domain, asking.terms, root, root_key, &key)?,
        (None, Some(upstream)) => {
            let validity = asking.terms.issuing(now_ms() / 1000, root);
            upstream::issuing(upstream, asking.trust_domain, &key, root, validity)?
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(Authority { state: State::Prepared, ..row_of(&certificate, asking.replica)? }))
}

/// Signs what other replicas ask for and may have.
pub(super) async fn serve(
    places: &Places,
    trust_domain: &TrustDomain,
    terms: &Terms,
    store: &Store,
) -> Result<Vec<String>, CaError> {
    let requests = store.issuing_requests().await?;
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let rows = store.authorities().await?;
    let authorities = Authorities::new(&rows)?;
    let mut served = Vec::new();
    for request in requests {
        let Some((root, state)) = asked(&authorities, &request) else { continue };
        let Some(root_key) = root::key_of(places, root)? else { continue };
        let Some(key) = believed(&request, &rows) else { continue };
        let certificate = sign(trust_domain, terms, root, root_key, &key)?;
        let row = Authority { state, ..row_of(&certificate, &request.replica)? };
        record(store, row, "control").await?;
        served.push(request.replica);
    }
    Ok(served)
}

/// The root that a request is for, and where the CA is in its life that it signs: on trial if the root is.
fn asked<'a>(authorities: &'a Authorities, request: &IssuingRequest) -> Option<(&'a Root, State)> {
    if request.root.is_empty() {
        return Some((authorities.active(), State::Active));
    }
    let root = authorities.root(&request.root)?;
    matches!(root.state, State::Active | State::Prepared).then_some((root, root.state))
}

/// The key of a request that may be signed.
fn believed(request: &IssuingRequest, authorities: &[Authority]) -> Option<SubjectKey> {
    let csr = Csr::parse(&request.csr).ok()?;
    let spki = hex(&csr.key.hash());
    if spki != request.spki {
        return None;
    }
    if request.approved == spki {
        return Some(csr.key);
    }
    let before = authorities.iter().find(|a| {
        a.kind == Kind::Issuing
            && a.key_id == request.proved_by
            && a.replica == request.replica
            && a.state == State::Active
    })?;
    if before.not_after * 1000 <= now_ms() {
        return None;
    }
    let (_, certificate) = X509Certificate::from_der(&before.der).ok()?;
    let key = SubjectKey::read(certificate.public_key()).ok()?;
    key.verify(&[PROOF, &request.csr].concat(), &request.proof).then_some(csr.key)
}

fn sign(
    trust_domain: &TrustDomain,
    terms: &Terms,
    root: &Root,
    root_key: Key,
    key: &impl rcgen::PublicKeyData,
) -> Result<CertificateDer<'static>, CaError> {
    let signer = Issuer::from_ca_cert_der(&root.certificate, root_key.clone())?;
    let params = profile::issuing(trust_domain, key, terms.issuing(now_ms() / 1000, root))?;
    Ok(params.signed_by(key, &signer).map_err(|e| root_key.failed(e))?.der().clone())
}

/// Takes in a certificate that was signed elsewhere for a request that waits here: whoever made the request finds it within a
/// second. Says whose it was.
pub async fn install(
    store: &Store,
    trust_domain: &TrustDomain,
    certificate: &CertificateDer<'static>,
    actor: &str,
) -> Result<String, CaError> {
    let rows = store.authorities().await?;
    let authorities = Authorities::new(&rows)?;
    let mut last = CaError::NoRequest;
    for request in store.issuing_requests().await? {
        let Ok(csr) = Csr::parse(&request.csr) else { continue };
        let Some((root, state)) = asked(&authorities, &request) else { continue };
        let roots: Vec<_> = match request.root.is_empty() {
            true => authorities.trusted().map(|root| root.certificate.clone()).collect(),
            false => vec![root.certificate.clone()],
        };
        match ceremony::check(
            trust_domain,
            certificate,
            &csr.key.subject_public_key_info(),
            &roots,
            now_ms() / 1000,
        ) {
            Ok(()) => {
                let row = Authority { state, ..row_of(certificate, &request.replica)? };
                record(store, row, actor).await?;
                return Ok(request.replica);
            }
            // The fault of the request that it was made for says more.
            Err(ChainFault::OtherKey) if !matches!(last, CaError::NoRequest) => {}
            Err(fault) => last = CaError::Chain(fault),
        }
    }
    Err(last)
}

/// The CA's row and its record, and the request is answered. Unless it is on trial, whatever this replica signed with before has
/// retired; if it is, all replicas have to know it for one.
async fn record(store: &Store, row: Authority, actor: &str) -> Result<(), CaError> {
    let detail = serde_json::json!({ "key_id": row.key_id, "replica": row.replica, "not_after": row.not_after * 1000 });
    let is_tried = row.state == State::Prepared;
    let action = if is_tried { "ca canary" } else { "ca rotate" };
    let entry = Entry::done(actor, action, &*row.name, detail);
    let mut change = store.change().await?;
    if is_tried {
        change.advance("generation").await?;
    }
    for before in change.authorities().await? {
        let is_other = !is_tried && before.key_id != row.key_id;
        if is_other
            && before.kind == Kind::Issuing
            && before.replica == row.replica
            && before.state == State::Active
        {
            change.put_authority(&Authority { state: State::Retired, ..before }, now_ms()).await?;
        }
    }
    change.put_authority(&row, now_ms()).await?;
    change.remove_issuing_request(&row.replica).await?;
    entry.append(&mut change).await?;
    change.commit().await?;
    entry.log();
    Ok(())
}

async fn put(asking: &Asking<'_>, key: &Key, current: Option<&Issuing>) -> Result<(), CaError> {
    let csr = profile::request(key).serialize_request(key).map_err(|e| key.failed(e))?.der().to_vec();
    let (proof, proved_by) = match current {
        Some(issuing) => (issuing.signer.key().signature(&[PROOF, &csr].concat())?, hex(&issuing.key_id)),
        None => (Vec::new(), String::new()),
    };
    let request = IssuingRequest {
        replica: asking.replica.to_owned(),
        spki: hex(&sha256(&key.subject_public_key_info())),
        csr,
        proof,
        proved_by,
        approved: String::new(),
        asked_at: now_ms(),
        root: asking.trial.map(|trial| trial.new_root.clone()).unwrap_or_default(),
    };
    let mut change = asking.store.change().await?;
    change.put_issuing_request(&request).await?;
    change.commit().await?;
    tracing::info!(replica = asking.replica, key = %request.spki, "asked the root's holder for an issuing CA");
    Ok(())
}

fn row_of(certificate: &CertificateDer<'_>, replica: &str) -> Result<Authority, CaError> {
    let row = root::row_of(certificate)?;
    let issuer = match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => super::authority_key_id(&parsed).map(|id| hex(&id)).unwrap_or_default(),
        Err(_) => String::new(),
    };
    Ok(Authority { kind: Kind::Issuing, replica: replica.to_owned(), issuer, ..row })
}

/// The new CA is in force: its files replace those of before, key first, and the waiting key goes. A crash between leaves a pair
/// that does not fit, and the waiting key, by which the next start finds the answer again.
fn take(places: &Places, certificate: &CertificateDer<'static>, key: Key) -> Result<Issuing, CaError> {
    let key = places.take(key, pem(certificate).as_bytes())?;
    Ok(places.publish(issuing_from(certificate.clone(), key)?))
}
