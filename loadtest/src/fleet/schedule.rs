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

/// The longest pause that a control plane may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long after receipt a certificate with so much life left is renewed: in the control plane's window, cut to what is safe, where it
/// gave one that makes sense; `random` lies in 0..1.
pub(super) fn renew_after(life: Duration, window: Option<(Duration, Duration)>, random: f64) -> Duration {
    let (earliest, latest) = (life.mul_f64(WINDOW.0), life.mul_f64(WINDOW.1));
    let (from, until) = match window {
        Some((from, until)) if from <= until && until <= life => {
            (from.clamp(earliest, latest), until.clamp(earliest, latest))
        }
        _ => (earliest, latest),
    };
    from + (until - from).mul_f64(random.clamp(0.0, 1.0))
}

/// The pause before coming again to a control plane that said when: within what a certificate of this life can spare, and up to a tenth
/// longer.
pub(super) fn come_again(life: Option<Duration>, hint: Duration, random: f64) -> Duration {
    let spare = life.map_or(LONGEST_WAIT, |l| (l / PAUSES_PER_LIFE).clamp(PAUSES.0, PAUSES.1) * 2);
    hint.clamp(PAUSES.0, spare.min(LONGEST_WAIT)).mul_f64(1.0 + random.clamp(0.0, 1.0) / 10.0)
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
        let seconds = Duration::from_secs;
        assert_eq!(renew_after(life, None, 0.0), seconds(40));
        assert_eq!(renew_after(life, None, 1.0), seconds(50));
        assert_eq!(renew_after(life, Some((seconds(43), seconds(44))), 0.0), seconds(43));
        assert_eq!(renew_after(life, Some((seconds(43), seconds(44))), 1.0), seconds(44));
        for hostile in [(0, 0), (0, 1), (90, 100), (44, 43), (0, 1000)] {
            let renew = renew_after(life, Some((seconds(hostile.0), seconds(hostile.1))), 0.5);
            assert!(renew >= seconds(40) && renew <= seconds(50), "{hostile:?}: {renew:?}");
        }
        assert_eq!(come_again(None, seconds(7), 0.0), seconds(7));
        assert_eq!(come_again(Some(life), Duration::MAX, 0.0), seconds(10), "no longer than it can spare");
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
