//! What operators see: counters, one record per connection, log lines and, where asked for, OTLP export.
//!
//! The data path only increments and pushes: a counter is an atomic whose handle was looked up at start, a finished
//! connection is a plain [`Record`] pushed into a bounded queue. A thread of its own turns records into log lines and
//! spans. When it falls behind, records are dropped and counted; traffic never waits for it.

use std::sync::Arc;

use postern_config::file::proxy::{Log, LogFormat};
use tokio::sync::mpsc;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

mod exchange;
pub mod gateway;
mod histogram;
mod level;
pub mod metrics;
mod otlp;
mod record;
mod requests;
#[cfg(test)]
mod tests;

pub use exchange::Exchange;
pub use level::LogLevel;
pub use metrics::{Direction, Metrics};
pub use record::{Outcome, Record};

/// Records that may wait for the telemetry thread.
const QUEUE: usize = 16_384;
/// Log lines that may wait for standard error.
const LOG_LINES: usize = 8192;

/// The data path's end of telemetry.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    queue: mpsc::Sender<Event>,
    /// Whether connections become spans.
    exports: bool,
}

/// What the telemetry thread writes down.
#[derive(Debug)]
enum Event {
    Connection(Box<Record>),
    Request(Box<Exchange>),
}

impl Telemetry {
    /// Counts a finished connection and hands its record on, if anybody wants it; never waits.
    pub fn finish(&self, record: Record) {
        self.metrics.finished(record.direction, record.outcome);
        // Waking the thread for a record that it would throw away costs more than the asking.
        if self.exports || record.is_logged() {
            self.push(Event::Connection(Box::new(record)));
        }
    }

    /// Hands the record of a request on; never waits.
    pub fn exchanged(&self, exchange: Box<Exchange>) {
        self.push(Event::Request(exchange));
    }

    fn push(&self, event: Event) {
        if self.queue.try_send(event).is_err() {
            self.metrics.records_dropped.inc();
        }
    }
}

/// The telemetry thread; it ends when every [`Telemetry`] is dropped, after the last record.
#[derive(Debug)]
pub struct Writer {
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    /// Waits until the last record is written.
    pub fn join(self) {
        // A panic there has already been printed; there is nothing left to save.
        let _ = self.thread.join();
    }
}

/// Starts the telemetry thread.
pub fn start(metrics: Arc<Metrics>, otlp_endpoint: Option<&str>) -> std::io::Result<(Telemetry, Writer)> {
    let (queue, records) = mpsc::channel(QUEUE);
    let endpoint = otlp_endpoint.map(str::to_owned);
    let for_thread = Arc::clone(&metrics);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new()
        .name("postern-telemetry".to_owned())
        .spawn(move || runtime.block_on(write(records, for_thread, endpoint)))?;
    Ok((Telemetry { metrics, queue, exports: otlp_endpoint.is_some() }, Writer { thread }))
}

async fn write(mut events: mpsc::Receiver<Event>, metrics: Arc<Metrics>, endpoint: Option<String>) {
    let export = endpoint.and_then(|endpoint| match otlp::Export::start(&endpoint, &metrics) {
        Ok(export) => Some(export),
        Err(error) => {
            tracing::error!(%endpoint, %error, "OTLP export is off: the endpoint cannot be used");
            None
        }
    });
    while let Some(event) = events.recv().await {
        match event {
            Event::Connection(record) => {
                record.log();
                if let Some(export) = &export {
                    export.record(&record);
                }
            }
            Event::Request(exchange) => exchange.log(),
        }
    }
    if let Some(export) = export {
        // From a thread of its own: the last export is driven by this runtime, which must not stand still meanwhile.
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        let stopping = std::thread::Builder::new().name("postern-otlp-end".to_owned()).spawn(move || {
            export.stop();
            drop(ended);
        });
        if stopping.is_ok() {
            let _ = end.await;
        }
    }
}

/// Directs log lines to standard error through a queue of their own; the guard flushes it when dropped. The level can be
/// changed while they flow.
pub fn logs(log: &Log) -> Result<(LogLevel, WorkerGuard), String> {
    let level = LogLevel::new(&log.level).map_err(|e| format!("log.level {:?}: {e}", log.level))?;
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_LINES).finish(std::io::stderr());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        // It would print to standard error that standard error cannot be written, and panic over that.
        .log_internal_errors(false);
    let registry = tracing_subscriber::registry();
    let installed = match log.format {
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_target(true);
            registry.with(layer.with_filter(level.clone())).try_init()
        }
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let layer = layer.with_ansi(colours).with_target(false);
            registry.with(layer.with_filter(level.clone())).try_init()
        }
    };
    installed.map_err(|e| e.to_string())?;
    Ok((level, guard))
}
