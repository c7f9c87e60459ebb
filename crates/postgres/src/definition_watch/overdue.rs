//! Warnings about definitions that could not be checked for too long.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use laredo_engine::source::TableIndex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::copy::SourceTable;
use crate::signals::SourceSignals;

/// The age of the last check after which a warning is logged, and then again every [`AGAIN`].
const OVERDUE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(300);
/// The time between two rounds.
const INTERVAL: Duration = Duration::from_secs(5);

/// Warns about tables whose definition was not checked for a while. Never returns.
pub(super) async fn warn(tables: &watch::Receiver<Arc<[Arc<SourceTable>]>>, signals: &SourceSignals) -> Infallible {
    let mut warned: BTreeMap<TableIndex, Instant> = BTreeMap::new();
    let mut first_seen: BTreeMap<TableIndex, Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let reads = signals.definition_reads().borrow().clone();
        let followed = tables.borrow().clone();
        for table in followed.iter() {
            let index = table.index;
            let since = *first_seen.entry(index).or_insert_with(Instant::now);
            let age = reads.seen.get(&index).unwrap_or(&since).elapsed();
            if age < OVERDUE {
                if warned.remove(&index).is_some() {
                    tracing::info!(
                        event = "definition_verified", table = %table.request.name,
                        "the definition is verified again"
                    );
                }
                continue;
            }
            if warned.get(&index).is_none_or(|warned| warned.elapsed() >= AGAIN) {
                warned.insert(index, Instant::now());
                let error = reads.errors.get(&index).map_or("the catalog has not answered", String::as_str);
                tracing::warn!(
                    event = "definition_not_verified",
                    table = %table.request.name, unverified_s = age.as_secs(), error,
                    "the definition was not verified: a change that PostgreSQL does not announce would not be noticed"
                );
            }
        }
    }
}
