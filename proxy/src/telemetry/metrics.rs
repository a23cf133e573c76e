//! Counters and gauges. Every label set is closed, and every handle is looked up once, at start or at a policy push:
//! an increment on the data path is one atomic addition.

use std::sync::Arc;
use std::time::Duration;

use postern_config::file::Span;
use postern_config::file::http::Http;
use postern_config::file::proxy::{Limits, ProxyConfig};
use postern_config::reason::Reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::Outcome;
use super::gateway::GatewayMetrics;
use super::histogram::Histogram;
use super::requests::Requests;
use crate::acme::metrics::AcmeMetrics;
use crate::identity::handshakes::Totals;
use crate::jwt::metrics::JwtMetrics;
use crate::snapshot::Snapshots;
use crate::tls::ChainCounters;
use crate::upstream::circuit::Resource;

/// Which way a connection goes, as seen from the app beside this proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the words say it")]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub(super) const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The word in labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;

/// All metrics of one proxy.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    handshakes: [HandshakeCounters; 2],
    connections: [Vec<Counter>; 2],
    /// Open connections by direction.
    open: [Gauge; 2],
    bytes: [[Counter; 2]; 2],
    authorizations: Counters,
    /// Renewals that brought a new certificate.
    pub renewals_ok: Counter,
    /// Renewals that failed and will be tried again.
    pub renewals_failed: Counter,
    /// Accepts that the system refused, such as for want of file descriptors.
    pub accept_errors: Counter,
    /// Connections that waited because a handshake limit was reached.
    pub handshakes_queued: Counter,
    /// Records that the telemetry thread could not take.
    pub records_dropped: Counter,
    /// Jumps of the host's clock that were noticed.
    pub clock_jumps: Counter,
    /// How often a presented chain was known.
    pub chains: ChainCounters,
    /// 1 while the stream from the control plane is open.
    pub control_connected: Gauge,
    /// The generation of the configuration in force.
    pub generation: Gauge,
    /// The host's clock minus the control plane's, milliseconds, at the last contact.
    pub clock_skew_ms: Gauge,
    /// Connections on which `protocol: auto` waited in vain for a first byte.
    pub detect_timeouts: Counter,
    /// Inbound connections in plain text, on ports that take it.
    pub plaintext_connections: Counter,
    /// HTTP requests.
    pub requests: Requests,
    /// What a gateway shows of its certificates.
    pub gateway: GatewayMetrics,
    /// Orders for certificates.
    pub acme: AcmeMetrics,
    /// JWTs and the keys that verify them.
    pub jwt: JwtMetrics,
    histograms: Arc<[Histogram; 2]>,
}

#[derive(Debug)]
struct HandshakeCounters {
    ok: Counter,
    failed: Vec<Counter>,
}

/// The two counters of one policy, looked up when it is published.
#[derive(Debug, Clone)]
pub struct DecisionCounters {
    /// Connections that it admitted.
    pub allow: Counter,
    /// Connections that it denied.
    pub deny: Counter,
}

impl Metrics {
    /// Registers everything; `snapshots` is read at each scrape for what changes by itself.
    pub fn new(snapshots: &Arc<Snapshots>, config: &ProxyConfig) -> Self {
        let mut registry = Registry::with_prefix("postern");
        let handshakes =
            family(&mut registry, "handshakes", "TLS handshakes by direction, result and reason");
        let connections =
            family(&mut registry, "connections", "Finished connections by direction and outcome");
        let bytes = family(
            &mut registry,
            "bytes",
            "Relayed bytes by direction and flow: up is from the connecting side",
        );
        let renewals = family(&mut registry, "renewals", "Certificate renewals by result");
        let authorizations = family(
            &mut registry,
            "authorizations",
            "Authorization decisions by deciding policy and decision",
        );
        show_limits(&mut registry, &config.limits, &config.http);
        registry.register_collector(Box::new(Circuits(Arc::clone(snapshots))));
        let acme = AcmeMetrics::register(&mut registry);
        let jwt = JwtMetrics::register(&mut registry);
        let open = Family::<Labels, Gauge>::default();
        registry.register("open_connections", "Connections open now, by direction", open.clone());
        let histograms: Arc<[Histogram; 2]> = Arc::default();
        registry.register_collector(Box::new(Handshakes(Arc::clone(&histograms))));
        registry.register_collector(Box::new(Identity(Arc::clone(snapshots))));
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let accept_errors = counter(&mut registry, "accept_errors", "Accepts that the system refused");
        let handshakes_queued =
            counter(&mut registry, "handshakes_queued", "Connections that waited for a free handshake");
        let records_dropped =
            counter(&mut registry, "records_dropped", "Connection records that the log could not take");
        let clock_jumps =
            counter(&mut registry, "clock_jumps", "Jumps of the host's clock by more than a minute");
        let chains = ChainCounters {
            hits: counter(
                &mut registry,
                "verified_chain_hits",
                "Peers whose chain was verified before and is good still",
            ),
            misses: counter(&mut registry, "verified_chain_misses", "Peers whose chain was verified in full"),
        };
        let detect_timeouts = counter(
            &mut registry,
            "detect_timeouts",
            "Connections of `protocol: auto` whose first byte did not come in time",
        );
        let plaintext_connections = counter(
            &mut registry,
            "plaintext_connections",
            "Inbound connections in plain text, on ports that take it; at 0 the port may become strict",
        );
        let requests = Requests::new(&mut registry);
        let gateway = GatewayMetrics::new(&mut registry, snapshots);
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let control_connected =
            gauge(&mut registry, "control_connected", "1 while the stream from the control plane is open");
        let generation = gauge(&mut registry, "generation", "Generation of the configuration in force");
        let clock_skew_ms = gauge(
            &mut registry,
            "clock_skew_milliseconds",
            "Host clock minus control plane clock at last contact",
        );
        Self {
            handshakes: Direction::ALL.map(|d| HandshakeCounters::new(&handshakes, d)),
            connections: Direction::ALL.map(|d| {
                let one =
                    |o: Outcome| child(&connections, [("direction", d.as_str()), ("outcome", o.as_str())]);
                Outcome::ALL.map(one).into()
            }),
            open: Direction::ALL
                .map(|d| open.get_or_create(&vec![("direction", d.as_str().to_owned())]).clone()),
            bytes: Direction::ALL
                .map(|d| ["up", "down"].map(|f| child(&bytes, [("direction", d.as_str()), ("flow", f)]))),
            renewals_ok: child(&renewals, [("result", "ok")]),
            renewals_failed: child(&renewals, [("result", "failed")]),
            registry,
            authorizations,
            accept_errors,
            handshakes_queued,
            records_dropped,
            clock_jumps,
            chains,
            control_connected,
            generation,
            clock_skew_ms,
            detect_timeouts,
            plaintext_connections,
            requests,
            gateway,
            acme,
            jwt,
            histograms,
        }
    }

    /// A handshake that ended well, and how long it took.
    pub fn handshake_ok(&self, direction: Direction, took: Duration) {
        self.handshakes[direction as usize].ok.inc();
        self.histograms[direction as usize].observe(took);
    }

    /// A handshake that failed.
    pub fn handshake_failed(&self, direction: Direction, reason: Reason) {
        self.handshakes[direction as usize].failed[reason as usize].inc();
    }

    /// How handshakes in this direction have ended so far.
    pub fn handshake_totals(&self, direction: Direction) -> Totals {
        let handshakes = &self.handshakes[direction as usize];
        Totals { ok: handshakes.ok.get(), failed: handshakes.failed.iter().map(Counter::get).collect() }
    }

    /// A connection that ended.
    pub(super) fn finished(&self, direction: Direction, outcome: Outcome) {
        self.connections[direction as usize][outcome as usize].inc();
    }

    /// How many connections are open.
    pub fn open(&self, direction: Direction) -> &Gauge {
        &self.open[direction as usize]
    }

    /// The counters of relayed bytes: (up, down).
    pub fn bytes(&self, direction: Direction) -> (&Counter, &Counter) {
        let [up, down] = &self.bytes[direction as usize];
        (up, down)
    }

    /// The decision counters of one policy; bounded by the number of policies in force.
    pub fn decisions(&self, policy: &str) -> DecisionCounters {
        let of = |decision| child(&self.authorizations, [("policy", policy), ("decision", decision)]);
        DecisionCounters { allow: of("allow"), deny: of("deny") }
    }

    /// Forgets the counters of policies that are gone.
    pub fn forget_decisions(&self, policy: &str) {
        for decision in ["allow", "deny"] {
            self.authorizations.remove(&labels([("policy", policy), ("decision", decision)]));
        }
    }

    /// Cumulative totals for the OTLP export: name, labels, value.
    pub(super) fn totals(&self) -> Vec<(&'static str, Labels, u64)> {
        let mut totals = Vec::new();
        for direction in Direction::ALL {
            let handshakes = &self.handshakes[direction as usize];
            let of = |result: &str, reason: &str| {
                labels([("direction", direction.as_str()), ("result", result), ("reason", reason)])
            };
            totals.push(("postern.handshakes", of("ok", ""), handshakes.ok.get()));
            for (reason, counter) in Reason::ALL.iter().zip(&handshakes.failed) {
                totals.push(("postern.handshakes", of("failed", reason.as_str()), counter.get()));
            }
            let (up, down) = self.bytes(direction);
            for (flow, counter) in [("up", up), ("down", down)] {
                let of = labels([("direction", direction.as_str()), ("flow", flow)]);
                totals.push(("postern.bytes", of, counter.get()));
            }
        }
        totals.push(("postern.renewals", labels([("result", "ok")]), self.renewals_ok.get()));
        totals.push(("postern.renewals", labels([("result", "failed")]), self.renewals_failed.get()));
        totals
    }

    /// The exposition text (OpenMetrics).
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl HandshakeCounters {
    fn new(family: &Counters, direction: Direction) -> Self {
        let one = |result, reason| {
            child(family, [("direction", direction.as_str()), ("result", result), ("reason", reason)])
        };
        Self { ok: one("ok", ""), failed: Reason::ALL.iter().map(|r| one("failed", r.as_str())).collect() }
    }
}

pub(super) fn family(registry: &mut Registry, name: &str, help: &str) -> Counters {
    let family = Counters::default();
    registry.register(name, help, family.clone());
    family
}

/// The limits in force, so that a chart can draw the line that its counters approach.
fn show_limits(registry: &mut Registry, limits: &Limits, http: &Http) {
    let family = Family::<Labels, Gauge>::default();
    let millis = |span: Span| usize::try_from(span.as_duration().as_millis()).unwrap_or(usize::MAX);
    for (name, value) in [
        ("connections", limits.connections),
        ("handshakes_in_progress", limits.handshakes_in_progress),
        ("handshakes_per_source", limits.handshakes_per_source),
        ("verified_chains", limits.verified_chains),
        ("handshake_timeout_milliseconds", millis(limits.handshake_timeout)),
        ("connect_timeout_milliseconds", millis(limits.connect_timeout)),
        ("idle_timeout_milliseconds", millis(limits.idle_timeout)),
        ("head_timeout_milliseconds", millis(limits.head_timeout)),
        ("keep_alive_milliseconds", millis(limits.keep_alive)),
        ("stream_idle_timeout_milliseconds", millis(limits.stream_idle_timeout)),
        ("detect_timeout_milliseconds", millis(limits.detect_timeout)),
        ("minimum_rate_bytes_per_second", usize::try_from(limits.minimum_rate).unwrap_or(usize::MAX)),
        ("streams", limits.streams as usize),
        ("http_request_timeout_milliseconds", http.timeouts.request.map_or(0, millis)),
        ("http_per_try_timeout_milliseconds", http.timeouts.per_try.map_or(0, millis)),
        ("http_retries_attempts", http.retries.attempts as usize),
        ("http_retries_budget_percent", http.retries.budget_percent as usize),
        ("http_circuit_connections", http.circuit.connections),
        ("http_circuit_pending_requests", http.circuit.pending_requests),
        ("http_circuit_requests", http.circuit.requests),
        ("http_outlier_consecutive", http.outlier.consecutive as usize),
        ("http_outlier_max_ejection_percent", http.outlier.max_ejection_percent as usize),
        (
            "http_rate_limit_requests_per_second",
            http.rate_limit.map_or(0, |r| r.requests_per_second as usize),
        ),
    ] {
        family.get_or_create(&labels([("limit", name)])).set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    registry.register("limit", "The limits in force; see `limits` in the configuration", family);
}

fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    pairs.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

pub(super) fn child<const N: usize>(family: &Counters, pairs: [(&'static str, &str); N]) -> Counter {
    family.get_or_create(&labels(pairs)).clone()
}

/// Encodes the lock-free handshake histograms.
#[derive(Debug)]
struct Handshakes(Arc<[Histogram; 2]>);

impl Collector for Handshakes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Duration of handshakes that ended well";
        let mut metric = encoder.encode_descriptor(
            "handshake_duration",
            help,
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for direction in Direction::ALL {
            let (sum, count, buckets) = self.0[direction as usize].read();
            let labels = [("direction", direction.as_str())];
            metric
                .encode_family(&labels)?
                .encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

/// Encodes what the live credentials say about themselves.
#[derive(Debug)]
struct Identity(Arc<Snapshots>);

impl Collector for Identity {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(credentials) = self.0.credentials.load_full() else { return Ok(()) };
        let left = credentials.not_after().saturating_sub(self.0.clock.now());
        let help = "Seconds until the certificate expires; negative once it has";
        let metric =
            encoder.encode_descriptor("certificate_expiry", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        encode_gauge(metric, left)
    }
}

/// Encodes how the limits of the services stand; bounded by the number of services.
#[derive(Debug)]
struct Circuits(Arc<Snapshots>);

impl Collector for Circuits {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let services = self.0.services.load();
        let (used, refused) = (
            "In use now of what a service is asked for at once, by service and limit",
            "Refused because a service's limit was reached, by service and limit",
        );
        for (name, help, kind) in
            [("circuit_used", used, MetricType::Gauge), ("circuit_refused", refused, MetricType::Counter)]
        {
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for upstream in services.all() {
                for resource in Resource::ALL {
                    let usage = upstream.circuit.usage(resource);
                    let labels = [("service", &*upstream.name), ("limit", resource.as_str())];
                    let mut child = metric.encode_family(&labels)?;
                    match kind {
                        MetricType::Gauge => child.encode_gauge(&(usage.used as i64))?,
                        _ => child.encode_counter::<[(&str, &str); 0], _, f64>(&usage.refused, None)?,
                    }
                }
            }
        }
        Ok(())
    }
}

pub(super) fn encode_gauge(
    mut metric: prometheus_client::encoding::MetricEncoder<'_>,
    value: i64,
) -> Result<(), std::fmt::Error> {
    metric.encode_gauge(&value)
}
