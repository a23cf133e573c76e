//! What is shown: each view reads snapshots, asks the workers where it must, and gives JSON with stable names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_config::svid::Description;
use serde_json::{Value, json};

use super::State;
use crate::discover::Upstream;
use crate::discover::balance::EndpointHealth;
use crate::tls::sha256;
use crate::worker::open::Shown;
use crate::worker::show::{Inquiry, Silent};

mod config;

pub(super) use config::config;

/// The most connections in one answer: listing them takes a worker's time.
pub(super) const MOST: usize = 1000;

/// Which connections are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// How many at most.
    pub(super) limit: usize,
    /// The last one that is known already: worker and number.
    pub(super) after: Option<(usize, u64)>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { limit: 100, after: None }
    }
}

/// The own certificate, and whom this proxy trusts. All of it is public.
pub(super) fn identity(state: &State) -> Value {
    let trust = state.snapshots.trust.load();
    let bundle = |bundle: &Arc<postern_config::bundle::TrustBundle>| {
        let root = |anchor: &Arc<postern_config::svid::Anchor>| {
            json!({
                "spki_sha256": hex(&sha256(anchor.spki())),
                "not_before": time(anchor.not_before()),
                "not_after": time(anchor.not_after()),
            })
        };
        let roots: Vec<Value> = bundle.anchors().iter().map(root).collect();
        json!({ "trust_domain": bundle.trust_domain().as_str(), "sequence": bundle.sequence(), "roots": roots })
    };
    let bundles: Vec<Value> = trust.bundles.iter().map(bundle).collect();
    let Some(credentials) = state.snapshots.credentials.load_full() else {
        return json!({ "id": null, "bundles": bundles });
    };
    let renewal_ms = state.snapshots.renewal_ms.load(Ordering::Relaxed);
    let left = credentials.not_after().saturating_sub(state.snapshots.clock.now());
    let chain: Vec<Value> = credentials.chain().iter().map(|der| certificate(der)).collect();
    let pem: String = credentials.chain().iter().map(|der| pem(der)).collect();
    json!({
        "id": credentials.id(),
        "serial": credentials.serial(),
        "expires": time(credentials.not_after()),
        "expires_in_s": left,
        "renewal": time(renewal_ms / 1000),
        "renewal_in_s": (renewal_ms - state.snapshots.clock.now_ms()) / 1000,
        "chain": chain,
        "pem": pem,
        "bundles": bundles,
    })
}

fn certificate(der: &[u8]) -> Value {
    let Some(described) = Description::of(der) else { return Value::Null };
    json!({
        "subject": described.subject,
        "uris": described.uris,
        "issuer": described.issuer,
        "serial": described.serial,
        "not_before": time(described.not_before),
        "not_after": time(described.not_after),
        "spki_sha256": hex(&sha256(&described.spki)),
    })
}

/// The policies in force, as they were published.
pub(super) fn policy(state: &State) -> Value {
    let documents = state.snapshots.documents.load();
    let parsed = |documents: &[String]| {
        documents.iter().map(|d| serde_json::from_str(d).unwrap_or(Value::Null)).collect::<Vec<Value>>()
    };
    json!({
        "generation": documents.generation,
        "held": state.snapshots.policy.load().is_some(),
        "policies": parsed(&documents.policies),
        "peer_authentications": parsed(&documents.peer_authentications),
    })
}

/// How many connections are open, and nothing about them.
pub(super) async fn connection_count(state: &State) -> Value {
    let (mut open, mut silent) = (0, Vec::new());
    for worker in workers(state) {
        match worker.connections(None, 0).await {
            Ok(page) => open += page.open,
            Err(Silent) => silent.push(worker.worker),
        }
    }
    json!({ "open": open, "silent_workers": silent })
}

/// Open connections, worker by worker, the oldest first.
pub(super) async fn connections(state: &State, wanted: Wanted) -> Value {
    let (mut open, mut shown, mut silent) = (0, Vec::new(), Vec::new());
    let mut last = None;
    let mut more = false;
    for worker in workers(state) {
        let known = wanted.after.filter(|(w, _)| *w >= worker.worker);
        let after = known.map(|(w, number)| if w == worker.worker { number } else { u64::MAX });
        let room = wanted.limit - shown.len();
        // One more than there is room for tells whether there are more.
        match worker.connections(after, room + 1).await {
            Err(Silent) => silent.push(worker.worker),
            Ok(page) => {
                open += page.open;
                more |= page.shown.len() > room;
                for connection in page.shown.iter().take(room) {
                    last = Some(format!("{}.{}", worker.worker, connection.number));
                    shown.push(row(worker.worker, connection));
                }
            }
        }
    }
    json!({ "open": open, "connections": shown, "next": last.filter(|_| more), "silent_workers": silent })
}

fn row(worker: usize, connection: &Shown) -> Value {
    let about = &connection.about;
    let (policy, rule) = about.policy.as_ref().map(|(policy, rule)| (&**policy, *rule)).unzip();
    json!({
        "id": format!("{worker}.{}", connection.number),
        "direction": about.direction.as_str(),
        "protocol": about.protocol,
        "peer": connection.peer,
        "source": about.source,
        "target": &*about.target,
        "policy": policy,
        "rule": rule,
        "age_ms": about.since.elapsed().as_millis() as u64,
        "idle_ms": connection.idle.as_millis() as u64,
        "bytes_up": connection.bytes.0,
        "bytes_down": connection.bytes.1,
    })
}

/// Services and fixed upstreams with their endpoints. Each worker judges endpoints by its own connections.
pub(super) async fn upstreams(state: &State) -> Value {
    let mut silent = Vec::new();
    let mut known: HashMap<Arc<str>, Vec<(usize, EndpointHealth)>> = HashMap::new();
    for worker in workers(state) {
        match worker.endpoints().await {
            Ok(endpoints) => {
                for health in endpoints {
                    known.entry(Arc::clone(&health.address)).or_default().push((worker.worker, health));
                }
            }
            Err(Silent) => silent.push(worker.worker),
        }
    }
    let services = state.snapshots.services.load();
    let all = services.iter().map(|u| ("service", u)).chain(state.fixed.iter().map(|u| ("fixed", u)));
    let by_name: BTreeMap<_, _> = all.map(|(kind, u)| ((Arc::clone(&u.name), kind), u)).collect();
    let upstream = |((name, kind), upstream): (&(Arc<str>, &str), &&Arc<Upstream>)| {
        let endpoints: Vec<Value> = upstream.endpoints.iter().map(|e| endpoint(e, known.get(e))).collect();
        json!({ "name": &**name, "kind": kind, "expected": upstream.expected, "endpoints": endpoints })
    };
    json!({ "upstreams": by_name.iter().map(upstream).collect::<Vec<_>>(), "silent_workers": silent })
}

/// What no worker lists is as good as new.
fn endpoint(address: &str, known: Option<&Vec<(usize, EndpointHealth)>>) -> Value {
    let known = known.map(Vec::as_slice).unwrap_or_default();
    let worker = |(worker, health): &(usize, EndpointHealth)| {
        json!({
            "worker": worker,
            "open": health.open,
            "failures": health.failures,
            "errors": health.errors,
            "ejected": health.ejected,
            "rests_for_ms": health.rests_for.as_millis() as u64,
            "latency_ms": health.latency.map(|seconds| seconds * 1000.0),
        })
    };
    json!({
        "address": address,
        "open": known.iter().map(|(_, h)| h.open).sum::<usize>(),
        "resting_at": known.iter().filter(|(_, h)| !h.rests_for.is_zero()).count(),
        "workers": known.iter().map(worker).collect::<Vec<_>>(),
    })
}

fn workers(state: &State) -> &[Inquiry] {
    state.workers.get().map(Vec::as_slice).unwrap_or_default()
}

fn time(seconds: i64) -> Option<String> {
    Some(jiff::Timestamp::from_second(seconds).ok()?.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.collect::<Vec<_>>().join("\n")
    )
}
