//! Queries under access rules: a row, a column or an index that a grant does not show does not
//! exist for its caller, in every rpc.

use laredo_core::TableName;
use laredo_proto::oam::laredo_query_service_client::LaredoQueryServiceClient;
use laredo_proto::oam::{
    CountRowsRequest, GetRowRequest, ListRowsRequest, LookupAllRequest, LookupRequest, SubscribeRequest,
};
use laredo_server::{AccessToken, TokenHash};
use laredo_testkit::{Cluster, ClusterOptions};
use prost_types::{Struct, Value};
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::support::server::{ServerProcess, ServerProcessConfig};
use super::{number, text, whole, word};

const SCHEMA: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, tenant text NOT NULL, code text NOT NULL, secret text NOT NULL,
        card text NOT NULL, tag text NOT NULL);
    INSERT INTO orders SELECT n, CASE n % 2 WHEN 0 THEN 'acme' ELSE 'globex' END, 'code ' || n, 'hush ' || n,
        '411122223333' || n, 'shared' FROM generate_series(1, 100) n";

const TARGET: &str = "query = true
    indexes = [{ name = by_code, fields = [code], unique = true }, { name = by_tag, fields = [tag] }
               { name = by_secret, fields = [secret], unique = true }
               { name = by_card, fields = [card], unique = true }]";

fn token(name: &str) -> String {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    AccessToken::from_random(bytes).expose().to_owned()
}

fn access() -> String {
    let identity = |name: &str| format!("{name} {{ tokens = [{{ sha256 = {} }}] }}", TokenHash::of(&token(name)));
    format!(
        "access {{
            identities {{ {} \n {} \n {} }}
            readers = [
                {{ identities = [acme], tables = [public.orders], hide = [secret]
                   mask = [{{ type = mask, fields = [card], keep_last = 2 }}]
                   rows = [{{ type = field-equals, field = tenant, value = acme }}] }}
                {{ identities = [analyst], tables = [public.orders] }}
            ]
        }}",
        identity("acme"),
        identity("analyst"),
        identity("guest"),
    )
}

async fn start(cluster: &Cluster) -> ServerProcess {
    let tables = [TableName::new("public", "orders")];
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), tables).target(TARGET);
    config.extra = access();
    let mut server = config.start().await;
    // The verification has no token.
    server.ends_unverified();
    server
}

/// The header with a token.
#[derive(Clone)]
struct QueryToken(AsciiMetadataValue);

impl Interceptor for QueryToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type QueryClient = LaredoQueryServiceClient<InterceptedService<Channel, QueryToken>>;

async fn caller(server: &ServerProcess, name: &str) -> QueryClient {
    let header = format!("Bearer {}", token(name)).parse().unwrap();
    let channel = Channel::from_shared(server.oam_url()).unwrap().connect().await.unwrap();
    LaredoQueryServiceClient::new(InterceptedService::new(channel, QueryToken(header)))
}

fn names() -> (String, String) {
    ("public".to_owned(), "orders".to_owned())
}

fn get(primary_key: i64) -> GetRowRequest {
    let (schema, table) = names();
    GetRowRequest { schema, table, primary_key, ..GetRowRequest::default() }
}

fn lookup(index_name: &str, value: Value) -> LookupRequest {
    let (schema, table) = names();
    let (index_name, key_values) = (index_name.to_owned(), vec![value]);
    LookupRequest { schema, table, index_name, key_values, ..LookupRequest::default() }
}

fn lookup_all(index_name: &str, value: Value) -> LookupAllRequest {
    let LookupRequest { schema, table, index_name, key_values, .. } = lookup(index_name, value);
    LookupAllRequest { schema, table, index_name, key_values, ..LookupAllRequest::default() }
}

fn list(page_size: i32, page_token: String) -> ListRowsRequest {
    let (schema, table) = names();
    ListRowsRequest { schema, table, page_size, page_token, ..ListRowsRequest::default() }
}

fn count() -> CountRowsRequest {
    let (schema, table) = names();
    CountRowsRequest { schema, table, ..CountRowsRequest::default() }
}

/// Checks a row of the tenant: its own, without the hidden column, and with the masked one.
fn is_own(row: &Struct) {
    assert_eq!(word(row, "tenant"), "acme");
    assert!(!row.fields.contains_key("secret"), "{row:?}");
    assert!(word(row, "card").starts_with("****"), "{row:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_its_rows_alone_in_every_rpc() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(SCHEMA).unwrap();
    let server = start(&cluster).await;
    let (mut acme, mut analyst) = (caller(&server, "acme").await, caller(&server, "analyst").await);

    is_own(&acme.get_row(get(2)).await.unwrap().into_inner().row.unwrap());
    let other = acme.get_row(get(1)).await.unwrap().into_inner();
    assert_eq!(other, acme.get_row(get(1000)).await.unwrap().into_inner(), "another's row is like one that is missing");
    let whole_row = analyst.get_row(get(1)).await.unwrap().into_inner().row.unwrap();
    assert_eq!(word(&whole_row, "secret"), "hush 1");

    is_own(&acme.lookup(lookup("by_code", text("code 2"))).await.unwrap().into_inner().row.unwrap());
    let other = acme.lookup(lookup("by_code", text("code 1"))).await.unwrap().into_inner();
    assert_eq!(other, acme.lookup(lookup("by_code", text("no code"))).await.unwrap().into_inner());
    let other = acme.lookup(lookup("", number(1.0))).await.unwrap().into_inner();
    assert!(!other.found);
    let found = acme.lookup_all(lookup_all("by_tag", text("shared"))).await.unwrap().into_inner().rows;
    assert_eq!(found.len(), 50);
    found.iter().for_each(is_own);
    assert_eq!(analyst.lookup_all(lookup_all("by_tag", text("shared"))).await.unwrap().into_inner().rows.len(), 100);

    let (mut rows, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = acme.list_rows(list(7, page_token)).await.unwrap().into_inner();
        assert_eq!(page.total_count, 50);
        rows.extend(page.rows);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        let stolen = analyst.list_rows(list(7, page_token.clone())).await.unwrap_err();
        assert_eq!(stolen.code(), Code::Aborted, "{stolen}");
    }
    rows.iter().for_each(is_own);
    let ids: Vec<i64> = rows.iter().map(|row| whole(row, "id")).collect();
    assert_eq!(ids, (1..=50).map(|n| n * 2).collect::<Vec<_>>());
    assert_eq!(acme.count_rows(count()).await.unwrap().into_inner().count, 50);
    assert_eq!(analyst.count_rows(count()).await.unwrap().into_inner().count, 100);

    let (schema, table) = names();
    let mut stream =
        acme.subscribe(SubscribeRequest { schema, table, replay_existing: true }).await.unwrap().into_inner();
    for _ in 0..50 {
        is_own(&stream.message().await.unwrap().unwrap().new_values.unwrap());
    }
    // Of another's change nothing is sent, and a row that is given away is deleted.
    cluster
        .psql("UPDATE orders SET code = 'x' WHERE id = 1; UPDATE orders SET tenant = 'globex' WHERE id = 4")
        .unwrap();
    let event = stream.message().await.unwrap().unwrap();
    assert_eq!((event.action.as_str(), event.new_values), ("DELETE", None));
    let gone = event.old_values.unwrap();
    assert_eq!(whole(&gone, "id"), 4);
    is_own(&gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_reveals_nothing_of_hidden_rows_and_columns() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(SCHEMA).unwrap();
    let server = start(&cluster).await;
    let (mut acme, mut guest) = (caller(&server, "acme").await, caller(&server, "guest").await);
    let unlike = |name: &str, status: &Status| status.message().replace(name, "NAME");
    let hidden = acme.lookup(lookup("by_secret", text("hush 2"))).await.unwrap_err();
    let unknown = acme.lookup(lookup("by_nothing", text("hush 2"))).await.unwrap_err();
    assert_eq!((hidden.code(), unknown.code()), (Code::NotFound, Code::NotFound));
    assert_eq!(unlike("by_secret", &hidden), unlike("by_nothing", &unknown));
    let hidden = acme.lookup_all(lookup_all("by_secret", text("hush 2"))).await.unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound);
    for card in ["4111222233332", "no card"] {
        let masked = acme.lookup(lookup("by_card", text(card))).await.unwrap_err();
        assert_eq!(masked.code(), Code::PermissionDenied, "{masked}");
        assert!(masked.message().contains("`card`"), "{masked}");
    }
    // A duplicate among rows that the caller may not see does not show.
    cluster.psql("UPDATE orders SET code = 'code 2' WHERE id IN (1, 3)").unwrap();
    let at_least = cluster.psql("SELECT pg_current_wal_lsn()").unwrap().trim().to_owned();
    let request = LookupRequest { at_least, ..lookup("by_code", text("code 2")) };
    is_own(&acme.lookup(request).await.unwrap().into_inner().row.unwrap());
    let refused = guest.get_row(get(2)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = guest.count_rows(CountRowsRequest { table: "nothing".to_owned(), ..count() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}
