//! An issuer's public keys: fetched from where the operator said, kept, and fetched again when they are old or a token's key is
//! unknown; never so often that strangers could make this process bother the issuer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::StatusCode;
use postern_config::file::control::attest::KeySet;
use postern_config::jwt::Reason;
use postern_config::jwt::keys::Keys;
use postern_config::jwt::verify::{Peeked, verify};
use postern_config::policy::Token;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Fault;
use crate::clock::{millis, now_ms};
use crate::fetch::{Fetcher, TrustError};

/// The least time between two fetches of which the second is due to a token with an unknown key.
const UNKNOWN_KEY: Duration = Duration::from_secs(10);
/// And after a fetch that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long the last good keys are used while they cannot be read again, milliseconds.
const MAX_AGE: i64 = 24 * 3600 * 1000;

/// Where an issuer's keys are, and the last ones.
#[derive(Debug)]
pub(super) struct Source {
    place: Place,
    refresh: i64,
    keys: ArcSwapOption<Keys>,
    /// One fetch at a time; when the next one may be.
    next: Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum Place {
    Url(String, Arc<Fetcher>),
    File(PathBuf),
}

impl Source {
    /// Nothing is fetched before it is needed.
    pub(super) fn new(config: &KeySet) -> Result<Self, TrustError> {
        let place = match (&config.url, &config.file) {
            (Some(url), _) => Place::Url(url.to_string(), super::fetcher(config.ca.as_deref())?),
            (None, file) => Place::File(file.clone().unwrap_or_default()),
        };
        let refresh = millis(config.refresh.as_duration());
        Ok(Self { place, refresh, keys: ArcSwapOption::empty(), next: Mutex::new(None) })
    }

    /// Verifies a token by these keys, and by newer ones where its key is unknown.
    pub(super) async fn verify(
        &self,
        token: &str,
        peeked: &Peeked,
        issuer: &str,
        audience: &str,
        now: i64,
    ) -> Result<Token, Fault> {
        let audiences = [audience.to_owned()];
        let verify = |keys: &Keys| verify(token, peeked, keys, issuer, &audiences, now / 1000);
        let keys = self.current(now).await?;
        let result = verify(&keys);
        // Without a `kid`, a token by a new key looks like one with a bad signature.
        let maybe_new_key = match &result {
            Err(Reason::UnknownKey) => true,
            Err(Reason::BadSignature) => peeked.kid.is_none(),
            _ => false,
        };
        match maybe_new_key {
            true => self.newer(&keys).await.map_or(result, |keys| verify(&keys)),
            false => result,
        }
        .map_err(Fault::Token)
    }

    async fn current(&self, now: i64) -> Result<Arc<Keys>, Fault> {
        let held = |most: i64| self.keys.load_full().filter(|keys| keys.age_ms(now) <= most);
        if let Some(keys) = held(self.refresh) {
            return Ok(keys);
        }
        let failed = {
            let mut next = self.next.lock().await;
            if let Some(keys) = held(self.refresh) {
                return Ok(keys);
            }
            self.fetch(&mut next).await.err()
        };
        let what = || match &self.place {
            Place::Url(url, _) => url.clone(),
            Place::File(path) => path.display().to_string(),
        };
        held(MAX_AGE).ok_or_else(|| Fault::Unavailable { what: what(), why: failed.unwrap_or_default() })
    }

    /// Keys that are newer than these, if there are any by now.
    async fn newer(&self, than: &Arc<Keys>) -> Option<Arc<Keys>> {
        let mut next = self.next.lock().await;
        let other = || self.keys.load_full().filter(|keys| !Arc::ptr_eq(keys, than));
        if let Some(keys) = other() {
            return Some(keys);
        }
        self.fetch(&mut next).await.ok()?;
        other()
    }

    async fn fetch(&self, next: &mut Option<Instant>) -> Result<(), String> {
        if next.is_some_and(|next| Instant::now() < next) {
            return Err("asked a moment ago".to_owned());
        }
        let read = async {
            let json = match &self.place {
                Place::File(path) => tokio::fs::read(path).await.map_err(|e| e.to_string())?,
                Place::Url(url, fetcher) => {
                    let answer = fetcher.get(url).await.map_err(|e| e.to_string())?;
                    match answer.status() {
                        StatusCode::OK => answer.into_body().to_vec(),
                        status => return Err(format!("answered {status}")),
                    }
                }
            };
            Keys::parse(&json, now_ms()).map_err(|e| e.to_string())
        };
        let read = read.await;
        *next = Some(Instant::now() + if read.is_ok() { UNKNOWN_KEY } else { RETRY });
        match read {
            Ok(keys) => {
                self.keys.store(Some(Arc::new(keys)));
                Ok(())
            }
            Err(why) => {
                tracing::warn!(place = ?self.place, %why, "an issuer's keys cannot be read; the last good ones stay");
                Err(why)
            }
        }
    }
}
