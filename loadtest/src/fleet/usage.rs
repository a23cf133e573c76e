//! What a process has used, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// `/proc/PID/stat` counts in hundredths of a second on every Linux.
const TICK: Duration = Duration::from_millis(10);
/// Descriptors beside the clients' connections: runtime, files, pipes.
const SPARE: u64 = 200;

/// Processor time and memory of one process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// User and system time of all its threads.
    pub(super) cpu: Duration,
    /// The most that was ever resident, in bytes.
    pub(super) peak_rss: u64,
}

impl Usage {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let gone = || format!("no process {pid}");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(gone)?;
        // The name in parentheses may hold anything; what follows it is numbers.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u32>().ok()).unwrap_or(0);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(gone)?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).with_context(gone)?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(Self { cpu: TICK * (ticks(11) + ticks(12)), peak_rss: kib * 1024 })
    }
}

/// Makes room for so many connections in this process, and in those that it starts.
pub(crate) fn room_for(connections: usize) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = connections as u64 + SPARE;
    if soft < wanted {
        // Beyond the hard limit only root may go.
        let room = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted));
        room.with_context(|| {
            format!(
                "{connections} connections need {wanted} open files, and this shell may have {hard} at most; see `ulimit -n`"
            )
        })?;
    }
    Ok(())
}
