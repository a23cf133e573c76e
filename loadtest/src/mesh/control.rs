//! A control plane as a process, and the operator's command against it.

use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::binaries::Binaries;
use super::process::{Process, READY};

/// How a control plane is started.
#[derive(Debug, Clone)]
pub struct ControlOptions {
    /// The trust domain.
    pub trust_domain: String,
    /// Its configuration file's text (YAML); data, addresses and log format are laid over it.
    pub config: String,
    /// Where proxies connect; port 0 takes a free one, and keeps it over restarts.
    pub listen: SocketAddr,
    /// Environment, such as a preloaded clock.
    pub env: Vec<(String, String)>,
}

impl Default for ControlOptions {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { trust_domain: "mesh.test".to_owned(), config: String::new(), listen, env: Vec::new() }
    }
}

/// What a command of the operator's answered.
#[derive(Debug, Clone)]
pub struct CliOutput {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A control plane. Dropped, it is killed; its data lie in the directory it was given.
#[derive(Debug)]
pub struct ControlPlane {
    binaries: Binaries,
    dir: PathBuf,
    options: ControlOptions,
    process: Process,
    root: String,
    metrics: SocketAddr,
    public: Option<SocketAddr>,
    files: Cell<usize>,
}

impl ControlPlane {
    /// Starts one whose data, log and join files lie below `dir`; ready when this returns.
    pub fn start(binaries: &Binaries, dir: &Path, options: ControlOptions) -> Result<Self> {
        Self::start_replica(binaries, dir, options, |key| bail!("it waits for somebody to approve {key}"))
    }

    /// Like [`start`](Self::start), for one of several that share a store: a replica that has to be approved says with which
    /// key, and `approve` has it done where the root is held.
    pub fn start_replica(
        binaries: &Binaries,
        dir: &Path,
        mut options: ControlOptions,
        approve: impl FnOnce(&str) -> Result<()>,
    ) -> Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (mut process, ready) = launch(binaries, dir, &options, any)?;
        let ready = match ready["event"].as_str() {
            Some("waiting") => {
                approve(ready["key"].as_str().context("no `key` in the waiting line")?)?;
                process.wait_for_line(READY, ready_line)?
            }
            _ => ready,
        };
        options.listen = address(&ready, "listen")?;
        Ok(Self {
            binaries: binaries.clone(),
            dir: dir.to_owned(),
            options,
            process,
            root: ready["root"].as_str().context("no `root` in the ready line")?.to_owned(),
            metrics: address(&ready, "metrics")?,
            public: address(&ready, "public").ok(),
            files: Cell::new(0),
        })
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGTERM and an orderly end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop()
    }

    /// Starts again on the same addresses with the same data, after [`kill9`](Self::kill9) if it still runs.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill9();
        let (process, ready) = launch(&self.binaries, &self.dir, &self.options, self.metrics)?;
        ensure!(ready["event"] == "ready", "{ready}: a replica that has been approved is so for good");
        self.process = process;
        Ok(())
    }

    /// Its options, for a change before [`restart`](Self::restart).
    pub fn options(&mut self) -> &mut ControlOptions {
        &mut self.options
    }

    /// Where proxies connect.
    pub fn listen(&self) -> SocketAddr {
        self.options.listen
    }

    /// Where its `/livez`, `/readyz` and `/metrics` are.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Where its public port is, if it has one.
    pub fn public_address(&self) -> Option<SocketAddr> {
        self.public
    }

    /// The pin of the root certificate, `sha256:…`.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.options.trust_domain
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The process: log, signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its log so far.
    pub fn logs(&self) -> Vec<Value> {
        self.process.logs()
    }

    /// Runs `postern ARGS --data DATA`.
    pub fn cli(&self, args: &[&str]) -> Result<CliOutput> {
        let mut command = Command::new(self.binaries.postern());
        command.args(args).arg("--data").arg(self.data());
        let output = command.output().context("postern does not start")?;
        Ok(CliOutput {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `postern ARGS --output json`, which must succeed, and gives the answer.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let out = self.cli(&[args, &["--output", "json"]].concat())?;
        ensure!(out.status.success(), "postern {}: {}", args.join(" "), out.stderr);
        serde_json::from_str(&out.stdout)
            .with_context(|| format!("postern {}: {}", args.join(" "), out.stdout))
    }

    /// Makes a join string for `id` and gives the file (0600) that holds it.
    pub fn token(&self, id: &str, options: &[&str]) -> Result<PathBuf> {
        let out = self.cli(&[&["token", "create", "--id", id], options].concat())?;
        ensure!(out.status.success(), "token for {id}: {}", out.stderr);
        self.file("join", out.stdout.trim_end())
    }

    /// Applies services (YAML, one document each); gives the generation that carries them.
    pub fn apply_services(&self, yaml: &str) -> Result<u64> {
        self.apply("service", yaml)
    }

    /// Applies one service; without `endpoints`, they are announced.
    pub fn apply_service(&self, name: &str, identity: &str, endpoints: &[SocketAddr]) -> Result<u64> {
        let endpoints: Vec<String> = endpoints.iter().map(SocketAddr::to_string).collect();
        let service = serde_json::json!({ "name": name, "identity": identity, "endpoints": endpoints });
        // JSON is YAML.
        self.apply_services(&service.to_string())
    }

    /// Applies policies (Istio's YAML); gives the generation that carries them.
    pub fn apply_policy(&self, yaml: &str) -> Result<u64> {
        self.apply("policy", yaml)
    }

    fn apply(&self, what: &str, yaml: &str) -> Result<u64> {
        let path = self.file("yaml", yaml)?;
        let answer = self.json(&[what, "apply", "-f", &path.to_string_lossy()])?;
        answer["generation"].as_u64().with_context(|| format!("no generation in {answer}"))
    }

    /// A new private file below the directory.
    fn file(&self, extension: &str, text: &str) -> Result<PathBuf> {
        let number = self.files.replace(self.files.get() + 1);
        let path = self.dir.join(format!("{number}.{extension}"));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path)
    }
}

fn launch(
    binaries: &Binaries,
    dir: &Path,
    options: &ControlOptions,
    metrics: SocketAddr,
) -> Result<(Process, Value)> {
    let config = dir.join("control.yaml");
    let text = if options.config.is_empty() { "{}" } else { &options.config };
    fs::write(&config, text)?;
    let mut command = Command::new(binaries.postern());
    command.arg("serve").arg("--data").arg(dir.join("pki")).arg("--config").arg(config);
    command.args(["--trust-domain", &options.trust_domain, "--listen", &options.listen.to_string()]);
    command.args(["--metrics", &metrics.to_string(), "--log-format", "json", "--output", "json"]);
    command.envs(options.env.iter().map(|(k, v)| (k, v)));
    let mut process = Process::spawn("control", command, dir)?;
    let ready = process.wait_for_line(READY, |line| ready_line(line).or_else(|| waiting_line(line)))?;
    Ok((process, ready))
}

/// The line with which both programs say that they are ready.
pub(super) fn ready_line(line: &str) -> Option<Value> {
    serde_json::from_str::<Value>(line).ok().filter(|v| v["event"] == "ready")
}

/// The line with which a replica says that somebody has to approve it.
fn waiting_line(line: &str) -> Option<Value> {
    serde_json::from_str::<Value>(line).ok().filter(|v| v["event"] == "waiting")
}

/// A field of the ready line as an address.
pub(super) fn address(ready: &Value, field: &str) -> Result<SocketAddr> {
    let text = ready[field].as_str().with_context(|| format!("no `{field}` in {ready}"))?;
    text.parse().with_context(|| format!("`{field}` is no address in {ready}"))
}
