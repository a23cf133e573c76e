//! Servers that do what Postern does, started with settings that can be compared: Envoy, nginx, HAProxy, stunnel, and ours.
//!
//! Each is one process with one worker on the processors it is given, in front of the same app. A [`Place::Hop`] takes
//! mutual TLS from the rig; a [`Place::Pair`] takes plain text, and two of them speak mutual TLS with each other. With
//! [`Table::Fair`] all of them speak TLS 1.3 with X25519, AES-128-GCM and P-256 on both sides, give no tickets and log no
//! requests; with [`Table::Defaults`] each has its own settings wherever mutual TLS does not need another.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::mesh::{Directory, Process, READY, free_port, until};

mod copy;
mod envoy;
mod haproxy;
mod nginx;
mod pki;
mod postern;
mod stunnel;
mod upstream;

pub use copy::Copy;
pub use pki::{Identity, Pki, SERVER};
pub use upstream::Upstream;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Kind {
    /// Ours, with a control plane of its own.
    Postern,
    /// Envoy.
    Envoy,
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// stunnel; it carries bytes alone.
    Stunnel,
    /// No server: bytes copied without TLS, which is what any of them costs at least.
    Copy,
}

/// What a server makes of the bytes that it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Requests.
    Http,
    /// Bytes.
    Tcp,
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Between the rig, which speaks mutual TLS, and the app.
    Hop,
    /// Twice: beside the rig, which speaks plain text, and before the app; mutual TLS between the two.
    Pair,
}

/// Which settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Table {
    /// The same for all.
    Fair,
    /// Each one's own.
    Defaults,
}

/// What all servers of a comparison have in common.
#[derive(Debug, Clone)]
pub struct Setting {
    /// What they carry.
    pub mode: Mode,
    /// Where they stand.
    pub place: Place,
    /// Their settings.
    pub table: Table,
    /// HTTP/2 where a pair's two sides speak with each other; ours decides that by itself.
    pub http2_between: bool,
    /// The app behind them.
    pub app: SocketAddr,
    /// The processors that they may use, as `taskset` reads them; none for all.
    pub cpus: Option<String>,
}

impl Setting {
    fn is_fair(&self) -> bool {
        self.table == Table::Fair
    }
}

/// A program that is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is not here.
    pub what: String,
    /// How it comes here.
    pub install: &'static str,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is not installed: {}", self.what, self.install)
    }
}

impl std::error::Error for Missing {}

impl Kind {
    /// The word for it, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postern => "postern",
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Stunnel => "stunnel",
            Self::Copy => "copy",
        }
    }

    /// Whether it can do this at all.
    pub fn carries(self, mode: Mode) -> bool {
        !matches!((self, mode), (Self::Stunnel | Self::Copy, Mode::Http))
    }

    /// Whether it can be started here.
    pub fn available(self, mode: Mode) -> Result<(), Missing> {
        match self {
            // Beside this program, or `Server::start` says what is missing.
            Self::Postern | Self::Copy => Ok(()),
            Self::Envoy => envoy::program().map(drop),
            Self::Nginx => nginx::program(mode).map(drop),
            Self::Haproxy => haproxy::program().map(drop),
            Self::Stunnel => stunnel::program().map(drop),
        }
    }
}

/// A server that runs. Dropped, its processes are ended.
#[derive(Debug)]
pub struct Server {
    /// Which one.
    pub kind: Kind,
    /// Where the rig connects.
    pub front: SocketAddr,
    /// Whether the rig speaks mutual TLS there.
    pub tls: bool,
    /// Its processes, whose use of the machine is what it costs.
    pub pids: Vec<u32>,
    /// Whom it proves to be; none for one with the rig's own certificate for [`SERVER`].
    pub spiffe: Option<Spiffe>,
    /// What it says about its own version.
    pub version: String,
    _parts: Parts,
}

/// What a client of ours believes.
#[derive(Debug, Clone)]
pub struct Spiffe {
    /// Its identity.
    pub id: String,
    /// The root above it, as a PEM file.
    pub root: PathBuf,
}

#[derive(Debug)]
enum Parts {
    Foreign { _processes: Vec<Process>, _dir: Directory },
    Postern { _mesh: Box<postern::Parts> },
}

impl Server {
    /// Starts it, and waits until it takes connections.
    pub fn start(kind: Kind, setting: &Setting, pki: &Pki) -> Result<Self> {
        if !kind.carries(setting.mode) {
            bail!("{} does not carry HTTP", kind.name());
        }
        if kind == Kind::Postern {
            return postern::start(setting, pki);
        }
        let dir = Directory::new()?;
        let launch = |side: Side| {
            // None of these programs says which port it took.
            let stand = Stand { setting, side, listen: free_port()?, dir: dir.path(), pki };
            let command = match kind {
                Kind::Envoy => envoy::command(&stand)?,
                Kind::Nginx => nginx::command(&stand)?,
                Kind::Haproxy => haproxy::command(&stand)?,
                Kind::Stunnel => stunnel::command(&stand)?,
                Kind::Copy | Kind::Postern => copy::command(&stand)?,
            };
            let name = format!("{}-{}", kind.name(), side.name());
            let mut process = Process::spawn(&name, on(setting.cpus.as_deref(), command), dir.path())?;
            listening(&mut process, stand.listen)?;
            anyhow::Ok((process, stand.listen))
        };
        let (server, behind) = launch(Side::Server)?;
        let mut processes = vec![server];
        let mut front = behind;
        if setting.place == Place::Pair {
            let (client, near) = launch(Side::Client { to: behind })?;
            processes.push(client);
            front = near;
        }
        let version = match kind {
            Kind::Envoy => envoy::version(),
            Kind::Nginx => said(Command::new("nginx").arg("-v")),
            Kind::Haproxy => haproxy::version(),
            Kind::Stunnel => stunnel::version(),
            Kind::Copy | Kind::Postern => "bytes copied by 256 KiB, without TLS".to_owned(),
        };
        Ok(Self {
            kind,
            front,
            tls: setting.place == Place::Hop && kind != Kind::Copy,
            pids: processes.iter().map(Process::pid).collect(),
            spiffe: None,
            version,
            _parts: Parts::Foreign { _processes: processes, _dir: dir },
        })
    }
}

/// One process of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Mutual TLS in, the app behind.
    Server,
    /// Plain text in, mutual TLS out.
    Client { to: SocketAddr },
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client { .. } => "client",
        }
    }
}

/// What a process's configuration is made from.
struct Stand<'a> {
    setting: &'a Setting,
    side: Side,
    listen: SocketAddr,
    dir: &'a Path,
    pki: &'a Pki,
}

impl Stand<'_> {
    /// Writes a file of its own and gives its path.
    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{}-{name}", self.side.name()));
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

/// This program, or for tests, which are none of its commands, the one built beside them.
fn rig_program() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("POSTERN_BIN_DIR") {
        return Ok(Path::new(&dir).join("postern-loadtest"));
    }
    let own = std::env::current_exe().context("this program does not find itself")?;
    if own.file_name().is_some_and(|n| n == "postern-loadtest") {
        return Ok(own);
    }
    Ok(crate::mesh::Binaries::build()?.dir().join("postern-loadtest"))
}

/// A program by its name, in `PATH` and where Debian keeps servers.
fn program(name: &str, install: &'static str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.map(|dir| dir.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| Missing { what: name.to_owned(), install })
}

/// The same command, held to these processors.
fn on(cpus: Option<&str>, command: Command) -> Command {
    let Some(cpus) = cpus else { return command };
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", cpus]).arg(command.get_program()).args(command.get_args());
    pinned
}

fn listening(process: &mut Process, address: SocketAddr) -> Result<()> {
    let up = until(READY, || {
        if let Some(status) = process.exit_status() {
            return Some(Err(status));
        }
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok().map(|_| Ok(()))
    });
    let tail = || format!("{}:\n{}\n{}", process.name(), process.stdout(), process.tail(20));
    match up {
        Some(Ok(())) => Ok(()),
        Some(Err(status)) => bail!("it ended at its start ({status}); {}", tail()),
        None => bail!("nobody listens on {address} after {READY:?}; {}", tail()),
    }
}

/// The first line that a command says about itself.
fn said(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return String::new() };
    let all = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&all).lines().find(|l| !l.trim().is_empty()).unwrap_or_default().trim().to_owned()
}
