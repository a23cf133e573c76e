//! A sidecar as a process: how it is started, and what it shows of itself.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::binaries::Binaries;
use super::control::{address, ready_line};
use super::metrics::Metrics;
use super::process::{Process, READY};
use super::wait::until;
use crate::http::{self, Answer};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// How many options were made in this process.
static STARTED: AtomicUsize = AtomicUsize::new(0);
/// For the sidecar's own endpoints.
const PROBE: Duration = Duration::from_secs(5);

/// How a sidecar is started. Listeners take free ports unless they are given, and keep them over restarts.
#[derive(Debug, Clone)]
pub struct SidecarOptions {
    /// What it is called here; names its log.
    pub name: String,
    /// The file with its join string; none for a restart from a cache.
    pub join: Option<PathBuf>,
    /// mTLS in: (listen, app, announced service).
    pub inbound: Vec<(SocketAddr, String, Option<String>)>,
    /// mTLS out: (listen, what `--outbound` takes behind `=`).
    pub outbound: Vec<(SocketAddr, String)>,
    /// What its listeners speak; left out, `tcp`.
    pub protocol: Option<String>,
    /// Wanted lifetime of certificates, such as `10s`.
    pub ttl: Option<String>,
    /// Where it keeps its identity over a restart.
    pub cache: Option<PathBuf>,
    /// Its configuration file's text (YAML); everything else here is laid over it.
    pub config: String,
    /// Where `/metrics` and `/readyz` are.
    pub metrics: SocketAddr,
    /// Where operators ask it, below the mesh's directory; each has its own, even of two that are called the same.
    pub admin: PathBuf,
    /// Environment, such as a preloaded clock.
    pub env: Vec<(String, String)>,
    /// Further arguments.
    pub args: Vec<String>,
    /// What starts the program, which is its last argument with its own behind; empty for nothing in between.
    pub launcher: Vec<String>,
}

impl SidecarOptions {
    /// One without listeners; add at least one.
    pub fn new(name: &str, join: Option<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            join,
            inbound: Vec::new(),
            outbound: Vec::new(),
            protocol: None,
            ttl: None,
            cache: None,
            config: String::new(),
            metrics: ANY,
            admin: format!("{name}-{}.sock", STARTED.fetch_add(1, Ordering::Relaxed)).into(),
            env: Vec::new(),
            args: Vec::new(),
            launcher: Vec::new(),
        }
    }

    /// In front of `app` (`host:port`), announced as `service` if that is given.
    pub fn inbound(mut self, app: impl ToString, service: Option<&str>) -> Self {
        self.inbound.push((ANY, app.to_string(), service.map(str::to_owned)));
        self
    }

    /// Towards a service by name.
    pub fn outbound(mut self, service: &str) -> Self {
        self.outbound.push((ANY, service.to_owned()));
        self
    }

    /// What its listeners speak: `tcp`, `http`, `grpc` or `auto`.
    pub fn protocol(mut self, protocol: &str) -> Self {
        self.protocol = Some(protocol.to_owned());
        self
    }

    /// Wanted lifetime of certificates, such as `10s`.
    pub fn ttl(mut self, ttl: &str) -> Self {
        self.ttl = Some(ttl.to_owned());
        self
    }

    /// Keeps its identity in this directory over a restart.
    pub fn cache(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache = Some(dir.into());
        self
    }

    /// The configuration file that lies under everything else.
    pub fn config(mut self, yaml: &str) -> Self {
        self.config = yaml.to_owned();
        self
    }

    /// Keeps it to these processors, as `taskset -c` takes them.
    pub fn cpus(mut self, cpus: Option<&str>) -> Self {
        self.launcher =
            cpus.map(|cpus| ["taskset", "-c", cpus].map(str::to_owned)).into_iter().flatten().collect();
        self
    }

    /// One variable of its environment.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A sidecar. Dropped, it is killed.
#[derive(Debug)]
pub struct Sidecar {
    binaries: Binaries,
    dir: PathBuf,
    options: SidecarOptions,
    process: Process,
    id: Option<String>,
    gateway: Vec<SocketAddr>,
}

impl Sidecar {
    /// Starts one and waits until it says that it is ready; fails with its log if it ends before.
    pub fn start(binaries: &Binaries, dir: &Path, options: SidecarOptions) -> Result<Self> {
        let mut sidecar = Self::launch(binaries, dir, options)?;
        sidecar.wait_until_ready(READY)?;
        Ok(sidecar)
    }

    /// Starts one without waiting: for those that shall not become ready.
    pub fn launch(binaries: &Binaries, dir: &Path, options: SidecarOptions) -> Result<Self> {
        let process = spawn(binaries, dir, &options)?;
        Ok(Self {
            binaries: binaries.clone(),
            dir: dir.to_owned(),
            options,
            process,
            id: None,
            gateway: Vec::new(),
        })
    }

    /// Waits for the ready line and takes the addresses from it.
    pub fn wait_until_ready(&mut self, limit: Duration) -> Result<()> {
        let ready = self.process.wait_for_line(limit, ready_line)?;
        self.id = ready["id"].as_str().map(str::to_owned);
        self.options.metrics = address(&ready, "metrics")?;
        let gateway = ready["gateway"].as_array().into_iter().flatten();
        self.gateway = gateway.filter_map(|a| a.as_str()?.parse().ok()).collect();
        let bound = |field: &str, i: usize| -> Result<SocketAddr> {
            let text = ready[field][i].as_str().with_context(|| format!("no {field}[{i}] in {ready}"))?;
            Ok(text.parse()?)
        };
        for (i, inbound) in self.options.inbound.iter_mut().enumerate() {
            inbound.0 = bound("inbound", i)?;
        }
        for (i, outbound) in self.options.outbound.iter_mut().enumerate() {
            outbound.0 = bound("outbound", i)?;
        }
        Ok(())
    }

    /// Starts it again on the same addresses; killed before if it still runs. Waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill9();
        self.process = spawn(&self.binaries, &self.dir, &self.options)?;
        self.wait_until_ready(READY)
    }

    /// Its options, for a change before [`restart`](Self::restart).
    pub fn options(&mut self) -> &mut SidecarOptions {
        &mut self.options
    }

    /// What it is called here.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Its SPIFFE ID, once it was ready.
    pub fn id(&self) -> &str {
        self.id.as_deref().unwrap_or("")
    }

    /// Where peers connect: the first inbound listener.
    pub fn inbound(&self) -> SocketAddr {
        self.options.inbound.first().map_or(ANY, |i| i.0)
    }

    /// Where its app connects: the first outbound listener.
    pub fn outbound(&self) -> SocketAddr {
        self.options.outbound.first().map_or(ANY, |o| o.0)
    }

    /// Where the outside connects: a gateway's listeners, in the order of its file.
    pub fn gateway(&self) -> &[SocketAddr] {
        &self.gateway
    }

    /// Every inbound and every outbound listener.
    pub fn listeners(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        (
            self.options.inbound.iter().map(|i| i.0).collect(),
            self.options.outbound.iter().map(|o| o.0).collect(),
        )
    }

    /// Where `/metrics`, `/livez` and `/readyz` are.
    pub fn metrics_address(&self) -> SocketAddr {
        self.options.metrics
    }

    /// GET on its own endpoints.
    pub fn probe(&self, path: &str) -> Result<Answer> {
        let at = self.options.metrics;
        http::get(at, path, PROBE).with_context(|| format!("{}: http://{at}{path}", self.options.name))
    }

    /// Whether `/readyz` says so, and its text.
    pub fn ready(&self) -> Result<(bool, String)> {
        let answer = self.probe("/readyz")?;
        Ok((answer.status == 200, answer.text()))
    }

    /// A scrape.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.probe("/metrics")?.text()))
    }

    /// Waits until a scrape satisfies `wanted`.
    pub fn wait_for_metric(&self, limit: Duration, wanted: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
        until(limit, || self.metrics().ok().filter(&wanted)).ok_or_else(|| {
            let last = self.probe("/metrics").map(|a| a.text()).unwrap_or_else(|e| format!("{e:#}"));
            let told: Vec<&str> =
                last.lines().filter(|l| !l.starts_with('#') && !l.ends_with(" 0")).collect();
            anyhow!("{}: not so within {limit:?}:\n{}", self.options.name, told.join("\n"))
        })
    }

    /// Waits until what the control plane published as `generation` is in force here.
    pub fn wait_for_generation(&self, generation: u64, limit: Duration) -> Result<()> {
        self.wait_for_metric(limit, |m| m.count("postern_generation", &[]) >= generation).map(drop)
    }

    /// Its log so far, earlier starts included.
    pub fn logs(&self) -> Vec<Value> {
        self.process.logs()
    }

    /// Waits for a log line; lines that are already there count.
    pub fn wait_for_log(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.process.wait_for_log(limit, wanted)
    }

    /// Where operators ask it.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.join(&self.options.admin)
    }

    /// What `postern-proxy admin ARGS` answers.
    pub fn admin(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(self.binaries.proxy());
        command.arg("admin").args(args).arg("--socket").arg(self.admin_socket()).args(["--output", "json"]);
        let output = command.output()?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "postern-proxy admin {args:?}: {told}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// SIGTERM, without waiting: it drains.
    pub fn sigterm(&mut self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGTERM and an orderly end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The process: exit status, descriptors, memory, signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Where its log is.
    pub fn log_path(&self) -> &Path {
        self.process.log_path()
    }
}

fn spawn(binaries: &Binaries, dir: &Path, options: &SidecarOptions) -> Result<Process> {
    let mut command = match options.launcher.split_first() {
        None => Command::new(binaries.proxy()),
        Some((launcher, args)) => {
            let mut command = Command::new(launcher);
            command.args(args).arg(binaries.proxy());
            command
        }
    };
    if !options.config.is_empty() {
        let config = dir.join(format!("{}.yaml", options.name));
        fs::write(&config, &options.config)?;
        command.arg("--config").arg(config);
    }
    if let Some(join) = &options.join {
        command.arg("--join-file").arg(join);
    }
    let protocol = options.protocol.as_ref().map_or(String::new(), |p| format!(",protocol={p}"));
    for (listen, app, service) in &options.inbound {
        let announce = service.as_ref().map_or(String::new(), |s| format!(",announce={s}"));
        command.arg("--inbound").arg(format!("{listen}={app}{protocol}{announce}"));
    }
    for (listen, upstream) in &options.outbound {
        command.arg("--outbound").arg(format!("{listen}={upstream}{protocol}"));
    }
    if let Some(ttl) = &options.ttl {
        command.args(["--ttl", ttl]);
    }
    if let Some(cache) = &options.cache {
        command.arg("--identity-cache").arg(cache);
    }
    command.arg("--admin-socket").arg(dir.join(&options.admin));
    command.args(["--metrics", &options.metrics.to_string(), "--log-format", "json", "--output", "json"]);
    command.args(&options.args).envs(options.env.iter().map(|(k, v)| (k, v)));
    Process::spawn(&options.name, command, dir)
}
