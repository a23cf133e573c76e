//! `postern-loadtest run`: one question to one server, from the command line.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use postern_config::file::Span;

use crate::drive::{Cpus, Kx, Load, Plan, Suite, Tls, pin};
use crate::fleet::{Progress, room_for};
use crate::scenario::{Protocol, Scenario};

mod disturb;
mod own;
mod results;
mod show;

pub use results::{Results, Run};

use own::{Own, Program, Setting};

/// The least that is given to a mesh of our own where it matters: certificates that outlive any run.
const TTL: Duration = Duration::from_secs(3600);
/// Connections that a sidecar of ours may have open beyond the clients.
const SPARE: usize = 1000;
/// … and at least, as by its defaults.
const LEAST: usize = 10_000;

/// Ask one question of a TLS server: how fast, how late, at what cost
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  postern-loadtest run handshake                                    # against a mesh of its own
  postern-loadtest run connect-request --rate 500 --duration 30s \\
      --target 10.0.0.7:443 --ca ca.pem --cert me.pem --key me.key --server-name shop.test --server-pid 4711
  postern-loadtest run requests --protocol h2 --streams 10 --clients 128 --spiffe-id spiffe://corp.example/ns/shop/sa/payments \\
      --target 10.0.0.7:15006 --ca bundle.pem --cert me.pem --key me.key --output json --html out.html
  postern-loadtest run requests --plain --target 127.0.0.1:9001     # through a sidecar's outbound listener
  postern-loadtest run waves --clients 20000 --carry --protocol raw --size 65536   # is memory given back?
  postern-loadtest run rotation --rate 1000 --duration 30s          # p99 while certificates are replaced ÷ while they stay

With --rate the loop is open: latency counts from the moment at which each operation is due. Without, --clients ask again
as soon as they have their answer: that gives capacity. Failures are told by reason: refused, unreachable, rig_limit, reset,
closed, timeout, alert, unknown_issuer, wrong_identity, expired, bad_certificate, incompatible, not_tls, status, bad_answer,
overload.

Exit codes: 0 done, 1 more failures than --max-failures (or a question that the server did not answer), 2 wrong usage.")]
pub struct Command {
    /// What is asked
    #[arg(value_enum)]
    question: Question,
    /// Who is asked, host:port; without it, a mesh of Postern's is started for this run, from the binaries beside this one
    #[arg(long, value_name = "HOST:PORT")]
    target: Option<String>,
    /// Whom to believe, PEM
    #[arg(long, value_name = "FILE", requires = "target")]
    ca: Option<PathBuf>,
    /// The certificate that is shown to the server, PEM, leaf first
    #[arg(long, value_name = "FILE", requires_all = ["target", "key"])]
    cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires_all = ["target", "cert"])]
    key: Option<PathBuf>,
    /// The name in the server's certificate; left out, the host of --target
    #[arg(long, value_name = "NAME", requires = "target")]
    server_name: Option<String>,
    /// The SPIFFE ID in the server's certificate, in place of a name
    #[arg(long, value_name = "ID", requires = "target")]
    spiffe_id: Option<String>,
    /// Without TLS, such as to a sidecar's outbound listener
    #[arg(long, requires = "target", conflicts_with_all = ["ca", "cert", "key", "server_name", "spiffe_id", "kx", "suite"])]
    plain: bool,
    /// The one key exchange that is offered; left out, X25519 first
    #[arg(long, value_enum)]
    kx: Option<Kx>,
    /// The one cipher suite that is offered; left out, AES-128-GCM first
    #[arg(long, value_enum)]
    suite: Option<Suite>,
    /// Open loop: so many operations a second
    #[arg(long, value_name = "N", conflicts_with = "clients")]
    rate: Option<f64>,
    /// Closed loop: so many clients; of `idle` and `storm`, so many connections or handshaking clients
    #[arg(long, value_name = "N", default_value_t = 16)]
    clients: usize,
    /// Connections that are kept in the open loop
    #[arg(long, value_name = "N", default_value_t = 16)]
    connections: usize,
    /// Requests at a time on one HTTP/2 connection
    #[arg(long, value_name = "N", default_value_t = 1)]
    streams: usize,
    /// In the open loop so many operations may be waiting or under way; one more is `overload`
    #[arg(long, value_name = "N", default_value_t = 1024)]
    outstanding: usize,
    /// How long is measured
    #[arg(long, value_name = "TIME", default_value = "10s")]
    duration: Span,
    /// Before that, what counts nowhere
    #[arg(long, value_name = "TIME", default_value = "1s")]
    warm_up: Span,
    /// For one operation
    #[arg(long, value_name = "TIME", default_value = "5s")]
    deadline: Span,
    /// What requests are made of; left out, h1, and raw for `bytes`
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// What is asked for; of gRPC /package.Service/Method
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// The Host of requests; left out, the server's name
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Bytes of each request's body, or of each raw exchange
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    size: usize,
    /// The server's process, for its cost; may be repeated, children are included
    #[arg(long = "server-pid", value_name = "PID", requires = "target")]
    server_pids: Vec<u32>,
    /// Of `idle` and `waves`: each connection carries one thing before it stands, a request with a body of --size or, with --protocol raw, --size bytes
    #[arg(long)]
    carry: bool,
    /// Of `waves`: how often connections are opened and closed again
    #[arg(long, value_name = "N", default_value_t = 5)]
    waves: usize,
    /// The CPUs that the rig keeps to, as 0,2-3
    #[arg(long, value_name = "LIST")]
    rig_cpus: Option<Cpus>,
    /// The CPUs that the sidecar of a mesh of its own keeps to
    #[arg(long, value_name = "LIST", conflicts_with = "target")]
    server_cpus: Option<Cpus>,
    /// Threads of the rig; left out, one for each of its CPUs
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// So many failures are fine
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_failures: u64,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The same as `--output json`
    #[arg(long)]
    json: bool,
    /// Writes a report as well, one file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// The questions of the command line: those of one plan, and those that take several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Question {
    /// A full handshake and an orderly end on each connection
    Handshake,
    /// The same, resumed by a ticket of an earlier connection
    Resume,
    /// A new connection, a full handshake and one request on it
    ConnectRequest,
    /// Requests on connections that are kept
    Requests,
    /// Bytes there and back on connections that are kept: the peer sends back what it gets (or, over HTTP, answers)
    Bytes,
    /// Connections that stand open and carry nothing
    Idle,
    /// --clients connections at once, closed again, --waves times: does the server give back what they took?
    Waves,
    /// Established requests at --rate, quiet, and again while --clients handshake as fast as they can
    Storm,
    /// Handshakes at --rate with a certificate that stays, and with one that is replaced all the time; in a mesh of its own
    Rotation,
    /// Requests at --rate, quiet, and again while policies of 10,000 rules are published; in a mesh of its own
    Churn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people, with a bar while it runs
    Text,
    /// One JSON object
    Json,
}

impl Question {
    fn scenario(self) -> Scenario {
        match self {
            Self::Handshake | Self::Rotation => Scenario::Handshake,
            Self::Resume => Scenario::Resume,
            Self::ConnectRequest => Scenario::ConnectRequest,
            Self::Requests | Self::Storm | Self::Churn => Scenario::Requests,
            Self::Bytes => Scenario::Bytes,
            Self::Idle | Self::Waves => Scenario::Idle,
        }
    }
}

impl Command {
    /// Whether one JSON object is all that standard output gets.
    pub fn is_json(&self) -> bool {
        self.json || self.output == Output::Json
    }

    fn plan(&self, target: SocketAddr, tls: Option<Tls>) -> Plan {
        let scenario = self.question.scenario();
        let otherwise = if scenario == Scenario::Bytes { Protocol::Raw } else { Protocol::H1 };
        Plan {
            load: match self.rate {
                Some(rate) => Load::Open { rate },
                None => Load::Closed { clients: self.clients },
            },
            warm_up: self.warm_up.as_duration(),
            duration: self.duration.as_duration(),
            deadline: self.deadline.as_duration(),
            outstanding: self.outstanding,
            connections: self.connections,
            streams: self.streams,
            protocol: self.protocol.unwrap_or(otherwise),
            path: self.path.clone(),
            host: self.host.clone(),
            size: self.size,
            server_pids: self.server_pids.clone(),
            threads: self.threads,
            rig_cpus: self.rig_cpus.clone(),
            carries_first: self.carry,
            ..Plan::new(target, tls, scenario)
        }
    }

    /// What is wrong about the words themselves.
    fn usage(&self) -> Result<()> {
        ensure!(
            self.target.is_none() || self.plain || self.ca.is_some(),
            "--target needs --ca FILE (whom to believe) or --plain (no TLS); there is no way to believe anybody"
        );
        ensure!(
            self.target.is_none() || !matches!(self.question, Question::Rotation | Question::Churn),
            "{:?} changes what the server is given, so it has a mesh of its own; drop --target",
            self.question
        );
        let needs_tls = [Question::Handshake, Question::Resume, Question::Storm];
        ensure!(
            !(self.plain && needs_tls.contains(&self.question)),
            "{:?} is a question about TLS; drop --plain",
            self.question
        );
        ensure!(
            !self.carry || matches!(self.question, Question::Idle | Question::Waves),
            "--carry is for connections that stand idle afterwards: idle, waves"
        );
        let can_carry = match self.protocol {
            None | Some(Protocol::H1) => true,
            Some(Protocol::Raw) => self.size > 0,
            Some(_) => false,
        };
        ensure!(
            !self.carry || can_carry,
            "--carry: a request over h1, or with --protocol raw so many bytes as --size says"
        );
        ensure!(self.rate.is_none_or(|rate| rate.is_finite() && rate > 0.0), "--rate: a number above 0");
        let counts = [
            self.clients,
            self.connections,
            self.streams,
            self.outstanding,
            self.waves,
            self.threads.unwrap_or(1),
        ];
        ensure!(
            counts.iter().all(|count| *count > 0),
            "--clients, --connections, --streams, --outstanding, --waves and --threads are at least 1"
        );
        ensure!(!self.duration.as_duration().is_zero(), "--duration: longer than nothing");
        ensure!(!self.deadline.as_duration().is_zero(), "--deadline: longer than nothing");
        ensure!(self.path.starts_with('/'), "--path {:?}: begins with `/`", self.path);
        Ok(())
    }

    /// The program behind the sidecar that the question needs.
    fn program(&self) -> Program {
        let speaks_bytes = self.question == Question::Bytes && self.protocol.is_none();
        if speaks_bytes || self.protocol == Some(Protocol::Raw) { Program::Echo } else { Program::Http }
    }

    fn foreign(&self, target: &str) -> Result<Plan> {
        let unknown = || format!("{target:?} is no host:port that this machine knows");
        let address = target.to_socket_addrs().with_context(unknown)?.next().with_context(unknown)?;
        let Some(ca) = &self.ca else { return Ok(self.plan(address, None)) };
        let host = target.rsplit_once(':').map_or(target, |(host, _)| host).trim_matches(['[', ']']);
        let name = self.server_name.clone().or_else(|| self.spiffe_id.is_none().then(|| host.to_owned()));
        let tls = Tls {
            in_turn: false,
            ca: ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
            server_name: name,
            spiffe_id: self.spiffe_id.clone(),
            kx: self.kx,
            suite: self.suite,
        };
        Ok(self.plan(address, Some(tls)))
    }
}

/// Asks, prints what came of it, and says how it ended.
pub fn run(command: &Command) -> Result<ExitCode> {
    if let Err(wrong) = command.usage() {
        show::usage(&wrong, command.is_json());
        return Ok(ExitCode::from(2));
    }
    if let Some(cpus) = &command.rig_cpus {
        // The program behind a sidecar, too, is on this side.
        pin(cpus)?;
    }
    let progress = Progress::new(command.is_json());
    let (plan, own) = match &command.target {
        Some(target) => (command.foreign(target)?, None),
        None => {
            // Both ends of each of them are in this process, and what the sidecar may open it gets from here.
            room_for(2 * command.clients)?;
            let setting = Setting {
                ttl: TTL,
                cpus: command.server_cpus.clone().map(String::from),
                connections: (command.clients + SPARE).max(LEAST),
            };
            let own = Own::start(command.program(), setting)?;
            let tls = Tls { kx: command.kx, suite: command.suite, ..own.tls() };
            let mut plan = command.plan(own.server().target(), Some(tls));
            plan.server_pids = own.server().pids();
            (plan, Some(own))
        }
    };
    let mut bar = |name: &str, done: f64| progress.show(name, (done * 100.0) as usize, 100);
    let runs = match (command.question, &own) {
        (Question::Waves, _) => disturb::waves(&plan, command.waves, &mut bar)?,
        (Question::Storm, _) => disturb::storm(&plan, command.clients, command.rate, &mut bar)?,
        (Question::Rotation, Some(own)) => disturb::rotation(&plan, own, command.rate, &mut bar)?,
        (Question::Churn, Some(own)) => disturb::churn(&plan, own, command.rate, &mut bar)?,
        _ => {
            let name = plan.scenario.to_string();
            let outcome = crate::drive::run(&plan, |done| bar(&name, done))?;
            vec![Run { name, outcome }]
        }
    };
    progress.clear();
    drop(own);
    let results = Results::new(runs);
    if let Some(html) = &command.html {
        std::fs::write(html, crate::report::html(std::slice::from_ref(&results)))
            .with_context(|| format!("{}", html.display()))?;
    }
    show::print(&results, command.is_json())?;
    let is_fine = results.failed() <= command.max_failures && results.is_answered();
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
