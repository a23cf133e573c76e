//! When a certificate is ordered: pure, given the time and chance.

use std::time::Duration;

/// When to renew: at 2/3 of its life, and up to a twentieth of it earlier, so that a fleet that began together does not come
/// together. Seconds since 1970; `chance` lies between 0 and 1.
pub fn due(not_before: i64, not_after: i64, chance: f64) -> i64 {
    let life = not_after.saturating_sub(not_before).max(0);
    let early = (life as f64 / 20.0 * chance.clamp(0.0, 1.0)) as i64;
    not_before.saturating_add(life / 3 * 2).saturating_sub(early)
}

/// What the issuer suggests (RFC 9773 §4.2): a moment within its window. It can only bring renewal forward: what an issuer
/// says must not let a certificate end.
pub fn with_suggestion(due: i64, window: (i64, i64), chance: f64) -> i64 {
    let (start, end) = window;
    let width = end.saturating_sub(start).max(0);
    due.min(start.saturating_add((width as f64 * chance.clamp(0.0, 1.0)) as i64))
}

/// How long to wait after the `count`th failure in a row; `chance` spreads those who failed together.
pub fn backoff(first: Duration, longest: Duration, count: u32, chance: f64) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(count.saturating_sub(1).min(31)));
    doubled.min(longest).mul_f64(1.0 + chance.clamp(0.0, 1.0) / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn renewal_lies_before_two_thirds_of_the_life_and_never_far_before() {
        for (life, chance) in [(90, 0.0), (90, 1.0), (90, 0.5), (6, 0.3), (398, 0.9)] {
            let due = due(1000, 1000 + life * DAY, chance) - 1000;
            assert!(due <= life * DAY * 2 / 3 && due >= life * DAY * 6 / 10, "{life} days: {due}");
        }
        assert_eq!(due(0, 0, 1.0), 0);
        assert_eq!(due(10, 5, 1.0), 10);
        let _ = due(i64::MIN, i64::MAX, 1.0);
    }

    #[test]
    fn a_suggestion_brings_renewal_forward_and_never_back() {
        assert_eq!(with_suggestion(100, (10, 20), 0.0), 10);
        assert_eq!(with_suggestion(100, (10, 20), 1.0), 20);
        assert_eq!(with_suggestion(100, (-50, -40), 0.5), -45);
        assert_eq!(with_suggestion(100, (500, 600), 0.5), 100);
        assert_eq!(with_suggestion(100, (20, 10), 0.5), 20);
    }

    #[test]
    fn failures_are_followed_by_a_minute_to_six_hours() {
        let (minute, hours) = (Duration::from_secs(60), Duration::from_secs(6 * 3600));
        let of = |count, chance| backoff(minute, hours, count, chance).as_secs();
        assert_eq!([1, 2, 3, 9, 10, 1000].map(|count| of(count, 0.0)), [60, 120, 240, 15360, 21600, 21600]);
        assert_eq!(of(1, 1.0), 66);
        // Fewer than five in the first hour, as the strictest issuer forgives.
        let mut at = 0;
        let in_first_hour = (1..)
            .take_while(|count| {
                at += of(*count, 0.0);
                at < 3600
            })
            .count();
        assert!(in_first_hour <= 5, "{in_first_hour}");
    }
}
