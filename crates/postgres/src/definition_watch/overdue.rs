//! Warnings about definitions that could not be checked for too long.

use std::convert::Infallible;
use std::time::Duration;

use laredo_engine::source::TableIndex;
use tokio::time::Instant;

use crate::copy::SourceTable;
use crate::signals::SourceSignals;

/// The age of the last check after which a warning is logged, and then again every [`AGAIN`].
const OVERDUE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(300);
/// The time between two rounds.
const INTERVAL: Duration = Duration::from_secs(5);

/// Warns about tables whose definition was not checked for a while. Never returns.
pub(super) async fn warn(tables: &[SourceTable], signals: &SourceSignals) -> Infallible {
    let began = Instant::now();
    let mut warned: Vec<Option<Instant>> = vec![None; tables.len()];
    loop {
        tokio::time::sleep(INTERVAL).await;
        let reads = signals.definition_reads().borrow().clone();
        for (index, (table, warned)) in tables.iter().zip(&mut warned).enumerate() {
            let index = TableIndex(index);
            let age = reads.seen.get(&index).unwrap_or(&began).elapsed();
            if age < OVERDUE {
                if warned.take().is_some() {
                    tracing::info!(
                        event = "definition_verified", table = %table.request.name,
                        "the definition is verified again"
                    );
                }
                continue;
            }
            if warned.is_none_or(|warned| warned.elapsed() >= AGAIN) {
                *warned = Some(Instant::now());
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
