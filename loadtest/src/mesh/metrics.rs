//! What `/metrics` says, parsed: samples by name and labels, and quantiles of histograms.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads OpenMetrics or Prometheus text; lines that are no samples are passed over.
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter(|l| !l.starts_with('#')).filter_map(sample).collect() }
    }

    /// The sum of all samples called `name` that carry at least `labels`; 0 where there is none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|s| s.value).sum()
    }

    /// Like [`value`](Self::value), for counters.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.value(name, labels) as u64
    }

    /// Whether such a sample is there at all.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    /// How many different samples there are: what a scrape costs.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether the scrape was empty.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The cumulative buckets of the histogram `name`, summed over all samples that carry `labels`.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Buckets {
        let mut buckets = Buckets::default();
        for sample in self.matching(&format!("{name}_bucket"), labels) {
            if let Some(bound) = sample.labels.get("le").and_then(|le| bound(le)) {
                buckets.add(bound, sample.value);
            }
        }
        buckets
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        let carries = |s: &Sample| labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|has| has == v));
        self.samples.iter().filter(move |s| s.name == name && carries(s))
    }
}

/// A histogram: (upper bound, how many lie at or below it), in order of bounds.
#[derive(Debug, Clone, Default)]
pub struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    fn add(&mut self, bound: f64, count: f64) {
        match self.0.binary_search_by(|(b, _)| b.total_cmp(&bound)) {
            Ok(at) => self.0[at].1 += count,
            Err(at) => self.0.insert(at, (bound, count)),
        }
    }

    /// Both together; of histograms with the same bounds.
    pub fn merge(mut self, other: &Self) -> Self {
        for (bound, count) in &other.0 {
            self.add(*bound, *count);
        }
        self
    }

    /// How many values went in.
    pub fn count(&self) -> u64 {
        self.0.last().map_or(0, |(_, n)| *n as u64)
    }

    /// The quantile `q` (0 to 1), interpolated within its bucket; the last finite bound beyond that, `None` without values.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.0.last().map(|(_, n)| *n).filter(|n| *n > 0.0)?;
        let at = self.0.iter().position(|(_, n)| *n >= rank && *n > 0.0)?;
        let (low, below) = if at == 0 { (0.0, 0.0) } else { self.0[at - 1] };
        let (high, upto) = self.0[at];
        if high.is_infinite() {
            return Some(low);
        }
        Some(low + (high - low) * (rank - below) / (upto - below))
    }
}

fn bound(le: &str) -> Option<f64> {
    let value: f64 = le.parse().ok()?;
    // Some encoders write the largest number for the bucket without an end.
    Some(if value == f64::MAX { f64::INFINITY } else { value })
}

fn sample(line: &str) -> Option<Sample> {
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, rest) = labels(rest)?;
            (name, labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, BTreeMap::new(), rest)
        }
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// `a="x",b="y"}` and what follows; `\"`, `\\` and `\n` are escapes.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        loop {
            match chars.next()? {
                (at, '"') => {
                    rest = &after[at + 1..];
                    break;
                }
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, c) => value.push(c),
            }
        }
        labels.insert(key.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE h counter\n\
        h_total{direction=\"in\",reason=\"a,\\\"}b\"} 3\n\
        h_total{direction=\"in\",reason=\"\"} 4 1700000000\n\
        up 1\n\
        t_bucket{le=\"0.1\"} 0\nt_bucket{le=\"0.2\"} 10\nt_bucket{le=\"0.4\"} 20\nt_bucket{le=\"+Inf\"} 21\n";

    #[test]
    fn samples_are_found_by_name_and_some_of_their_labels() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.value("h_total", &[("direction", "in")]), 7.0);
        assert_eq!(metrics.count("h_total", &[("reason", "a,\"}b")]), 3);
        assert_eq!(metrics.value("up", &[]), 1.0);
        assert!(!metrics.has("h_total", &[("direction", "out")]));
        assert_eq!(metrics.len(), 7);
    }

    #[test]
    fn quantiles_are_interpolated_and_end_at_the_last_finite_bound() {
        let buckets = Metrics::parse(TEXT).histogram("t", &[]);
        let close = |q, expected: f64| (buckets.quantile(q).unwrap() - expected).abs() < 1e-9;
        assert!(close(5.0 / 21.0, 0.15));
        assert!(close(15.0 / 21.0, 0.3));
        assert!(close(1.0, 0.4));
        assert_eq!(buckets.clone().merge(&buckets).count(), 42);
        assert_eq!(Buckets::default().quantile(0.5), None);
    }
}
