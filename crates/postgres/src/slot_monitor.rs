//! Watches the replication slot: its lag, the WAL that PostgreSQL keeps for it, and the time until
//! that WAL may be removed.

use std::convert::Infallible;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::retention::{ReplicationSlotState, WalRate, WalStatus, time_left};
use laredo_engine::source::SourceClock;
use postgres_protocol::escape::escape_literal;
use tokio::time::Instant;

use crate::options::{ConnectionOptions, SessionWork};
use crate::signals::{SourceSignals, WalEndReading};
use crate::transport::{SqlConnection, TextRow, TransportError};

/// The interval between reads of the slot. Each reads a view of shared memory, at almost no cost to
/// the server.
const INTERVAL: Duration = Duration::from_secs(2);

/// Reports the state of the slot, and never returns. Uses a connection of its own, because the slot
/// matters most while the stream is disconnected or waits for its consumer. The stream reports the
/// errors that break this connection.
pub(crate) async fn watch(options: &ConnectionOptions, signals: &SourceSignals) -> Infallible {
    loop {
        let Err(error) = report_state(options, signals).await;
        tracing::debug!(event = "slot_state_not_read", %error, "cannot read the state of the replication slot");
        signals.record_slot_state("", None);
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn report_state(options: &ConnectionOptions, signals: &SourceSignals) -> Result<Infallible, TransportError> {
    let mut connection = SqlConnection::connect(&options.for_work(SessionWork::Slot)).await?;
    let (mut rate, mut logged) = (WalRate::default(), None);
    loop {
        read_clock(&mut connection, signals.clock()).await?;
        let slot = signals.slot_name();
        let found = if slot.is_empty() { None } else { read_slot_row(&mut connection, &slot).await? };
        let state = found.map(|found| {
            signals.record_wal_end(WalEndReading { end: found.end, at: found.at });
            rate.note(Instant::now(), found.end);
            found.state(rate.recent())
        });
        log_wal_status(&slot, state.as_ref(), &mut logged);
        signals.record_slot_state(&slot, state);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Reads the database's clock.
pub(crate) async fn read_clock(connection: &mut SqlConnection, clock: &SourceClock) -> Result<(), TransportError> {
    let asked = Instant::now();
    let rows = connection.simple_query("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await?;
    let unix_us: Option<i64> = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
    if let Some(unix_us) = unix_us {
        clock.note_time(CommitTime::from_unix_us(unix_us), asked, Instant::now());
    }
    Ok(())
}

/// The catalog's row for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlotCatalogRow {
    wal_status: WalStatus,
    safe_bytes: Option<u64>,
    end: Lsn,
    /// The time of the read, on the database's clock.
    at: CommitTime,
    restart: Option<Lsn>,
    confirmed: Option<Lsn>,
}

async fn read_slot_row(connection: &mut SqlConnection, slot: &str) -> Result<Option<SlotCatalogRow>, TransportError> {
    let sql = format!(
        "SELECT wal_status, safe_wal_size, pg_current_wal_lsn(), restart_lsn, confirmed_flush_lsn,
            (extract(epoch FROM statement_timestamp()) * 1000000)::bigint
         FROM pg_replication_slots WHERE slot_name = {}",
        escape_literal(slot)
    );
    Ok(connection.simple_query(&sql).await?.first().and_then(parse_slot_row))
}

/// Parses a slot's row. Returns `None` for a slot that is being created, whose state is unknown.
fn parse_slot_row(row: &TextRow) -> Option<SlotCatalogRow> {
    let text = |column: usize| row.get(column)?.as_deref();
    let lsn = |column: usize| text(column)?.parse().ok();
    let wal_status = text(0)?;
    Some(SlotCatalogRow {
        wal_status: WalStatus::ALL.into_iter().find(|known| known.name() == wal_status)?,
        // PostgreSQL reports a negative size once the WAL is overdue for removal.
        safe_bytes: text(1).and_then(|text| text.parse::<i64>().ok()).map(|bytes| u64::try_from(bytes).unwrap_or(0)),
        end: lsn(2)?,
        at: CommitTime::from_unix_us(text(5)?.parse().ok()?),
        restart: lsn(3),
        confirmed: lsn(4),
    })
}

impl SlotCatalogRow {
    fn state(self, written: Option<(u64, Duration)>) -> ReplicationSlotState {
        // A lost slot may have no positions; nothing is kept for it.
        let behind = |position: Option<Lsn>| position.map_or(0, |position| self.end.0.saturating_sub(position.0));
        let left = self.safe_bytes.zip(written).and_then(|(safe, written)| time_left(safe, written));
        ReplicationSlotState {
            wal_status: self.wal_status,
            lag_bytes: behind(self.confirmed),
            retained_bytes: behind(self.restart),
            safe_bytes: self.safe_bytes,
            left,
        }
    }
}

/// Logs a change of the slot's WAL status, at a level that fits its severity.
fn log_wal_status(slot: &str, state: Option<&ReplicationSlotState>, logged: &mut Option<WalStatus>) {
    let Some(ReplicationSlotState { wal_status, retained_bytes, .. }) = state else { return };
    if logged.replace(*wal_status) == Some(*wal_status) {
        return;
    }
    match wal_status {
        WalStatus::Reserved => tracing::debug!(
            event = "slot_wal_normal",
            slot,
            "PostgreSQL keeps no more WAL for the slot than max_wal_size"
        ),
        WalStatus::Extended => {
            tracing::info!(
                event = "slot_wal_extended",
                slot,
                retained_bytes,
                "PostgreSQL keeps more WAL than max_wal_size for the slot"
            );
        }
        WalStatus::Unreserved => tracing::warn!(
            event = "slot_wal_unreserved",
            slot,
            retained_bytes,
            "PostgreSQL is about to remove WAL that the slot needs (max_slot_wal_keep_size): then every table is copied again"
        ),
        WalStatus::Lost => {
            tracing::error!(event = "slot_wal_lost", slot, "PostgreSQL has removed WAL that the slot needed")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: [&str; 5]) -> TextRow {
        let values = values.into_iter().chain(["1700000000000000"]);
        values.map(|value| (!value.is_empty()).then(|| value.to_owned())).collect()
    }

    #[test]
    fn the_catalog_s_row_is_converted_to_bytes_and_time() {
        let second = Duration::from_secs(1);
        let read = |values| parse_slot_row(&row(values)).map(|found| found.state(Some((100, second))));
        let standing = |wal_status, lag_bytes, retained_bytes, safe_bytes, left: Option<u64>| {
            let left = left.map(Duration::from_secs);
            Some(ReplicationSlotState { wal_status, lag_bytes, retained_bytes, safe_bytes, left })
        };
        for (values, expected) in [
            (["reserved", "", "0/300", "0/100", "0/200"], standing(WalStatus::Reserved, 256, 512, None, None)),
            (
                ["extended", "1000", "0/300", "0/100", "0/200"],
                standing(WalStatus::Extended, 256, 512, Some(1000), Some(10)),
            ),
            (
                ["unreserved", "-5", "0/300", "0/100", "0/200"],
                standing(WalStatus::Unreserved, 256, 512, Some(0), Some(0)),
            ),
            (["lost", "", "0/300", "", "0/200"], standing(WalStatus::Lost, 256, 0, None, None)),
            (["", "", "0/300", "", ""], None),
        ] {
            assert_eq!(read(values), expected, "{values:?}");
        }
        assert_eq!(
            parse_slot_row(&row(["extended", "1000", "0/300", "0/100", "0/200"])).unwrap().state(None).left,
            None
        );
    }
}
