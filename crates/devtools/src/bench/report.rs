//! The result of a benchmark.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::PAIRS;

/// A run of laredo and a run of the reference.
#[derive(Clone, Copy, Debug)]
pub(super) struct BenchmarkPair {
    pub(super) ours: f64,
    pub(super) reference: f64,
    /// The processor time of the server while laredo was measured.
    pub(super) cpu_s: f64,
    /// The peak memory of the server.
    pub(super) peak_bytes: u64,
}

/// The direction in which a value is better. Ratios are always computed so that more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BetterDirection {
    More,
    Less,
}

/// The findings of a benchmark.
#[derive(Debug)]
pub(super) struct BenchmarkReport {
    pub(super) bench: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: BetterDirection,
    pub(super) pairs: Vec<BenchmarkPair>,
    /// True if less than the full size was measured.
    pub(super) scaled: bool,
    /// The measured size, and further figures.
    pub(super) more: Map<String, Value>,
}

#[derive(Serialize)]
struct BenchmarkReportLine<'a> {
    bench: &'a str,
    ours: f64,
    reference: f64,
    unit: &'a str,
    ratio: RatioSummary,
    pairs: usize,
    cpu_s: f64,
    peak_mb: f64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    scaled: bool,
    #[serde(flatten)]
    more: &'a Map<String, Value>,
}

#[derive(Debug, PartialEq, Serialize)]
pub(super) struct RatioSummary {
    median: f64,
    min: f64,
    max: f64,
}

impl BenchmarkReport {
    /// Returns a line of JSON: the medians over the pairs, and the ratios within them.
    pub(super) fn line(&self) -> serde_json::Result<String> {
        let each = |value: fn(&BenchmarkPair) -> f64| self.pairs.iter().map(value).collect::<Vec<_>>();
        let peak_bytes = self.pairs.iter().map(|pair| pair.peak_bytes).max().unwrap_or(0);
        serde_json::to_string(&BenchmarkReportLine {
            bench: self.bench,
            ours: rounded(median(each(|pair| pair.ours))),
            reference: rounded(median(each(|pair| pair.reference))),
            unit: self.unit,
            ratio: ratio(&self.pairs, self.better),
            pairs: self.pairs.len(),
            cpu_s: rounded(median(each(|pair| pair.cpu_s))),
            peak_mb: rounded(peak_bytes as f64 / 1e6),
            scaled: self.scaled || self.pairs.len() < PAIRS,
            more: &self.more,
        })
    }
}

/// Returns the medians over the pairs, and the ratios within them.
pub(super) fn figures(pairs: &[BenchmarkPair], better: BetterDirection) -> Value {
    json!({
        "ours": rounded(median(pairs.iter().map(|pair| pair.ours).collect())),
        "reference": rounded(median(pairs.iter().map(|pair| pair.reference).collect())),
        "ratio": ratio(pairs, better),
    })
}

fn ratio(pairs: &[BenchmarkPair], better: BetterDirection) -> RatioSummary {
    let of = |pair: &BenchmarkPair| match better {
        BetterDirection::More => pair.ours / pair.reference,
        BetterDirection::Less => pair.reference / pair.ours,
    };
    let ratios: Vec<f64> = pairs.iter().map(of).collect();
    RatioSummary {
        min: rounded(ratios.iter().copied().fold(f64::INFINITY, f64::min)),
        max: rounded(ratios.iter().copied().fold(0.0, f64::max)),
        median: rounded(median(ratios)),
    }
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => match values.get(middle.wrapping_sub(1)..=middle) {
            Some([low, high]) => f64::midpoint(*low, *high),
            _ => 0.0,
        },
        _ => values[middle],
    }
}

/// Rounds to a thousandth, or to a whole number if it is at least 1000.
pub(super) fn rounded(value: f64) -> f64 {
    if value.abs() >= 1000.0 { value.round() } else { (value * 1000.0).round() / 1000.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(ours: f64, reference: f64) -> BenchmarkPair {
        BenchmarkPair { ours, reference, cpu_s: 1.25, peak_bytes: 2_000_000 }
    }

    fn report(better: BetterDirection, pairs: Vec<BenchmarkPair>) -> BenchmarkReport {
        BenchmarkReport { bench: "x", unit: "rows/s", better, pairs, scaled: false, more: Map::new() }
    }

    #[test]
    fn a_line_has_the_expected_columns() {
        let pairs = [(50.0, 100.0), (90.0, 100.0), (70.0, 100.0), (60.0, 100.0), (80.0, 100.0)];
        let mut report = report(BetterDirection::More, pairs.map(|(ours, reference)| pair(ours, reference)).to_vec());
        report.more.insert("rows".to_owned(), 7.into());
        assert_eq!(
            report.line().unwrap(),
            r#"{"bench":"x","ours":70.0,"reference":100.0,"unit":"rows/s","ratio":{"median":0.7,"min":0.5,"max":0.9},"pairs":5,"cpu_s":1.25,"peak_mb":2.0,"rows":7}"#
        );
    }

    #[test]
    fn fewer_pairs_are_a_scaled_run_and_less_may_be_better() {
        let line = report(BetterDirection::Less, vec![pair(2.0, 4.0), pair(4.0, 4.0)]).line().unwrap();
        assert!(line.contains(r#""ratio":{"median":1.5,"min":1.0,"max":2.0}"#), "{line}");
        assert!(line.contains(r#""scaled":true"#), "{line}");
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0]), 3.0);
        assert_eq!(median(vec![9.0, 1.0]), 5.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
    }
}
