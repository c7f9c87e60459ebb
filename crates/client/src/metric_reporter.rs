//! The numbers of a replica or a subscription as metrics of the facade `metrics`. They are read
//! once a second, so the path of the data does not know them.

use std::time::Duration;

use laredo_core::Lsn;
use metrics::{Label, Unit};

use crate::status::ReplicaStatus;

/// The interval at which the numbers are read.
const INTERVAL: Duration = Duration::from_secs(1);

/// The numbers of a client at one moment.
pub(crate) struct ClientSample {
    pub(crate) status: ReplicaStatus,
    /// The number of rows; `None` for a subscription, which keeps none.
    pub(crate) rows: Option<usize>,
    /// The age of the rows; `None` before they were current for the first time.
    pub(crate) age: Option<Duration>,
}

/// A metric whose value is a state of the client.
struct StateMetric {
    name: &'static str,
    unit: Unit,
    help: &'static str,
    value: fn(&ClientSample) -> Option<f64>,
}

/// A metric that counts since the start of the client.
struct CountMetric {
    name: &'static str,
    help: &'static str,
    value: fn(&ReplicaStatus) -> u64,
}

const STATES: &[StateMetric] = &[
    StateMetric {
        name: "laredo_client_age_seconds",
        unit: Unit::Seconds,
        help: "Time since the rows were last known to be all that the database had; absent before the first time.",
        value: |sample| sample.age.map(|age| age.as_secs_f64()),
    },
    StateMetric {
        name: "laredo_client_connected",
        unit: Unit::Count,
        help: "1 while a stream is open and its server has answered.",
        value: |sample| Some(number(u64::from(sample.status.connected))),
    },
    StateMetric {
        name: "laredo_client_lag_bytes",
        unit: Unit::Bytes,
        help: "Bytes of WAL between the rows and the newest position that the server is known to have reached.",
        value: |sample| Some(number(lag(sample.status.server_position, sample.status.position))),
    },
    StateMetric {
        name: "laredo_client_position_bytes",
        unit: Unit::Bytes,
        help: "WAL position up to which every commit is applied.",
        value: |sample| Some(number(sample.status.position.0)),
    },
    StateMetric {
        name: "laredo_client_ready",
        unit: Unit::Count,
        help: "1 once the client has reached the server's head.",
        value: |sample| Some(number(u64::from(sample.status.ready))),
    },
    StateMetric {
        name: "laredo_client_rows",
        unit: Unit::Count,
        help: "Rows of a replica; absent for a subscription.",
        value: |sample| sample.rows.map(|rows| number(rows as u64)),
    },
];

const COUNTS: &[CountMetric] = &[
    CountMetric {
        name: "laredo_client_applied_changes_total",
        help: "Changes in applied transactions, without snapshots.",
        value: |status| status.changes,
    },
    CountMetric {
        name: "laredo_client_applied_transactions_total",
        help: "Applied transactions.",
        value: |status| status.transactions,
    },
    CountMetric {
        name: "laredo_client_checksum_mismatches_total",
        help: "Times that the rows did not have the server's checksum. Each is a fault.",
        value: |status| status.checksum_mismatches,
    },
    CountMetric {
        name: "laredo_client_deltas_total",
        help: "Streams that began without a full snapshot.",
        value: |status| status.connects.saturating_sub(status.full_snapshots),
    },
    CountMetric {
        name: "laredo_client_full_snapshots_total",
        help: "Streams that began with a full snapshot.",
        value: |status| status.full_snapshots,
    },
    CountMetric {
        name: "laredo_client_reconnects_total",
        help: "Streams that were opened after the first one.",
        value: |status| status.connects.saturating_sub(1),
    },
    CountMetric {
        name: "laredo_client_resyncs_total",
        help: "Full snapshots that replaced existing rows.",
        value: |status| status.resyncs,
    },
];

/// Runs a session, and reports the client's numbers until it ends. `client_id` may be empty.
pub(crate) async fn report_while(
    session: impl Future<Output = ()>,
    (table, client_id): (String, String),
    sample: impl Fn() -> ClientSample,
) {
    describe();
    let labels = [Label::new("table", table), Label::new("client_id", client_id)];
    let mut reported = ReplicaStatus::default();
    let mut session = std::pin::pin!(session);
    loop {
        let has_ended = tokio::time::timeout(INTERVAL, &mut session).await.is_ok();
        let mut sample = sample();
        // The thread of a replica notes the end of its session later.
        sample.status.connected &= !has_ended;
        record(&labels, &sample, &reported);
        reported = sample.status;
        if has_ended {
            return;
        }
    }
}

/// Gives units and help to the recorder of the program.
fn describe() {
    for StateMetric { name, unit, help, .. } in STATES {
        metrics::describe_gauge!(*name, *unit, *help);
    }
    for CountMetric { name, help, .. } in COUNTS {
        metrics::describe_counter!(*name, Unit::Count, *help);
    }
}

/// Records a sample. The counts grow by what is new since `reported`, so that clients with the same
/// labels add up.
fn record(labels: &[Label], sample: &ClientSample, reported: &ReplicaStatus) {
    for StateMetric { name, value, .. } in STATES {
        if let Some(value) = value(sample) {
            metrics::gauge!(*name, labels.iter()).set(value);
        }
    }
    for CountMetric { name, value, .. } in COUNTS {
        let new = value(&sample.status).saturating_sub(value(reported));
        metrics::counter!(*name, labels.iter()).increment(new);
    }
}

fn lag(server: Lsn, ours: Lsn) -> u64 {
    server.0.saturating_sub(ours.0)
}

/// Returns a number as metrics have it. Whole numbers are exact up to 2^53.
fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;

    fn sample(connects: u64, changes: u64) -> ClientSample {
        let status = ReplicaStatus {
            connected: true,
            connects,
            full_snapshots: 1,
            changes,
            position: Lsn(100),
            server_position: Lsn(130),
            ..ReplicaStatus::default()
        };
        ClientSample { status, rows: Some(7), age: None }
    }

    #[test]
    fn counts_grow_by_what_is_new_and_absent_numbers_are_not_recorded() {
        let recorder = DebuggingRecorder::new();
        let shown = recorder.snapshotter();
        metrics::with_local_recorder(&recorder, || {
            describe();
            let labels = [Label::new("table", "public.t"), Label::new("client_id", "a")];
            let (first, second) = (sample(1, 5), sample(3, 9));
            record(&labels, &first, &ReplicaStatus::default());
            record(&labels, &second, &first.status);
        });
        let found: Vec<_> = shown.snapshot().into_vec();
        let value = |name: &str| {
            let mut named = found.iter().filter(|(key, ..)| key.key().name() == name);
            let found = named.next().map(|(_, unit, help, value)| {
                assert!(unit.is_some() && help.is_some(), "{name}");
                match value {
                    DebugValue::Counter(count) => *count as f64,
                    DebugValue::Gauge(value) => value.0,
                    DebugValue::Histogram(_) => f64::NAN,
                }
            });
            assert!(named.next().is_none(), "{name} has one series");
            found
        };
        assert_eq!(value("laredo_client_applied_changes_total"), Some(9.0));
        assert_eq!(value("laredo_client_reconnects_total"), Some(2.0));
        assert_eq!(value("laredo_client_deltas_total"), Some(2.0));
        assert_eq!(value("laredo_client_full_snapshots_total"), Some(1.0));
        assert_eq!(value("laredo_client_lag_bytes"), Some(30.0));
        assert_eq!((value("laredo_client_rows"), value("laredo_client_age_seconds")), (Some(7.0), None));
        assert_eq!(found.len(), STATES.len() + COUNTS.len() - 1);
    }

    #[test]
    fn the_readme_has_every_metric_with_its_help() {
        let states = STATES.iter().map(|metric| (metric.name, "gauge", metric.help));
        let counts = COUNTS.iter().map(|metric| (metric.name, "counter", metric.help));
        let mut rows: Vec<_> =
            states.chain(counts).map(|(name, kind, help)| format!("| `{name}` | {kind} | {help} |\n")).collect();
        rows.sort();
        let readme = include_str!("../README.md");
        assert!(readme.contains(&rows.concat()), "README.md of the client has to contain\n{}", rows.concat());
    }
}
