//! Metrics for Prometheus. The values are read from their owners at each scrape, so metrics cost
//! the data path nothing.
//!
//! A metric is one entry in a table of definitions: those of the process below, those of tables in
//! `table_metrics`, and those of sources in `source_metrics`.

use std::sync::Arc;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::accept::waiting_ports;
use crate::access::JwtKeys;
use crate::server_state::ServerState;
use crate::tls::ServerTls;

mod source_metrics;
mod table_metrics;

use source_metrics::{SOURCE_METRICS, SourceSample};
use table_metrics::{TABLE_METRICS, TableSample};

/// The metrics of one server. They have a recorder of their own, so that two servers in one process
/// do not mix.
pub(super) struct ServerMetrics {
    shared: Arc<ServerState>,
    certificates: Vec<ServerTls>,
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// CPU, memory, descriptors and start time of the process.
    process: metrics_process::Collector,
}

/// The definition of a metric, with the function that reads its values from a sample.
struct MetricDefinition<S: 'static> {
    name: &'static str,
    help: &'static str,
    reader: MetricReader<S>,
}

/// The kind of a metric. A metric with a label has one value for each value of the label.
enum MetricReader<S: 'static> {
    /// `None` is for a metric that is absent.
    Gauge(fn(&S) -> Option<f64>),
    LabeledGauge(&'static str, fn(&S) -> Vec<(&'static str, f64)>),
    /// `None` is for a metric that is absent.
    Counter(fn(&S) -> Option<u64>),
    LabeledCounter(&'static str, fn(&S) -> Vec<(&'static str, u64)>),
}

const fn gauge<S>(name: &'static str, help: &'static str, read: fn(&S) -> Option<f64>) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::Gauge(read) }
}

const fn labeled_gauge<S>(
    name: &'static str,
    label: &'static str,
    help: &'static str,
    read: fn(&S) -> Vec<(&'static str, f64)>,
) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::LabeledGauge(label, read) }
}

const fn counter<S>(name: &'static str, help: &'static str, read: fn(&S) -> Option<u64>) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::Counter(read) }
}

const fn labeled_counter<S>(
    name: &'static str,
    label: &'static str,
    help: &'static str,
    read: fn(&S) -> Vec<(&'static str, u64)>,
) -> MetricDefinition<S> {
    MetricDefinition { name, help, reader: MetricReader::LabeledCounter(label, read) }
}

/// The metrics of the server and its process.
const SERVER_METRICS: &[MetricDefinition<ServerState>] = &[
    gauge("laredo_snapshot_sends", "Clients that are being sent a snapshot.", |server| {
        count(server.admission().usage().granted)
    }),
    gauge("laredo_snapshot_sends_max", "Maximum of laredo_snapshot_sends since the start.", |server| {
        count(server.admission().usage().granted_max)
    }),
    gauge("laredo_snapshot_waits", "Clients in the queue for a snapshot.", |server| {
        count(server.admission().usage().waiting)
    }),
    gauge("laredo_ports_waiting", "Ports on which connections wait for a file descriptor.", |_| count(waiting_ports())),
    labeled_counter(
        "laredo_log_lines_dropped_total",
        "reason",
        "Log lines that are missing: the log was not written in time, or one client caused too many.",
        |server| vec![("not_written", (server.dropped_log_lines)()), ("client_limit", server.log_limits.left_out())],
    ),
    labeled_gauge("laredo_build_info", "version", "1 for the version of laredo-server.", |_| {
        vec![(env!("CARGO_PKG_VERSION"), 1.0)]
    }),
];

/// The metrics of each certificate.
const CERTIFICATE_METRICS: &[MetricDefinition<ServerTls>] = &[gauge(
    "laredo_tls_certificate_not_after_seconds",
    "Time when a certificate of a port expires, in seconds since 1970.",
    |tls| Some(seconds(tls.not_after())),
)];

/// The metrics of the keys of each issuer of JWTs.
const JWT_KEY_METRICS: &[MetricDefinition<JwtKeys>] = &[
    gauge("laredo_jwt_keys", "Public keys that JWTs of an issuer are verified with.", |keys| count(keys.key_count())),
    gauge("laredo_jwt_keys_failed", "1 if the last reading of an issuer's keys failed; older keys remain.", |keys| {
        number(keys.has_failed().into())
    }),
];

impl ServerMetrics {
    pub(super) fn new(shared: Arc<ServerState>, certificates: Vec<ServerTls>) -> ServerMetrics {
        let recorder = PrometheusBuilder::new().build_recorder();
        let (handle, process) = (recorder.handle(), metrics_process::Collector::default());
        metrics::with_local_recorder(&recorder, || {
            SERVER_METRICS.iter().for_each(MetricDefinition::describe);
            CERTIFICATE_METRICS.iter().for_each(MetricDefinition::describe);
            JWT_KEY_METRICS.iter().for_each(MetricDefinition::describe);
            TABLE_METRICS.iter().for_each(MetricDefinition::describe);
            SOURCE_METRICS.iter().for_each(MetricDefinition::describe);
            process.describe();
        });
        ServerMetrics { shared, certificates, recorder, handle, process }
    }

    pub(super) fn render(&self) -> String {
        let now = self.shared.clock.as_ref()();
        metrics::with_local_recorder(&self.recorder, || {
            SERVER_METRICS.iter().for_each(|metric| metric.record(&self.shared, &[]));
            for certificate in &self.certificates {
                let labels = [("file", certificate.name().to_owned())];
                CERTIFICATE_METRICS.iter().for_each(|metric| metric.record(certificate, &labels));
            }
            for keys in self.shared.gate.jwt_keys() {
                let labels = [("source", keys.source().to_owned())];
                JWT_KEY_METRICS.iter().for_each(|metric| metric.record(&keys, &labels));
            }
            for table in &self.shared.tables {
                let (sample, labels) = (TableSample::new(table, now), [("table", table.name().to_string())]);
                TABLE_METRICS.iter().for_each(|metric| metric.record(&sample, &labels));
            }
            for source in &self.shared.sources {
                let (sample, labels) = (SourceSample::new(source, now), [("source", source.id.clone())]);
                SOURCE_METRICS.iter().for_each(|metric| metric.record(&sample, &labels));
            }
            self.process.collect();
        });
        self.handle.render()
    }
}

impl<S> MetricDefinition<S> {
    /// Registers the metric's kind and help with the recorder.
    fn describe(&self) {
        match self.reader {
            MetricReader::Gauge(_) | MetricReader::LabeledGauge(..) => {
                metrics::describe_gauge!(self.name, self.help);
            }
            MetricReader::Counter(_) | MetricReader::LabeledCounter(..) => {
                metrics::describe_counter!(self.name, self.help);
            }
        }
    }

    /// Records the values of a sample, which `labels` identify.
    fn record(&self, sample: &S, labels: &[(&'static str, String)]) {
        let with = |label: &'static str, value: &str| [labels, &[(label, value.to_owned())]].concat();
        match self.reader {
            MetricReader::Gauge(read) => {
                read(sample).into_iter().for_each(|value| metrics::gauge!(self.name, labels).set(value));
            }
            MetricReader::LabeledGauge(label, read) => {
                for (name, value) in read(sample) {
                    metrics::gauge!(self.name, &with(label, name)).set(value);
                }
            }
            MetricReader::Counter(read) => {
                read(sample).into_iter().for_each(|value| metrics::counter!(self.name, labels).absolute(value));
            }
            MetricReader::LabeledCounter(label, read) => {
                for (name, value) in read(sample) {
                    metrics::counter!(self.name, &with(label, name)).absolute(value);
                }
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus stores a double")]
fn float(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus stores a double")]
fn seconds(time: i64) -> f64 {
    time as f64
}

/// Returns the value of a gauge that is present.
#[expect(clippy::unnecessary_wraps, reason = "the type of a gauge's value")]
fn number(number: u64) -> Option<f64> {
    Some(float(number))
}

fn count(count: usize) -> Option<f64> {
    number(count as u64)
}

/// Returns 1 for the state that a label names, and 0 for the other states.
fn one_of<const N: usize>(names: [&'static str; N], is_current: impl Fn(&str) -> bool) -> Vec<(&'static str, f64)> {
    names.into_iter().map(|name| (name, float(is_current(name).into()))).collect()
}
