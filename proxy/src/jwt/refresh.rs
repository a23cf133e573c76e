//! Keeps the issuers' keys fresh, away from the threads that carry requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Request, StatusCode, Uri};
use postern_config::file::jwt::{Jwks, JwtProvider};
use rand::Rng as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Jwt, Provider};
use crate::http::fetch::{Fetch, FetchError};
use crate::snapshot::Snapshots;
use postern_config::jwt::keys::{Keys, KeysError};

/// The largest JWK Set that is taken; those of the web have 2 to 20 kB.
const MAX_JWKS: usize = 1024 * 1024;
/// For a whole fetch.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How often an issuer is asked beside its schedule.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The least time between two fetches of which the second is due to a token with an unknown key. It bounds what
    /// strangers can make this proxy do to an issuer.
    pub unknown_key: Duration,
    /// After the first failure; each further one doubles it, up to `refresh`.
    pub first_retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { unknown_key: Duration::from_secs(10), first_retry: Duration::from_secs(1) }
    }
}

/// Fetches the keys of every provider at start, on schedule and when a token's key is unknown, until `stop`.
/// `config` are the providers that `jwt` was made of.
pub async fn run(
    jwt: &Jwt,
    config: &[JwtProvider],
    pace: Pace,
    snapshots: &Arc<Snapshots>,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    for (provider, config) in jwt.providers().iter().zip(config) {
        let refresher = Refresher {
            provider: Arc::clone(provider),
            source: Source::new(&config.jwks),
            refresh: config.jwks.refresh.as_duration(),
            pace,
            snapshots: Arc::clone(snapshots),
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(refresher.run()));
    }
    while tasks.join_next().await.is_some() {}
}

struct Refresher {
    provider: Arc<Provider>,
    source: Source,
    refresh: Duration,
    pace: Pace,
    snapshots: Arc<Snapshots>,
}

enum Source {
    Url { fetch: Fetch, uri: Uri },
    File(PathBuf),
}

#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A redirect is among them: the next host is somebody whom nobody has named.
    #[error("the answer is {0}{hint}", hint = if .0.is_redirection() { ": redirects are not followed; configure the final URL" } else { "" })]
    Status(StatusCode),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}: larger than {MAX_JWKS} bytes", .0.display())]
    TooLarge(PathBuf),
}

impl Refresher {
    async fn run(self) -> std::convert::Infallible {
        let mut failures = 0;
        loop {
            // Whoever finds a key unknown from here on wants what comes after this fetch.
            self.provider.wants_keys.store(false, Ordering::Release);
            let began = Instant::now();
            let result = self.source.read(self.snapshots.clock.now_ms()).await;
            self.conclude(result, &mut failures);
            let wait = match failures {
                0 => self.refresh.mul_f64(rand::rng().random_range(0.9..1.0)),
                _ => backoff(self.pace.first_retry, failures, self.refresh)
                    .mul_f64(rand::rng().random_range(0.75..1.0)),
            };
            let wanted = async {
                sleep_until(began + self.pace.unknown_key).await;
                self.provider.wake.notified().await;
            };
            tokio::select! {
                () = sleep_until(Instant::now() + wait) => {}
                () = wanted => {}
            }
        }
    }

    fn conclude(&self, result: Result<Keys, RefreshError>, failures: &mut u32) {
        let provider = self.provider.name();
        match result {
            Ok(keys) => {
                self.provider.metrics.fetched.inc();
                if keys.is_empty() {
                    tracing::warn!(
                        provider,
                        ignored = keys.ignored(),
                        "the issuer publishes no key that is usable here: none of its tokens is good"
                    );
                } else if *failures > 0 || self.provider.keys.load().is_none() {
                    tracing::info!(
                        provider,
                        keys = keys.len(),
                        ignored = keys.ignored(),
                        "the issuer's keys are read"
                    );
                }
                *failures = 0;
                self.provider.publish(keys);
            }
            Err(error) => {
                self.provider.metrics.failed.inc();
                // Once for an outage, however long it lasts; the counter and the age go on.
                if *failures == 0 {
                    let known = self.provider.keys.load().is_some();
                    tracing::warn!(provider, %error, keeping_last_keys = known, "the issuer's keys cannot be read; trying again");
                }
                *failures = failures.saturating_add(1);
            }
        }
    }
}

impl Source {
    fn new(jwks: &Jwks) -> Self {
        match (&jwks.url, &jwks.file) {
            (Some(url), _) => Self::Url {
                fetch: Fetch {
                    ca: jwks.ca.clone(),
                    allow_loopback: jwks.allow_loopback,
                    max_body: MAX_JWKS,
                    timeout: TIMEOUT,
                },
                uri: url.uri().clone(),
            },
            (None, file) => Self::File(file.clone().unwrap_or_default()),
        }
    }

    async fn read(&self, now_ms: i64) -> Result<Keys, RefreshError> {
        match self {
            Self::File(path) => Ok(Keys::parse(&read_file(path)?, now_ms)?),
            Self::Url { fetch, uri } => {
                let mut request = Request::new(Default::default());
                *request.uri_mut() = uri.clone();
                let answer = fetch.send(request).await?;
                if answer.status() != StatusCode::OK {
                    return Err(RefreshError::Status(answer.status()));
                }
                Ok(Keys::parse(answer.body(), now_ms)?)
            }
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, RefreshError> {
    use std::io::Read as _;
    let io = |source| RefreshError::File { path: path.to_owned(), source };
    let mut json = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(MAX_JWKS as u64 + 1).read_to_end(&mut json).map_err(io)?;
    if json.len() > MAX_JWKS {
        return Err(RefreshError::TooLarge(path.to_owned()));
    }
    Ok(json)
}

fn backoff(first: Duration, failures: u32, most: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(most)
}
