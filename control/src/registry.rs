//! Which caller gets which identity: join tokens become lineages, lineages are renewed certificate by certificate.
//!
//! Every issue is one transaction: spend the token or advance the lineage, record the certificate, append the audit record,
//! commit, answer. What was not committed was not issued; what was committed is found again by its key when the answer
//! got lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use postern_config::attest::NotAdmitted;
use postern_config::file::control::SvidConfig;
use postern_config::svid::Peer;
use serde_json::json;

use crate::attest::{Attestors, Fault};
use crate::audit::Entry;
use crate::ca::rotation::Stage;
use crate::ca::{Ca, CaError, Issuing};
use crate::clock::now_ms;
use crate::digest::{hex, serial_hex};
use crate::issue::csr::{Csr, CsrError, SubjectKey};
use crate::issue::{self, Leaf, Wish};
use crate::limits::Limits;
use crate::line::{Busy, Line, Turn};
use crate::store::{Certificate, Change, Lineage, Store, StoreError, Subject};
use crate::telemetry::Metrics;

mod attested;
mod declared;
mod enroll;
mod tokens;

use declared::Terms;
pub use enroll::{Attempt, Proof};
pub use tokens::{NewToken, TokenError};

/// Issued at a time. The store writes one after the other; a few more are prepared meanwhile.
const ISSUING: usize = 32;
/// Those that wait for their turn: every proxy of a large mesh at once.
const WAITING: usize = 16 * 1024;
/// How long they wait at most; a caller without a certificate is cut off a second later.
const PATIENCE: Duration = Duration::from_secs(14);

/// Why no certificate is issued.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request breaks the contract.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// The token does not admit this caller. The caller never learns which of these it was.
    #[error("join token refused: unknown, used or expired")]
    Token(TokenFault),
    /// The credential proves nothing. The caller never learns why.
    #[error("the credential is not taken; the control plane's audit record says why")]
    Credential(Fault),
    /// The credential is good, and admits to nothing.
    #[error("the credential is not taken; the control plane's audit record says why")]
    NotAdmitted(NotAdmitted),
    /// What the credential stands for has another key.
    #[error("the credential is not taken; the control plane's audit record says why")]
    Bound,
    /// The credential is older than the last restore of the store, which has forgotten what it may have been used for.
    #[error("the credential is not taken; the control plane's audit record says why")]
    BeforeRestore,
    /// Whoever has to be asked about the credential does not answer.
    #[error("the credential cannot be judged now; try again later")]
    Unavailable(Fault),
    /// The new key did not sign this connection's exporter.
    #[error("the proof of possession does not fit this connection and this key")]
    Proof,
    /// The certificate request.
    #[error("{0}")]
    Csr(#[from] CsrError),
    /// The caller's certificate was replaced by a newer one that is in use.
    #[error("this certificate was superseded by a newer one of the same enrollment")]
    Superseded,
    /// The caller's certificate is not on record.
    #[error("this certificate is not on record")]
    UnknownSerial,
    /// The identity was revoked, or the lineage was ended.
    #[error("this identity or enrollment was revoked; nothing is issued to it")]
    Revoked,
    /// The identity is declared with an end, and that has come.
    #[error("this identity has ended")]
    Ended,
    /// The identity is declared in another environment than the credential's.
    #[error("this credential is of another environment than the identity")]
    Environment,
    /// A renewal for the key that is in use.
    #[error("a renewal needs a new key")]
    SameKey,
    /// Too many attempts with one token, or renewals of one lineage.
    #[error("too many requests of this enrollment; try again later")]
    TooMany,
    /// So many are waiting for certificates that this one's turn did not come in time.
    #[error("too many callers are waiting for certificates; come again in {} ms", .0.retry_after.as_millis())]
    Busy(Busy),
    /// A fault on this side.
    #[error("internal error")]
    Store(#[from] StoreError),
    /// A fault on this side.
    #[error("internal error")]
    Ca(#[from] CaError),
}

/// What is wrong with a token, for the audit record alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFault {
    /// No such token.
    Unknown,
    /// Not its secret.
    WrongSecret,
    /// Spent by another key.
    Used,
    /// Too late.
    Expired,
    /// From an address that it does not admit.
    Address,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unavailable { .. } => Self::Unavailable(fault),
            fault => Self::Credential(fault),
        }
    }
}

impl From<NotAdmitted> for Refusal {
    fn from(why: NotAdmitted) -> Self {
        Self::NotAdmitted(why)
    }
}

impl Refusal {
    /// The closed word for logs, metrics and audit records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Token(TokenFault::Unknown) => "token_unknown",
            Self::Token(TokenFault::WrongSecret) => "token_wrong_secret",
            Self::Token(TokenFault::Used) => "token_used",
            Self::Token(TokenFault::Expired) => "token_expired",
            Self::Token(TokenFault::Address) => "token_address",
            Self::Credential(fault) | Self::Unavailable(fault) => fault.reason(),
            Self::NotAdmitted(why) => why.reason(),
            Self::Bound => "bound_to_another_key",
            Self::BeforeRestore => "before_restore",
            Self::Proof => "proof",
            Self::Csr(error) => error.reason(),
            Self::Superseded => "superseded",
            Self::UnknownSerial => "unknown_serial",
            Self::Revoked => "revoked",
            Self::Ended => "identity_ended",
            Self::Environment => "environment",
            Self::SameKey => "same_key",
            Self::TooMany => "too_many",
            Self::Busy(_) => "busy",
            Self::Ca(CaError::Key(error)) => error.reason(),
            Self::Store(_) | Self::Ca(_) => "internal",
        }
    }
}

/// What a caller gets.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf first, then its issuing CA; DER.
    pub chain: Vec<Vec<u8>>,
    /// Whether this certificate had been issued before, for the same key.
    pub repeated: bool,
    /// When it shall be renewed, counted from its receipt.
    pub window: (Duration, Duration),
}

/// One call for the next certificate.
#[derive(Clone, Copy)]
pub struct Renewal<'a> {
    /// The caller's certificate: it has to be the one on record, byte for byte, so that not even a CA's stolen key makes a caller.
    pub leaf: &'a [u8],
    /// PKCS#10, DER.
    pub csr: &'a [u8],
    /// Wanted lifetime, milliseconds; 0 for the default.
    pub ttl_ms: u64,
    /// How long the caller waits in line.
    pub patience: Duration,
}

/// The registry.
#[derive(Debug)]
pub struct Registry {
    store: Store,
    ca: Arc<Ca>,
    attestors: Arc<Attestors>,
    terms: SvidConfig,
    limits: Limits,
    /// Counts certificates, so that their renewals are spread evenly.
    turns: AtomicU32,
    line: Line,
    metrics: Metrics,
}

impl Registry {
    /// A registry over this store, signing with this CA.
    pub fn new(
        store: Store,
        ca: Arc<Ca>,
        attestors: Arc<Attestors>,
        terms: SvidConfig,
        metrics: Metrics,
    ) -> Self {
        let (limits, line) = (Limits::new(now_ms()), Line::new(ISSUING, WAITING, metrics.line("issuing")));
        Self { store, ca, attestors, terms, limits, turns: AtomicU32::default(), line, metrics }
    }

    /// Issues the next certificate of the caller's lineage. Idempotent by the request's key.
    pub async fn renew(&self, peer: &Peer, renewal: Renewal<'_>) -> Result<Issued, Refusal> {
        let mut result = self.try_renew(peer, renewal).await;
        if is_worth_a_retry(&result) {
            result = self.try_renew(peer, renewal).await;
        }
        self.settle("renew", peer.id.as_str(), &serial_hex(&peer.serial), &result).await;
        result
    }

    /// The lineage that the caller's certificate belongs to. The first use of a new certificate retires the one before it:
    /// a superseded one is refused and put on record, since somebody else may hold it.
    pub async fn recognise(&self, peer: &Peer) -> Result<Lineage, Refusal> {
        let recognised = async {
            let mut change = self.store.change_rows().await?;
            let serial = serial_hex(&peer.serial);
            let lineage = lineage_of(&mut change, peer, &serial).await?;
            let lineage = use_serial(&mut change, lineage, &serial).await?;
            change.commit().await?;
            Ok(lineage)
        };
        let result = recognised.await;
        if let Err(refusal) = &result {
            self.refused("watch", peer.id.as_str(), &serial_hex(&peer.serial), refusal).await;
        }
        result
    }

    async fn try_renew(&self, peer: &Peer, renewal: Renewal<'_>) -> Result<Issued, Refusal> {
        let Renewal { leaf, csr, ttl_ms, patience } = renewal;
        let csr = Csr::parse(csr)?;
        csr.check(&peer.id)?;
        let serial = serial_hex(&peer.serial);
        let _turn = self.turn(serial.as_bytes(), patience).await?;
        let mut change = self.store.change_rows().await?;
        let subject = change.subject(&peer.id, now_ms()).await?;
        let lineage = lineage_of(&mut change, peer, &serial).await?;
        if subject.is_banned {
            return Err(Refusal::Revoked);
        }
        if change.certificate(&serial).await?.is_none_or(|on_record| on_record.leaf != leaf) {
            return Err(Refusal::UnknownSerial);
        }
        let earlier = change.certificate_of_key(&lineage.id, &csr.key.hash()).await?;
        // A delayed retry may arrive after the new certificate is in use already: that is no theft, and it gets the
        // certificate that it asked for.
        if let Some(earlier) = earlier {
            let wanted = Some(&earlier.serial) == lineage.next_serial.as_ref()
                || earlier.serial == lineage.current_serial;
            return match wanted && earlier.serial != serial {
                true => Ok(self.again(earlier)),
                false => Err(Refusal::SameKey),
            };
        }
        if !self.limits.attempt(&lineage.id, now_ms()) {
            return Err(Refusal::TooMany);
        }
        let lineage = use_serial(&mut change, lineage, &serial).await?;
        let (leaf, issued) = self.sign(&mut change, &lineage, subject, &csr.key, ttl_ms).await?;
        change.set_serials(&lineage.id, &serial, Some(&leaf.serial), now_ms()).await?;
        let entry = issued_entry(peer.id.as_str(), "renew", &lineage, &leaf);
        entry.append(&mut change).await?;
        change.commit().await?;
        entry.log();
        Ok(issued)
    }

    /// One's turn to be issued something. Whoever was told to come again keeps its place by `name`.
    async fn turn(&self, name: &[u8], patience: Duration) -> Result<Turn<'_>, Refusal> {
        self.line.turn(Some(name), patience.min(PATIENCE)).await.map_err(Refusal::Busy)
    }

    /// Signs for a lineage and records the certificate; the caller commits.
    async fn sign(
        &self,
        change: &mut Change,
        lineage: &Lineage,
        subject: Subject,
        key: &SubjectKey,
        ttl_ms: u64,
    ) -> Result<(Leaf, Issued), Refusal> {
        let issuing = self.issuing_for(change, lineage).await?;
        let terms = Terms::of(change, lineage, now_ms()).await?;
        let wish = Wish {
            id: &lineage.spiffe_id,
            dns_names: &terms.dns_names,
            ttl: self.lifetime(ttl_ms, terms.max_ttl_ms),
            backdate: self.ca.backdate(),
            earliest: subject.revoked_before,
        };
        let leaf = issue::sign(&issuing, key, &wish, now_ms())?;
        let certificate = Certificate {
            serial: leaf.serial.clone(),
            lineage: lineage.id.clone(),
            spki_hash: key.hash().to_vec(),
            leaf: leaf.der.clone(),
            issuer: issuing.certificate.to_vec(),
            issuer_key_id: hex(&issuing.key_id),
            not_before: leaf.not_before * 1000,
            not_after: leaf.not_after * 1000,
        };
        change.add_certificate(&certificate).await?;
        let certificate_end = certificate.not_after;
        let chain = vec![certificate.leaf, certificate.issuer];
        let window = self.window(certificate_end);
        Ok((leaf, Issued { chain, repeated: false, window }))
    }

    /// The CA that signs for this lineage: the one on trial, if it is among those who go first and the trial goes on.
    async fn issuing_for(&self, change: &mut Change, lineage: &Lineage) -> Result<Arc<Issuing>, Refusal> {
        if let Some(trial) = self.ca.trial_for(&lineage.id) {
            // By the store: this replica may not have heard yet that it was withdrawn.
            let under_way = change.rotations().await?;
            if under_way.iter().any(|r| r.id == trial.rotation.id && r.stage == Stage::Canary) {
                return Ok(Arc::clone(&trial.issuing));
            }
        }
        Ok(self.ca.signing()?)
    }

    /// A certificate that was issued before, for the same key.
    fn again(&self, earlier: Certificate) -> Issued {
        let window = self.window(earlier.not_after);
        Issued { chain: vec![earlier.leaf, earlier.issuer], repeated: true, window }
    }

    /// The next window for a certificate that ends at `not_after` (milliseconds since 1970).
    fn window(&self, not_after: i64) -> (Duration, Duration) {
        let left = Duration::from_millis(u64::try_from(not_after - now_ms()).unwrap_or(0));
        issue::window::of(left, self.turns.fetch_add(1, Ordering::Relaxed))
    }

    /// The wish within the bounds of this control plane and of the token.
    fn lifetime(&self, wanted_ms: u64, bound_ms: Option<i64>) -> Duration {
        let wanted =
            if wanted_ms == 0 { self.terms.ttl.as_duration() } else { Duration::from_millis(wanted_ms) };
        let bound = bound_ms.map_or(Duration::MAX, |ms| Duration::from_millis(ms.max(0).unsigned_abs()));
        wanted.clamp(self.terms.min_ttl.as_duration(), self.terms.max_ttl.as_duration()).min(bound)
    }

    /// Counts a result, and puts a refusal on record.
    async fn settle(
        &self,
        action: &'static str,
        actor: &str,
        subject: &str,
        result: &Result<Issued, Refusal>,
    ) {
        match result {
            Ok(issued) => self.metrics.issued(action, if issued.repeated { "repeated" } else { "issued" }),
            Err(refusal) => {
                let fault = matches!(refusal, Refusal::Store(_) | Refusal::Ca(_) | Refusal::Unavailable(_));
                self.metrics.issued(action, if fault { "failed" } else { "refused" });
                self.refused(action, actor, subject, refusal).await;
            }
        }
    }

    async fn refused(&self, action: &'static str, actor: &str, subject: &str, refusal: &Refusal) {
        self.metrics.refused(action, refusal.reason());
        if let Refusal::Store(error) = refusal {
            tracing::error!(%error, action, "the store failed");
        }
        if let Refusal::Unavailable(fault) = refusal {
            tracing::error!(%fault, action, "a credential could not be judged");
        }
        if let Refusal::Ca(error) = refusal {
            tracing::error!(%error, action, "signing failed");
        }
        if self.limits.audit_refusal(now_ms()) {
            Entry::refused(actor, action, subject, refusal.reason()).write(&self.store).await;
        }
    }

    /// Puts on record a call of the operators' API that was refused, unless there is a flood of them.
    pub async fn operator_refused(&self, actor: &str, what: &str, why: &'static str) {
        self.metrics.refused("api", why);
        if self.limits.audit_refusal(now_ms()) {
            Entry::refused(actor, "api", what, why).write(&self.store).await;
        }
    }

    /// Puts on record a request that never became a message.
    pub async fn unreadable(&self, action: &'static str, actor: &str) {
        self.refused(action, actor, "", &Refusal::Malformed("unreadable message")).await;
    }
}

async fn lineage_of(change: &mut Change, peer: &Peer, serial: &str) -> Result<Lineage, Refusal> {
    let lineage = change.lineage_of(serial).await?.ok_or(Refusal::UnknownSerial)?;
    match lineage.ended_at {
        _ if lineage.spiffe_id != peer.id => Err(Refusal::UnknownSerial),
        Some(_) => Err(Refusal::Revoked),
        None => Ok(lineage),
    }
}

/// Whether the store stumbled in a way that a second try may get over. What was done is found again by its key.
fn is_worth_a_retry(result: &Result<Issued, Refusal>) -> bool {
    matches!(result, Err(Refusal::Store(error)) if error.is_transient())
}

/// Two-phase switch: the serial in use stays good until the next one is used for the first time.
async fn use_serial(change: &mut Change, mut lineage: Lineage, serial: &str) -> Result<Lineage, Refusal> {
    if lineage.next_serial.as_deref() == Some(serial) {
        lineage.current_serial = serial.to_owned();
        lineage.next_serial = None;
    } else if lineage.current_serial != serial {
        return Err(Refusal::Superseded);
    }
    change
        .set_serials(&lineage.id, &lineage.current_serial, lineage.next_serial.as_deref(), now_ms())
        .await?;
    Ok(lineage)
}

fn issued_entry(actor: &str, action: &str, lineage: &Lineage, leaf: &Leaf) -> Entry {
    let detail = json!({
        "lineage": lineage.id,
        "instance": lineage.instance,
        "serial": leaf.serial,
        "not_after": leaf.not_after * 1000,
    });
    Entry::done(actor, action, lineage.spiffe_id.as_str(), detail)
}
