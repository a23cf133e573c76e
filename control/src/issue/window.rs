//! When a certificate shall be renewed: the server spreads its callers evenly over the time in which renewal is safe, as ACME's
//! renewal information does (RFC 9773), so that those which came together do not come back together.

use std::time::Duration;

/// Renewal falls into this part of the life that was left at issue: at least half of it remains for a server that is away.
const EARLIEST: f64 = 0.40;
const LATEST: f64 = 0.50;
/// How much of the life one window is wide; the caller picks a random moment in it.
const WIDTH: f64 = 0.01;

/// The window of the `turn`-th certificate, counted from its receipt; `life` is what is left of it.
pub fn of(life: Duration, turn: u32) -> (Duration, Duration) {
    let from = EARLIEST + (LATEST - EARLIEST - WIDTH) * van_der_corput(turn);
    (life.mul_f64(from), life.mul_f64(from + WIDTH))
}

/// The bits of `turn` mirrored at the point: whatever number of turns in a row, they fill 0..1 evenly.
fn van_der_corput(turn: u32) -> f64 {
    f64::from(turn.reverse_bits()) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_herd_comes_back_evenly_spread_wherever_it_began() {
        let life = Duration::from_secs(1000);
        for first in [0, 1, 77, u32::MAX - 500] {
            let mut buckets = [0_u32; 10];
            for turn in 0..1000_u32 {
                let (from, until) = of(life, first.wrapping_add(turn));
                assert!(from >= life.mul_f64(0.4) && until <= life.mul_f64(0.5) && from < until);
                let share = (from.as_secs_f64() - 400.0) / 90.0;
                buckets[((share * 10.0) as usize).min(9)] += 1;
            }
            assert!(buckets.iter().all(|n| (90..=110).contains(n)), "{first}: {buckets:?}");
        }
    }

    #[test]
    fn no_life_has_no_window() {
        assert_eq!(of(Duration::ZERO, 7), (Duration::ZERO, Duration::ZERO));
    }
}
