//! The metrics of sources.

use laredo_core::CommitTime;
use laredo_engine::retention::{ReplicationSlotState, WalRetention, WalStatus};
use laredo_engine::source::SourceState;

use super::{count, one_of};
use crate::metrics_page::{MetricDefinition, counter, float, gauge, labeled_gauge};
use crate::options::ServedSource;

/// A source at the time of a scrape.
pub(super) struct SourceSample {
    source: ServedSource,
    now: CommitTime,
    retention: WalRetention,
}

impl SourceSample {
    pub(super) fn new(source: &ServedSource, now: CommitTime) -> SourceSample {
        SourceSample { source: source.clone(), now, retention: source.engine.retention() }
    }

    /// Returns a value of the slot. An unknown value is NaN: zero would mean that all is well, and
    /// the last value would be outdated.
    fn slot(&self, read: impl FnOnce(ReplicationSlotState) -> Option<f64>) -> Option<f64> {
        Some(self.retention.standing.and_then(read).unwrap_or(f64::NAN))
    }
}

pub(super) const SOURCE_METRICS: &[MetricDefinition<SourceSample>] = &[
    labeled_gauge("laredo_source_state", "state", "1 for the state of the source.", |sample| {
        let state = sample.source.engine.source_status().state;
        one_of(SourceState::NAMES, |name| name == state.name())
    }),
    gauge(
        "laredo_source_lag_seconds",
        "Time since every table of the source was known to have all commits; NaN before the first copies.",
        |sample| Some(sample.source.lag_ms(sample.now).map_or(f64::NAN, |ms| float(ms) / 1000.0)),
    ),
    gauge("laredo_slot_lag_bytes", "Bytes of WAL that are not acknowledged to PostgreSQL.", |sample| {
        sample.slot(|slot| Some(float(slot.lag_bytes)))
    }),
    gauge("laredo_slot_retained_bytes", "Bytes of WAL on PostgreSQL's disk that are kept for the slot.", |sample| {
        sample.slot(|slot| Some(float(slot.retained_bytes)))
    }),
    gauge(
        "laredo_slot_safe_bytes",
        "Bytes of WAL until the slot is lost; NaN without max_slot_wal_keep_size.",
        |sample| sample.slot(|slot| slot.safe_bytes.map(float)),
    ),
    gauge(
        "laredo_slot_left_seconds",
        "Estimate of the time until the slot is lost if nothing more is acknowledged; NaN if it is unknown.",
        |sample| sample.slot(|slot| slot.left.map(|left| left.as_secs_f64())),
    ),
    labeled_gauge("laredo_slot_wal_status", "status", "1 for the status of the WAL that the slot needs.", |sample| {
        let status = sample.retention.standing.map(|slot| slot.wal_status.name());
        one_of(WalStatus::ALL.map(WalStatus::name), |name| status == Some(name))
    }),
    counter("laredo_slot_losses_total", "Slots that could not be continued: every table was copied again.", |sample| {
        Some(sample.retention.losses)
    }),
    counter(
        "laredo_history_forks_total",
        "Times that the database turned out to have another history: every table was copied again.",
        |sample| Some(sample.retention.forks),
    ),
    gauge("laredo_copies_running", "Copies of the source's tables that have a database session.", |sample| {
        count(sample.source.engine.copies().running)
    }),
    gauge("laredo_copies_waiting", "Tables of the source that wait for their turn to be copied.", |sample| {
        count(sample.source.engine.copies().waiting)
    }),
    gauge("laredo_copies_max", "Maximum number of concurrent copies of the source's tables.", |sample| {
        count(sample.source.engine.copies().max)
    }),
    gauge("laredo_connections_max", "Maximum number of database connections of the source.", |sample| {
        count(sample.source.engine.connections_max())
    }),
];
