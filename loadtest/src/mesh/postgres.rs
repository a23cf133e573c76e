//! A PostgreSQL of one's own: Debian's server on a loopback port, durable as in earnest, ended with its handle.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};

use super::{Directory, Process, READY, free_port, until};

/// The package's own user: the server refuses to run as root.
const USER: &str = "postgres";
/// For a fast shutdown.
const END: Duration = Duration::from_secs(20);

/// A cluster in a temporary directory. `fsync` is on: what is killed here must find what was promised.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    port: u16,
    process: Option<Process>,
    // Last: what runs in it ends first.
    dir: Directory,
}

impl Postgres {
    /// A fresh cluster whose superuser `postgres` needs no password on loopback; it answers when this returns.
    pub fn start() -> Result<Self> {
        let (programs, dir) = (programs()?, Directory::new()?);
        if let Some(user) = unprivileged()? {
            chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        let port = free_port()?.port();
        let mut postgres = Self { programs, port, process: None, dir };
        let mut init = postgres.command("initdb")?;
        init.args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "-D"]);
        let output = init.arg(postgres.data()).output().context("initdb does not start")?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        postgres.resume()?;
        Ok(postgres)
    }

    /// Starts it again on the same data and port, after [`stop`](Self::stop) or [`kill9`](Self::kill9).
    pub fn resume(&mut self) -> Result<()> {
        self.process = None;
        let began = std::time::Instant::now();
        // After a SIGKILL the children of the last one may hold the data directory for a moment.
        while began.elapsed() < READY {
            let mut command = self.command("postgres")?;
            command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-D"]).arg(self.data());
            command.args(["-c", "unix_socket_directories=", "-c", "fsync=on", "-c", "max_connections=60"]);
            let mut process = Process::spawn("postgres", command, self.dir.path())?;
            let answered = until(READY, || match process.exit_status() {
                Some(_) => Some(false),
                None => self.query("SELECT 1").is_ok().then_some(true),
            });
            if answered == Some(true) {
                self.process = Some(process);
                return Ok(());
            }
        }
        bail!("PostgreSQL does not start; see {}", self.dir.path().join("postgres.log").display())
    }

    /// The fast shutdown: connections are broken off, everything is on disk.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::SIGINT);
            process.wait(END)?;
        }
        Ok(())
    }

    /// SIGKILL to the server's first process; the others notice and end themselves.
    pub fn kill9(&mut self) {
        self.process = None;
    }

    /// What goes into `store.url`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// The rows of a query, fields separated by `|`.
    pub fn query(&self, sql: &str) -> Result<Vec<String>> {
        let mut psql = self.command("psql")?;
        psql.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-XAtqc", sql]);
        let output = psql.output().context("psql does not start")?;
        ensure!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(self.programs.join(program));
        if let Some(user) = unprivileged()? {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command.current_dir(self.dir.path()).env("LC_ALL", "C.UTF-8");
        Ok(command)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A SIGKILL, which dropping the process would be, leaves children for a moment; the shutdown does not.
        let _ = self.stop();
    }
}

/// Debian keeps the server's programs by major version.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|v| v.path().join("bin")).filter(|b| is_there(b)).collect();
    found.sort();
    found.pop().context("no PostgreSQL server: install the package postgresql")
}

fn is_there(bin: &Path) -> bool {
    ["initdb", "postgres", "psql"].iter().all(|program| bin.join(program).is_file())
}

/// Whom it runs as when we are root.
fn unprivileged() -> Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user = User::from_name(USER)?.context("no user postgres: install the package postgresql")?;
    Ok(Some(user))
}
