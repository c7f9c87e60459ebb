//! Clients of all kinds on the tables of the workload, and their comparison with the database.

use laredo_client::{ColumnPredicate, Replica};
use laredo_core::{Lsn, TableName};
use laredo_proto::replication::{FieldPredicate, field_predicate::Match};
use laredo_testkit::oracle::{self, OracleRows};
use laredo_testkit::workload::{TABLES, Workload, WorkloadPause, WorkloadTable};
use laredo_testkit::{Cluster, ClusterOptions, StopMode, eventually};
use prost_types::{ListValue, value::Kind};
use tokio_postgres::Client;

use super::compare::{struct_differences, view_differences};
use super::server::{PATIENCE, PATIENT, ServerProcessConfig};
use super::simple::SimpleClient;

/// The rows that a client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CategoryFilter {
    All,
    /// Rows with `category = 'a'`.
    Category,
    /// Rows whose category begins with `a`.
    Prefix,
    /// Rows with one of two values of `category`.
    OneOf,
}

impl CategoryFilter {
    pub fn sql(self) -> &'static str {
        match self {
            CategoryFilter::All => "true",
            CategoryFilter::Category => "category = 'a'",
            CategoryFilter::Prefix => "category LIKE 'a%'",
            CategoryFilter::OneOf => "category IN ('a', 'b')",
        }
    }

    pub fn predicate(self) -> Option<ColumnPredicate> {
        match self {
            CategoryFilter::All => None,
            CategoryFilter::Category => Some(ColumnPredicate::equals("category", "a")),
            CategoryFilter::Prefix => Some(ColumnPredicate::prefix("category", "a")),
            CategoryFilter::OneOf => Some(ColumnPredicate::any_of("category", ["a", "b"])),
        }
    }

    pub fn wire(self) -> Vec<FieldPredicate> {
        let text = |text: &str| prost_types::Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let test = match self {
            CategoryFilter::All => return Vec::new(),
            CategoryFilter::Category => Match::Equals(text("a")),
            CategoryFilter::Prefix => Match::Prefix("a".to_owned()),
            CategoryFilter::OneOf => Match::In(ListValue { values: vec![text("a"), text("b")] }),
        };
        vec![FieldPredicate { field: "category".to_owned(), r#match: Some(test) }]
    }
}

/// A replica and a simple client with the same filter.
#[derive(Debug)]
pub struct ClientPair {
    pub table: TableName,
    pub key: &'static [&'static str],
    pub only: CategoryFilter,
    pub replica: Replica,
    pub simple: SimpleClient,
}

impl ClientPair {
    pub fn start(url: &str, table: &TableName, key: &'static [&'static str], only: CategoryFilter) -> ClientPair {
        let mut builder = Replica::builder(url, table.clone()).client_id("replica").seed(1);
        if let Some(predicate) = only.predicate() {
            builder = builder.filter(predicate);
        }
        ClientPair {
            table: table.clone(),
            key,
            only,
            replica: builder.start().unwrap(),
            simple: SimpleClient::start_naming_snapshots(url, table, key, only.wire()),
        }
    }

    /// Waits until both have everything: the replica the position, the simple client the marked
    /// row.
    pub async fn reach(&self, position: Lsn, mark: i32) {
        let place = || format!("{} ({:?})", self.table, self.only);
        let reached = async || self.replica.view().position() >= position;
        if eventually(PATIENCE, reached).await.is_err() {
            panic!("{}: the replica does not reach {position}: {:?}", place(), self.replica.status());
        }
        // At this position the rows have the server's checksum, and no earlier comparison failed. A
        // filtered client receives no checksums.
        let compared = async || self.replica.status().checksum_position >= position;
        if matches!(self.only, CategoryFilter::All) {
            let is_compared = eventually(PATIENCE, compared).await.is_ok();
            let status = self.replica.status();
            assert!(is_compared && status.checksum_mismatches == 0, "{}: {status:?}", place());
        }
        let marked = async || {
            let state = self.simple.state();
            state.is_loaded && state.rows.values().any(|row| row.get("n") == Some(&mark.into()))
        };
        if eventually(PATIENCE, marked).await.is_err() {
            let state = self.simple.state();
            let (rows, at) = (state.rows.len(), &state.position);
            panic!("{}: the simple client, at {at} with {rows} rows, does not see the mark {mark}", place());
        }
    }

    /// Waits until the simple client, which has the mark, also has the rows that were written with
    /// it. A new copy may bring the mark among other rows, and a simple client does not know of
    /// transactions. [`ClientPair::differences`] then reports the missing rows.
    pub async fn settle(&self, oracle: &OracleRows) {
        let settled = async || {
            let view = self.replica.view();
            struct_differences(&self.simple.state().rows, oracle, view.schema(), self.key).is_empty()
        };
        let _ = eventually(PATIENCE, settled).await;
    }

    /// Returns the differences from the database's rows.
    pub fn differences(&self, oracle: &OracleRows) -> String {
        let view = self.replica.view();
        let state = self.simple.state();
        let mut found = String::new();
        for (client, differences) in [
            ("replica", view_differences(&view, oracle, self.key)),
            ("simple client", struct_differences(&state.rows, oracle, view.schema(), self.key)),
            ("stream of the simple client", state.violations.first().cloned().unwrap_or_default()),
        ] {
            if !differences.is_empty() {
                found += &format!("{} ({:?}), {client}:\n{differences}", self.table, self.only);
            }
        }
        found
    }
}

/// Starts a cluster with early trouble: even small transactions are streamed before they commit,
/// and deadlocks end soon.
pub fn cluster() -> Cluster {
    cluster_with(ClusterOptions::default())
}

/// Starts the same cluster with more options.
pub fn cluster_with(options: ClusterOptions) -> Cluster {
    let options = options.set("logical_decoding_work_mem", "64kB").set("deadlock_timeout", "20ms");
    let cluster = Cluster::start(options).unwrap();
    cluster.psql(&laredo_testkit::workload::schema_sql()).unwrap();
    cluster
}

/// Returns a configuration that serves all tables of the workload.
pub fn serve_all(connection: String) -> ServerProcessConfig {
    let mut config = ServerProcessConfig::new(connection, []).target(PATIENT);
    let key_fields = |table: &WorkloadTable| table.key_fields().iter().map(|name| (*name).to_owned()).collect();
    config.tables = TABLES.iter().map(|table| (table.name(), key_fields(table))).collect();
    config
}

/// Starts clients on every table: one pair for all rows and one for some.
pub fn fleet(url: &str) -> Vec<ClientPair> {
    let some = [
        CategoryFilter::Category,
        CategoryFilter::Prefix,
        CategoryFilter::OneOf,
        CategoryFilter::Category,
        CategoryFilter::Prefix,
    ];
    let pairs = TABLES.iter().zip(some).flat_map(|(table, some)| {
        [CategoryFilter::All, some].map(|only| ClientPair::start(url, &table.name(), table.key, only))
    });
    pairs.collect()
}

/// Waits until `transactions` more transactions have committed.
pub async fn await_transactions(workload: &Workload, transactions: u64) {
    let goal = workload.counts().committed + transactions;
    let reached = async || workload.counts().committed >= goal;
    if eventually(PATIENCE, reached).await.is_err() {
        panic!("the workload stands still: {:?} {:?}", workload.counts(), workload.errors());
    }
}

/// Pauses the workload and compares every client with the database. `mark` must be different each
/// time.
pub async fn compare_all(sql: &Client, workload: &Workload, pairs: &[ClientPair], mark: i32) -> WorkloadPause {
    let paused = workload.pause().await;
    compare_at_rest(sql, pairs, mark).await;
    paused
}

/// Compares every client with a database in which no session writes.
pub async fn compare_at_rest(sql: &Client, pairs: &[ClientPair], mark: i32) {
    let marks: Vec<String> = TABLES.iter().map(|table| table.mark(mark)).collect();
    sql.batch_execute(&format!("BEGIN; {}; COMMIT", marks.join("; "))).await.unwrap();
    let position = oracle::flushed(sql).await.unwrap();
    let mut found = String::new();
    for pair in pairs {
        pair.reach(position, mark).await;
        let rows = oracle::rows_at_rest(sql, &pair.table, pair.key, pair.only.sql()).await.unwrap();
        pair.settle(&rows).await;
        found += &pair.differences(&rows);
    }
    assert!(found.is_empty(), "at {position}:\n{found}");
}

/// Stops PostgreSQL and starts it again on the same port.
pub fn restart(cluster: &mut Cluster, mode: StopMode) {
    cluster.stop(mode).unwrap();
    cluster.restart().unwrap();
}
