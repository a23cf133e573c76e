//! JWTs of requests (RFC 7519, RFC 8725): found where a provider says, verified against keys that are in memory already,
//! turned into a request's principal.
//!
//! The semantics are those of Istio's `RequestAuthentication`: a token that is present must be good, whatever the policy
//! says; a request without one goes on without a request principal. What a provider's keys are is known from before: a
//! request waits for no fetch. A token whose key is unknown is refused at once, and makes the keys be fetched again soon
//! ([`refresh`]); a provider whose keys were never read, or too long ago, refuses with 503. There is no default key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, StatusCode, Uri};
use postern_config::file::jwt::{JwtProvider, JwtRule};
use postern_config::jwt::keys::Keys;
use postern_config::jwt::verify;
use postern_config::policy::Token;
use tokio::sync::Notify;

pub mod metrics;
pub mod place;
pub mod refresh;

pub use postern_config::jwt::Reason;

use metrics::{JwtMetrics, ProviderMetrics};
use place::{Found, Place};

/// A request that goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The provider, where the token named one.
    pub provider: Option<Arc<str>>,
}

impl Refusal {
    /// 401, or 503 where nobody can say.
    pub fn status(&self) -> StatusCode {
        match self.reason {
            Reason::KeysUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// The value of `WWW-Authenticate` that belongs to a 401 (RFC 6750 §3). It tells nothing of the reason.
    pub fn challenge(&self) -> Option<&'static str> {
        match self.reason {
            Reason::KeysUnavailable => None,
            Reason::Missing => Some("Bearer"),
            _ => Some("Bearer error=\"invalid_token\""),
        }
    }
}

/// An issuer at run time.
#[derive(Debug)]
pub struct Provider {
    name: Arc<str>,
    issuer: String,
    audiences: Vec<String>,
    places: Vec<Place>,
    forward: bool,
    max_age_ms: i64,
    /// `None` until they have been read for the first time.
    keys: Arc<ArcSwapOption<Keys>>,
    /// Set by the first request whose key is unknown, reset by the fetch that it causes: so the wake-up, which takes a lock,
    /// comes once per fetch and not once per request.
    wants_keys: AtomicBool,
    wake: Notify,
    metrics: ProviderMetrics,
}

impl Provider {
    fn new(config: &JwtProvider, metrics: &JwtMetrics) -> Self {
        let keys = Arc::<ArcSwapOption<Keys>>::default();
        Self {
            name: config.name.as_str().into(),
            issuer: config.issuer.clone(),
            audiences: config.audiences.clone(),
            places: config.from.iter().filter_map(Place::new).collect(),
            forward: config.forward,
            max_age_ms: millis(config.jwks.max_age.as_duration()),
            metrics: metrics.provider(&config.name, Arc::clone(&keys)),
            keys,
            wants_keys: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts keys in force.
    pub fn publish(&self, keys: Keys) {
        self.keys.store(Some(Arc::new(keys)));
    }

    fn verify(&self, token: &str, peeked: &verify::Peeked, now_ms: i64) -> Result<Token, Reason> {
        let keys = self.keys.load();
        let keys = keys.as_ref().filter(|keys| keys.age_ms(now_ms) <= self.max_age_ms);
        let keys = keys.ok_or(Reason::KeysUnavailable)?;
        let result = verify::verify(token, peeked, keys, &self.issuer, &self.audiences, now_ms / 1000);
        // Without a `kid`, a token by a new key looks like one with a bad signature.
        let maybe_new_key = match &result {
            Err(Reason::UnknownKey) => true,
            Err(Reason::BadSignature) => peeked.kid.is_none(),
            _ => false,
        };
        if maybe_new_key && !self.wants_keys.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
        result
    }
}

/// Every provider of this proxy.
#[derive(Debug)]
pub struct Jwt {
    providers: Vec<Arc<Provider>>,
    metrics: JwtMetrics,
}

impl Jwt {
    /// Providers without keys; [`refresh::run`] brings them.
    pub fn new(providers: &[JwtProvider], metrics: &JwtMetrics) -> Self {
        let providers = providers.iter().map(|p| Arc::new(Provider::new(p, metrics))).collect();
        Self { providers, metrics: metrics.clone() }
    }

    /// What a rule of the configuration asks for; a provider that there is not has been refused with the file.
    pub fn rule(&self, rule: &JwtRule) -> Rule {
        let named = |name: &String| self.providers.iter().find(|p| *p.name == **name).cloned();
        let providers: Vec<_> = rule.providers.iter().filter_map(named).collect();
        let mut places: Vec<Place> = Vec::new();
        for place in providers.iter().flat_map(|p| &p.places) {
            if !places.contains(place) {
                places.push(place.clone());
            }
        }
        Rule { providers, places, required: rule.required, unknown: self.metrics.unknown() }
    }

    /// Every provider, for whoever keeps their keys fresh.
    pub fn providers(&self) -> &[Arc<Provider>] {
        &self.providers
    }
}

/// What holds at one place of the configuration, such as a host.
#[derive(Debug)]
pub struct Rule {
    providers: Vec<Arc<Provider>>,
    /// Of all providers, each once.
    places: Vec<Place>,
    required: bool,
    /// For tokens that are no provider's.
    unknown: ProviderMetrics,
}

/// A token that was verified.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// What it says.
    pub token: Token,
    /// Where it stands, if it must not go any further.
    strip: Option<Place>,
}

impl Admitted {
    /// Removes the token from the request, if its provider does not let it go further.
    pub fn strip(&self, headers: &mut HeaderMap, uri: &mut Uri) {
        if let Some(place) = &self.strip {
            place.strip(headers, uri);
        }
    }
}

impl Rule {
    /// The request's token: none, a verified one, or the reason to refuse the request. `now_ms` counts from 1970.
    pub fn admit(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        now_ms: i64,
    ) -> Result<Option<Admitted>, Refusal> {
        if self.providers.is_empty() {
            return Ok(None);
        }
        let (place, token) = match place::find(&self.places, headers, query) {
            Found::One(place, token) => (place, token),
            Found::None if self.required => return Err(self.refuse(Reason::Missing)),
            Found::None => return Ok(None),
            Found::Several => return Err(self.refuse(Reason::Several)),
            Found::Unreadable => return Err(self.refuse(Reason::Malformed)),
        };
        let peeked = verify::peek(token).map_err(|reason| self.refuse(reason))?;
        let provider = self.providers.iter().find(|p| p.issuer == peeked.issuer && p.places.contains(place));
        let provider = provider.ok_or_else(|| self.refuse(Reason::UnknownIssuer))?;
        match provider.verify(token, &peeked, now_ms) {
            Ok(token) => {
                provider.metrics.ok.inc();
                Ok(Some(Admitted { token, strip: (!provider.forward).then(|| place.clone()) }))
            }
            Err(reason) => {
                provider.metrics.refused(reason);
                Err(Refusal { reason, provider: Some(Arc::clone(&provider.name)) })
            }
        }
    }

    fn refuse(&self, reason: Reason) -> Refusal {
        self.unknown.refused(reason);
        Refusal { reason, provider: None }
    }
}

fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
