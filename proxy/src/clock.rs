//! The proxy's idea of the time: the host's clock, which may jump forward freely and backward only with the control
//! plane's word.
//!
//! A clock set back would make expired certificates valid again and good ones "not yet valid". So a backward jump is
//! measured against the monotonic clock and undone, until the control plane's own time says that the host is right. A
//! forward jump is believed at once: it can only end identities early, and a suspended machine really did sleep.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;

/// A backward step smaller than this is slew or a leap second, and is followed.
const JUMP_MS: i64 = 60_000;

/// The clock that every check of a certificate's dates uses. Reading it takes no lock.
#[derive(Debug)]
pub struct Clock {
    /// What is added to the host's clock, milliseconds; positive after a backward jump that nobody confirmed.
    correction_ms: AtomicI64,
    /// While it is corrected: milliseconds since 1970 at `start`. Time goes on from there by the monotonic clock, so that a host's
    /// clock which comes right again is not taken for a jump ahead before the correction is given back.
    anchor_ms: AtomicI64,
    start: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { correction_ms: AtomicI64::new(0), anchor_ms: AtomicI64::new(0), start: Instant::now() }
    }
}

impl Clock {
    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        // The anchor was stored before the correction that makes it valid.
        match self.correction_ms.load(Ordering::Acquire) {
            0 => host_ms(),
            _ => self.anchor_ms.load(Ordering::Relaxed).saturating_add(self.mono_ms()),
        }
    }

    /// Seconds since 1970.
    pub fn now(&self) -> i64 {
        self.now_ms() / 1000
    }

    /// As certificate checks take it.
    pub fn unix_time(&self) -> UnixTime {
        let ms = u64::try_from(self.now_ms()).unwrap_or(0);
        UnixTime::since_unix_epoch(std::time::Duration::from_millis(ms))
    }

    /// Whether the host's clock is being corrected.
    pub fn is_corrected(&self) -> bool {
        self.correction_ms.load(Ordering::Relaxed) != 0
    }

    /// The host's clock and the monotonic one, for [`Steps::observe`].
    pub fn sample(&self) -> Sample {
        Sample { host_ms: host_ms(), mono_ms: self.mono_ms() }
    }

    /// Puts a correction in force; the same one again changes nothing.
    pub fn correct(&self, correction_ms: i64) {
        if self.correction_ms.load(Ordering::Relaxed) == correction_ms {
            return;
        }
        let now = host_ms().saturating_add(correction_ms);
        self.anchor_ms.store(now.saturating_sub(self.mono_ms()), Ordering::Relaxed);
        self.correction_ms.store(correction_ms, Ordering::Release);
    }

    fn mono_ms(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

/// The host's clock, milliseconds since 1970.
pub(crate) fn host_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Both clocks at one moment, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Since 1970, by the host.
    pub host_ms: i64,
    /// Since start.
    pub mono_ms: i64,
}

/// What an observation found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Both clocks moved together.
    Steady,
    /// The host's clock jumped ahead by this many milliseconds: renew at once.
    Forward(i64),
    /// It jumped back by this many milliseconds: the jump is undone, and worth an alarm.
    Backward(i64),
}

/// Watches for jumps; pure.
#[derive(Debug, Default)]
pub struct Steps {
    last: Option<Sample>,
    correction_ms: i64,
}

impl Steps {
    /// Compares a sample with the one before.
    pub fn observe(&mut self, sample: Sample) -> Step {
        let Some(last) = self.last.replace(sample) else { return Step::Steady };
        let jump = (sample.host_ms - last.host_ms) - (sample.mono_ms - last.mono_ms);
        if jump <= -JUMP_MS {
            self.correction_ms -= jump;
            Step::Backward(-jump)
        } else if jump >= JUMP_MS {
            // A jump ahead first gives back what an earlier jump back had taken.
            self.correction_ms = (self.correction_ms - jump).max(0);
            Step::Forward(jump)
        } else {
            Step::Steady
        }
    }

    /// The control plane says what time it is: where it agrees with the host, no correction is needed.
    pub fn confirm(&mut self, sample: Sample, server_ms: i64) {
        if sample.host_ms.saturating_sub(server_ms).saturating_abs() < JUMP_MS {
            self.correction_ms = 0;
        }
    }

    /// What to add to the host's clock, milliseconds.
    pub fn correction_ms(&self) -> i64 {
        self.correction_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn at(host_ms: i64, mono_ms: i64) -> Sample {
        Sample { host_ms, mono_ms }
    }

    #[test]
    fn a_jump_back_is_undone_until_the_control_plane_agrees_with_the_host() {
        let mut steps = Steps::default();
        steps.observe(at(10 * DAY, 0));
        assert_eq!(steps.observe(at(9 * DAY + 1000, 1000)), Step::Backward(DAY));
        assert_eq!(steps.correction_ms(), DAY);
        steps.confirm(at(9 * DAY + 2000, 2000), 10 * DAY + 2000);
        assert_eq!(steps.correction_ms(), DAY, "the control plane still says the old time");
        steps.confirm(at(9 * DAY + 2000, 2000), 9 * DAY + 2500);
        assert_eq!(steps.correction_ms(), 0);
    }

    #[test]
    fn a_jump_ahead_is_believed_and_a_correction_is_given_back() {
        let mut steps = Steps::default();
        steps.observe(at(10 * DAY, 0));
        assert_eq!(steps.observe(at(11 * DAY, 0)), Step::Forward(DAY));
        assert_eq!(steps.correction_ms(), 0);
        steps.observe(at(10 * DAY, 0));
        assert_eq!(steps.correction_ms(), DAY);
        steps.observe(at(11 * DAY, 0));
        assert_eq!(steps.correction_ms(), 0);
    }

    #[test]
    fn a_server_time_beyond_all_measure_confirms_nothing() {
        let mut steps = Steps::default();
        steps.observe(at(10 * DAY, 0));
        steps.observe(at(9 * DAY, 0));
        for server_ms in [i64::MIN, i64::MAX] {
            steps.confirm(at(9 * DAY, 0), server_ms);
            assert_eq!(steps.correction_ms(), DAY);
        }
    }

    #[test]
    fn a_corrected_clock_goes_on_by_the_monotonic_one() {
        let clock = Clock::default();
        clock.correct(DAY);
        let (then, host) = (clock.now_ms(), host_ms());
        assert!((then - host - DAY).abs() < 60_000, "a day ahead of the host");
        // As if the host's clock had come right and nobody had noticed yet: what counts is the anchor.
        clock.anchor_ms.fetch_sub(DAY / 2, Ordering::Relaxed);
        assert!((clock.now_ms() - host - DAY / 2).abs() < 60_000, "the host is not asked");
        clock.correct(DAY);
        assert!((clock.now_ms() - host - DAY / 2).abs() < 60_000, "nor anew by the same correction");
        clock.correct(0);
        assert!((clock.now_ms() - host).abs() < 60_000);
    }

    #[test]
    fn slow_drift_is_followed() {
        let mut steps = Steps::default();
        for s in 0..1000 {
            assert_eq!(steps.observe(at(s * 990, s * 1000)), Step::Steady);
        }
        assert_eq!(steps.correction_ms(), 0);
    }
}
