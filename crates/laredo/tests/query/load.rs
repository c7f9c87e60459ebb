//! Exactness while the table changes, is copied, and its server is restarted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use laredo_core::TableName;
use laredo_proto::oam::laredo_query_service_client::LaredoQueryServiceClient;
use laredo_proto::oam::{CountRowsRequest, GetRowRequest, ListRowsRequest, LookupAllRequest};
use laredo_testkit::{Cluster, ClusterOptions};
use prost_types::Struct;
use tonic::Code;
use tonic::transport::Channel;

use super::support::server::{ServerProcess, ServerProcessConfig};
use super::{by_id, client, number, whole};

/// The number of rows of a generation that exist at the same time.
const WINDOW: i64 = 300;

/// A table whose contents follow from the number of its newest transaction. That number is in row
/// 0. Transaction k adds row k, removes the row that is too old, and counts up 20 rows.
const SCHEMA: &str = "CREATE TABLE steps (id bigint PRIMARY KEY, step bigint NOT NULL, part bigint NOT NULL);
    INSERT INTO steps VALUES (0, 0, 0);
    INSERT INTO steps SELECT n, n, n % 7 FROM generate_series(1 - 300, -1) n";

fn transaction(k: i64) -> String {
    format!(
        "BEGIN; UPDATE steps SET step = {k} WHERE id = 0; INSERT INTO steps VALUES ({k}, {k}, {k} % 7);
         DELETE FROM steps WHERE id = {k} - {WINDOW} AND id <> 0;
         UPDATE steps SET step = {k} WHERE id BETWEEN {k} - 20 AND {k} - 1 AND id <> 0; COMMIT"
    )
}

/// Returns the step of each row after transaction k.
fn expected(k: i64) -> BTreeMap<i64, i64> {
    // Transaction `id + 20` is the last one that counts up a row, and the first to do so is 1.
    let step = |id: i64| match k.min(id + 20) {
        last if last >= 1 => last,
        _ => id,
    };
    let ids = (k - WINDOW + 1..=k).filter(|id| *id != 0);
    ids.map(|id| (id, step(id))).chain([(0, k)]).collect()
}

struct LoadWriter {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<i64>,
}

impl LoadWriter {
    async fn start(cluster: &Cluster) -> LoadWriter {
        let database = cluster.connect().await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut k = 0;
            while !stopped.load(Ordering::Relaxed) {
                k += 1;
                database.batch_execute(&transaction(k)).await.unwrap();
            }
            k
        });
        LoadWriter { stop, task }
    }

    async fn stop(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn start(cluster: &Cluster) -> ServerProcess {
    let tables = [TableName::new("public", "steps")];
    let keys = "query = true, indexes = [{ name = by_part, fields = [part] }]";
    ServerProcessConfig::new(cluster.url("postgres"), tables).slot("steps").target(keys).start().await
}

fn page(page_size: i32, page_token: String) -> ListRowsRequest {
    let (schema, table) = ("public".to_owned(), "steps".to_owned());
    ListRowsRequest { schema, table, page_size, page_token, wants_position: true, ..ListRowsRequest::default() }
}

/// Returns the rows of all pages. All of them are of the same position.
async fn list_all(queries: &mut LaredoQueryServiceClient<Channel>, pause: Duration) -> Vec<Struct> {
    let (mut rows, mut token, mut of) = (Vec::new(), String::new(), None);
    loop {
        let answer = queries.list_rows(page(37, token)).await.unwrap().into_inner();
        let first = of.get_or_insert((answer.source_position.clone(), answer.total_count)).clone();
        assert_eq!((answer.source_position, answer.total_count), first);
        rows.extend(answer.rows);
        token = answer.next_page_token;
        if token.is_empty() {
            assert_eq!(rows.len() as i64, first.1);
            return rows;
        }
        tokio::time::sleep(pause).await;
    }
}

fn check(rows: &[Struct]) -> i64 {
    let rows = by_id(rows);
    let k = whole(&rows[&0], "step");
    let steps: BTreeMap<i64, i64> = rows.iter().map(|(id, row)| (*id, whole(row, "step"))).collect();
    assert_eq!(steps, expected(k), "after transaction {k}");
    k
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_shows_one_commit_over_all_pages_while_the_table_changes() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(SCHEMA).unwrap();
    let server = start(&cluster).await;
    let mut queries = client(&server).await;
    assert_eq!(check(&list_all(&mut queries, Duration::ZERO).await), 0);
    let writer = LoadWriter::start(&cluster).await;
    let mut newest = 0;
    for listing in 0..20 {
        let k = check(&list_all(&mut queries, Duration::from_millis(listing)).await);
        assert!(k >= newest, "the state went back from {newest} to {k}");
        newest = k;
        let (schema, table) = ("public".to_owned(), "steps".to_owned());
        let count = CountRowsRequest { schema, table, ..CountRowsRequest::default() };
        let counted = queries.count_rows(count).await.unwrap().into_inner().count;
        assert!((WINDOW..=WINDOW + 1).contains(&counted), "{counted}");
        if listing == 10 {
            server.reload(&TableName::new("public", "steps")).await;
        }
    }
    let last = writer.stop().await;
    assert!(last > newest && newest > 20, "{newest} of {last}");
    let at_least = cluster.psql("SELECT pg_current_wal_lsn()").unwrap().trim().to_owned();
    let answer = queries.list_rows(ListRowsRequest { at_least, ..page(10_000, String::new()) }).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!((check(&answer.rows), answer.next_page_token.as_str()), (last, ""));
    for part in -6..7 {
        let (schema, table, index_name) = ("public".to_owned(), "steps".to_owned(), "by_part".to_owned());
        let key_values = vec![number(f64::from(part))];
        let request = LookupAllRequest { schema, table, index_name, key_values, ..LookupAllRequest::default() };
        let found = queries.lookup_all(request).await.unwrap().into_inner().rows;
        let expected: Vec<&Struct> = answer.rows.iter().filter(|row| whole(row, "part") == i64::from(part)).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "part {part}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_never_missing_while_the_table_is_copied_and_are_back_after_a_restart() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(SCHEMA).unwrap();
    let mut server = start(&cluster).await;
    let mut queries = client(&server).await;
    let (schema, table) = ("public".to_owned(), "steps".to_owned());
    let get = || GetRowRequest { schema: schema.clone(), table: table.clone(), ..GetRowRequest::default() };
    let copies = server.metric("laredo_copies_total", &TableName::new("public", "steps")).await;
    server.reload(&TableName::new("public", "steps")).await;
    while server.metric("laredo_copies_total", &TableName::new("public", "steps")).await == copies {
        assert!(queries.get_row(get()).await.unwrap().into_inner().found);
    }
    // Another definition, in the stream.
    cluster
        .psql("ALTER TABLE steps ADD COLUMN more text DEFAULT 'more'; UPDATE steps SET step = 7 WHERE id = 0")
        .unwrap();
    let mut row = Struct::default();
    for _ in 0..600 {
        row = queries.get_row(get()).await.unwrap().into_inner().row.expect("the row is there");
        if row.fields.contains_key("more") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((super::word(&row, "more"), whole(&row, "step")), ("more".to_owned(), 7));

    let first = queries.list_rows(page(10, String::new())).await.unwrap().into_inner();
    server.restart().await;
    let mut queries = client(&server).await;
    assert_eq!(queries.get_row(get()).await.unwrap().into_inner().row, Some(row));
    let over = queries.list_rows(page(10, first.next_page_token)).await.unwrap_err();
    assert_eq!(over.code(), Code::Aborted, "{over}");
    assert!(over.message().contains("`page_token`") && over.message().contains("first page"), "{over}");
}
