//! What several rounds say together: the middle and how far they are apart, and ratios round by round.

use serde::Serialize;

/// The middle of some values, and the least and the most of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median; of an even number of values the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// None of no values, and where one of them is no number.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median: low.midpoint(high), min: sorted[0], max: sorted[sorted.len() - 1] })
    }
}

/// Ours ÷ theirs, each of one round: what made the machine slow then made it slow for both. None where a round is missing on
/// either side, or cost nothing that could be measured.
pub fn by_round(ours: &[f64], theirs: &[f64]) -> Option<Spread> {
    if ours.len() != theirs.len() || theirs.iter().any(|v| *v <= 0.0) {
        return None;
    }
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
    Spread::of(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_odd_and_even_numbers() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn ratios_are_of_one_round_each() {
        // A machine that doubles its speed between rounds changes no ratio.
        let ratio = by_round(&[10.0, 5.0, 20.0], &[20.0, 10.0, 40.0]);
        assert_eq!(ratio, Some(Spread { median: 0.5, min: 0.5, max: 0.5 }));
        assert_eq!(by_round(&[1.0], &[1.0, 2.0]), None);
        assert_eq!(by_round(&[1.0], &[0.0]), None);
    }
}
