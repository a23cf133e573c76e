//! When to renew and how soon to try again; pure.

use std::time::Duration;

/// Renewal starts at a random point between these shares of the life that was left at receipt, so that proxies which
/// started together do not renew together, and half of the life remains for a control plane that is away.
const EARLIEST: f64 = 0.40;
const LATEST: f64 = 0.50;
/// The shortest and longest pause between tries. The longest also bounds how late a control plane that came back is found.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// The longest pause that a control plane may ask for: one with a long line, or one that lies.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A certificate's life holds at least this many pauses, so that an outage of nearly half of it leaves several tries.
const PAUSES_PER_LIFE: u32 = 20;

/// The renewal of one certificate. Times are milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    renew_at_ms: i64,
    longest_pause: Duration,
    /// The longest pause that the control plane may ask for.
    longest_wait: Duration,
}

impl Schedule {
    /// For a certificate received at `received_ms` that ends at `not_after_ms`. `window` is when the control plane wants it renewed,
    /// counted from its receipt: it chooses among the moments that are safe, and makes none safe that is not. `random` lies in 0..1.
    pub fn new(
        received_ms: i64,
        not_after_ms: i64,
        window: Option<(Duration, Duration)>,
        random: f64,
    ) -> Self {
        let life_ms = not_after_ms.saturating_sub(received_ms).max(0);
        let life = Duration::from_millis(life_ms.unsigned_abs());
        let (earliest, latest) = window.map_or((EARLIEST, LATEST), |window| within(window, life));
        let share = earliest + (latest - earliest) * random;
        let longest_pause = (life / PAUSES_PER_LIFE).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        let (longest_pause, longest_wait) = match life.is_zero() {
            // Nothing to lose yet but time.
            true => (Duration::from_secs(2), LONGEST_WAIT),
            false => (longest_pause, (longest_pause * 2).min(LONGEST_WAIT)),
        };
        Self { renew_at_ms: received_ms + (life_ms as f64 * share) as i64, longest_pause, longest_wait }
    }

    /// The same, due since ever: the clock that it was counted by has proven wrong.
    pub fn due(self) -> Self {
        Self { renew_at_ms: i64::MIN, ..self }
    }

    /// The same, due in a while.
    pub fn due_in(self, wait: Duration, now_ms: i64) -> Self {
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        Self { renew_at_ms: now_ms.saturating_add(wait), ..self }
    }

    /// When renewal is due.
    pub fn at_ms(&self) -> i64 {
        self.renew_at_ms
    }

    /// How long until renewal is due; zero once it is.
    pub fn wait(&self, now_ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(self.renew_at_ms.saturating_sub(now_ms)).unwrap_or(0))
    }

    /// The pause before coming again to a control plane that said when: no shorter than any other pause, no longer than this certificate
    /// can spare. `random` lies in 0..1 and adds up to a tenth.
    pub fn come_again(&self, hint: Duration, random: f64) -> Duration {
        hint.clamp(SHORTEST_PAUSE, self.longest_wait).mul_f64(1.0 + random.clamp(0.0, 1.0) / 10.0)
    }

    /// The pause after the `failures`-th failure in a row; it doubles up to the longest. `random` lies in 0..1 and takes up
    /// to half of it away, so that proxies which lost the same control plane do not come back in step.
    pub fn retry_after(&self, failures: u32, random: f64) -> Duration {
        let full = (self.longest_pause / 8 * 2u32.pow(failures.min(3))).max(SHORTEST_PAUSE);
        full.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
    }
}

/// A window as shares of a life, cut to what is safe; one that makes no sense counts for nothing.
fn within((after, by): (Duration, Duration), life: Duration) -> (f64, f64) {
    if after > by || by > life || life.is_zero() {
        return (EARLIEST, LATEST);
    }
    let share = |at: Duration| (at.as_secs_f64() / life.as_secs_f64()).clamp(EARLIEST, LATEST);
    (share(after), share(by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_falls_between_40_and_50_percent_of_the_life_left_at_receipt() {
        for random in [0.0, 0.25, 0.5, 0.999] {
            let wait = Schedule::new(1_000, 3_601_000, None, random).wait(1_000).as_secs_f64();
            assert!((1440.0..=1800.0).contains(&wait), "{wait}");
        }
    }

    #[test]
    fn the_control_plane_chooses_a_moment_and_never_one_that_is_not_safe() {
        let seconds = |after, by| Some((Duration::from_secs(after), Duration::from_secs(by)));
        let wait = |window, random| Schedule::new(0, 1_000_000, window, random).wait(0).as_secs_f64();
        assert!((430.0..=440.0).contains(&wait(seconds(430, 440), 0.5)));
        for hostile in
            [seconds(0, 0), seconds(0, 1), seconds(900, 1000), seconds(440, 430), seconds(0, u64::MAX / 1000)]
        {
            for random in [0.0, 0.999] {
                assert!((400.0..=500.0).contains(&wait(hostile, random)), "{hostile:?}");
            }
        }
    }

    #[test]
    fn the_past_is_due_now_and_nothing_overflows() {
        assert_eq!(Schedule::new(0, 1000, None, 0.5).wait(i64::MAX), Duration::ZERO);
        assert_eq!(Schedule::new(5_000, 1_000, None, 0.5).wait(5_000), Duration::ZERO);
        assert!(Schedule::new(0, i64::MAX, None, 0.9).wait(i64::MIN) > Duration::ZERO);
    }

    #[test]
    fn an_outage_of_40_percent_of_a_life_is_survived_whenever_it_begins() {
        // Renewal at the latest possible point, the outage just before it: tries go on until the end of life.
        for life_s in [5.0, 20.0, 3600.0, 86_400.0] {
            let life_ms = (life_s * 1000.0) as i64;
            let schedule = Schedule::new(0, life_ms, None, 1.0);
            let outage_ends = life_s * (LATEST + 0.40);
            let mut at = schedule.wait(0).as_secs_f64();
            let mut failures = 0;
            while at < outage_ends {
                at += schedule.retry_after(failures, 0.0).as_secs_f64();
                failures += 1;
            }
            assert!(at < life_s * 0.97, "life {life_s}: renewed only at {at}");
        }
    }

    #[test]
    fn a_control_plane_with_a_long_line_is_believed_within_bounds() {
        let seconds = Duration::from_secs_f64;
        let first = Schedule::new(0, 0, None, 0.0);
        assert_eq!(first.come_again(seconds(7.0), 0.0), seconds(7.0));
        for life_s in [0.0, 1.0, 10.0, 300.0, 86_400.0] {
            let schedule = Schedule::new(0, (life_s * 1000.0) as i64, None, 0.0);
            for hint in [Duration::ZERO, seconds(1.0), seconds(29.0), Duration::MAX] {
                for random in [0.0, 1.0] {
                    let pause = schedule.come_again(hint, random);
                    assert!(pause >= SHORTEST_PAUSE && pause <= LONGEST_WAIT.mul_f64(1.1));
                    assert!(life_s == 0.0 || pause <= seconds(life_s * 0.25), "{life_s}: {pause:?}");
                }
            }
        }
    }

    #[test]
    fn pauses_never_reach_zero_and_never_exceed_the_longest() {
        for failures in 0..100 {
            for random in [0.0, 0.5, 1.0] {
                let pause = Schedule::new(0, 3_600_000, None, 0.5).retry_after(failures, random);
                assert!(pause >= SHORTEST_PAUSE / 2 && pause <= LONGEST_PAUSE, "{failures}: {pause:?}");
            }
        }
    }
}
