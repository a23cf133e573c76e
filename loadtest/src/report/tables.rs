//! The tables of a report: the numbers of the drawings, and those that are not drawn.

use super::svg::{escape, number};
use crate::drive::Load;
use crate::run::Run;

type Named<'a> = (String, &'a Run);

/// One line for each run.
pub(super) fn overview(runs: &[Named<'_>]) -> String {
    let rows = runs.iter().map(|(name, run)| {
        let outcome = &run.outcome;
        let load = match outcome.plan.load {
            Load::Open { rate } => format!("{} a second", number(rate)),
            Load::Closed { clients } => format!("{clients} clients"),
        };
        vec![
            name.clone(),
            outcome.plan.target.to_string(),
            load,
            number(outcome.rate),
            outcome.due.to_string(),
            outcome.failed().to_string(),
            ms(outcome.latency.p50_us),
            ms(outcome.latency.p99_us),
            outcome.cost.as_ref().and_then(|c| c.cpu_us_per_operation).map_or("–".to_owned(), number),
        ]
    });
    let head =
        ["run", "target", "load", "rate/s", "operations", "failed", "p50 ms", "p99 ms", "server µs each"];
    table("Overview", &head, rows)
}

/// The percentiles.
pub(super) fn latency(runs: &[Named<'_>]) -> String {
    let rows = runs.iter().map(|(name, run)| {
        let l = &run.outcome.latency;
        let some = |us: f64| ms((l.count > 0).then_some(us));
        vec![
            name.clone(),
            l.count.to_string(),
            some(l.min_us),
            ms(l.p50_us),
            ms(l.p90_us),
            ms(l.p99_us),
            ms(l.p99_9_us),
            ms(l.p99_99_us),
            some(l.max_us),
        ]
    });
    table(
        "Latency in milliseconds",
        &["run", "count", "least", "50 %", "90 %", "99 %", "99.9 %", "99.99 %", "most"],
        rows,
    )
}

/// Everything else about one run.
pub(super) fn details(run: &Run) -> String {
    let outcome = &run.outcome;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |what: &str, value: String| rows.push(vec![what.to_owned(), value]);
    let with = &outcome.negotiated;
    row("TLS", [&*with.version, &*with.suite, &*with.kx, &*with.alpn].join(" "));
    row("handshakes, resumed", format!("{}, {}", outcome.handshakes, outcome.resumed));
    row("bytes sent, received", format!("{}, {}", outcome.bytes_sent, outcome.bytes_received));
    for (reason, count) in &outcome.failures {
        let example = outcome.examples.get(reason).map_or("", String::as_str);
        row(&format!("failed: {}", reason.word()), format!("{count} (first: {example})"));
    }
    if let Some(cost) = &outcome.cost {
        let some = |value: Option<f64>| value.map_or("–".to_owned(), number);
        row("server: CPU seconds", number(cost.cpu_seconds));
        row("server: µs a handshake", some(cost.cpu_us_per_handshake));
        row("server: µs a request", some(cost.cpu_us_per_request));
        row("server: CPU seconds a GB", some(cost.cpu_seconds_per_gb));
        row(
            "server: bytes an idle connection (RSS, PSS)",
            format!("{}, {}", some(cost.rss_per_idle_connection), some(cost.pss_per_idle_connection)),
        );
        row(
            "server: resident bytes before, after, at most",
            format!("{}, {}, {}", cost.rss_before, cost.rss_after, cost.rss_peak),
        );
        row(
            "server: context switches, to wait and forced",
            format!("{}, {}", cost.voluntary_switches, cost.involuntary_switches),
        );
        row(
            "server: open files before, after, at most",
            format!("{}, {}, {}", cost.fds_before, cost.fds_after, cost.fds_peak),
        );
    }
    row("rig: CPU seconds, threads", format!("{}, {}", number(outcome.rig.cpu_seconds), outcome.rig.threads));
    for note in &outcome.notes {
        row("note", note.clone());
    }
    table("Details", &["what", "value"], rows.into_iter())
}

fn ms(us: Option<f64>) -> String {
    us.map_or("–".to_owned(), |us| number(us / 1000.0))
}

fn table(caption: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let cells = |cells: Vec<String>| {
        cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect::<String>()
    };
    let head: String = head.iter().map(|cell| format!("<th scope=\"col\">{}</th>", escape(cell))).collect();
    let body: String = rows.map(|row| format!("<tr>{}</tr>\n", cells(row))).collect();
    format!(
        "<table><caption>{}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>\n",
        escape(caption)
    )
}
