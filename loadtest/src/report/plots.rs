//! The drawings of a report.

use super::svg::{Lines, Series, bars, number};
use crate::run::Run;

type Named<'a> = (String, &'a Run);

/// Curves over percentiles, with the distance to 100 % by factors: 90, 99, 99.9 stand equally far apart.
pub(super) fn latency(runs: &[Named<'_>]) -> String {
    let place = |percentile: f64| -(1.0 - (percentile / 100.0).clamp(0.0, 0.999_999)).log10();
    let series = runs.iter().map(|(name, run)| {
        let points = run.outcome.latency.curve.iter().map(|(p, us)| (place(*p), us / 1000.0)).collect();
        Series { name: name.clone(), points }
    });
    let marks = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999].map(|p| (place(p), format!("{p} %"))).into();
    let told = runs.iter().map(|(name, run)| {
        let latency = &run.outcome.latency;
        let us = |value: Option<f64>| {
            value.map_or("unknown".to_owned(), |us| format!("{} ms", number(us / 1000.0)))
        };
        format!("{name}: median {}, 99th percentile {}", us(latency.p50_us), us(latency.p99_us))
    });
    let description = told.collect::<Vec<_>>().join("; ");
    let title = "Latency by percentile";
    Lines { title, description, x: "percentile", y: "ms", marks, is_log: true, series: series.collect() }
        .draw()
}

/// Operations a second over time.
pub(super) fn rate(name: &str, run: &Run) -> String {
    over_time(run, &format!("{name}: successes over time"), "a second", |bucket| bucket.succeeded as f64)
}

/// Failures a second over time; nothing where there was none.
pub(super) fn failures(name: &str, run: &Run) -> String {
    if run.outcome.failed() == 0 {
        return "<p class=\"soft\">No failures.</p>\n".to_owned();
    }
    over_time(run, &format!("{name}: failures over time"), "a second", |bucket| bucket.failed as f64)
}

fn over_time(run: &Run, title: &str, y: &str, value: impl Fn(&crate::drive::Bucket) -> f64) -> String {
    let buckets = run.outcome.over_time.iter().filter(|bucket| bucket.width_ms > 0);
    let point = |b: &crate::drive::Bucket| {
        let middle = b.at_ms as f64 + b.width_ms as f64 / 2.0;
        (middle / 1000.0, value(b) * 1000.0 / b.width_ms as f64)
    };
    let points: Vec<_> = buckets.map(point).collect();
    let (low, high) = points.iter().fold((f64::INFINITY, 0.0_f64), |(l, h), p| (l.min(p.1), h.max(p.1)));
    let description = match points.is_empty() {
        true => "no data".to_owned(),
        false => format!("between {} and {} a second", number(low), number(high)),
    };
    let last = points.last().map_or(0.0, |p| p.0);
    let marks = (0..=5)
        .map(|n| (last * f64::from(n) / 5.0, format!("{} s", number(last * f64::from(n) / 5.0))))
        .collect();
    let series = vec![Series { name: String::new(), points }];
    Lines { title, description, x: "time", y, marks, is_log: false, series }.draw()
}

/// Rates beside each other.
pub(super) fn bars_rate(runs: &[Named<'_>]) -> String {
    bars("Rate", "operations a second", &each(runs, |run| Some(run.outcome.rate)))
}

/// 99th percentiles beside each other.
pub(super) fn bars_p99(runs: &[Named<'_>]) -> String {
    bars("99th percentile", "ms", &each(runs, |run| Some(run.outcome.latency.p99_us? / 1000.0)))
}

/// The server's processor time for each operation; nothing where no server's process was named.
pub(super) fn bars_cpu(runs: &[Named<'_>]) -> String {
    let values = each(runs, |run| run.outcome.cost.as_ref()?.cpu_us_per_operation);
    if values.is_empty() {
        String::new()
    } else {
        bars("The server's processor time", "µs an operation", &values)
    }
}

fn each(runs: &[Named<'_>], value: impl Fn(&Run) -> Option<f64>) -> Vec<(String, f64)> {
    runs.iter().filter_map(|(name, run)| Some((name.clone(), value(run)?))).collect()
}
