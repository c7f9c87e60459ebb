//! The full snapshots that a server had to send, by its log.

use std::collections::BTreeMap;

use laredo_core::TableName;
use laredo_testkit::workload::TABLES;

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
            if line.contains("stream begins")
                && field(line, "mode") == "snapshot"
                && field(line, "client_id") == "chaos"
            {
                let key = (field(line, "table").to_owned(), field(line, "reason").to_owned());
                *self.counts.entry(key).or_default() += 1;
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

/// Returns the value of a field of a line of the log; empty if there is none.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let Some((_, rest)) = line.split_once(&format!(" {name}=")) else { return "" };
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default(),
        None => rest.split(' ').next().unwrap_or_default(),
    }
}
