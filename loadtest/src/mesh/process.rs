//! One process that the harness started: its output in files, its end by its own pid, nothing left behind.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use super::wait::until;

/// For a process to say that it is ready; generous, since tests share few processors.
pub const READY: Duration = Duration::from_secs(30);
/// For a process to end after SIGTERM, before SIGKILL ends it.
const END: Duration = Duration::from_secs(10);
/// How many lines of a process's standard error a failing test shows.
const SHOWN: usize = 40;

/// A running program. Standard output and error go to `NAME.out` (of the last start) and `NAME.log` (of all starts).
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    out: PathBuf,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` in a process group of its own, so that a terminal's ^C does not reach it.
    pub fn spawn(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let (out, log) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.log")));
        // Settings of the caller's environment are not this mesh's.
        for (key, _) in std::env::vars_os().filter(|(k, _)| k.to_string_lossy().starts_with("POSTERN_")) {
            command.env_remove(key);
        }
        command.process_group(0).stdin(Stdio::null());
        command.stdout(File::create(&out)?).stderr(File::options().append(true).create(true).open(&log)?);
        let child = command.spawn().with_context(|| format!("{name}: {:?}", command.get_program()))?;
        Ok(Self { name: name.to_owned(), child, out, log, ended: None })
    }

    /// What it is called here.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its standard error goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its exit status, once it has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits for the first line on standard output that `pick` takes; fails at once, with its log, if it ends before.
    pub fn wait_for_line<T>(&mut self, limit: Duration, pick: impl Fn(&str) -> Option<T>) -> Result<T> {
        let found = until(limit, || {
            let ended = self.exit_status();
            let text = self.stdout();
            match (complete(&text).lines().find_map(&pick), ended) {
                (Some(value), _) => Some(Ok(value)),
                (None, Some(status)) => Some(Err(anyhow!("it ended before it was ready ({status})"))),
                (None, None) => None,
            }
        });
        found
            .unwrap_or_else(|| Err(anyhow!("not ready after {limit:?}")))
            .with_context(|| format!("{}:\n{}", self.name, self.tail(SHOWN)))
    }

    /// Everything on standard output since the last start.
    pub fn stdout(&self) -> String {
        fs::read(&self.out).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Everything on standard error, earlier starts included.
    pub fn stderr(&self) -> String {
        fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// The log so far, a JSON object a line; what is no JSON (a panic) comes as a string.
    pub fn logs(&self) -> Vec<Value> {
        complete(&self.stderr()).lines().map(parse).collect()
    }

    /// Waits until a log line satisfies `wanted`; lines that are already there count.
    pub fn wait_for_log(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut seen = 0;
        until(limit, || {
            let text = self.stderr();
            let complete = complete(&text);
            let found = complete.get(seen..)?.lines().map(parse).find(|l| wanted(l));
            seen = complete.len();
            found
        })
        .ok_or_else(|| {
            anyhow!("{}: no such log line within {limit:?}; last:\n{}", self.name, self.tail(SHOWN))
        })
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        // Reaped processes have given their pid back, perhaps to somebody else.
        if self.exit_status().is_none() {
            let _ = kill(Pid::from_raw(self.pid().cast_signed()), signal);
        }
    }

    /// SIGKILL, to the processes that it started as well, and waits for its end.
    pub fn kill9(&mut self) {
        if self.exit_status().is_none() {
            let _ = killpg(Pid::from_raw(self.pid().cast_signed()), Signal::SIGKILL);
        }
        if self.ended.is_none() {
            self.ended = self.child.wait().ok();
        }
    }

    /// Waits for the end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        until(limit, || self.exit_status())
            .ok_or_else(|| anyhow!("{} still runs after {limit:?}:\n{}", self.name, self.tail(SHOWN)))
    }

    /// SIGTERM, and waits for an orderly end; fails when that takes too long or the exit code is not 0.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM);
        let status = self.wait(END)?;
        if !status.success() && status.signal() != Some(Signal::SIGTERM as i32) {
            bail!("{} ended with {status}:\n{}", self.name, self.tail(SHOWN));
        }
        Ok(())
    }

    /// How many file descriptors it has open.
    pub fn open_fds(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// Its resident memory in bytes.
    pub fn rss(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS: it has ended")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// The last `lines` of its log.
    pub fn tail(&self, lines: usize) -> String {
        let text = self.stderr();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            // The macro, not the stream: the test runner shows only what goes through it.
            eprintln!("── {}\n{}", self.name, self.tail(SHOWN));
        }
    }
}

/// Without the part behind the last line break, which is still being written.
fn complete(text: &str) -> &str {
    text.rsplit_once('\n').map_or("", |(lines, _)| lines)
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|_| line.into())
}
