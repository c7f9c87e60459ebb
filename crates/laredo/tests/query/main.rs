//! The Query service of real processes: every rpc in gRPC and in JSON, under load, under access
//! rules, and across copies and restarts.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod command;
mod curl;
mod load;
mod rpcs;
mod subscribe;

use std::collections::BTreeMap;

use laredo_core::TableName;
use laredo_proto::oam::laredo_query_service_client::LaredoQueryServiceClient;
use laredo_testkit::{Cluster, ClusterOptions};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::transport::Channel;

use support::server::{ServerProcess, ServerProcessConfig};

/// Rows of a table with one index of each kind, and a table with a composite key of other types.
const SCHEMA: &str = "
    CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, color text, price numeric);
    INSERT INTO item SELECT n, 'item ' || n, (ARRAY['red', 'green', NULL])[n % 3 + 1], n / 4.0
        FROM generate_series(1, 500) n;
    CREATE TABLE pair (a text, b bigint, note text, PRIMARY KEY (b, a));
    INSERT INTO pair SELECT 'a' || n, 9007199254740992 + n, 'note ' || n FROM generate_series(1, 20) n";

/// The keys of the target. The table `pair` has no such columns, and so cannot have the indexes.
const TARGET: &str = "query = true
    indexes = [{ name = by_name, fields = [name], unique = true }, { name = by_color, fields = [color] }
               { name = by_price, fields = [price], unique = true }]";

fn item() -> TableName {
    TableName::new("public", "item")
}

fn cluster() -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(SCHEMA).unwrap();
    cluster
}

async fn start(cluster: &Cluster) -> ServerProcess {
    let tables = [item(), TableName::new("public", "pair")];
    ServerProcessConfig::new(cluster.url("postgres"), tables).slot("query").target(TARGET).start().await
}

async fn client(server: &ServerProcess) -> LaredoQueryServiceClient<Channel> {
    let channel = Channel::from_shared(server.oam_url()).unwrap().connect().await.unwrap();
    LaredoQueryServiceClient::new(channel)
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn number(number: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(number)) }
}

fn null() -> Value {
    Value { kind: Some(Kind::NullValue(0)) }
}

/// Returns a whole number in a row.
fn whole(row: &Struct, field: &str) -> i64 {
    match row.fields.get(field).and_then(|value| value.kind.as_ref()) {
        Some(Kind::NumberValue(number)) => *number as i64,
        other => panic!("{field} is {other:?}"),
    }
}

/// Returns a text in a row.
fn word(row: &Struct, field: &str) -> String {
    match row.fields.get(field).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text.clone(),
        other => panic!("{field} is {other:?}"),
    }
}

/// Returns the rows by their `id`. No two have the same.
fn by_id(rows: &[Struct]) -> BTreeMap<i64, Struct> {
    let by_id: BTreeMap<_, _> = rows.iter().map(|row| (whole(row, "id"), row.clone())).collect();
    assert_eq!(by_id.len(), rows.len(), "a row came twice");
    by_id
}
