//! Metrics for Prometheus. The values are read from their owners at each scrape, so metrics cost
//! the data path nothing.
//!
//! A metric is one entry in a table of definitions: those of the process below, those of tables in
//! `table_metrics`, and those of sources in `source_metrics`. `docs/metrics.md` is generated from
//! them.

use std::sync::Arc;

use crate::accept::waiting_ports;
use crate::access::JwtKeys;
use crate::metrics_page::{
    MetricDefinition, MetricsPage, flag, float, gauge, labeled_counter, labeled_gauge, number, reference_table,
};
use crate::server_state::ServerState;
use crate::tls::ServerTls;

mod source_metrics;
mod table_metrics;

use source_metrics::{SOURCE_METRICS, SourceSample};
use table_metrics::{TABLE_METRICS, TableSample};

/// The metrics of one server.
pub(super) struct ServerMetrics {
    pub(super) shared: Arc<ServerState>,
    pub(super) certificates: Vec<ServerTls>,
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

/// The metrics of each certificate. Their label is the `file`.
pub const CERTIFICATE_METRICS: &[MetricDefinition<ServerTls>] = &[gauge(
    "laredo_tls_certificate_not_after_seconds",
    "Time when a certificate of a port expires, in seconds since 1970.",
    |tls| Some(time(tls.not_after())),
)];

/// The metrics of the keys of each issuer of JWTs.
const JWT_KEY_METRICS: &[MetricDefinition<JwtKeys>] = &[
    gauge("laredo_jwt_keys", "Public keys that JWTs of an issuer are verified with.", |keys| count(keys.key_count())),
    gauge("laredo_jwt_keys_failed", "1 if the last reading of an issuer's keys failed; older keys remain.", |keys| {
        flag(keys.has_failed())
    }),
];

impl ServerMetrics {
    pub(super) fn render(&self) -> String {
        let (now, mut page) = (self.shared.clock.as_ref()(), MetricsPage::default());
        page.add(SERVER_METRICS, self.shared.as_ref(), &[]);
        for certificate in &self.certificates {
            page.add(CERTIFICATE_METRICS, certificate, &[("file", certificate.name().to_owned())]);
        }
        for keys in self.shared.gate.jwt_keys() {
            page.add(JWT_KEY_METRICS, &keys, &[("source", keys.source().to_owned())]);
        }
        for table in self.shared.tables().iter() {
            page.add(TABLE_METRICS, &TableSample::new(table, now), &[("table", table.name().to_string())]);
        }
        for source in &self.shared.sources {
            page.add(SOURCE_METRICS, &SourceSample::new(source, now), &[("source", source.id.clone())]);
        }
        page.render()
    }
}

/// Returns the reference of all metrics of the server, in Markdown.
#[must_use]
pub fn metrics_reference() -> String {
    let sections = [
        ("Tables", reference_table(TABLE_METRICS, &["table"])),
        ("Sources", reference_table(SOURCE_METRICS, &["source"])),
        ("The server", reference_table(SERVER_METRICS, &[])),
        ("Certificates", reference_table(CERTIFICATE_METRICS, &["file"])),
        ("Issuers of JWTs", reference_table(JWT_KEY_METRICS, &["source"])),
    ];
    sections.map(|(title, table)| format!("### {title}\n\n{table}")).join("\n")
}

/// Returns a time in seconds since 1970 as Prometheus stores it.
#[expect(clippy::cast_precision_loss, reason = "Prometheus stores a double")]
fn time(time: i64) -> f64 {
    time as f64
}

fn count(count: usize) -> Option<f64> {
    number(count as u64)
}

/// Returns 1 for the state that a label names, and 0 for the other states.
fn one_of<const N: usize>(names: [&'static str; N], is_current: impl Fn(&str) -> bool) -> Vec<(&'static str, f64)> {
    names.into_iter().map(|name| (name, float(is_current(name).into()))).collect()
}
