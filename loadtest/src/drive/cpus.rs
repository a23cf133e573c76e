//! Which CPUs the rig keeps to, so that it does not take the server's.

use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rustix::process::setpriority_process;
use serde::{Deserialize, Serialize};

/// The lowest priority that Linux knows.
const POLITEST: i32 = 19;

/// A list of CPUs as `taskset -c` takes it: `0`, `2-3`, `0,2-3`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cpus(Vec<usize>);

impl Cpus {
    /// How many there are; never none.
    #[expect(clippy::len_without_is_empty, reason = "an empty list does not parse")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromStr for Cpus {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |word: &str| {
                word.trim()
                    .parse::<usize>()
                    .with_context(|| format!("{text:?} is no list of CPUs such as 0,2-3"))
            };
            let (first, last) = (number(first)?, number(last)?);
            ensure!(first <= last && last < CpuSet::count(), "{text:?}: {part:?} is no range of CPUs");
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

impl TryFrom<String> for Cpus {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Cpus> for String {
    fn from(cpus: Cpus) -> Self {
        cpus.0.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
    }
}

/// Keeps the calling thread, and the threads that it starts, to these CPUs.
pub fn pin(cpus: &Cpus) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in &cpus.0 {
        set.set(*cpu).with_context(|| format!("CPU {cpu}"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("this machine does not give the CPUs {}", String::from(cpus.clone())))
}

/// Lets the calling thread run only where nobody else wants to: load that may be slower than it could be must not make late
/// what is measured beside it.
pub fn give_way() -> Result<()> {
    // Of a process by its number; without one, Linux takes the thread.
    setpriority_process(None, POLITEST).context("this thread cannot give way to others")
}

/// The same for all threads of a process, and those that they start.
pub fn let_give_way(pid: u32) -> Result<()> {
    let gone = || format!("no process {pid}");
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).with_context(gone)? {
        let number = task?.file_name().to_str().and_then(|n| n.parse().ok()).with_context(gone)?;
        let thread = rustix::process::Pid::from_raw(number).with_context(gone)?;
        setpriority_process(Some(thread), POLITEST).with_context(|| format!("process {pid}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_taskset_reads_them() {
        let read = |text: &str| text.parse::<Cpus>().map(String::from).map_err(|e| e.to_string());
        assert_eq!(read("0").unwrap(), "0");
        assert_eq!(read("3,0-1,1").unwrap(), "0,1,3");
        for wrong in ["", "a", "1-", "3-1", "0-99999999", "-1", "0,,1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
