//! The proxy as a process of its own: started from a cache, watched by its log, ended with its handle.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::mesh::{Directory, Mesh, PEER};
use super::metrics::{Metrics, get};
use super::{PATIENCE, STEP, eventually};

/// How a proxy is started.
pub(crate) struct Options {
    /// Where its inbound listener leads.
    pub(crate) app: SocketAddr,
    /// Where its outbound listener leads; [`PEER`] must answer there.
    pub(crate) upstream: SocketAddr,
    /// Seconds for which its certificate lives.
    pub(crate) ttl: i64,
    /// The configuration file.
    pub(crate) yaml: String,
    /// The most descriptors that it may have.
    pub(crate) descriptors: Option<u32>,
    /// Without it, nobody but the app connects.
    pub(crate) takes_peers: bool,
}

impl Options {
    pub(crate) fn new(app: SocketAddr, upstream: SocketAddr) -> Self {
        Self {
            app,
            upstream,
            ttl: 3600,
            yaml: "workers: 2\n".to_owned(),
            descriptors: None,
            takes_peers: true,
        }
    }

    pub(crate) fn yaml(self, yaml: &str) -> Self {
        Self { yaml: format!("{}{yaml}\n", self.yaml), ..self }
    }
}

/// `postern-proxy` without the environment's settings.
pub(crate) fn command() -> Command {
    prepare(Command::new(env!("CARGO_BIN_EXE_postern-proxy")))
}

fn prepare(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("POSTERN_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running proxy.
pub(crate) struct Proxy {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    pub(crate) inbound: SocketAddr,
    pub(crate) outbound: SocketAddr,
    metrics: SocketAddr,
    /// The line on standard output.
    pub(crate) ready: Value,
    /// The cache that it began with.
    pub(crate) cache: Value,
    _dir: Directory,
}

impl Proxy {
    /// Starts it; it takes traffic when this returns.
    pub(crate) fn start(mesh: &Mesh, options: &Options) -> Self {
        let dir = Directory::new();
        let cache = mesh.cache(options.ttl);
        dir.write("identity.json", &cache.to_string());
        let mut command = match options.descriptors {
            None => command(),
            Some(most) => {
                let mut shell = prepare(Command::new("sh"));
                shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")]);
                shell.arg(env!("CARGO_BIN_EXE_postern-proxy"));
                shell
            }
        };
        command.arg("--config").arg(dir.write("proxy.yaml", &options.yaml));
        command.arg("--identity-cache").arg(dir.path());
        command.args(["--control", "127.0.0.1:1", "--metrics", "127.0.0.1:0"]);
        command.arg("--admin-socket").arg(dir.path().join("admin.sock"));
        command.args(["--output", "json", "--log-format", "json"]);
        if options.takes_peers {
            command.arg("--inbound").arg(format!("127.0.0.1:0={}", options.app));
        }
        command.arg("--outbound").arg(format!("127.0.0.1:0={},{PEER}", options.upstream));
        let mut child = command.spawn().unwrap();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let reader = std::thread::spawn({
            let lines = Arc::clone(&lines);
            move || errors.lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line))
        });
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let ready: Value =
            serde_json::from_str(&ready).unwrap_or_else(|_| panic!("not ready: {:?}", lines.lock().unwrap()));
        let address = |value: &Value| value.as_str().unwrap().parse().unwrap();
        let outbound = address(&ready["outbound"][0]);
        let inbound = if options.takes_peers { address(&ready["inbound"][0]) } else { outbound };
        Self {
            child,
            lines,
            reader: Some(reader),
            inbound,
            outbound,
            metrics: address(&ready["metrics"]),
            ready,
            cache,
            _dir: dir,
        }
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::scrape(self.metrics)
    }

    /// What `/readyz` says.
    pub(crate) fn readiness(&self) -> String {
        get(self.metrics, "/readyz")
    }

    /// Every log line so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// The log's connection events of one source.
    pub(crate) fn records(&self, source: SocketAddr) -> Vec<Value> {
        let of_source = format!("\"source\":\"{source}\"");
        let lines = self.log();
        let lines = lines.iter().filter(|line| line.contains(&of_source));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The one connection event of this source.
    #[track_caller]
    pub(crate) fn record(&self, source: SocketAddr) -> Value {
        eventually("the connection's log line", || self.records(source).pop())
    }

    /// How many descriptors it has open.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// The CPU time that it has used, in clock ticks (100 a second).
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The fields behind the program's name, which is in brackets, begin with the third.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11..=12].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end, and for the last line of its log.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = eventually("the proxy's end", || self.ended());
        self.reader.take().unwrap().join().unwrap();
        status
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("the proxy's last lines:\n{}", log[log.len().saturating_sub(20)..].join("\n"));
        }
    }
}

/// A command that is expected to end by itself: exit code, standard output, standard error.
pub(crate) fn finish(mut command: Command) -> (Option<i32>, String, String) {
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::park_timeout(STEP);
    }
    let late = child.try_wait().unwrap().is_none();
    // Nothing happens to one that has ended.
    child.kill().unwrap();
    let status = child.wait().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.unwrap().read_to_string(&mut out).unwrap();
    child.stderr.unwrap().read_to_string(&mut err).unwrap();
    assert!(!late, "still running:\n{out}{err}");
    (status.code(), out, err)
}
