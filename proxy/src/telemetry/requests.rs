//! The metrics of HTTP requests; their label sets are closed like all others.

use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::{Registry, Unit};

use super::Direction;
use super::histogram::Histogram;
use super::metrics::{child, family};
use crate::http::refuse::Fault;

/// Answers by the first digit of their status.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// HTTP requests by direction.
#[derive(Debug)]
pub struct Requests {
    by_class: [[Counter; 5]; 2],
    by_fault: [Vec<Counter>; 2],
    /// Requests that were sent again.
    pub retries: Counter,
    /// Requests that were not sent again because too many are.
    pub retries_over_budget: Counter,
    /// Endpoints that were left alone for a while after errors in a row.
    pub ejections: Counter,
    histograms: Arc<[Histogram; 2]>,
}

impl Requests {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let answers = family(registry, "requests", "HTTP requests by direction and class of the answer");
        let faults = family(
            registry,
            "request_faults",
            "HTTP requests that this proxy answered itself, by direction and reason",
        );
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let retries = counter(registry, "retries", "HTTP requests that were sent again");
        let help = "HTTP requests that were not sent again because the upstream's retry budget was used up";
        let retries_over_budget = counter(registry, "retries_over_budget", help);
        let ejections = counter(registry, "ejections", "Endpoints left alone after errors in a row");
        let histograms: Arc<[Histogram; 2]> = Arc::default();
        registry.register_collector(Box::new(Durations(Arc::clone(&histograms))));
        Self {
            by_class: Direction::ALL
                .map(|d| CLASSES.map(|class| child(&answers, [("direction", d.as_str()), ("class", class)]))),
            by_fault: Direction::ALL.map(|d| {
                let one = |f: &Fault| child(&faults, [("direction", d.as_str()), ("reason", f.as_str())]);
                Fault::ALL.iter().map(one).collect()
            }),
            retries,
            retries_over_budget,
            ejections,
            histograms,
        }
    }

    /// Counts a request whose answer has begun after `took`.
    pub fn answered(&self, direction: Direction, status: StatusCode, fault: Option<Fault>, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        self.by_class[direction as usize][class].inc();
        if let Some(fault) = fault {
            self.by_fault[direction as usize][fault as usize].inc();
        }
        self.histograms[direction as usize].observe(took);
    }
}

/// Encodes the lock-free histograms.
#[derive(Debug)]
struct Durations(Arc<[Histogram; 2]>);

impl Collector for Durations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "From a request's head to its answer's head";
        let kind = MetricType::Histogram;
        let mut metric = encoder.encode_descriptor("request_duration", help, Some(&Unit::Seconds), kind)?;
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
