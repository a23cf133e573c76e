//! Sockets that were bound for this process before it started: systemd's socket activation (`sd_listen_fds(3)`).

use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The first descriptor that is passed.
const FIRST: i32 = 3;
/// More than that is a mistake of whoever set the variable, and not worth as many system calls.
const MOST: i32 = 1024;
const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// One passed descriptor.
#[derive(Debug)]
pub struct Passed {
    /// Its name in `LISTEN_FDNAMES`; `unknown` where it has none.
    pub name: String,
    /// The descriptor; closed on exec from here on.
    pub fd: OwnedFd,
}

/// Takes what was passed to this process, and clears the environment, so that no child believes it was meant. To be called
/// first of all; once other threads run, or the second time, it takes nothing.
pub fn take() -> Vec<Passed> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if TAKEN.swap(true, Ordering::Relaxed) || !alone {
        return Vec::new();
    }
    let [pid, count, names] = VARIABLES.map(|variable| std::env::var(variable).unwrap_or_default());
    for variable in VARIABLES {
        // SAFETY: this is the only thread.
        #[expect(unsafe_code, reason = "the environment changes while nobody else can read it")]
        unsafe {
            std::env::remove_var(variable);
        }
    }
    let own = |(fd, name)| {
        // Sets close-on-exec, and tells whether it is open at all: owning one that is not would be unsound.
        fcntl(borrow(fd), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
        // SAFETY: it is open, and by the protocol passed to this process for its own; it is taken once.
        #[expect(unsafe_code, reason = "the contract above is the service manager's")]
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Some(Passed { name, fd })
    };
    passed_to(std::process::id(), &pid, &count, &names).into_iter().filter_map(own).collect()
}

fn borrow(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: used for one call of fcntl only, which reports a descriptor that is not open as an error.
    #[expect(unsafe_code, reason = "asks whether it is open")]
    unsafe {
        BorrowedFd::borrow_raw(fd)
    }
}

/// Which descriptors are meant for process `own`, with their names; none where the variables are for another process or
/// make no sense.
fn passed_to(own: u32, pid: &str, count: &str, names: &str) -> Vec<(i32, String)> {
    let (Ok(pid), Ok(count)) = (pid.parse::<u32>(), count.parse::<i32>()) else { return Vec::new() };
    if pid != own || !(1..=MOST).contains(&count) {
        return Vec::new();
    }
    let mut names = names.split(':').filter(|name| !name.is_empty());
    (FIRST..FIRST + count).map(|fd| (fd, names.next().unwrap_or("unknown").to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_begin_at_three_and_are_this_processs_alone() {
        let named = |fd: i32, name: &str| (fd, name.to_owned());
        assert_eq!(passed_to(7, "7", "2", "in:metrics"), [named(3, "in"), named(4, "metrics")]);
        assert_eq!(passed_to(7, "7", "2", ""), [named(3, "unknown"), named(4, "unknown")]);
        for (pid, count) in [("8", "2"), ("7", "0"), ("7", "-1"), ("7", "99999999"), ("", "2"), ("7", "")] {
            assert_eq!(passed_to(7, pid, count, ""), [], "{pid:?} {count:?}");
        }
    }
}
