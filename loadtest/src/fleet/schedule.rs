//! When a light client renews and how soon it tries again: the rules of the real proxy, restated; pure.

use std::time::Duration;

/// The shares of the life left at receipt between which a renewal falls.
const WINDOW: (f64, f64) = (0.40, 0.50);
/// The shortest and longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15));
/// A certificate's life holds at least this many of the longest pauses.
const PAUSES_PER_LIFE: u32 = 20;
/// The longest pause of a client that has no certificate yet.
const BEFORE_THE_FIRST: Duration = Duration::from_secs(2);

/// How long after receipt a certificate with so much life left is renewed; `random` lies in 0..1.
pub(super) fn renew_after(life: Duration, random: f64) -> Duration {
    life.mul_f64(WINDOW.0 + (WINDOW.1 - WINDOW.0) * random.clamp(0.0, 1.0))
}

/// The pause after the `failures`-th failure in a row: it doubles three times, and up to half of it is taken away.
pub(super) fn retry_after(life: Option<Duration>, failures: u32, random: f64) -> Duration {
    let longest = life.map_or(BEFORE_THE_FIRST, |l| (l / PAUSES_PER_LIFE).clamp(PAUSES.0, PAUSES.1));
    let full = (longest / 8 * 2_u32.pow(failures.min(3))).max(PAUSES.0);
    full.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_stay_in_their_window_and_pauses_in_their_bounds() {
        let life = Duration::from_secs(100);
        assert_eq!(renew_after(life, 0.0), Duration::from_secs(40));
        assert_eq!(renew_after(life, 1.0), Duration::from_secs(50));
        for failures in 0..40 {
            for random in [0.0, 0.5, 1.0] {
                for life in [None, Some(Duration::from_millis(1)), Some(life), Some(life * 10_000)] {
                    let pause = retry_after(life, failures, random);
                    assert!(pause >= PAUSES.0 / 2 && pause <= PAUSES.1, "{failures}: {pause:?}");
                }
            }
        }
    }
}
