//! The full snapshots that a server had to send, by its log.

use std::collections::BTreeMap;

use laredo_core::TableName;
use laredo_testkit::workload::TABLES;
use serde_json::Value;

/// PostgreSQL's error when it cannot decode its own WAL, after which a server copies every table
/// again.
const UNDECODABLE: &str = "could not map filenode";

/// The streams of replicas that began with a full snapshot, counted by table and reason, and what
/// happened to the slots.
#[derive(Debug, Default)]
pub(super) struct LoggedLoads {
    counts: BTreeMap<(String, String), u64>,
    was_undecodable: bool,
}

impl LoggedLoads {
    /// Reads the log of a server from its start to its end.
    pub(super) fn read(&mut self, lines: &[String]) {
        for line in lines {
            self.was_undecodable |= line.contains(UNDECODABLE);
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let [message, mode, client, table, reason] =
                ["message", "mode", "client_id", "table", "reason"].map(|field| line[field].as_str());
            if (message, mode, client) == (Some("stream begins"), Some("snapshot"), Some("chaos")) {
                let key = [table, reason].map(|text| text.unwrap_or_default().to_owned());
                *self.counts.entry(key.into()).or_default() += 1;
            }
        }
    }

    /// Returns the number of streams of a table that began with a full snapshot although nothing
    /// in laredo was at fault.
    ///
    /// - A truncate changes a table's definition. A server that was down for two of them has never
    ///   seen the definition between them, which the client of another server may have.
    /// - PostgreSQL cannot decode its WAL. The changes of the time until the next copy are unknown,
    ///   so the client of another server that has some of them cannot continue.
    pub(super) fn forced(&self, table: &TableName) -> u64 {
        let is_forced = |reason: &str| match reason {
            "definition differs" => TABLES.iter().any(|truncated| truncated.name() == *table),
            "source position inside a new copy of the table" => self.was_undecodable,
            _ => false,
        };
        let name = table.to_string();
        self.counts.iter().filter(|((of, reason), _)| *of == name && is_forced(reason)).map(|(_, count)| count).sum()
    }
}
