//! Certificates by ACME (RFC 8555): ordered for the names that the configuration gives, renewed in time, kept on disk.
//!
//! Three ends meet others. [`Challenges`] is what listeners look into: a snapshot that is empty but for the seconds of an
//! order. The PEM files that [`Acme`] keeps are what a gateway serves: a certificate with its key in one, replaced as a whole,
//! so that a restart and an issuer that is down change nothing. [`Acme::run`] is the work, for a thread away from
//! traffic: at 2/3 of a certificate's life, or when its issuer asks (RFC 9773), in a window of chance; after a failure
//! again, from a minute up to six hours later, for issuers count failures.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use postern_config::file::acme::AcmeIssuer;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub mod client;
pub mod driver;
pub mod metrics;
pub mod schedule;
pub mod storage;

use crate::snapshot::Snapshots;
use crate::tls::acme::Answer;
use driver::Driver;
use metrics::AcmeMetrics;
use storage::{Storage, StorageError};

/// Where http-01 looks (RFC 8555 §8.3).
pub const WELL_KNOWN: &str = "/.well-known/acme-challenge/";

/// The answers to challenges that are open now.
#[derive(Debug, Default)]
pub struct Challenges(ArcSwap<Open>);

#[derive(Debug, Default, Clone)]
struct Open {
    by_name: HashMap<String, Answer>,
    by_token: HashMap<String, Arc<str>>,
}

impl Challenges {
    /// The answer to a tls-alpn-01 challenge for `name`, in lower case.
    pub fn tls_alpn(&self, name: &str) -> Option<Answer> {
        self.0.load().by_name.get(name).cloned()
    }

    /// The page that answers an http-01 challenge at `path`, to be sent as `application/octet-stream`. `None` where the path
    /// belongs to no challenge that is open: then the request is one like any other.
    pub fn http(&self, path: &str) -> Option<Arc<str>> {
        self.0.load().by_token.get(path.strip_prefix(WELL_KNOWN)?).cloned()
    }

    fn change(&self, change: impl Fn(&mut Open)) {
        self.0.rcu(|open| {
            let mut open = Open::clone(open);
            change(&mut open);
            open
        });
    }
}

/// Challenges that are open for one order; they are closed when this goes.
#[derive(Debug)]
pub struct Armed {
    challenges: Arc<Challenges>,
    names: Vec<String>,
    tokens: Vec<String>,
}

impl Armed {
    /// None yet.
    pub fn new(challenges: &Arc<Challenges>) -> Self {
        Self { challenges: Arc::clone(challenges), names: Vec::new(), tokens: Vec::new() }
    }

    /// Opens a tls-alpn-01 challenge.
    pub fn tls_alpn(&mut self, name: &str, answer: &Answer) {
        self.names.push(name.to_owned());
        self.challenges.change(|open| {
            open.by_name.insert(name.to_owned(), answer.clone());
        });
    }

    /// Opens an http-01 challenge.
    pub fn http(&mut self, token: &str, page: &str) {
        self.tokens.push(token.to_owned());
        self.challenges.change(|open| {
            open.by_token.insert(token.to_owned(), page.into());
        });
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.challenges.change(|open| {
            self.names.iter().for_each(|name| drop(open.by_name.remove(name)));
            self.tokens.iter().for_each(|token| drop(open.by_token.remove(token)));
        });
    }
}

/// One certificate that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The issuer's name in the configuration.
    pub issuer: String,
    /// Its DNS names, the one that it is called by first.
    pub names: Vec<String>,
}

/// How soon a failed order is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// After the first failure; each further one doubles it.
    pub first_retry: Duration,
    /// The most.
    pub longest_retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        // Let's Encrypt forgives five failures an hour for a name: 1 + 2 + 4 + 8 + 16 minutes stay below.
        Self { first_retry: Duration::from_secs(60), longest_retry: Duration::from_secs(6 * 3600) }
    }
}

/// Every issuer of this proxy with what is wanted from it.
#[derive(Debug)]
pub struct Acme {
    challenges: Arc<Challenges>,
    drivers: Vec<Driver>,
}

impl Acme {
    /// Opens every storage; asks nobody yet.
    pub fn new(
        issuers: &[AcmeIssuer],
        wanted: &[Wanted],
        metrics: &AcmeMetrics,
        pace: Pace,
    ) -> Result<Self, StorageError> {
        let challenges = Arc::<Challenges>::default();
        let mut drivers = Vec::new();
        for issuer in issuers {
            let of_issuer: Vec<_> = wanted.iter().filter(|w| w.issuer == issuer.name).cloned().collect();
            if !of_issuer.is_empty() {
                let storage = Storage::open(&issuer.storage)?;
                drivers.push(Driver::new(issuer, of_issuer, storage, &challenges, metrics, pace));
            }
        }
        Ok(Self { challenges, drivers })
    }

    /// What listeners look into.
    pub fn challenges(&self) -> Arc<Challenges> {
        Arc::clone(&self.challenges)
    }

    /// Obtains and renews until `stop`.
    pub async fn run(self, snapshots: &Arc<Snapshots>, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        for driver in self.drivers {
            let snapshots = Arc::clone(snapshots);
            tasks.spawn(stop.clone().run_until_cancelled_owned(driver.run(snapshots)));
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// The file in which an issuer's certificate lies with its key, whether it is there yet or not.
pub fn file(issuer: &AcmeIssuer, first_name: &str) -> PathBuf {
    issuer.storage.join(storage::file_name(first_name))
}
