//! Waiting to the microsecond: the runtime's own timers count in milliseconds, which is longer than a handshake takes.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::time::Instant;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

/// One timer of the kernel's.
pub(super) struct Pace(AsyncFd<Timer>);

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Pace {
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe, for descriptors that change or end: this one is owned, and the same for good"
    )]
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self(AsyncFd::new(Timer(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?))?))
    }

    /// Returns at `at`, or at once when that has passed.
    pub(super) async fn until(&self, at: Instant) -> io::Result<()> {
        loop {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
            self.0.get_ref().0.set(expiration, TimerSetTimeFlags::empty())?;
            let mut ready = self.0.readable().await?;
            // A readiness of the last wait shows as WouldBlock here, and the loop sees whether it is time.
            if let Ok(result) = ready.try_io(|timer| timer.get_ref().0.wait().map_err(io::Error::from)) {
                result?;
            }
        }
    }
}
