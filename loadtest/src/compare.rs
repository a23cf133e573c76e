//! `postern-loadtest compare`: several servers, the same load, in turn: A B C A B C …, and ratios with their spread.
//!
//! All servers run all the time, and idle while another is asked. Rig and app keep to their processors and servers to theirs.
//! A ratio is ours ÷ theirs within one round; where an operation failed on either side there is none.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use postern_config::file::Span;
use serde::Serialize;

use crate::drive::{self, Cpus, Load, Outcome, Plan, Tls};
use crate::peers::{Kind, Mode, Pki, Place, SERVER, Server, Setting, Table, Upstream};
use crate::scenario::{Protocol, Scenario};

pub mod ratio;
mod show;

use ratio::Spread;

/// How many leaves are shown in turn where none shall be known: several times what any cache of ours keeps.
const UNKNOWN: u64 = 6000;
/// Bytes of a large answer.
const LARGE: usize = 1 << 20;
/// Bytes of a small one.
const SMALL: usize = 512;

/// Compare servers under one load, in turn, with ratios and their spread
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  postern-loadtest compare full --servers postern,envoy,nginx --rig-cpus 0 --server-cpus 1
  postern-loadtest compare pair --servers postern,haproxy --clients 128 --rounds 7 --output json

Exit codes: 0 every operation of every round succeeded, 1 otherwise, 2 wrong usage.")]
pub struct Command {
    /// What is asked
    #[arg(value_enum)]
    contest: Contest,
    /// Who is asked; ratios are of the first to each other
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Postern, Kind::Envoy, Kind::Nginx, Kind::Haproxy, Kind::Stunnel])]
    servers: Vec<Kind>,
    /// How many turns each has
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// How long each turn is
    #[arg(long, default_value = "3s", value_name = "TIME")]
    duration: Span,
    /// What the servers make of the bytes
    #[arg(long, value_enum, default_value_t = Mode::Http)]
    mode: Mode,
    /// Which settings the servers have
    #[arg(long, value_enum, default_value_t = Table::Fair)]
    table: Table,
    /// How many clients ask at a time, each on a connection of its own
    #[arg(long, default_value_t = 16, value_name = "N")]
    clients: usize,
    /// Ask at this rate in place of as fast as answers come: for latencies
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// HTTP/2 from the rig, and between the two sides of a pair
    #[arg(long)]
    http2: bool,
    /// The processors of the rig and of the app, such as 0 or 0,2-3
    #[arg(long, value_name = "CPUS")]
    rig_cpus: Option<Cpus>,
    /// The processors of the servers
    #[arg(long, value_name = "CPUS")]
    server_cpus: Option<String>,
    /// How figures are printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What is asked of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Contest {
    /// A full mutual handshake, one request and the end, by clients that were seen before
    Full,
    /// The same by clients whose certificates were never seen
    Cold,
    /// A full mutual handshake and the end
    Handshake,
    /// The same by clients whose certificates were never seen
    ColdHandshake,
    /// Small requests on kept connections of mutual TLS, through one server
    Hop,
    /// Small requests on kept plain connections, through two servers with mutual TLS between
    Pair,
    /// Answers of 1 MiB through one server
    HopBytes,
    /// Answers of 1 MiB through two servers
    PairBytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON object
    Json,
}

impl Contest {
    fn place(self) -> Place {
        match self {
            Self::Pair | Self::PairBytes => Place::Pair,
            _ => Place::Hop,
        }
    }

    fn scenario(self) -> Scenario {
        match self {
            Self::Full | Self::Cold => Scenario::ConnectRequest,
            Self::Handshake | Self::ColdHandshake => Scenario::Handshake,
            _ => Scenario::Requests,
        }
    }

    /// How many client certificates are shown in turn.
    fn leaves(self) -> u64 {
        if matches!(self, Self::Cold | Self::ColdHandshake) { UNKNOWN } else { 1 }
    }

    fn size(self) -> usize {
        if matches!(self, Self::HopBytes | Self::PairBytes) { LARGE } else { SMALL }
    }
}

impl Command {
    /// Whether one JSON object is all that standard output gets.
    pub fn is_json(&self) -> bool {
        self.output == Output::Json
    }
}

/// What one server did in all rounds.
#[derive(Debug, Serialize)]
struct Standing {
    server: &'static str,
    version: String,
    /// One by each round.
    rounds: Vec<Round>,
    /// What both sides agreed on.
    agreed: String,
    failed: u64,
    /// Of each failure's first, in words.
    failures: Vec<String>,
    cpu_us: Option<Spread>,
    cpu_seconds_per_gb: Option<Spread>,
    p50_us: Option<Spread>,
    p99_us: Option<Spread>,
    rate: Option<Spread>,
    rss_mib: Option<Spread>,
    /// CPU of the first server ÷ CPU of this one; none for the first itself, and where anything failed.
    ratio: Option<Spread>,
}

/// One turn of one server.
#[derive(Debug, Clone, Serialize)]
struct Round {
    cpu_us: f64,
    cpu_seconds_per_gb: Option<f64>,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    rate: f64,
    rss_mib: f64,
    rig_busy: f64,
}

/// Plays it; whether nothing failed.
pub fn run(command: &Command) -> Result<bool> {
    ensure!(command.rounds > 0, "no rounds tell nothing");
    if let Some(cpus) = &command.rig_cpus {
        // Threads and processes that are started from here on inherit it; servers get their own.
        drive::pin(cpus)?;
    }
    let (pki, app) = (Pki::new()?, Upstream::start()?);
    let leaves = pki.clients(command.contest.leaves())?;
    let setting = Setting {
        mode: command.mode,
        place: command.contest.place(),
        table: command.table,
        http2_between: command.http2,
        app: app.address(),
        cpus: command.server_cpus.clone(),
    };
    let mut err = std::io::stderr();
    let mut servers = Vec::new();
    for kind in &command.servers {
        if !kind.carries(command.mode) {
            writeln!(err, "left out: {} does not carry HTTP", kind.name())?;
        } else if let Err(missing) = kind.available(command.mode) {
            writeln!(err, "left out: {missing}")?;
        } else {
            servers.push(Server::start(*kind, &setting, &pki).with_context(|| kind.name())?);
        }
    }
    ensure!(!servers.is_empty(), "none of these servers can be asked");
    let mut outcomes: Vec<Vec<Outcome>> = servers.iter().map(|_| Vec::new()).collect();
    for round in 1..=command.rounds {
        for (server, outcomes) in servers.iter().zip(&mut outcomes) {
            writeln!(err, "round {round} of {}: {}", command.rounds, server.kind.name())?;
            let outcome = drive::run(&command.plan(server, &pki, &leaves), |_| {})?;
            outcomes.push(outcome);
        }
    }
    let standings = standings(&servers, &outcomes);
    match command.output {
        Output::Json => show::json(command, &standings)?,
        Output::Text => show::text(command, &standings)?,
    }
    Ok(standings.iter().all(|s| s.failed == 0))
}

impl Command {
    fn plan(&self, server: &Server, pki: &Pki, (cert, key): &(PathBuf, PathBuf)) -> Plan {
        let tls = server.tls.then(|| {
            let tls = match &server.spiffe {
                Some(spiffe) => Tls::new(&spiffe.root).expecting_id(&spiffe.id),
                None => Tls::new(pki.ca_file()).expecting_name(SERVER),
            };
            let tls = tls.with_identity(cert, key).in_turn();
            if self.table == Table::Fair { tls.fair() } else { tls }
        });
        let mut scenario = self.contest.scenario();
        if tls.is_none() && scenario.needs_tls() {
            // A copy has no handshake: what it does have is the connection.
            scenario = Scenario::ConnectRequest;
        }
        let mut plan = Plan::new(server.front, tls, scenario);
        plan.load = match self.rate {
            Some(rate) => Load::Open { rate },
            None => Load::Closed { clients: self.clients },
        };
        plan.connections = self.clients;
        plan.duration = self.duration.as_duration();
        plan.protocol = if self.http2 { Protocol::H2 } else { Protocol::H1 };
        plan.path = format!("/{}", self.contest.size());
        plan.host = Some(SERVER.to_owned());
        plan.server_pids.clone_from(&server.pids);
        plan.rig_cpus.clone_from(&self.rig_cpus);
        plan
    }
}

fn standings(servers: &[Server], outcomes: &[Vec<Outcome>]) -> Vec<Standing> {
    let mut standings: Vec<Standing> =
        servers.iter().zip(outcomes).map(|(server, outcomes)| standing(server, outcomes)).collect();
    if let Some((first, others)) = standings.split_first_mut() {
        for other in others {
            // What failed cost something else than what was asked.
            if first.failed == 0 && other.failed == 0 {
                let cpu = |of: &Standing| of.rounds.iter().map(|r| r.cpu_us).collect::<Vec<_>>();
                other.ratio = ratio::by_round(&cpu(first), &cpu(other));
            }
        }
    }
    standings
}

fn standing(server: &Server, outcomes: &[Outcome]) -> Standing {
    let rounds: Vec<Round> = outcomes.iter().map(round).collect();
    let spread = |of: fn(&Round) -> Option<f64>| {
        rounds.iter().map(of).collect::<Option<Vec<f64>>>().and_then(|values| Spread::of(&values))
    };
    let agreed = outcomes.first().map(|o| {
        let agreed = &o.negotiated;
        [&agreed.version, &agreed.suite, &agreed.kx, &agreed.alpn]
            .map(String::as_str)
            .join(" ")
            .trim()
            .to_owned()
    });
    let failures =
        outcomes.iter().flat_map(|o| &o.examples).map(|(reason, text)| format!("{reason:?}: {text}"));
    let failures: std::collections::BTreeSet<String> = failures.collect();
    Standing {
        server: server.kind.name(),
        version: server.version.clone(),
        agreed: agreed.unwrap_or_default(),
        // A round without a single success is a failure too.
        failed: outcomes.iter().map(|o| if o.succeeded == 0 { o.failed().max(1) } else { o.failed() }).sum(),
        failures: failures.into_iter().collect(),
        cpu_us: spread(|r| Some(r.cpu_us)),
        cpu_seconds_per_gb: spread(|r| r.cpu_seconds_per_gb),
        p50_us: spread(|r| r.p50_us),
        p99_us: spread(|r| r.p99_us),
        rate: spread(|r| Some(r.rate)),
        rss_mib: spread(|r| Some(r.rss_mib)),
        ratio: None,
        rounds,
    }
}

fn round(outcome: &Outcome) -> Round {
    let cost = outcome.cost.as_ref();
    Round {
        cpu_us: cost.and_then(|c| c.cpu_us_per_operation).unwrap_or(f64::NAN),
        cpu_seconds_per_gb: cost.and_then(|c| c.cpu_seconds_per_gb),
        p50_us: outcome.latency.p50_us,
        p99_us: outcome.latency.p99_us,
        rate: outcome.rate,
        rss_mib: cost.map_or(f64::NAN, |c| c.rss_after as f64 / f64::from(1 << 20)),
        rig_busy: outcome.rig.busy,
    }
}
