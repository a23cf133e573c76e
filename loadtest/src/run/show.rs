//! What standard output gets.

use std::io::{self, Write as _};

use super::{Results, Run};
use crate::drive::{Load, Outcome};
use crate::measure::Cost;

pub(super) fn usage(wrong: &anyhow::Error, as_json: bool) {
    let line = match as_json {
        true => serde_json::json!({ "error": format!("{wrong:#}"), "kind": "usage" }).to_string(),
        false => format!("error: {wrong:#}\n\nFor more information, try '--help'."),
    };
    let _ = writeln!(io::stderr(), "{line}");
}

pub(super) fn print(results: &Results, as_json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        writeln!(out, "{}", serde_json::to_string(results)?)?;
        return Ok(());
    }
    for run in &results.runs {
        out.write_all(text(run).as_bytes())?;
    }
    Ok(())
}

fn text(run: &Run) -> String {
    let outcome = &run.outcome;
    let plan = &outcome.plan;
    let load = match plan.load {
        Load::Open { rate } => format!("{rate} a second"),
        Load::Closed { clients } => format!("{clients} clients"),
    };
    let with = &outcome.negotiated;
    let tls = if with.version.is_empty() {
        "no TLS".to_owned()
    } else {
        format!("{} {} {}", with.version, with.suite, with.kx)
    };
    let mut lines = vec![format!("{} · {} · {load} · {:?} · {tls}", run.name, plan.target, plan.duration)];
    lines.push(format!(
        "  rate      {:.1}/s   {} of {} succeeded",
        outcome.rate, outcome.succeeded, outcome.due
    ));
    for (reason, count) in &outcome.failures {
        let example = outcome.examples.get(reason).map_or("", String::as_str);
        lines.push(format!("  failed    {count} {}   first: {}", reason.word(), plain(example)));
    }
    lines.push(latency(outcome));
    if outcome.handshakes + outcome.resumed > 0 {
        lines.push(format!("  handshakes {} full, {} resumed", outcome.handshakes, outcome.resumed));
    }
    if let Some(cost) = &outcome.cost {
        lines.push(server(cost));
    }
    lines.extend(outcome.notes.iter().map(|note| format!("  note      {note}")));
    lines.join("\n") + "\n"
}

fn latency(outcome: &Outcome) -> String {
    let latency = &outcome.latency;
    let points = [
        ("p50", latency.p50_us),
        ("p90", latency.p90_us),
        ("p99", latency.p99_us),
        ("p99.9", latency.p99_9_us),
        ("p99.99", latency.p99_99_us),
        ("max", (latency.count > 0).then_some(latency.max_us)),
    ];
    let told: Vec<String> =
        points.iter().filter_map(|(name, us)| Some(format!("{name} {:.3}", (*us)? / 1000.0))).collect();
    format!("  latency   {} (ms)", if told.is_empty() { "unknown".to_owned() } else { told.join("  ") })
}

fn server(cost: &Cost) -> String {
    let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    let each = [
        ("µs a handshake", cost.cpu_us_per_handshake),
        ("µs a request", cost.cpu_us_per_request),
        ("s a GB", cost.cpu_seconds_per_gb),
        ("B resident an idle connection", cost.rss_per_idle_connection),
        ("switches each", cost.switches_per_operation),
    ];
    let told: Vec<String> =
        each.iter().filter_map(|(unit, value)| Some(format!("{:.2} {unit}", (*value)?))).collect();
    format!(
        "  server    {:.2} s of CPU   {}   {:.1} MiB resident, {:.1} at most   {} files",
        cost.cpu_seconds,
        told.join("  "),
        mib(cost.rss_after),
        mib(cost.rss_peak),
        cost.fds_after
    )
}

/// What a server said may hold anything; a terminal gets no control characters of it.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
