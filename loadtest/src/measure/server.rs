//! What processes use, as the kernel counts it: every thread, those that have ended too, and every child.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::drive::Tally;

/// `/proc/PID/stat` counts in hundredths of a second on every Linux.
const TICK: Duration = Duration::from_millis(10);
const KIB: u64 = 1024;

/// Looks at processes and their children, from [`begin`](Self::begin) to [`end`](Self::end).
#[derive(Debug)]
pub struct Meter {
    roots: Vec<u32>,
    before: Option<Snapshot>,
    peak_rss: u64,
    peak_fds: u64,
}

/// What was used between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Processes and threads at the end.
    pub processes: usize,
    /// Threads at the end.
    pub threads: u64,
    /// User and system time.
    pub cpu: Duration,
    /// Times that a thread gave its CPU up, to wait.
    pub voluntary_switches: u64,
    /// Times that a thread lost its CPU.
    pub involuntary_switches: u64,
    /// Resident bytes at the beginning, at the end and at most.
    pub rss: (u64, u64, u64),
    /// The same bytes with shared pages shared out, at the beginning and at the end; none where the kernel does not say.
    pub pss: Option<(u64, u64)>,
    /// Open files at the beginning, at the end and at most.
    pub fds: (u64, u64, u64),
}

/// What it cost the server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Processes at the end, children included.
    pub processes: usize,
    /// Threads at the end.
    pub threads: u64,
    /// User and system time of all of them.
    pub cpu_seconds: f64,
    /// … for each operation that ended well.
    pub cpu_us_per_operation: Option<f64>,
    /// … for each handshake, resumed ones included, where an operation is made of nothing but that.
    pub cpu_us_per_handshake: Option<f64>,
    /// … for each whole answer.
    pub cpu_us_per_request: Option<f64>,
    /// … for each 10⁹ bytes of bodies or raw exchanges, of both directions together.
    pub cpu_seconds_per_gb: Option<f64>,
    /// Resident bytes for each idle connection.
    pub rss_per_idle_connection: Option<f64>,
    /// Proportional resident bytes for each idle connection.
    pub pss_per_idle_connection: Option<f64>,
    /// Resident bytes before.
    pub rss_before: u64,
    /// Resident bytes at the end.
    pub rss_after: u64,
    /// The most that was seen.
    pub rss_peak: u64,
    /// Proportional resident bytes before.
    pub pss_before: Option<u64>,
    /// … and at the end.
    pub pss_after: Option<u64>,
    /// Context switches to wait, of all threads.
    pub voluntary_switches: u64,
    /// … and because somebody else was to run.
    pub involuntary_switches: u64,
    /// Both together, for each operation that ended well.
    pub switches_per_operation: Option<f64>,
    /// Open files before.
    pub fds_before: u64,
    /// Open files at the end.
    pub fds_after: u64,
    /// The most that was seen.
    pub fds_peak: u64,
}

impl Cost {
    pub(crate) fn new(usage: Usage, done: &Tally) -> Self {
        let cpu = usage.cpu.as_secs_f64();
        let each = |count: u64, unit: f64| (count > 0).then(|| cpu * unit / count as f64);
        let handshakes = done.handshakes + done.resumed;
        let switches = usage.voluntary_switches + usage.involuntary_switches;
        Self {
            processes: usage.processes,
            threads: usage.threads,
            cpu_seconds: cpu,
            cpu_us_per_operation: each(done.operations, 1e6),
            cpu_us_per_handshake: each(if handshakes >= done.operations { handshakes } else { 0 }, 1e6),
            cpu_us_per_request: each(done.requests, 1e6),
            cpu_seconds_per_gb: each(done.sent + done.received, 1e9),
            rss_per_idle_connection: None,
            pss_per_idle_connection: None,
            rss_before: usage.rss.0,
            rss_after: usage.rss.1,
            rss_peak: usage.rss.2,
            pss_before: usage.pss.map(|p| p.0),
            pss_after: usage.pss.map(|p| p.1),
            voluntary_switches: usage.voluntary_switches,
            involuntary_switches: usage.involuntary_switches,
            switches_per_operation: (done.operations > 0).then(|| switches as f64 / done.operations as f64),
            fds_before: usage.fds.0,
            fds_after: usage.fds.1,
            fds_peak: usage.fds.2,
        }
    }

    /// The same, where `connections` were opened between beginning and end and stand idle.
    pub(crate) fn with_idle(mut self, connections: u64) -> Self {
        let each = |before: u64, after: u64| {
            (connections > 0).then(|| (after as f64 - before as f64) / connections as f64)
        };
        self.rss_per_idle_connection = each(self.rss_before, self.rss_after);
        self.pss_per_idle_connection = self.pss_before.zip(self.pss_after).and_then(|(b, a)| each(b, a));
        self
    }
}

impl Meter {
    /// For these processes; fails when one of them is gone. None of them is fine: then it measures nothing.
    pub fn new(pids: &[u32]) -> Result<Self> {
        for pid in pids {
            ensure!(fs::exists(format!("/proc/{pid}"))?, "there is no process {pid}");
        }
        Ok(Self { roots: pids.to_vec(), before: None, peak_rss: 0, peak_fds: 0 })
    }

    /// From here on it counts.
    pub fn begin(&mut self) -> Result<()> {
        if self.roots.is_empty() {
            return Ok(());
        }
        let (pss, now) = (self.pss(), Snapshot::take(&self.roots)?);
        (self.peak_rss, self.peak_fds) = (now.rss, now.fds);
        self.before = Some(Snapshot { pss, ..now });
        Ok(())
    }

    /// Looks at memory and files, for their peaks.
    pub fn sample(&mut self) {
        let rss = self.family().iter().filter_map(|pid| resident(*pid)).sum();
        let fds = self.family().iter().map(|pid| open_files(*pid)).sum();
        self.peak_rss = self.peak_rss.max(rss);
        self.peak_fds = self.peak_fds.max(fds);
    }

    /// What was used since [`begin`](Self::begin); fails when a process has ended meanwhile.
    pub fn end(&mut self) -> Result<Option<Usage>> {
        let Some(before) = self.before.take() else { return Ok(None) };
        let after = Snapshot::take(&self.roots)?;
        let pss = before.pss.zip(self.pss());
        Ok(Some(Usage {
            processes: after.processes,
            threads: after.threads,
            cpu: after.cpu.saturating_sub(before.cpu),
            voluntary_switches: after.voluntary.saturating_sub(before.voluntary),
            involuntary_switches: after.involuntary.saturating_sub(before.involuntary),
            rss: (before.rss, after.rss, self.peak_rss.max(after.rss)),
            pss,
            fds: (before.fds, after.fds, self.peak_fds.max(after.fds)),
        }))
    }

    fn family(&self) -> BTreeSet<u32> {
        match self.roots.is_empty() {
            true => BTreeSet::new(),
            false => family(&self.roots),
        }
    }

    fn pss(&self) -> Option<u64> {
        self.family()
            .iter()
            .map(|pid| field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:"))
            .sum()
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Snapshot {
    processes: usize,
    threads: u64,
    cpu: Duration,
    voluntary: u64,
    involuntary: u64,
    rss: u64,
    pss: Option<u64>,
    fds: u64,
}

impl Snapshot {
    fn take(roots: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in family(roots) {
            match cpu(pid) {
                Some(time) => sum.cpu += time,
                // A child may end while we look: its time is its parent's, once that has waited for it.
                None => ensure!(!roots.contains(&pid), "process {pid} has ended"),
            }
            sum.processes += 1;
            sum.rss += resident(pid).unwrap_or(0);
            sum.fds += open_files(pid);
            for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
                sum.threads += 1;
                sum.voluntary += number(&status, "voluntary_ctxt_switches:").unwrap_or(0);
                sum.involuntary += number(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
            }
        }
        ensure!(sum.processes > 0, "none of the processes {roots:?} is left");
        Ok(sum)
    }
}

/// The processes and whoever descends from them.
fn family(roots: &[u32]) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut family, mut next) = (BTreeSet::new(), roots.to_vec());
    while let Some(pid) = next.pop() {
        if family.insert(pid) {
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    family
}

/// All time that a process has used, to the nanosecond, and to the tick that of its children that have ended.
fn cpu(pid: u32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).ok()?;
    let own = Duration::from(clock.now().ok()?);
    let fields = stat(pid)?;
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u32>().ok()).unwrap_or(0);
    Some(own + TICK * (ticks(13) + ticks(14)))
}

/// The fields of `/proc/PID/stat` from the state on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows it is numbers.
    Some(stat.rsplit_once(") ")?.1.split_whitespace().map(str::to_owned).collect())
}

fn resident(pid: u32) -> Option<u64> {
    field(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

pub(crate) fn open_files(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |dir| dir.count() as u64)
}

fn field(text: &str, name: &str) -> Option<u64> {
    Some(number(text, name)? * KIB)
}

fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name)).context("no such line").ok()?;
    line.split_whitespace().next()?.parse().ok()
}
