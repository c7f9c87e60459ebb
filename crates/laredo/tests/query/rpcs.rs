//! Every rpc in gRPC: what it finds, and what it refuses.

use std::time::{Duration, Instant};

use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_proto::oam::{
    CountRowsRequest, GetRowRequest, GetRowResponse, GetTableStatusRequest, ListRowsRequest, LookupAllRequest,
    LookupRequest,
};
use laredo_testkit::{Cluster, StopMode};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::support::server::ServerProcessConfig;
use super::{client, cluster, item, null, number, start, text, whole, word};

fn get(primary_key: i64) -> GetRowRequest {
    GetRowRequest { schema: "public".to_owned(), table: "item".to_owned(), primary_key, ..GetRowRequest::default() }
}

fn lookup(index_name: &str, key_values: Vec<prost_types::Value>) -> LookupRequest {
    let (schema, table) = ("public".to_owned(), "item".to_owned());
    LookupRequest { schema, table, index_name: index_name.to_owned(), key_values, ..LookupRequest::default() }
}

fn lookup_all(index_name: &str, key_values: Vec<prost_types::Value>) -> LookupAllRequest {
    let (schema, table) = ("public".to_owned(), "item".to_owned());
    LookupAllRequest { schema, table, index_name: index_name.to_owned(), key_values, ..LookupAllRequest::default() }
}

fn list(page_size: i32, page_token: &str) -> ListRowsRequest {
    let (schema, table) = ("public".to_owned(), "item".to_owned());
    ListRowsRequest { schema, table, page_size, page_token: page_token.to_owned(), ..ListRowsRequest::default() }
}

fn count() -> CountRowsRequest {
    CountRowsRequest { schema: "public".to_owned(), table: "item".to_owned(), ..CountRowsRequest::default() }
}

fn position(cluster: &Cluster) -> String {
    cluster.psql("SELECT pg_current_wal_lsn()").unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_found_by_their_key_and_by_indexes() {
    let cluster = cluster();
    let server = start(&cluster).await;
    let mut queries = client(&server).await;
    let found = queries.get_row(get(7)).await.unwrap().into_inner();
    assert!(found.found && found.source_position.is_empty());
    let row = found.row.unwrap();
    assert_eq!((word(&row, "name"), word(&row, "price")), ("item 7".to_owned(), "1.7500000000000000".to_owned()));
    let missing = queries.get_row(get(70_000)).await.unwrap().into_inner();
    assert!(!missing.found && missing.row.is_none());

    let found = queries.lookup(lookup("by_name", vec![text("item 7")])).await.unwrap().into_inner();
    assert_eq!(found.row, Some(row.clone()));
    // The column has another scale, and the value is the same.
    let found = queries.lookup(lookup("by_price", vec![text("1.75")])).await.unwrap().into_inner();
    assert_eq!(found.row, Some(row.clone()));
    let found = queries.lookup(lookup("", vec![number(7.0)])).await.unwrap().into_inner();
    assert_eq!(found.row, Some(row));
    assert!(!queries.lookup(lookup("by_name", vec![text("no item")])).await.unwrap().into_inner().found);
    for (value, color) in [(text("green"), "= 'green'"), (null(), "IS NULL"), (text("blue"), "= 'blue'")] {
        let rows = queries.lookup_all(lookup_all("by_color", vec![value])).await.unwrap().into_inner().rows;
        let ids: Vec<String> = rows.iter().map(|row| whole(row, "id").to_string()).collect();
        let sql = format!("SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM item WHERE color {color}");
        assert_eq!(ids.join(","), cluster.psql(&sql).unwrap().trim(), "{color}");
    }

    let of_pair = |key_values| GetRowRequest { table: "pair".to_owned(), key_values, ..get(0) };
    let found = queries.get_row(of_pair(vec![text("9007199254740995"), text("a3")])).await.unwrap().into_inner();
    assert_eq!(word(&found.row.unwrap(), "note"), "note 3");
    assert!(!queries.get_row(of_pair(vec![text("9007199254740995"), text("a4")])).await.unwrap().into_inner().found);

    assert_eq!(queries.count_rows(count()).await.unwrap().into_inner().count, 500);
    let channel = Channel::from_shared(server.oam_url()).unwrap().connect().await.unwrap();
    let status = GetTableStatusRequest { schema: "public".to_owned(), table: "item".to_owned() };
    let status = LaredoOamServiceClient::new(channel).get_table_status(status).await.unwrap().into_inner();
    let indexes: Vec<_> =
        status.indexes.iter().map(|index| (index.name.as_str(), index.unique, index.entry_count)).collect();
    assert_eq!(indexes, [("by_name", true, 500), ("by_color", false, 500), ("by_price", true, 500)]);
    let metrics = server.metrics().await;
    for line in [
        "laredo_query_rows{table=\"public.item\"} 500",
        "laredo_query_lag_bytes{table=\"public.item\"} 0",
        "laredo_query_requests_total{table=\"public.item\",method=\"get_row\"} 2",
        "laredo_query_fills_total{table=\"public.item\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

/// Checks the code of a refusal, and that its message names a field or a cause.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, named: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(named), "{named}: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_by_name() {
    let cluster = cluster();
    let server = start(&cluster).await;
    let mut queries = client(&server).await;
    let invalid = Code::InvalidArgument;
    refused(queries.get_row(GetRowRequest::default()).await, invalid, "`schema`");
    refused(queries.get_row(GetRowRequest { table: "x".to_owned(), ..get(1) }).await, Code::NotFound, "public.x");
    refused(queries.get_row(get(i64::MAX)).await, invalid, "`primary_key`");
    let of_pair = |key_values| GetRowRequest { table: "pair".to_owned(), key_values, ..get(7) };
    refused(queries.get_row(of_pair(vec![])).await, invalid, "`primary_key`");
    refused(queries.get_row(of_pair(vec![text("x"), text("a1")])).await, invalid, "`key_values[0]`");
    refused(queries.get_row(of_pair(vec![text("1")])).await, invalid, "`key_values`");
    refused(queries.get_row(of_pair(vec![number(1.0), number(1.0)])).await, invalid, "`key_values[1]`");
    refused(queries.get_row(of_pair(vec![Default::default()])).await, invalid, "`key_values[0]`");
    refused(queries.get_row(GetRowRequest { at_least: "x".to_owned(), ..get(1) }).await, invalid, "`at_least`");
    refused(queries.lookup(lookup("by_color", vec![text("red")])).await, invalid, "`index_name`");
    refused(queries.lookup(lookup("by_size", vec![text("red")])).await, Code::NotFound, "by_name, by_color");
    refused(queries.lookup_all(lookup_all("by_color", vec![])).await, invalid, "`color` text");
    let unusable = LookupRequest { table: "pair".to_owned(), ..lookup("by_name", vec![text("x")]) };
    refused(queries.lookup(unusable).await, Code::FailedPrecondition, "no column `name`");
    refused(queries.list_rows(list(-1, "")).await, invalid, "`page_size`");
    for token in ["x", "AAAA", "-", &"A".repeat(100_000)] {
        refused(queries.list_rows(list(1, token)).await, invalid, "`page_token`");
    }
    refused(queries.list_rows(list(1, &"A".repeat(64))).await, Code::Aborted, "list again");
    // A unique index over values that are not: the answer is not one of the rows.
    cluster.psql("UPDATE item SET name = 'twin' WHERE id IN (1, 2)").unwrap();
    let twins = LookupRequest { at_least: position(&cluster), ..lookup("by_name", vec![text("twin")]) };
    refused(queries.lookup(twins).await, Code::FailedPrecondition, "several rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_the_key_answers_no_queries() {
    let cluster = cluster();
    let server = ServerProcessConfig::new(cluster.url("postgres"), [item()]).start().await;
    let mut queries = client(&server).await;
    let (unset, key) = (Code::FailedPrecondition, "tables.targets.query");
    refused(queries.get_row(get(1)).await, unset, key);
    refused(queries.lookup(lookup("", vec![])).await, unset, key);
    refused(queries.lookup_all(lookup_all("", vec![])).await, unset, key);
    refused(queries.list_rows(list(1, "")).await, unset, key);
    refused(queries.count_rows(count()).await, unset, key);
    let subscribe = laredo_proto::oam::SubscribeRequest {
        schema: "public".to_owned(),
        table: "item".to_owned(),
        replay_existing: true,
    };
    refused(queries.subscribe(subscribe).await, unset, key);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_reads_what_it_has_written() {
    let cluster = cluster();
    let server = start(&cluster).await;
    let mut queries = client(&server).await;
    for n in 0..50 {
        cluster.psql(&format!("UPDATE item SET name = 'written {n}' WHERE id = 9")).unwrap();
        let at_least = position(&cluster);
        let request = GetRowRequest { at_least: at_least.clone(), wants_position: true, ..get(9) };
        let found = queries.get_row(request).await.unwrap().into_inner();
        assert_eq!(word(&found.row.unwrap(), "name"), format!("written {n}"));
        let reached = |text: &str| text.parse::<laredo_core::Lsn>().unwrap();
        assert!(reached(&found.source_position) >= reached(&at_least), "{} < {at_least}", found.source_position);
    }
    let began = Instant::now();
    let future = CountRowsRequest { at_least: "FFFF/0".to_owned(), ..count() };
    refused(queries.count_rows(future).await, Code::DeadlineExceeded, "did not reach FFFF/0 within 10 s");
    assert!(began.elapsed() >= Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_abandoned_history_answer_no_at_least() {
    let mut cluster = cluster();
    let server = start(&cluster).await;
    let mut queries = client(&server).await;
    let copy = cluster.copy_storage(StopMode::Fast).unwrap();
    // The abandoned history has a position that the next one has not reached.
    cluster.psql("UPDATE item SET color = repeat('lost', 100)").unwrap();
    let lost = position(&cluster);
    let at_least = |at_least: &str| GetRowRequest { at_least: at_least.to_owned(), ..get(7) };
    let color = |row: GetRowResponse| word(&row.row.unwrap(), "color");
    assert_eq!(color(queries.get_row(at_least(&lost)).await.unwrap().into_inner()).len(), 400);

    cluster.put_back(&copy, StopMode::Fast).unwrap();
    cluster.psql("UPDATE item SET color = 'new' WHERE id = 7").unwrap();
    // The copy waits for the lock.
    let session = cluster.connect().await.unwrap();
    session.batch_execute("BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let written = position(&cluster);
    assert_eq!(cluster.psql(&format!("SELECT '{written}'::pg_lsn < '{lost}'::pg_lsn")).unwrap().trim(), "t");
    server.process.wait_for_line("the database's history has forked").await.unwrap();
    let release = async { session.batch_execute("COMMIT").await.unwrap() };
    let (found, ()) = tokio::join!(queries.get_row(at_least(&written)), release);
    assert_eq!(color(found.unwrap().into_inner()), "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_not_older_than_the_caller_accepts() {
    let cluster = cluster();
    let server = start(&cluster).await;
    let mut queries = client(&server).await;
    let before = position(&cluster);
    let first = queries.list_rows(list(100, "")).await.unwrap().into_inner();
    cluster.psql("UPDATE item SET color = 'new' WHERE id = 499").unwrap();
    let page = |at_least: &str| ListRowsRequest { at_least: at_least.to_owned(), ..list(100, &first.next_page_token) };
    let refused = queries.list_rows(page(&position(&cluster))).await.unwrap_err();
    assert!(
        refused.code() == Code::Aborted && refused.message().contains("list again from the first page"),
        "{refused}"
    );
    assert_eq!(queries.list_rows(page(&before)).await.unwrap().into_inner().rows.len(), 100);
    assert_eq!(queries.list_rows(list(100, &first.next_page_token)).await.unwrap().into_inner().rows.len(), 100);
}
