//! Clients of all kinds on the tables of the workload, and their comparison with the database.

use laredo_client::{Predicate, Replica};
use laredo_core::{Lsn, TableName};
use laredo_proto::replication::{FieldPredicate, field_predicate::Match};
use laredo_testkit::oracle::{self, Rows};
use laredo_testkit::workload::{Paused, TABLES, Workload, WorkloadTable};
use laredo_testkit::{Cluster, ClusterOptions, StopMode, eventually};
use prost_types::{ListValue, value::Kind};
use tokio_postgres::Client;

use super::compare::{struct_differences, view_differences};
use super::server::{PATIENCE, PATIENT, ServerConfig};
use super::simple::SimpleClient;

/// The rows that a client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    All,
    /// Rows with `category = 'a'`.
    Category,
    /// Rows whose category begins with `a`.
    Prefix,
    /// Rows with one of two values of `category`.
    OneOf,
}

impl Only {
    pub fn sql(self) -> &'static str {
        match self {
            Only::All => "true",
            Only::Category => "category = 'a'",
            Only::Prefix => "category LIKE 'a%'",
            Only::OneOf => "category IN ('a', 'b')",
        }
    }

    pub fn predicate(self) -> Option<Predicate> {
        match self {
            Only::All => None,
            Only::Category => Some(Predicate::equals("category", "a")),
            Only::Prefix => Some(Predicate::prefix("category", "a")),
            Only::OneOf => Some(Predicate::any_of("category", ["a", "b"])),
        }
    }

    pub fn wire(self) -> Vec<FieldPredicate> {
        let text = |text: &str| prost_types::Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let test = match self {
            Only::All => return Vec::new(),
            Only::Category => Match::Equals(text("a")),
            Only::Prefix => Match::Prefix("a".to_owned()),
            Only::OneOf => Match::In(ListValue { values: vec![text("a"), text("b")] }),
        };
        vec![FieldPredicate { field: "category".to_owned(), r#match: Some(test) }]
    }
}

/// A replica and a simple client with the same filter.
#[derive(Debug)]
pub struct Pair {
    pub table: TableName,
    pub key: &'static [&'static str],
    pub only: Only,
    pub replica: Replica,
    pub simple: SimpleClient,
}

impl Pair {
    pub fn start(url: &str, table: &TableName, key: &'static [&'static str], only: Only) -> Pair {
        let mut builder = Replica::builder(url, table.clone()).client_id("replica").seed(1);
        if let Some(predicate) = only.predicate() {
            builder = builder.filter(predicate);
        }
        Pair {
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
        if matches!(self.only, Only::All) {
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
    /// transactions. [`Pair::differences`] then reports the missing rows.
    pub async fn settle(&self, oracle: &Rows) {
        let settled = async || {
            let view = self.replica.view();
            struct_differences(&self.simple.state().rows, oracle, view.schema(), self.key).is_empty()
        };
        let _ = eventually(PATIENCE, settled).await;
    }

    /// Returns the differences from the database's rows.
    pub fn differences(&self, oracle: &Rows) -> String {
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
pub fn serve_all(connection: String) -> ServerConfig {
    let mut config = ServerConfig::new(connection, []).target(PATIENT);
    let key_fields = |table: &WorkloadTable| table.key_fields().iter().map(|name| (*name).to_owned()).collect();
    config.tables = TABLES.iter().map(|table| (table.name(), key_fields(table))).collect();
    config
}

/// Starts clients on every table: one pair for all rows and one for some.
pub fn fleet(url: &str) -> Vec<Pair> {
    let some = [Only::Category, Only::Prefix, Only::OneOf, Only::Category, Only::Prefix];
    let pairs = TABLES
        .iter()
        .zip(some)
        .flat_map(|(table, some)| [Only::All, some].map(|only| Pair::start(url, &table.name(), table.key, only)));
    pairs.collect()
}

/// Waits until `transactions` more transactions have committed.
pub async fn more(workload: &Workload, transactions: u64) {
    let goal = workload.counts().committed + transactions;
    let reached = async || workload.counts().committed >= goal;
    if eventually(PATIENCE, reached).await.is_err() {
        panic!("the workload stands still: {:?} {:?}", workload.counts(), workload.errors());
    }
}

/// Pauses the workload and compares every client with the database. `mark` must be different each
/// time.
pub async fn compare_all(sql: &Client, workload: &Workload, pairs: &[Pair], mark: i32) -> Paused {
    let paused = workload.pause().await;
    compare_at_rest(sql, pairs, mark).await;
    paused
}

/// Compares every client with a database in which no session writes.
pub async fn compare_at_rest(sql: &Client, pairs: &[Pair], mark: i32) {
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
