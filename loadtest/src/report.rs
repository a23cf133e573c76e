//! `postern-loadtest report`: one self-contained page of results, tables and the same numbers as drawings.
//!
//! The page holds no script and fetches nothing; light or dark is the reader's system's choice. Whatever comes from a
//! result file goes through `svg::escape`: a result may come from anybody.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::run::{Results, Run};

mod plots;
mod svg;
mod tables;

use svg::escape;

/// The largest result file that is read.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Make one self-contained page of results, with plots
#[derive(Debug, Args)]
#[command(after_help = "Example:
  postern-loadtest run handshake --output json > a.json
  postern-loadtest report a.json b.json --html out.html

Exit codes: 0 written, 1 a file that cannot be read or written, 2 wrong usage.")]
pub struct Command {
    /// What `run --output json` printed
    #[arg(required = true, value_name = "RESULT.json")]
    results: Vec<PathBuf>,
    /// Where the page goes
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
}

/// Reads the results, writes the page.
pub fn run(command: &Command) -> Result<()> {
    let read = |path: &PathBuf| {
        let name = || path.display().to_string();
        let size = std::fs::metadata(path).with_context(name)?.len();
        anyhow::ensure!(size <= MAX_FILE, "{}: larger than any result ({size} bytes)", name());
        Results::parse(&std::fs::read_to_string(path).with_context(name)?).with_context(name)
    };
    let results = command.results.iter().map(read).collect::<Result<Vec<_>>>()?;
    std::fs::write(&command.html, html(&results)).with_context(|| command.html.display().to_string())
}

/// The page.
pub fn html(results: &[Results]) -> String {
    let runs: Vec<(String, &Run)> = named(results);
    let mut page = String::from(HEAD);
    for one in results {
        let command = one.command.join(" ");
        page += &format!(
            "<p><code>{}</code> <small>postern-loadtest {}</small></p>\n",
            escape(&command),
            escape(&one.rig)
        );
    }
    page += &tables::overview(&runs);
    if runs.len() > 1 {
        page += &section(
            "Side by side",
            &[plots::bars_rate(&runs), plots::bars_p99(&runs), plots::bars_cpu(&runs)],
        );
    }
    page += &section("Latency by percentile", &[plots::latency(&runs), tables::latency(&runs)]);
    for (name, run) in &runs {
        let drawn = [plots::rate(name, run), plots::failures(name, run), tables::details(run)];
        page += &section(name, &drawn);
    }
    page + "</main></body></html>\n"
}

/// Each run with a name that is its own on this page.
fn named(results: &[Results]) -> Vec<(String, &Run)> {
    let several = results.len() > 1;
    let numbered = results.iter().enumerate();
    numbered
        .flat_map(|(n, one)| {
            let name = move |run: &Run| {
                if several { format!("{} · {}", n + 1, run.name) } else { run.name.clone() }
            };
            one.runs.iter().map(move |run| (name(run), run))
        })
        .collect()
}

fn section(title: &str, parts: &[String]) -> String {
    format!("<section><h2>{}</h2>\n{}</section>\n", escape(title), parts.concat())
}

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>postern-loadtest</title><style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #6a737d; --line: #d0d7de; --back: #fff;
  --c0: #0b62c4; --c1: #b4420a; --c2: #1a7f37; --c3: #8250df; --c4: #9a6700; --c5: #bf3989; --bad: #c21d2a }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #3a424b; --back: #0d1117;
  --c0: #6cb0ff; --c1: #ff9b66; --c2: #5bd17a; --c3: #c69cff; --c4: #e3b341; --c5: #ff8ac4; --bad: #ff7b72 } }
body { background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 }
main { max-width: 60rem; margin: 0 auto; padding: 1rem } svg { width: 100%; height: auto; max-width: 56rem }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .7rem; text-align: right } th:first-child, td:first-child { text-align: left }
code { overflow-wrap: anywhere } small, .soft { color: var(--soft) } .bad { color: var(--bad) }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif } svg .grid { stroke: var(--line) } svg .line { fill: none; stroke-width: 2 }
</style></head><body><main><h1>postern-loadtest</h1>
"#;
