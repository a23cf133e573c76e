//! What operators see: log lines on standard error, and the metrics of the control plane.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use postern_config::file::control::{ControlLog, ControlLogFormat};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

/// Sends events to standard error. A second call in one process changes nothing.
pub fn log(config: &ControlLog) -> Result<(), String> {
    use std::io::IsTerminal as _;
    let filter =
        EnvFilter::try_new(&config.level).map_err(|e| format!("log.level: {:?}: {e}", config.level))?;
    let builder = tracing_subscriber::fmt()
        // Complaining about a closed standard error on standard error panics, and takes the task that logged along.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = match config.format {
        ControlLogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        ControlLogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// The control plane's metrics. Cheap to clone; every label has a closed set of values.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    issued: Family<Issue, Counter>,
    refused: Family<RefusedBecause, Counter>,
    handshakes: Family<Handshake, Counter>,
    key_usable: Family<WhichKey, Gauge>,
    lines: Lines,
    rotations: Family<Rotation, Counter>,
    /// Open Watch streams.
    pub streams: Gauge,
    /// The generation that is being pushed.
    pub generation: Gauge<u64, AtomicU64>,
    /// 1 while the next issuing CA waits to be signed elsewhere.
    pub issuing_waits: Gauge,
    /// notAfter of the issuing CA, seconds since 1970.
    pub issuing_ends: Gauge<i64, AtomicI64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Issue {
    kind: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedBecause {
    action: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handshake {
    result: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rotation {
    kind: &'static str,
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhichKey {
    key: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhichLine {
    line: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TurnedAway {
    line: &'static str,
    reason: &'static str,
}

/// What is seen of all lines.
#[derive(Debug, Clone)]
struct Lines {
    waiting: Family<WhichLine, Gauge>,
    in_flight: Family<WhichLine, Gauge>,
    served: Family<WhichLine, Counter>,
    refused: Family<TurnedAway, Counter>,
    waited: Family<WhichLine, Histogram, fn() -> Histogram>,
}

impl Lines {
    fn new(registry: &mut Registry) -> Self {
        let lines = Self {
            waiting: Family::default(),
            in_flight: Family::default(),
            served: Family::default(),
            refused: Family::default(),
            // 1 ms to 32 s: nobody waits for longer.
            waited: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))),
        };
        let Self { waiting, in_flight, served, refused, waited } = lines.clone();
        registry.register("postern_control_line_waiting", "Callers that wait for their turn", waiting);
        registry.register("postern_control_line_in_flight", "Callers whose turn it is", in_flight);
        registry.register("postern_control_line_served", "Callers that had their turn", served);
        registry.register(
            "postern_control_line_refused",
            "Callers that had none: the line was full, too slow for them, or they left",
            refused,
        );
        registry.register(
            "postern_control_line_wait_seconds",
            "How long callers waited for their turn",
            waited,
        );
        lines
    }
}

/// What is seen of one line.
#[derive(Debug, Clone)]
pub struct LineMetrics {
    name: &'static str,
    /// In line now.
    pub waiting: Gauge,
    /// Whose turn it is now.
    pub in_flight: Gauge,
    /// Had a turn.
    pub served: Counter,
    /// Waited for a turn, seconds.
    pub waited: Histogram,
    refused: Family<TurnedAway, Counter>,
}

impl LineMetrics {
    /// Counts one that had no turn.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&TurnedAway { line: self.name, reason }).inc();
    }
}

impl Metrics {
    /// A registry of its own.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let (issued, refused, handshakes) = (Family::default(), Family::default(), Family::default());
        let key_usable = Family::<WhichKey, Gauge>::default();
        registry.register(
            "postern_control_key_usable",
            "1 while the key (issuing or root) answers at its place, 0 while it does not",
            key_usable.clone(),
        );
        let rotations = Family::<Rotation, Counter>::default();
        registry.register(
            "postern_control_ca_rotations",
            "Stages that rotations of a root or an issuing CA have reached; rolling_back: a canary's handshakes failed",
            rotations.clone(),
        );
        let issuing_waits = Gauge::default();
        registry.register(
            "postern_control_issuing_ca_waits",
            "1 while the next issuing CA is due and waits to be signed by whoever holds the root",
            issuing_waits.clone(),
        );
        let (streams, generation, issuing_ends) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register(
            "postern_control_certificates",
            "Requests for certificates by result",
            issued.clone(),
        );
        registry.register("postern_control_refusals", "Refused requests by closed reason", refused.clone());
        registry.register(
            "postern_control_handshakes",
            "TLS handshakes on the proxies' port",
            handshakes.clone(),
        );
        registry.register("postern_control_proxies_connected", "Open Watch streams", streams.clone());
        registry.register("postern_control_generation", "Generation that is pushed", generation.clone());
        registry.register(
            "postern_control_issuing_ca_not_after_seconds",
            "End of the issuing CA, seconds since 1970",
            issuing_ends.clone(),
        );
        let lines = Lines::new(&mut registry);
        Self {
            lines,
            registry: Arc::new(registry),
            issued,
            refused,
            handshakes,
            key_usable,
            rotations,
            issuing_waits,
            streams,
            generation,
            issuing_ends,
        }
    }

    /// What is seen of the line of this name.
    pub fn line(&self, name: &'static str) -> LineMetrics {
        let label = WhichLine { line: name };
        LineMetrics {
            name,
            waiting: self.lines.waiting.get_or_create_owned(&label),
            in_flight: self.lines.in_flight.get_or_create_owned(&label),
            served: self.lines.served.get_or_create_owned(&label),
            waited: self.lines.waited.get_or_create_owned(&label),
            refused: self.lines.refused.clone(),
        }
    }

    /// Counts one request for a certificate.
    pub fn issued(&self, kind: &'static str, result: &'static str) {
        self.issued.get_or_create(&Issue { kind, result }).inc();
    }

    /// Counts one refusal.
    pub fn refused(&self, action: &'static str, reason: &'static str) {
        self.refused.get_or_create(&RefusedBecause { action, reason }).inc();
    }

    /// Counts a stage that a rotation has reached.
    pub fn rotation(&self, kind: &'static str, stage: &'static str) {
        self.rotations.get_or_create(&Rotation { kind, stage }).inc();
    }

    /// Whether a key answers at its place.
    pub fn key_usable(&self, key: &'static str, usable: bool) {
        self.key_usable.get_or_create(&WhichKey { key }).set(usable.into());
    }

    /// Counts one handshake; `reason` is empty for one that succeeded.
    pub fn handshake(&self, reason: &'static str) {
        let result = if reason.is_empty() { "ok" } else { "failed" };
        self.handshakes.get_or_create(&Handshake { result, reason }).inc();
    }

    /// Everything as OpenMetrics text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
