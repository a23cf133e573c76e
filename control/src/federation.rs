//! Foreign trust domains: whose bundles are fetched, by which profile, and which workloads get them (SPIFFE Federation §5).
//!
//! A foreign bundle is never merged with another and never goes back to an earlier sequence; it reaches the workloads that are
//! named for it and nobody else. The control plane itself believes no foreign identity: what is here never becomes part of the
//! bundles by which it checks its own callers.

use std::sync::Arc;
use std::time::Duration;

use postern_config::bundle::{BundleError, TrustBundle};
use postern_config::file::url::WebUrl;
use postern_config::id::{SpiffeId, TrustDomain};
use postern_config::registry::Declarations;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::audit::Entry;
use crate::clock::now_ms;
use crate::fetch::{FetchError, Fetcher, Trust, TrustError};
use crate::publish::PublishError;
use crate::store::{Change, Foreign, Lease, Store, StoreError};

pub mod poll;

/// The most foreign trust domains: each of them is part of every push to its members.
const MAX_FOREIGN: usize = 64;
/// How often a bundle is fetched whose document does not say, in seconds (SPIFFE Federation §4.1).
const DEFAULT_HINT: u64 = 300;
/// The longest pause between two fetches, in seconds, whatever the document says: a key that was taken back must go some day.
const MAX_HINT: u64 = 24 * 3600;
/// How many redirects of an endpoint are followed; each target has to prove the same as the first.
const REDIRECTS: u8 = 3;

/// How an endpoint proves itself (SPIFFE Federation §5.2). Neither is ever guessed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum Profile {
    /// By a certificate of the web for its name.
    HttpsWeb,
    /// By an X.509-SVID of a given identity.
    HttpsSpiffe,
}

impl Profile {
    /// The word of the specification.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HttpsWeb => "https_web",
            Self::HttpsSpiffe => "https_spiffe",
        }
    }
}

/// A foreign trust domain as an operator wants it.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Its name; never read from a document or a URL.
    pub trust_domain: TrustDomain,
    /// Its bundle endpoint.
    pub url: WebUrl,
    /// How that proves itself.
    pub profile: Profile,
    /// With `https_spiffe`: as whom; an identity of that trust domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_id: Option<SpiffeId>,
    /// With `https_spiffe`: a bundle document to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    /// With `https_web`: CAs, PEM, instead of the host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Who gets the bundle: SPIFFE IDs of this trust domain, or namespaces.
    #[serde(rename = "for")]
    pub members: Vec<String>,
}

/// Why a foreign trust domain, or a bundle of it, is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FederationError {
    /// What was asked for contradicts itself.
    #[error("{0}")]
    Wanted(String),
    /// It is not among them.
    #[error("there is no federation with {0}")]
    Unknown(TrustDomain),
    /// Whom to believe is not known.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The endpoint does not answer, or is not who it should be.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It answers something else.
    #[error("the endpoint answered {0}")]
    Status(u16),
    /// It answers bytes that are no text.
    #[error("the endpoint's answer is not UTF-8")]
    Encoding,
    /// What it answers is no bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its sequence is lower than one that was seen.
    #[error("the bundle goes back from sequence {from} to {to}; the one before is kept")]
    Rollback {
        /// What is held.
        from: u64,
        /// What came.
        to: u64,
    },
    /// One CA that speaks for two trust domains could not be told apart.
    #[error("one of its CAs is one of {0} as well; refused, for it would speak for both")]
    Shared(TrustDomain),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No generation could be built.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl FederationError {
    /// The closed word for logs and audit records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Wanted(_) => "contradiction",
            Self::Unknown(_) => "unknown",
            Self::Trust(_) => "no_trust",
            Self::Fetch(error) => error.reason(),
            Self::Status(_) => "status",
            Self::Encoding | Self::Bundle(_) => "bad_bundle",
            Self::Rollback { .. } => "rollback",
            Self::Shared(_) => "shared_authority",
            Self::Store(_) | Self::Publish(_) => "internal",
        }
    }

    /// Whether it is this side's store that failed, and nothing about the trust domain.
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Publish(_))
    }
}

/// A foreign bundle and whom it is for.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The bundle.
    pub bundle: TrustBundle,
    members: Vec<String>,
    declared: Arc<Declarations>,
}

impl Delivered {
    /// The bundle that is held, if there is one; for its members, and for whoever is declared to federate with it.
    pub fn of(foreign: &Foreign, declared: &Arc<Declarations>) -> Result<Option<Self>, BundleError> {
        let Some(bundle) = held(foreign)? else { return Ok(None) };
        Ok(Some(Self { bundle, members: foreign.members.clone(), declared: Arc::clone(declared) }))
    }

    /// Whether the workload `id` gets it.
    pub fn is_for(&self, id: &SpiffeId) -> bool {
        let named = self.members.iter().any(|member| match member.starts_with("spiffe://") {
            true => member == id.as_str(),
            false => id.namespace() == Some(member),
        });
        let domain = self.bundle.trust_domain();
        named || self.declared.of(id).is_some_and(|own| own.spec.federates_with.contains(domain))
    }
}

/// Creates or replaces a foreign trust domain. A bundle that is held already stays unless a newer one is given.
pub async fn add(
    store: &Store,
    own: &TrustBundle,
    wanted: Wanted,
    actor: &str,
) -> Result<(), FederationError> {
    wanted.check(own.trust_domain())?;
    let mut change = store.change().await?;
    let others = change.foreign().await?;
    let before = others.iter().find(|f| f.trust_domain == wanted.trust_domain);
    if before.is_none() && others.len() == MAX_FOREIGN {
        return Err(FederationError::Wanted(format!(
            "there are {MAX_FOREIGN} foreign trust domains already"
        )));
    }
    let mut foreign = Foreign {
        trust_domain: wanted.trust_domain.clone(),
        url: wanted.url.to_string(),
        profile: wanted.profile.as_str().to_owned(),
        endpoint_id: wanted.endpoint_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        ca: wanted.ca.clone().unwrap_or_default(),
        members: wanted.members.clone(),
        document: before.map(|f| f.document.clone()).unwrap_or_default(),
        fetched_at: before.map_or(0, |f| f.fetched_at),
        next_at: now_ms(),
        error: String::new(),
        created_at: now_ms(),
        created_by: actor.to_owned(),
    };
    if let Some(given) = &wanted.bundle {
        let bundle = TrustBundle::parse(wanted.trust_domain.clone(), given)?;
        accept(&foreign, &bundle, own, &others)?;
        foreign.document = bundle.to_document();
    } else if wanted.profile == Profile::HttpsSpiffe && foreign.document.is_empty() {
        return Err(FederationError::Wanted(
            "with https_spiffe give a bundle to begin with (--bundle FILE): nothing else tells the right endpoint from another"
                .to_owned(),
        ));
    }
    change.put_foreign(&foreign).await?;
    let detail = json!({ "url": foreign.url, "profile": foreign.profile, "endpoint_id": foreign.endpoint_id,
                         "for": foreign.members });
    record(change, actor, "federation add", &wanted.trust_domain, detail).await
}

/// Removes a foreign trust domain: its members believe it no more.
pub async fn remove(store: &Store, trust_domain: &TrustDomain, actor: &str) -> Result<(), FederationError> {
    let mut change = store.change().await?;
    if !change.remove_foreign(trust_domain).await? {
        return Err(FederationError::Unknown(trust_domain.clone()));
    }
    record(change, actor, "federation remove", trust_domain, json!({})).await
}

/// Fetches a bundle now and holds it, or notes why not. Whether it changed. With `lease`, only while that is held.
pub async fn refresh(
    store: &Store,
    own: &TrustBundle,
    trust_domain: &TrustDomain,
    floor: Duration,
    actor: &str,
    lease: Option<&Lease>,
) -> Result<bool, FederationError> {
    let known = store.foreign().await?.into_iter().find(|f| f.trust_domain == *trust_domain);
    let known = known.ok_or_else(|| FederationError::Unknown(trust_domain.clone()))?;
    let fetched = fetch(&known).await;
    let mut change = store.change().await?;
    if let Some(lease) = lease {
        change.fence(lease).await?;
    }
    // What was fetched is judged by what is held when it is written: another replica may have been quicker.
    let others = change.foreign().await?;
    let Some(mut foreign) = others.iter().find(|f| f.trust_domain == *trust_domain).cloned() else {
        return Err(FederationError::Unknown(trust_domain.clone()));
    };
    if (&foreign.url, &foreign.endpoint_id) != (&known.url, &known.endpoint_id) {
        return Err(FederationError::Wanted(
            "it was changed while it was being fetched; try again".to_owned(),
        ));
    }
    let judged = fetched.and_then(|bundle| accept(&foreign, &bundle, own, &others).map(|()| bundle));
    let hint = match &judged {
        Ok(bundle) => bundle.refresh_hint(),
        Err(_) => held(&foreign).ok().flatten().and_then(|bundle| bundle.refresh_hint()),
    };
    let pause = Duration::from_secs(hint.unwrap_or(DEFAULT_HINT).min(MAX_HINT)).max(floor);
    // Failed or not, it is asked again one interval later and not before.
    foreign.next_at = now_ms() + crate::clock::millis(pause);
    match judged {
        Err(error) => {
            let news = foreign.error != error.to_string();
            foreign.error = error.to_string();
            change.put_foreign(&foreign).await?;
            let entry = Entry::refused(actor, "federation refresh", trust_domain.as_str(), error.reason());
            // An endpoint that is away for a night is one record, not hundreds.
            if news {
                entry.append(&mut change).await?;
            }
            change.commit().await?;
            if news {
                entry.log();
                tracing::warn!(%trust_domain, %error, "a foreign bundle could not be refreshed; the last good one stays");
            }
            Err(error)
        }
        Ok(bundle) => {
            let document = bundle.to_document();
            let changed = foreign.document != document;
            let before = held(&foreign)?.map(|bundle| bundle.sequence());
            if changed && before == Some(bundle.sequence()) {
                tracing::warn!(%trust_domain, sequence = bundle.sequence(), "a foreign bundle changed without a new sequence");
            }
            (foreign.document, foreign.fetched_at, foreign.error) = (document, now_ms(), String::new());
            change.put_foreign(&foreign).await?;
            if !changed {
                change.commit().await?;
                return Ok(false);
            }
            let detail = json!({
                "sequence": bundle.sequence(),
                "authorities": bundle.anchors().len(),
                "jwt_keys": bundle.jwt_keys().len(),
            });
            record(change, actor, "federation refresh", trust_domain, detail).await?;
            Ok(true)
        }
    }
}

/// The bundle that is held.
pub fn held(foreign: &Foreign) -> Result<Option<TrustBundle>, BundleError> {
    match foreign.document.is_empty() {
        true => Ok(None),
        false => TrustBundle::parse(foreign.trust_domain.clone(), &foreign.document).map(Some),
    }
}

impl Wanted {
    fn check(&self, own: &TrustDomain) -> Result<(), FederationError> {
        let wrong = |why: &str| Err(FederationError::Wanted(why.to_owned()));
        if self.trust_domain == *own {
            return wrong("that is this trust domain itself");
        }
        match (self.profile, &self.endpoint_id) {
            (Profile::HttpsWeb, Some(_)) => return wrong("--endpoint-id goes with https_spiffe"),
            (Profile::HttpsWeb, None) if self.bundle.is_some() => {
                return wrong(
                    "--bundle goes with https_spiffe; with https_web the endpoint's name is its proof",
                );
            }
            (Profile::HttpsSpiffe, _) if self.ca.is_some() => return wrong("--ca goes with https_web"),
            (Profile::HttpsSpiffe, None) => {
                return wrong("with https_spiffe say as whom the endpoint proves itself: --endpoint-id");
            }
            (Profile::HttpsSpiffe, Some(id)) if id.trust_domain() != self.trust_domain => {
                return wrong("the endpoint's identity has to be of the trust domain whose bundle it serves");
            }
            _ => {}
        }
        if self.members.is_empty() {
            return wrong(
                "say who gets the bundle: --for with a SPIFFE ID or a namespace; nobody gets it by default",
            );
        }
        for member in &self.members {
            let is_own = |id: SpiffeId| id.trust_domain() == *own;
            let namespace = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
            let good = match member.starts_with("spiffe:") {
                true => member.parse().is_ok_and(is_own),
                false => !member.is_empty() && member.len() <= 253 && member.bytes().all(namespace),
            };
            if !good {
                return wrong(&format!("{member:?} is neither a SPIFFE ID of {own} nor a namespace"));
            }
        }
        if let Some(ca) = &self.ca {
            web_trust(ca)?;
        }
        Ok(())
    }
}

async fn fetch(foreign: &Foreign) -> Result<TrustBundle, FederationError> {
    let trust = if foreign.profile == Profile::HttpsWeb.as_str() {
        web_trust(&foreign.ca)?
    } else {
        let id = foreign.endpoint_id.parse().map_err(|_| StoreError::Unreadable {
            what: "endpoint identity",
            value: foreign.endpoint_id.clone(),
        })?;
        // The newest bundle that is held authenticates the endpoint of the next (§5.2.2).
        let bundle =
            held(foreign)?.ok_or_else(|| FederationError::Wanted("there is no bundle yet".to_owned()))?;
        Trust::Spiffe(id, Box::new(bundle))
    };
    let answer = Fetcher::new(trust)?.redirects(REDIRECTS).get(&foreign.url).await?;
    if answer.status() != http::StatusCode::OK {
        return Err(FederationError::Status(answer.status().as_u16()));
    }
    let text = std::str::from_utf8(answer.body()).map_err(|_| FederationError::Encoding)?;
    Ok(TrustBundle::parse(foreign.trust_domain.clone(), text)?)
}

fn web_trust(ca: &str) -> Result<Trust, TrustError> {
    if ca.is_empty() {
        return Ok(Trust::System);
    }
    let given = CertificateDer::pem_slice_iter(ca.as_bytes()).collect::<Result<Vec<_>, _>>();
    match given {
        Ok(given) if !given.is_empty() => Ok(Trust::Pem(given)),
        _ => Err(TrustError::Empty),
    }
}

/// Whether a new bundle may take the place of what is held.
fn accept(
    foreign: &Foreign,
    bundle: &TrustBundle,
    own: &TrustBundle,
    others: &[Foreign],
) -> Result<(), FederationError> {
    if let Some(held) = held(foreign)?
        && held.sequence() > bundle.sequence()
    {
        return Err(FederationError::Rollback { from: held.sequence(), to: bundle.sequence() });
    }
    let shares = |other: &TrustBundle| {
        bundle.anchors().iter().any(|a| other.anchors().iter().any(|b| a.der() == b.der()))
    };
    if shares(own) {
        return Err(FederationError::Shared(own.trust_domain().clone()));
    }
    for other in others.iter().filter(|other| other.trust_domain != foreign.trust_domain) {
        if held(other)?.is_some_and(|other| shares(&other)) {
            return Err(FederationError::Shared(other.trust_domain.clone()));
        }
    }
    Ok(())
}

async fn record(
    mut change: Change,
    actor: &str,
    action: &str,
    trust_domain: &TrustDomain,
    detail: serde_json::Value,
) -> Result<(), FederationError> {
    change.advance("generation").await?;
    let entry = Entry::done(actor, action, trust_domain.as_str(), detail);
    entry.append(&mut change).await?;
    change.commit().await?;
    entry.log();
    Ok(())
}

/// What the store holds, ready for delivery. One that cannot be read any more is left out and said in the log: the others, and
/// everything else that proxies have to know, must not wait for it.
pub(crate) async fn delivered(store: &Store) -> Result<Arc<[Delivered]>, StoreError> {
    let (all, declared) = (store.foreign().await?, store.declared().await?);
    let readable = all.iter().filter_map(|foreign| match Delivered::of(foreign, &declared) {
        Ok(delivered) => delivered,
        Err(error) => {
            tracing::error!(trust_domain = %foreign.trust_domain, %error, "a stored foreign bundle cannot be read");
            None
        }
    });
    Ok(readable.collect())
}
