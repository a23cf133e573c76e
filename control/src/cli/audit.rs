//! `postern audit`: who asked for what, and what became of it; and whether that is what was written.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::{CliError, Common, output};
use crate::api::model::{ChainView, Checkpoints};
use crate::audit::checkpoint::Checkpoint;
use crate::audit::syslog;
use crate::audit::verify::{Given, Report, Verifier};
use crate::clock::{millis, now_ms, rfc3339};
use crate::store::Record;

/// Records of one request.
const PAGE: usize = 1000;
/// The pause between two looks of `tail -f`.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  postern audit --last 200 --output json | jq '.[] | select(.outcome == \"refused\")'
  postern audit tail -f
  postern audit export --since 2026-11-01T00:00:00Z > audit.jsonl
  postern audit verify --checkpoints /mnt/worm/postern"
)]
pub(super) struct Audit {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many records
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    last: u32,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the newest records, and with `-f` those to come
    #[command(after_help = "Example:\n  postern audit tail -f --output json | jq .action")]
    Tail {
        /// Go on until interrupted
        #[arg(short, long)]
        follow: bool,
        /// How many records to begin with
        #[arg(long, default_value_t = 10, value_name = "COUNT")]
        last: u32,
    },
    /// Print records and signed checkpoints, one JSON object a line; or records as syslog messages
    #[command(
        after_help = "Examples:\n  postern audit export --since 24h > audit.jsonl\n  postern audit export --since 24h --format syslog | nc -q1 siem 601"
    )]
    Export {
        /// From when: a time (2026-11-01T00:00:00Z) or how long ago (24h) [default: everything]
        #[arg(long, value_name = "TIME", value_parser = since)]
        since: Option<i64>,
        /// The form
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
    },
    /// Find records that were altered, removed, moved or cut off, and say what can be promised
    #[command(after_help = "Examples:
  postern audit verify --checkpoints /mnt/worm/postern
  postern audit verify --export audit.jsonl        (offline)")]
    Verify {
        /// A directory of exported checkpoints (`audit.checkpoints` of `postern serve`)
        #[arg(long, value_name = "DIR")]
        checkpoints: Option<PathBuf>,
        /// Verify a file of `postern audit export` instead of the running control plane's record
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
        /// A key that may sign checkpoints, as its audit record names it; may be repeated [default: any]
        #[arg(long = "key", value_name = "SHA256")]
        keys: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON lines
    Jsonl,
    /// RFC 5424 messages, one a line; records alone
    Syslog,
}

/// A line of an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Checkpoint(Checkpoint),
    Record(Record),
}

impl Audit {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let client = common.client()?;
        match self.command {
            None => {
                let records: Vec<Record> = client.get(&format!("/v1/audit?last={}", self.last)).await?;
                match common.is_json() {
                    true => output::json(&records),
                    false => table(records),
                }
            }
            Some(Command::Tail { follow, last }) => tail(&client, follow, last, common.is_json()).await,
            Some(Command::Export { since, format: Format::Jsonl }) => export(&client, since).await,
            Some(Command::Export { since, format: Format::Syslog }) => {
                let host =
                    nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
                let line = |record: &Record| output::print(&syslog::message(record, &host));
                all_records(&client, since.unwrap_or(i64::MIN), line).await
            }
            Some(Command::Verify { checkpoints, export, keys }) => {
                let exported = checkpoints.map(|dir| exported(&dir)).transpose()?;
                let given = Given {
                    exported,
                    keys: keys.iter().map(|k| k.to_ascii_lowercase()).collect(),
                    ..Given::default()
                };
                let report = match export {
                    Some(path) => verify_file(&path, given)?,
                    None => verify(&client, given).await?,
                };
                tell(&report, common.is_json())
            }
        }
    }
}

async fn tail(client: &Client, follow: bool, last: u32, is_json: bool) -> Result<(), CliError> {
    // Positions before records: what comes between is shown twice rather than never, and then dropped by its position.
    let mut at: BTreeMap<String, u64> = BTreeMap::new();
    let records: Vec<Record> = client.get(&format!("/v1/audit?last={last}")).await?;
    for chain in client.get::<Vec<ChainView>>("/v1/audit/chains").await? {
        let shown = records.iter().filter(|r| r.chain == chain.chain).map(|r| r.seq).max();
        let head = chain.head.map_or(0, |head| head.seq);
        at.insert(chain.chain, shown.unwrap_or(head));
    }
    records.iter().try_for_each(|record| line(record, is_json))?;
    if !follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(LOOK).await;
        for chain in client.get::<Vec<ChainView>>("/v1/audit/chains").await? {
            let after = at.entry(chain.chain.clone()).or_default();
            if chain.head.is_none_or(|head| head.seq <= *after) {
                continue;
            }
            for record in page(client, &chain.chain, *after).await? {
                *after = record.seq;
                line(&record, is_json)?;
            }
        }
    }
}

fn line(record: &Record, is_json: bool) -> Result<(), CliError> {
    if is_json {
        return output::json(record);
    }
    let Record { at, actor, action, subject, outcome, detail, id, .. } = record;
    output::print(&format!("{}  {actor}  {action}  {subject}  {outcome}  {detail}  {id}", rfc3339(*at)))
}

async fn export(client: &Client, since: Option<i64>) -> Result<(), CliError> {
    let since = since.unwrap_or(i64::MIN);
    // Checkpoints last: each has seen nothing that does not stand before it.
    let mut checkpoints = Vec::new();
    stored_checkpoints(client, |checkpoint| {
        if checkpoint.at >= since {
            checkpoints.push(checkpoint);
        }
    })
    .await?;
    all_records(client, since, output::json).await?;
    checkpoints.iter().try_for_each(output::json)
}

async fn verify(client: &Client, mut given: Given) -> Result<Report, CliError> {
    stored_checkpoints(client, |checkpoint| given.beside.push(checkpoint)).await?;
    let mut verifier = Verifier::default();
    let chains: Vec<ChainView> = client.get("/v1/audit/chains").await?;
    given.heads = chains.into_iter().filter_map(|chain| chain.head).collect();
    all_records(client, i64::MIN, |record| {
        verifier.take(record, false);
        Ok(())
    })
    .await?;
    Ok(verifier.finish(&given))
}

fn verify_file(path: &Path, mut given: Given) -> Result<Report, CliError> {
    let failed = |why: String| CliError::Failed(format!("{}: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| failed(e.to_string()))?;
    given.is_part = true;
    let mut verifier = Verifier::default();
    for (index, line) in std::io::BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| failed(e.to_string()))?;
        let parsed = serde_json::from_str(&line).map_err(|_| {
            CliError::File(format!("{}:{}: neither a record nor a checkpoint", path.display(), index + 1))
        })?;
        match parsed {
            Line::Checkpoint(checkpoint) => given.beside.push(checkpoint),
            Line::Record(record) => verifier.take(&record, true),
        }
    }
    Ok(verifier.finish(&given))
}

fn exported(dir: &Path) -> Result<Vec<Checkpoint>, CliError> {
    let failed =
        |path: &Path, why: &dyn std::fmt::Display| CliError::Failed(format!("{}: {why}", path.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| failed(dir, &e))? {
        let path = entry.map_err(|e| failed(dir, &e))?.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|e| failed(&path, &e))?;
        found.push(serde_json::from_str(&text).map_err(|e| failed(&path, &e))?);
    }
    found.sort_by(|a: &Checkpoint, b| a.checkpoint.cmp(&b.checkpoint));
    Ok(found)
}

fn tell(report: &Report, is_json: bool) -> Result<(), CliError> {
    if is_json {
        output::json(report)?;
    } else {
        for finding in &report.findings {
            let kind = serde_json::json!(finding.kind);
            let kind = kind.as_str().unwrap_or_default().replace('_', " ");
            output::print(&format!("{kind}: chain {}: {}", finding.chain, finding.message))?;
        }
        let state = if report.whole { "chain whole" } else { "chain broken" };
        output::print(&format!(
            "{} records: {state}, {} signatures good",
            report.records, report.signatures
        ))?;
        report.promises.iter().try_for_each(|promise| output::print(&format!("  · {promise}")))?;
    }
    match report.whole {
        true => Ok(()),
        false => Err(CliError::Failed("the audit record is not what was written".to_owned())),
    }
}

async fn all_records(
    client: &Client,
    since: i64,
    mut each: impl FnMut(&Record) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let chains: Vec<ChainView> = client.get(&format!("/v1/audit/chains?since={since}")).await?;
    for chain in chains {
        let Some(mut after) = chain.first.map(|first| first.saturating_sub(1)) else { continue };
        loop {
            let records = page(client, &chain.chain, after).await?;
            records.iter().try_for_each(&mut each)?;
            match records.last() {
                Some(last) if records.len() == PAGE => after = last.seq,
                _ => break,
            }
        }
    }
    Ok(())
}

async fn page(client: &Client, chain: &str, after: u64) -> Result<Vec<Record>, CliError> {
    client.get(&format!("/v1/audit/records?chain={chain}&after={after}&page_size={PAGE}")).await
}

async fn stored_checkpoints(client: &Client, mut each: impl FnMut(Checkpoint)) -> Result<(), CliError> {
    let mut after = String::new();
    loop {
        let answer: Checkpoints =
            client.get(&format!("/v1/audit/checkpoints?after={after}&page_size={PAGE}")).await?;
        for text in &answer.checkpoints {
            let checkpoint: Checkpoint = serde_json::from_str(text)
                .map_err(|e| CliError::Failed(format!("a stored checkpoint cannot be read: {e}")))?;
            after.clone_from(&checkpoint.checkpoint);
            each(checkpoint);
        }
        if answer.checkpoints.len() < PAGE {
            return Ok(());
        }
    }
}

fn table(records: Vec<Record>) -> Result<(), CliError> {
    let row = |r: Record| {
        let reason = r.detail.get("reason").and_then(|reason| reason.as_str()).unwrap_or_default();
        [rfc3339(r.at), reason.to_owned(), r.actor, r.action, r.subject, r.outcome]
    };
    let rows: Vec<[String; 6]> = records
        .into_iter()
        .map(row)
        .map(|[at, reason, actor, action, subject, outcome]| [at, actor, action, subject, outcome, reason])
        .collect();
    output::table(["AT", "WHO", "WHAT", "ON", "OUTCOME", "REASON"], &rows)
}

/// A moment in milliseconds since 1970: RFC 3339, or a span before now.
fn since(text: &str) -> Result<i64, String> {
    if let Ok(span) = text.parse::<postern_config::file::Span>() {
        return Ok(now_ms() - millis(span.as_duration()));
    }
    text.parse::<jiff::Timestamp>()
        .map(|at| at.as_millisecond())
        .map_err(|_| "neither a time (2026-11-01T00:00:00Z) nor a length of time (24h)".to_owned())
}
