//! The contents of the screen: tables in an order, the rate of each, and a selected one.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Instant;

use laredo_core::TableName;
use laredo_proto::oam::{GetStatusResponse, PipelineStatus};
use laredo_proto::replication::GetReplicationStatusResponse;

use super::super::status::{HealthAnswer, detail};
use super::sampling::TopSample;

/// The order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableOrder {
    /// Tables in trouble first.
    Trouble,
    Name,
    Rate,
    Lag,
    Clients,
}

/// A line of the list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TopTable {
    pub(super) name: TableName,
    pub(super) state: String,
    pub(super) rows: Option<u64>,
    /// Applied changes per second since the sample before; `None` in the first sample, and after
    /// the server was restarted.
    pub(super) changes_per_second: Option<f64>,
    pub(super) lag_ms: Option<u64>,
    pub(super) clients: Option<u64>,
    /// The reason why the table is not well, or its progress.
    pub(super) detail: String,
}

/// The number of changes that the tables had at a time.
struct ChangeCounts {
    at: Instant,
    by_table: HashMap<TableName, i64>,
}

/// The state of the screen.
pub(super) struct TopView {
    /// The address of the server.
    pub(super) server: String,
    /// The newest answers. What could not be read keeps its last answer. Before the first answer
    /// nothing is known.
    pub(super) health: Option<HealthAnswer>,
    /// The reasons why parts of the newest sample are missing.
    pub(super) errors: Vec<String>,
    pub(super) tables: Vec<TopTable>,
    /// The journal and the clients of the table that was selected when they were asked for.
    pub(super) replication: Option<(TableName, GetReplicationStatusResponse)>,
    pub(super) order: TableOrder,
    selected: Option<TableName>,
    counts: Option<ChangeCounts>,
}

impl TopView {
    pub(super) fn new(server: String) -> TopView {
        TopView {
            server,
            health: None,
            errors: Vec::new(),
            tables: Vec::new(),
            replication: None,
            order: TableOrder::Trouble,
            selected: None,
            counts: None,
        }
    }

    /// Shows a newer sample, which was complete at `at`.
    pub(super) fn update(&mut self, sample: TopSample, at: Instant) {
        self.errors.clear();
        let mut rates = HashMap::new();
        match sample.status {
            Ok(status) => rates = self.rates(&status, at),
            Err(error) => self.errors.push(error),
        }
        match sample.health {
            Ok(health) => self.health = Some(health),
            Err(error) => self.errors.push(error),
        }
        match sample.table {
            Some((table, Ok(replication))) => self.replication = Some((table, replication)),
            Some((_, Err(error))) => self.errors.push(error),
            None => self.replication = None,
        }
        self.errors.dedup();
        self.tables = self
            .health
            .iter()
            .flat_map(|health| &health.tables)
            .map(|table| {
                let name = TableName::new(&table.schema, &table.table);
                TopTable {
                    changes_per_second: rates.get(&name).copied(),
                    state: table.state.clone(),
                    rows: table.rows,
                    lag_ms: table.lag_ms,
                    clients: table.clients,
                    detail: detail(table),
                    name,
                }
            })
            .collect();
        self.sort();
        if self.selected.as_ref().is_none_or(|selected| !self.tables.iter().any(|table| table.name == *selected)) {
            self.selected = self.tables.first().map(|table| table.name.clone());
        }
    }

    /// Returns the changes per second of each table since the sample before, and keeps the counts.
    fn rates(&mut self, status: &GetStatusResponse, at: Instant) -> HashMap<TableName, f64> {
        let mut by_table: HashMap<TableName, i64> = HashMap::new();
        for pipeline in &status.pipelines {
            *by_table.entry(TableName::new(&pipeline.schema, &pipeline.table)).or_default() += changes(pipeline);
        }
        let before = self.counts.replace(ChangeCounts { at, by_table });
        let (Some(before), Some(newest)) = (before, &self.counts) else { return HashMap::new() };
        let seconds = (at - before.at).as_secs_f64();
        let rate = |(name, count): (&TableName, &i64)| {
            let more = count - before.by_table.get(name)?;
            (more >= 0 && seconds > 0.0).then(|| (name.clone(), more as f64 / seconds))
        };
        newest.by_table.iter().filter_map(rate).collect()
    }

    pub(super) fn set_order(&mut self, order: TableOrder) {
        self.order = order;
        self.sort();
    }

    fn sort(&mut self) {
        let order = self.order;
        self.tables.sort_by(|a, b| {
            let by = match order {
                TableOrder::Trouble => is_well(a).cmp(&is_well(b)),
                TableOrder::Name => std::cmp::Ordering::Equal,
                TableOrder::Rate => {
                    b.changes_per_second.unwrap_or(-1.0).total_cmp(&a.changes_per_second.unwrap_or(-1.0))
                }
                TableOrder::Lag => Reverse(a.lag_ms).cmp(&Reverse(b.lag_ms)),
                TableOrder::Clients => Reverse(a.clients).cmp(&Reverse(b.clients)),
            };
            by.then_with(|| a.name.to_string().cmp(&b.name.to_string()))
        });
    }

    pub(super) fn selected(&self) -> Option<TableName> {
        self.selected.clone()
    }

    /// Returns the number of the line that is selected.
    pub(super) fn selected_line(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.tables.iter().position(|table| table.name == *selected)
    }

    /// Selects another line, so many lines further down, or up if negative.
    pub(super) fn select_by(&mut self, lines: isize) {
        let line = self.selected_line().unwrap_or(0).saturating_add_signed(lines);
        let line = line.min(self.tables.len().saturating_sub(1));
        self.selected = self.tables.get(line).map(|table| table.name.clone());
    }

    /// Returns the number of tables that are not well.
    pub(super) fn troubled(&self) -> usize {
        self.tables.iter().filter(|table| !is_well(table)).count()
    }
}

/// Returns true if the table is followed, and nothing is to be said about it.
pub(super) fn is_well(table: &TopTable) -> bool {
    table.state == "live" && table.detail.is_empty()
}

fn changes(pipeline: &PipelineStatus) -> i64 {
    pipeline.inserts_applied + pipeline.updates_applied + pipeline.deletes_applied + pipeline.truncates_applied
}
