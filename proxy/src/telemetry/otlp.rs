//! OTLP export of traces and metrics. It runs on the telemetry thread and behind the SDK's own bounded queues: a dead
//! collector costs dropped spans, never time on a connection.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, MeterProvider as _};
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::{Metrics, Outcome, Record};

/// For one export; a collector that takes longer is treated as dead until the next.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A running export.
pub(super) struct Export {
    traces: SdkTracerProvider,
    tracer: SdkTracer,
    meters: SdkMeterProvider,
    handshakes: Histogram<f64>,
}

impl Export {
    /// Starts exporting to `endpoint` (OTLP over gRPC); must be called on a runtime.
    pub(super) fn start(endpoint: &str, metrics: &Arc<Metrics>) -> Result<Self, ExporterBuildError> {
        let resource = Resource::builder().with_service_name("postern-proxy").build();
        let spans =
            SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(TIMEOUT).build()?;
        let numbers =
            MetricExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(TIMEOUT).build()?;
        let traces =
            SdkTracerProvider::builder().with_batch_exporter(spans).with_resource(resource.clone()).build();
        let meters =
            SdkMeterProvider::builder().with_periodic_exporter(numbers).with_resource(resource).build();
        let meter = meters.meter("postern-proxy");
        for name in ["postern.handshakes", "postern.bytes", "postern.renewals"] {
            let metrics = Arc::clone(metrics);
            // The same atomics that /metrics shows, read when an export is due.
            meter
                .u64_observable_counter(name)
                .with_callback(move |observer| {
                    for (_, labels, value) in metrics.totals().into_iter().filter(|(n, _, _)| *n == name) {
                        let labels: Vec<KeyValue> =
                            labels.into_iter().map(|(k, v)| KeyValue::new(k, v)).collect();
                        observer.observe(value, &labels);
                    }
                })
                .build();
        }
        let handshakes = meter.f64_histogram("postern.handshake.duration").with_unit("s").build();
        Ok(Self { tracer: traces.tracer("postern-proxy"), traces, meters, handshakes })
    }

    /// One span for one finished connection.
    pub(super) fn record(&self, record: &Record) {
        let direction = KeyValue::new("direction", record.direction.as_str());
        if let Some(took) = record.handshake {
            self.handshakes.record(took.as_secs_f64(), std::slice::from_ref(&direction));
        }
        let mut attributes = vec![
            direction,
            KeyValue::new("outcome", record.outcome.as_str()),
            KeyValue::new("source.address", record.source.to_string()),
            KeyValue::new("target.address", record.target.to_string()),
            KeyValue::new("bytes.up", i64::try_from(record.bytes_up).unwrap_or(i64::MAX)),
            KeyValue::new("bytes.down", i64::try_from(record.bytes_down).unwrap_or(i64::MAX)),
        ];
        attributes.extend(record.peer.as_ref().map(|p| KeyValue::new("peer", p.to_string())));
        attributes.extend(record.reason.map(|r| KeyValue::new("reason", r.as_str())));
        attributes.extend(record.denial.clone().map(|d| KeyValue::new("denial", d)));
        let kind = match record.direction {
            super::Direction::Inbound => SpanKind::Server,
            super::Direction::Outbound => SpanKind::Client,
        };
        let builder = self
            .tracer
            .span_builder("connection")
            .with_kind(kind)
            .with_start_time(record.started)
            .with_attributes(attributes);
        let mut span = self.tracer.build(builder);
        if record.outcome != Outcome::Completed {
            span.set_status(Status::error(record.outcome.as_str()));
        }
        span.end_with_timestamp(record.started + record.duration);
    }

    /// Sends what is left, within the export's own timeout.
    pub(super) fn stop(self) {
        for result in [self.traces.shutdown(), self.meters.shutdown()] {
            if let Err(error) = result {
                tracing::debug!(%error, "the last OTLP export failed");
            }
        }
    }
}
