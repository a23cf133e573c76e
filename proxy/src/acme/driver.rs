//! One issuer's certificates, each ordered when it is due, one after the other.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::Account;
use postern_config::file::acme::{AcmeChallenge, AcmeIssuer};
use rand::Rng as _;

use super::client::{self, AcmeError, Kind};
use super::metrics::{AcmeMetrics, IssuerMetrics};
use super::storage::{Failures, Storage};
use super::{Challenges, Pace, Wanted, schedule};
use crate::snapshot::Snapshots;
use crate::tls::acme::{Leaf, read_pair};

/// How often the issuer is asked for renewal information, whatever it says itself (RFC 9773 §4.3).
const LEAST_ASK: Duration = Duration::from_secs(3600);
const MOST_ASK: Duration = Duration::from_secs(24 * 3600);
/// The longest sleep: a clock that jumps is noticed.
const LOOK: Duration = Duration::from_secs(600);

/// Works for one issuer.
#[derive(Debug)]
pub struct Driver {
    issuer: AcmeIssuer,
    storage: Storage,
    challenges: Arc<Challenges>,
    metrics: IssuerMetrics,
    pace: Pace,
    certificates: Vec<Certificate>,
}

/// One certificate on its way.
#[derive(Debug)]
struct Certificate {
    names: Vec<String>,
    leaf: Option<Leaf>,
    failures: Failures,
    /// When it is ordered, seconds since 1970, failures aside.
    due: i64,
    /// When the issuer is asked for its suggestion again, seconds since 1970.
    ask: i64,
}

impl Certificate {
    fn new(names: Vec<String>, storage: &Storage) -> Self {
        let name = names.first().map_or("", String::as_str);
        let leaf = storage.certificate(name);
        // The configuration may have changed since: then it is another certificate that is wanted.
        let leaf = leaf.filter(|leaf| names.iter().all(|name| leaf.names.contains(name)));
        let failures = storage.failures(name);
        let mut certificate = Self { names, leaf, failures, due: 0, ask: 0 };
        certificate.plan();
        certificate
    }

    fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    fn plan(&mut self) {
        let chance = rand::rng().random();
        self.due =
            self.leaf.as_ref().map_or(0, |leaf| schedule::due(leaf.not_before, leaf.not_after, chance));
    }

    /// When there is something to do, milliseconds since 1970.
    fn next_ms(&self) -> i64 {
        let order = self.due.saturating_mul(1000).max(self.failures.wait_until_ms);
        let ask = if self.leaf.is_some() { self.ask.saturating_mul(1000) } else { i64::MAX };
        order.min(ask)
    }

    fn is_due(&self, now_ms: i64) -> bool {
        self.due.saturating_mul(1000) <= now_ms && self.failures.wait_until_ms <= now_ms
    }
}

impl Driver {
    /// Reads what is kept.
    pub fn new(
        issuer: &AcmeIssuer,
        wanted: Vec<Wanted>,
        storage: Storage,
        challenges: &Arc<Challenges>,
        metrics: &AcmeMetrics,
        pace: Pace,
    ) -> Self {
        let certificates = wanted.into_iter().map(|w| Certificate::new(w.names, &storage)).collect();
        Self {
            issuer: issuer.clone(),
            storage,
            challenges: Arc::clone(challenges),
            metrics: metrics.issuer(&issuer.name),
            pace,
            certificates,
        }
    }

    /// Obtains and renews for as long as it is polled.
    pub async fn run(mut self, snapshots: Arc<Snapshots>) -> Infallible {
        let mut account = None;
        loop {
            for index in 0..self.certificates.len() {
                self.attend(index, &mut account, &snapshots).await;
            }
            let now_ms = snapshots.clock.now_ms();
            let next_ms = self.certificates.iter().map(Certificate::next_ms).min().unwrap_or(i64::MAX);
            let wait = u64::try_from(next_ms.saturating_sub(now_ms)).unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(wait).min(LOOK)).await;
        }
    }

    /// Does what one certificate needs now, if anything.
    async fn attend(&mut self, index: usize, account: &mut Option<Account>, snapshots: &Snapshots) {
        let now_ms = snapshots.clock.now_ms();
        let Some(certificate) = self.certificates.get(index) else { return };
        if certificate.next_ms() > now_ms {
            return;
        }
        if !certificate.is_due(now_ms) {
            self.ask(index, account, now_ms).await;
        }
        if !self.certificates.get(index).is_some_and(|c| c.is_due(now_ms)) {
            return;
        }
        let result = self.order(index, account).await;
        if result.is_err() {
            // With its directory: the server may have moved.
            *account = None;
        }
        self.conclude(index, result, snapshots.clock.now_ms());
    }

    async fn account<'a>(&self, account: &'a mut Option<Account>) -> Result<&'a Account, AcmeError> {
        match account {
            Some(account) => Ok(account),
            None => Ok(account.insert(client::account(&self.issuer, &self.storage).await?)),
        }
    }

    async fn ask(&mut self, index: usize, account: &mut Option<Account>, now_ms: i64) {
        let leaf = self.certificates.get(index).and_then(|c| c.leaf.as_ref());
        let mut again = MOST_ASK;
        let suggested = match (leaf, self.account(account).await) {
            (Some(leaf), Ok(account)) => client::suggestion(account, &leaf.der).await,
            (_, Err(error)) => {
                tracing::debug!(%error, "the issuer cannot be asked when it would like renewals");
                again = LEAST_ASK;
                None
            }
            _ => None,
        };
        let Some(certificate) = self.certificates.get_mut(index) else { return };
        if let Some((window, after)) = suggested {
            again = after.clamp(LEAST_ASK, MOST_ASK);
            certificate.due = schedule::with_suggestion(certificate.due, window, rand::rng().random());
        }
        certificate.ask = (now_ms / 1000).saturating_add(i64::try_from(again.as_secs()).unwrap_or(i64::MAX));
    }

    async fn order(&self, index: usize, account: &mut Option<Account>) -> Result<Leaf, AcmeError> {
        let Some(certificate) = self.certificates.get(index) else {
            return Err(AcmeError::Request("no such certificate".to_owned()));
        };
        let kind = match (self.issuer.challenge, certificate.failures.count % 2) {
            (AcmeChallenge::TlsAlpn01, _) | (AcmeChallenge::Both, 0) => Kind::TlsAlpn01,
            _ => Kind::Http01,
        };
        let (names, name) = (&certificate.names, certificate.name());
        tracing::info!(
            issuer = self.issuer.name,
            certificate = name,
            ?names,
            challenge = kind.as_str(),
            "ordering a certificate"
        );
        let replaces = certificate.leaf.as_ref().map(|leaf| &leaf.der);
        let account = self.account(account).await?;
        let pem = client::obtain(account, names, kind, replaces, &self.challenges).await?;
        let leaf = read_pair(pem.as_bytes()).map_err(AcmeError::Unusable)?;
        if let Some(missing) = names.iter().find(|name| !leaf.names.contains(name)) {
            return Err(AcmeError::Unusable(format!("{missing} is not among its names")));
        }
        self.storage.keep_certificate(name, &pem)?;
        Ok(leaf)
    }

    fn conclude(&mut self, index: usize, result: Result<Leaf, AcmeError>, now_ms: i64) {
        let Some(certificate) = self.certificates.get_mut(index) else { return };
        let name = certificate.names.first().map_or("", String::as_str).to_owned();
        match result {
            Ok(leaf) => {
                self.metrics.ok.inc();
                certificate.failures = Failures::default();
                certificate.ask = now_ms / 1000;
                let days = (leaf.not_after.saturating_sub(now_ms / 1000)) / 86_400;
                certificate.leaf = Some(leaf);
                certificate.plan();
                tracing::info!(
                    issuer = self.issuer.name,
                    certificate = name,
                    days,
                    "the certificate was issued"
                );
            }
            Err(error) => {
                self.metrics.failed.inc();
                let count = certificate.failures.count.saturating_add(1);
                let chance = rand::rng().random();
                let wait = schedule::backoff(self.pace.first_retry, self.pace.longest_retry, count, chance);
                let wait_until_ms =
                    now_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
                certificate.failures = Failures { count, wait_until_ms };
                let serving = certificate.leaf.as_ref().is_some_and(|leaf| leaf.not_after > now_ms / 1000);
                let kept = self.storage.failures_path(&name);
                tracing::warn!(
                    issuer = self.issuer.name, certificate = name, %error, failures = count, again_in_s = wait.as_secs(),
                    keeping_old = serving, "no certificate; restart without {} to try at once", kept.display()
                );
            }
        }
        if let Err(error) = self.storage.keep_failures(&name, certificate.failures) {
            tracing::warn!(%error, "a restart will not know of earlier failures");
        }
    }
}
