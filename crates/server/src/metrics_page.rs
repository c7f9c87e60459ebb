//! Pages of metrics in the text format of Prometheus, made from tables of definitions.
//!
//! Each scrape makes a new page, so no value of an earlier scrape remains. A metric whose value is
//! unknown is absent or NaN, and never zero.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Duration;

use laredo_core::DurationHistogram;
use metrics_exporter_prometheus::PrometheusBuilder;

/// The definition of a metric, with the function that reads its values from a sample.
#[derive(Debug)]
pub struct MetricDefinition<S: 'static> {
    name: &'static str,
    help: &'static str,
    reader: MetricReader<S>,
}

/// The kind of a metric. A metric with a label has one value for each value of the label. `None` is
/// for a metric that is absent.
#[derive(Debug)]
enum MetricReader<S: 'static> {
    Gauge(fn(&S) -> Option<f64>),
    LabeledGauge(&'static str, fn(&S) -> Vec<(&'static str, f64)>),
    Counter(fn(&S) -> Option<u64>),
    LabeledCounter(&'static str, fn(&S) -> Vec<(&'static str, u64)>),
    /// A counter of seconds.
    TimeCounter(fn(&S) -> Option<Duration>),
    Histogram(fn(&S) -> Option<DurationHistogram>),
    LabeledHistogram(&'static str, fn(&S) -> Vec<(&'static str, DurationHistogram)>),
}

/// Defines a gauge.
#[must_use]
pub const fn gauge<S>(name: &'static str, help: &'static str, read: fn(&S) -> Option<f64>) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::Gauge(read) }
}

/// Defines a gauge with a label.
#[must_use]
pub const fn labeled_gauge<S>(
    name: &'static str,
    label: &'static str,
    help: &'static str,
    read: fn(&S) -> Vec<(&'static str, f64)>,
) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::LabeledGauge(label, read) }
}

/// Defines a counter.
#[must_use]
pub const fn counter<S>(name: &'static str, help: &'static str, read: fn(&S) -> Option<u64>) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::Counter(read) }
}

/// Defines a counter with a label.
#[must_use]
pub const fn labeled_counter<S>(
    name: &'static str,
    label: &'static str,
    help: &'static str,
    read: fn(&S) -> Vec<(&'static str, u64)>,
) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::LabeledCounter(label, read) }
}

/// Defines a counter of seconds.
#[must_use]
pub const fn time_counter<S>(
    name: &'static str,
    help: &'static str,
    read: fn(&S) -> Option<Duration>,
) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::TimeCounter(read) }
}

/// Defines a histogram of durations.
#[must_use]
pub const fn histogram<S>(
    name: &'static str,
    help: &'static str,
    read: fn(&S) -> Option<DurationHistogram>,
) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::Histogram(read) }
}

/// Defines a histogram of durations with a label.
#[must_use]
pub const fn labeled_histogram<S>(
    name: &'static str,
    label: &'static str,
    help: &'static str,
    read: fn(&S) -> Vec<(&'static str, DurationHistogram)>,
) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::LabeledHistogram(label, read) }
}

impl<S> MetricDefinition<S> {
    /// Returns the type of the metric in the text format.
    fn kind(&self) -> &'static str {
        match self.reader {
            MetricReader::Gauge(_) | MetricReader::LabeledGauge(..) => "gauge",
            MetricReader::Counter(_) | MetricReader::LabeledCounter(..) | MetricReader::TimeCounter(_) => "counter",
            MetricReader::Histogram(_) | MetricReader::LabeledHistogram(..) => "histogram",
        }
    }

    fn label(&self) -> Option<&'static str> {
        match self.reader {
            MetricReader::Gauge(_)
            | MetricReader::Counter(_)
            | MetricReader::TimeCounter(_)
            | MetricReader::Histogram(_) => None,
            MetricReader::LabeledGauge(label, _)
            | MetricReader::LabeledCounter(label, _)
            | MetricReader::LabeledHistogram(label, _) => Some(label),
        }
    }

    /// Returns the unit, which ends the name of the metric.
    fn unit(&self) -> &'static str {
        let name = self.name.trim_end_matches("_total");
        ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit)).unwrap_or_default()
    }

    /// Returns the lines of a sample, which `labels` identify.
    fn lines(&self, sample: &S, labels: &[(&'static str, String)]) -> String {
        let mut lines = SampleLines { name: self.name, labels, text: String::new() };
        match self.reader {
            MetricReader::Gauge(read) => read(sample).into_iter().for_each(|value| lines.number("", None, value)),
            MetricReader::LabeledGauge(label, read) => {
                read(sample).into_iter().for_each(|(name, value)| lines.number("", Some((label, name)), value));
            }
            MetricReader::Counter(read) => read(sample).into_iter().for_each(|value| lines.number("", None, value)),
            MetricReader::LabeledCounter(label, read) => {
                read(sample).into_iter().for_each(|(name, value)| lines.number("", Some((label, name)), value));
            }
            MetricReader::TimeCounter(read) => {
                read(sample).into_iter().for_each(|time| lines.number("", None, time.as_secs_f64()));
            }
            MetricReader::Histogram(read) => read(sample).into_iter().for_each(|times| lines.histogram(None, &times)),
            MetricReader::LabeledHistogram(label, read) => {
                read(sample).into_iter().for_each(|(name, times)| lines.histogram(Some((label, name)), &times));
            }
        }
        lines.text
    }
}

/// The lines of one metric for one sample.
struct SampleLines<'a> {
    name: &'static str,
    labels: &'a [(&'static str, String)],
    text: String,
}

impl SampleLines<'_> {
    fn number(&mut self, suffix: &str, label: Option<(&str, &str)>, value: impl Display) {
        self.line(suffix, label.as_slice(), value);
    }

    fn histogram(&mut self, label: Option<(&str, &str)>, times: &DurationHistogram) {
        let mut bucket = |bound: &str, count: u64| {
            let labels: Vec<_> = label.into_iter().chain([("le", bound)]).collect();
            self.line("_bucket", &labels, count);
        };
        for (bound, count) in times.buckets() {
            bucket(&bound.as_secs_f64().to_string(), count);
        }
        bucket("+Inf", times.count());
        self.line("_sum", label.as_slice(), times.sum().as_secs_f64());
        self.line("_count", label.as_slice(), times.count());
    }

    fn line(&mut self, suffix: &str, more: &[(&str, &str)], value: impl Display) {
        let labels = self.labels.iter().map(|(name, value)| (*name, value.as_str())).chain(more.iter().copied());
        let labels: Vec<String> = labels.map(|(name, value)| format!("{name}=\"{}\"", escape_label(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{}{suffix}{labels} {value}", self.name);
    }
}

/// The metrics of one scrape.
#[derive(Debug, Default)]
pub struct MetricsPage {
    /// The text of each metric: its help, its type, and its values.
    metrics: BTreeMap<&'static str, String>,
}

impl MetricsPage {
    /// Adds the values of a sample, which `labels` identify.
    pub fn add<S>(&mut self, definitions: &[MetricDefinition<S>], sample: &S, labels: &[(&'static str, String)]) {
        for metric in definitions {
            let lines = metric.lines(sample, labels);
            if !lines.is_empty() {
                let (name, help, kind) = (metric.name, metric.help, metric.kind());
                let head = || format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
                self.metrics.entry(name).or_insert_with(head).push_str(&lines);
            }
        }
    }

    /// Returns the text, with CPU, memory, descriptors and start time of the process.
    #[must_use]
    pub fn render(self) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let process = metrics_process::Collector::default();
            process.describe();
            process.collect();
        });
        let own: String = self.metrics.into_values().collect();
        own + &recorder.handle().render()
    }
}

/// Returns the value of a label as the text format has it. The exporter's own function takes a
/// backslash for the beginning of an escape, so that two names can become one.
fn escape_label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Returns the value of a gauge that is present.
#[must_use]
pub fn number(number: u64) -> Option<f64> {
    Some(float(number))
}

/// Returns the value of a gauge that is 1 or 0.
#[must_use]
pub fn flag(is_set: bool) -> Option<f64> {
    number(is_set.into())
}

/// Returns a number as Prometheus stores it.
#[expect(clippy::cast_precision_loss, reason = "Prometheus stores a double")]
#[must_use]
pub fn float(number: u64) -> f64 {
    number as f64
}

/// Returns a table in Markdown that documents metrics. All of them have `labels`.
#[must_use]
pub fn reference_table<S>(definitions: &[MetricDefinition<S>], labels: &[&str]) -> String {
    let mut table = "| metric | type | labels | unit | |\n|---|---|---|---|---|\n".to_owned();
    for metric in definitions {
        let labels = labels.iter().copied().chain(metric.label()).map(|label| format!("`{label}`"));
        let labels = labels.collect::<Vec<_>>().join(", ");
        let (name, kind, unit, help) = (metric.name, metric.kind(), metric.unit(), metric.help);
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| `{name}` | {kind} | {labels} | {unit} | {help} |");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &[MetricDefinition<u64>] = &[
        gauge("items_bytes", "Bytes of items.", |sample| (*sample > 1).then_some(f64::NAN)),
        labeled_counter("items_total", "kind", "Items.", |sample| vec![("new", *sample), ("old", 0)]),
        time_counter("waits_seconds_total", "Time of waits.", |sample| Some(Duration::from_millis(500 * *sample))),
        labeled_histogram("work_seconds", "kind", "Time of work.", |sample| {
            let mut times = DurationHistogram::default();
            times.observe(Duration::from_secs(*sample));
            times.observe(Duration::from_secs(100_000));
            vec![("hard", times)]
        }),
    ];

    fn page(samples: &[(u64, &str)]) -> String {
        let mut page = MetricsPage::default();
        samples.iter().for_each(|(sample, name)| page.add(METRICS, sample, &[("table", (*name).to_owned())]));
        page.render()
    }

    #[test]
    fn a_metric_is_described_once_and_an_unknown_one_is_absent() {
        let text = page(&[(1, "a\"\\\n")]);
        assert!(!text.contains("items_bytes"), "{text}");
        assert!(
            text.contains("# TYPE items_total counter\nitems_total{table=\"a\\\"\\\\\\n\",kind=\"new\"} 1\n"),
            "{text}"
        );
        let text = page(&[(1, "a"), (2, "b")]);
        assert!(text.starts_with(
            "# HELP items_bytes Bytes of items.\n# TYPE items_bytes gauge\nitems_bytes{table=\"b\"} NaN\n"
        ));
        assert_eq!(text.matches("# HELP waits_seconds_total").count(), 1);
        assert!(text.contains("waits_seconds_total{table=\"a\"} 0.5\nwaits_seconds_total{table=\"b\"} 1\n"), "{text}");
        assert!(text.contains("# TYPE process_start_time_seconds gauge\n"), "{text}");
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_a_sum_and_a_count() {
        let text = page(&[(2, "a")]);
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("work_seconds")).collect();
        assert_eq!(lines.len(), 19, "{text}");
        let expected = [(0, "0.0003", 0), (7, "1", 0), (8, "3", 1), (15, "10000", 1), (16, "+Inf", 2)];
        for (index, bound, count) in expected {
            assert_eq!(
                lines[index],
                format!("work_seconds_bucket{{table=\"a\",kind=\"hard\",le=\"{bound}\"}} {count}")
            );
        }
        let last =
            ["work_seconds_sum{table=\"a\",kind=\"hard\"} 100002", "work_seconds_count{table=\"a\",kind=\"hard\"} 2"];
        assert_eq!(lines[17..], last);
    }

    #[test]
    fn the_reference_has_type_labels_and_unit() {
        let table = reference_table(METRICS, &["table"]);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(rows[0], "| `items_bytes` | gauge | `table` | bytes | Bytes of items. |");
        assert_eq!(rows[1], "| `items_total` | counter | `table`, `kind` |  | Items. |");
        assert_eq!(rows[2], "| `waits_seconds_total` | counter | `table` | seconds | Time of waits. |");
    }
}
