//! A comparison for people and for machines.

use std::io::{self, Write as _};

use serde_json::json;

use super::ratio::Spread;
use super::{Command, Standing};

pub(super) fn json(command: &Command, standings: &[Standing]) -> io::Result<()> {
    let line = json!({
        "compare": format!("{:?}", command.contest).to_lowercase(),
        "command": std::env::args().collect::<Vec<_>>().join(" "),
        "mode": format!("{:?}", command.mode).to_lowercase(),
        "table": format!("{:?}", command.table).to_lowercase(),
        "rounds": command.rounds,
        "servers": standings,
    });
    writeln!(io::stdout(), "{line}")
}

pub(super) fn text(command: &Command, standings: &[Standing]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let first = standings.first().map_or("", |s| s.server);
    writeln!(
        out,
        "{:?}, {:?}, settings: {:?}; {} rounds; median (least–most)\n",
        command.contest, command.mode, command.table, command.rounds
    )?;
    let ratio = format!("{first} ÷ it");
    writeln!(
        out,
        "{:<10}{:>26}{:>16}{:>12}{:>12}{:>12}{:>24}",
        "", "server CPU µs / operation", "operations/s", "p50 µs", "p99 µs", "RSS MiB", ratio
    )?;
    for standing in standings {
        let ratio = match (standing.failed, standing.ratio) {
            (0, Some(spread)) => with_range(Some(spread), 2),
            (0, None) => String::new(),
            (failed, _) => format!("none: {failed} failed"),
        };
        writeln!(
            out,
            "{:<10}{:>26}{:>16}{:>12}{:>12}{:>12}{:>24}",
            standing.server,
            with_range(standing.cpu_us, 1),
            middle(standing.rate, 0),
            middle(standing.p50_us, 0),
            middle(standing.p99_us, 0),
            middle(standing.rss_mib, 1),
            ratio
        )?;
    }
    writeln!(out)?;
    for standing in standings {
        let per_gb = standing
            .cpu_seconds_per_gb
            .filter(|_| command.contest.size() > 4096)
            .map_or(String::new(), |s| format!(", {:.2} CPU s/GB", s.median));
        writeln!(out, "{}: {} [{}{per_gb}]", standing.server, standing.version, standing.agreed)?;
        for failure in &standing.failures {
            writeln!(out, "  failed: {failure}")?;
        }
    }
    let busy = standings.iter().flat_map(|s| &s.rounds).map(|r| r.rig_busy).fold(0.0, f64::max);
    if busy > 0.95 {
        writeln!(
            out,
            "The rig was busy {:.0} % of the time: rates and latencies are its own; CPU per operation holds.",
            busy * 100.0
        )?;
    }
    Ok(())
}

fn middle(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or("–".to_owned(), |s| format!("{:.digits$}", s.median))
}

fn with_range(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or("–".to_owned(), |s| {
        format!("{:.digits$} ({:.digits$}–{:.digits$})", s.median, s.min, s.max)
    })
}
