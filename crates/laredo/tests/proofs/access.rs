//! Access: callers that are refused at every port, and readers that see only their own rows.

use std::collections::BTreeMap;
use std::time::Duration;

use laredo_client::Replica;
use laredo_core::TableName;
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_proto::oam::{CreateSnapshotRequest, GetStatusRequest, ReloadTableRequest};
use laredo_proto::replication::fetch_snapshot_response::Chunk;
use laredo_proto::replication::laredo_replication_service_client::LaredoReplicationServiceClient;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{
    FetchSnapshotRequest, GetReplicationStatusRequest, ListSnapshotsRequest, SyncHandshake, SyncMode, SyncRequest,
    SyncResponse,
};
use laredo_server::{AccessToken, TokenHash};
use laredo_testkit::{Cluster, ClusterOptions, clean_command, eventually};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};

mod reload;

fn orders() -> TableName {
    TableName::new("public", "orders")
}

const SCHEMA: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, tenant_id text NOT NULL, amount int NOT NULL, secret text NOT NULL,
        card bigint NOT NULL DEFAULT 4111222233334444);
    INSERT INTO orders SELECT n, CASE n % 3 WHEN 0 THEN 'acme' WHEN 1 THEN 'globex' ELSE 'other' END, n, 'hush ' || n
        FROM generate_series(1, 300) n;
    CREATE TABLE private (id int PRIMARY KEY); INSERT INTO private VALUES (1)";

/// The text that tenants receive instead of the number of a card.
const MASKED_CARD: &str = "************4444";

fn cluster() -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(SCHEMA).unwrap();
    cluster
}

fn token(name: &str) -> String {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    AccessToken::from_random(bytes).expose().to_owned()
}

fn hash(name: &str) -> TokenHash {
    TokenHash::of(&token(name))
}

/// Returns the block `access`. The tenants read their rows without a column, an analyst reads every
/// row, an operator may reload tables and make snapshots, and an observer reads states.
fn access() -> String {
    let tenant =
        |name: &str| format!("{name} {{ tokens = [{{ sha256 = {} }}], claims {{ tenant = {name} }} }}", hash(name));
    let plain = |name: &str| format!("{name} {{ tokens = [{{ sha256 = {} }}] }}", hash(name));
    format!(
        "access {{
            identities {{
                {} \n {} \n {} \n {} \n {} \n {}
                expired {{ tokens = [{{ sha256 = {}, expires_at = \"2001-01-01T00:00:00Z\" }}], claims {{ tenant = acme }} }}
            }}
            readers = [
                {{ identities = [acme, globex, expired], tables = [public.orders], hide = [secret]
                   mask = [{{ type = mask, fields = [card], keep_last = 4 }}]
                   rows = [{{ type = field-equals, field = tenant_id, value = \"${{claims.tenant}}\" }}] }}
                {{ identities = [analyst], tables = [public.orders] }}
            ]
            operators = [{{ identities = [operator], orders = [ReloadTable, CreateSnapshot] }}]
            observers = [{{ identities = [observer] }}]
        }}",
        tenant("acme"),
        tenant("globex"),
        plain("analyst"),
        plain("operator"),
        plain("observer"),
        plain("guest"),
        hash("expired"),
    )
}

fn config(cluster: &Cluster, folder: &std::path::Path) -> ServerProcessConfig {
    let tables = [orders(), TableName::new("public", "private")];
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), tables).target(&format!(
        "snapshot {{ interval = 1h, store = local, store_config {{ path = \"{}\" }} }}",
        folder.display()
    ));
    config.extra = access();
    config
}

async fn start(cluster: &Cluster, folder: &std::path::Path) -> ServerProcess {
    let mut server = config(cluster, folder).start().await;
    // The verification has no token.
    server.ends_unverified();
    server
}

/// The header with a token.
#[derive(Clone)]
struct Bearer(Option<AsciiMetadataValue>);

impl Bearer {
    fn new(token: Option<&str>) -> Bearer {
        Bearer(token.map(|token| format!("Bearer {token}").parse().unwrap()))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

type BearerChannel = InterceptedService<Channel, Bearer>;

async fn channel(port: u16, token: Option<&str>) -> BearerChannel {
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.unwrap();
    InterceptedService::new(channel, Bearer::new(token))
}

async fn reader(server: &ServerProcess, name: &str) -> LaredoReplicationServiceClient<BearerChannel> {
    LaredoReplicationServiceClient::new(channel(server.ports.fanout, Some(&token(name))).await)
}

async fn oam(server: &ServerProcess, name: &str) -> LaredoOamServiceClient<BearerChannel> {
    LaredoOamServiceClient::new(channel(server.ports.grpc, Some(&token(name))).await)
}

/// Returns the paths of all rpcs of laredo.
fn paths() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(laredo_proto::FILE_DESCRIPTOR_SET).unwrap().file;
    let services = files.iter().flat_map(|file| file.service.iter().map(move |service| (file.package(), service)));
    let methods = services.flat_map(|(package, service)| {
        service.method.iter().map(move |method| format!("/{package}.{}/{}", service.name(), method.name()))
    });
    methods.collect()
}

/// Sends the head of a POST whose body never comes, and returns the answer's code and body.
async fn post_head(port: u16, path: &str, content_type: &str, token: Option<&str>) -> (u16, String) {
    let authorization = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n{authorization}\
         Content-Length: 1000\r\nConnection: close\r\n\r\n"
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("the answer does not wait for the body").unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rpc_answers_a_caller_that_is_not_known_on_any_port_or_in_any_protocol() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let server = start(&cluster, folder.path()).await;
    let (wrong, expired) = (token("wrong"), token("expired"));
    let callers = [None, Some(wrong.as_str()), Some(expired.as_str()), Some("laredo_"), Some("a.b.c")];
    let paths = paths();
    assert!(paths.len() > 30, "{paths:?}");
    for port in [server.ports.grpc, server.ports.fanout] {
        for (path, caller) in paths.iter().flat_map(|path| callers.map(|caller| (path, caller))) {
            let (unary, stream) = (post_head(port, path, "application/json", caller).await, {
                post_head(port, path, "application/connect+json", caller).await
            });
            // One of the two is the right form for the method, and the other one is no call.
            let refused = [&unary, &stream].into_iter().filter(|(code, _)| *code != 415).collect::<Vec<_>>();
            assert_eq!(refused.len(), 1, "{path}: {unary:?} {stream:?}");
            let (code, body) = refused[0];
            assert!(
                [401, 200].contains(code) && body.contains("\"unauthenticated\""),
                "{path} {caller:?}: {refused:?}"
            );
            let (code, body) = post_head(port, path, "application/grpc-web+proto", caller).await;
            assert!(code == 200 && body.contains("grpc-status: 16"), "{path} {caller:?}: {code} {body}");
        }
        for caller in callers {
            let channel = channel(port, caller).await;
            let mut reader = LaredoReplicationServiceClient::new(channel.clone());
            let request = || SyncRequest { schema: "public".into(), table: "orders".into(), ..SyncRequest::default() };
            assert_eq!(reader.sync(request()).await.unwrap_err().code(), Code::Unauthenticated, "{caller:?}");
            let fetch = reader.fetch_snapshot(FetchSnapshotRequest::default()).await;
            assert_eq!(fetch.unwrap_err().code(), Code::Unauthenticated, "{caller:?}");
            let status = LaredoOamServiceClient::new(channel).get_status(GetStatusRequest::default()).await;
            assert_eq!(status.unwrap_err().code(), Code::Unauthenticated, "{caller:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_and_a_token_of_another_role_are_refused() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut server = start(&cluster, folder.path()).await;
    let reload =
        ReloadTableRequest { schema: "public".into(), table: "orders".into(), ..ReloadTableRequest::default() };
    for (name, code) in
        [("operator", None), ("observer", Some(Code::PermissionDenied)), ("acme", Some(Code::PermissionDenied))]
    {
        let answer = oam(&server, name).await.reload_table(reload.clone()).await;
        assert_eq!(answer.as_ref().err().map(Status::code), code, "{name}: {answer:?}");
    }
    let status = |name: &'static str| {
        let server = &server;
        async move { oam(server, name).await.get_status(GetStatusRequest::default()).await.map(drop).map_err(|s| s.code()) }
    };
    assert_eq!(status("observer").await, Ok(()));
    for name in ["operator", "acme", "guest"] {
        assert_eq!(status(name).await, Err(Code::PermissionDenied), "{name}");
    }
    let request = SyncRequest { schema: "public".into(), table: "private".into(), ..SyncRequest::default() };
    let unknown = SyncRequest { table: "no_such_table".into(), ..request.clone() };
    let mut acme = reader(&server, "acme").await;
    for request in [request, unknown] {
        let refused = acme.sync(request).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Code::PermissionDenied,
            "a table is as unknown as one that does not exist: {refused}"
        );
    }
    assert_eq!(server.get(server.ports.health, "/health/live").await.unwrap().0, 200);
    let (code, body) = server.get(server.ports.health, "/health/ready").await.unwrap();
    assert_eq!((code, body.as_str()), (200, "{\"ready\":true}"), "no details for a caller that is not known");
    for port in [server.ports.health, server.ports.metrics] {
        assert_eq!(server.get(port, "/metrics").await.unwrap().0, 401);
    }
    let command = |name: &str| {
        let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
        command.args(["status", "--health", &format!("http://127.0.0.1:{}", server.ports.health)]);
        String::from_utf8(command.env("LAREDO_TOKEN", token(name)).output().unwrap().stdout).unwrap()
    };
    assert!(command("observer").contains("public.orders"), "an observer sees the tables");
    // The operator replaces the tenant's token.
    server.edit_config(&hash("acme").to_string(), &hash("acme2").to_string());
    server.restart().await;
    let status = |name: &'static str| {
        let server = &server;
        async move {
            let request = GetReplicationStatusRequest { schema: "public".into(), table: "orders".into() };
            reader(server, name).await.get_replication_status(request).await.map(drop).map_err(|s| s.code())
        }
    };
    assert_eq!(status("acme").await, Err(Code::Unauthenticated));
    assert_eq!(status("acme2").await, Ok(()));
    server.ends_unverified();
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_and_refusals_are_audited_with_who_and_from_where() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let server = start(&cluster, folder.path()).await;
    let reload =
        ReloadTableRequest { schema: "public".into(), table: "orders".into(), ..ReloadTableRequest::default() };
    oam(&server, "operator").await.reload_table(reload.clone()).await.unwrap();
    oam(&server, "acme").await.reload_table(reload).await.unwrap_err();
    let request = SyncRequest { schema: "public".into(), table: "private".into(), ..SyncRequest::default() };
    reader(&server, "acme").await.sync(request).await.unwrap_err();
    let stranger = channel(server.ports.grpc, Some(&token("wrong"))).await;
    LaredoOamServiceClient::new(stranger).get_status(GetStatusRequest::default()).await.unwrap_err();
    let audited = || -> Vec<Value> {
        let lines = server.process.output().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        lines.filter(|line| line["target"] == "audit").collect()
    };
    eventually(PATIENCE, async || audited().len() >= 4).await.unwrap();
    let audited = audited();
    let short = |line: &Value| {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        assert!(text("peer").starts_with("127.0.0.1:"), "{line}");
        (text("message"), text("identity"), text("rpc").rsplit('/').next().unwrap().to_owned(), text("result"))
    };
    let expected = [
        ("order", "operator", "ReloadTable", "accepted"),
        ("refusal", "acme", "ReloadTable", "PermissionDenied"),
        ("refusal", "acme", "Sync", "PermissionDenied"),
        ("refusal", "", "GetStatus", "Unauthenticated"),
    ]
    .map(|(message, identity, rpc, result)| {
        (message.to_owned(), identity.to_owned(), rpc.to_owned(), result.to_owned())
    });
    assert_eq!(audited.iter().map(short).collect::<Vec<_>>(), expected);
    assert!(audited[0]["request"].as_str().unwrap().contains("table: \"orders\""), "{}", audited[0]);
    assert!(audited[2]["request"].as_str().unwrap().contains("public.private"), "{}", audited[2]);
    let output = server.process.output().join("\n");
    assert!(!output.contains(&token("operator")) && !output.contains(&token("wrong")), "no token is logged");
}

/// The server prefers an order without a line to an operator who cannot act on a full disk.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_cannot_be_written_refuses_no_order_and_is_an_error_in_the_log() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut config = config(&cluster, folder.path());
    config.extra = config.extra.replacen("access {", "access { audit { file = \"/dev/full\" }", 1);
    // The errors are shown at every level.
    config.arguments = vec!["--set".to_owned(), "observability.logging.level=error".to_owned()];
    let mut server = config.start().await;
    server.ends_unverified();
    let reload =
        ReloadTableRequest { schema: "public".into(), table: "orders".into(), ..ReloadTableRequest::default() };
    oam(&server, "operator").await.reload_table(reload.clone()).await.unwrap();
    let refused = oam(&server, "acme").await.reload_table(reload).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "a refusal stays one");
    let lost = || -> u64 {
        let lines = server.process.output().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        let is_error = |line: &Value| {
            let said = line["message"].as_str().unwrap_or_default();
            line["level"] == "ERROR" && said.starts_with("audit lines were dropped") && line["path"] == "/dev/full"
        };
        lines.filter(is_error).map(|line| line["lines"].as_u64().unwrap()).sum()
    };
    eventually(PATIENCE, async || lost() == 2).await.expect("the log says how many lines are missing");
    let answer = metrics(&server, "observer").await;
    let counted = answer.lines().find_map(|line| {
        line.strip_prefix("laredo_log_lines_dropped_total{reason=\"not_written\"} ")?.parse::<u64>().ok()
    });
    assert_eq!(counted, Some(2), "{answer}");
}

/// Returns the metrics as they are served to a caller.
async fn metrics(server: &ServerProcess, name: &str) -> String {
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
        token(name)
    );
    let mut stream = TcpStream::connect(("127.0.0.1", server.ports.metrics)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A reader of Structs: the rows by ID, with everything that its last stream said.
#[derive(Default)]
struct StructReader {
    rows: BTreeMap<i64, Value>,
    handshake: SyncHandshake,
    sequence: i64,
    position: String,
    columns_seen: std::collections::BTreeSet<String>,
}

impl StructReader {
    fn apply(&mut self, message: SyncResponse) {
        let to_json = |row: Option<prost_types::Struct>| -> Option<Value> {
            let fields = row?.fields.into_iter().map(|(name, value)| {
                use prost_types::value::Kind;
                let value = match value.kind.unwrap() {
                    Kind::NumberValue(number) => Value::from(number),
                    Kind::StringValue(text) => Value::from(text),
                    other => panic!("{other:?}"),
                };
                (name, value)
            });
            Some(Value::Object(fields.collect()))
        };
        match message.message.unwrap() {
            Message::Handshake(handshake) => {
                self.columns_seen.extend(handshake.columns.iter().map(|column| column.column_name.clone()));
                self.handshake = handshake;
            }
            Message::SnapshotBegin(begin) => {
                assert_eq!(begin.row_count, 0, "the number of all rows is unknown to a reader of some");
                self.rows.clear();
            }
            Message::SnapshotRow(row) => self.put(to_json(row.row)),
            Message::JournalEntry(entry) => {
                (self.sequence, self.position) = (entry.sequence, entry.source_position);
                let (old, new) = (to_json(entry.old_values), to_json(entry.new_values));
                match entry.action.as_str() {
                    "INSERT" => self.put(new),
                    "UPDATE" => {
                        self.put(old);
                        self.put(new);
                    }
                    "DELETE" => {
                        let old = old.unwrap();
                        self.see(&old);
                        self.rows.remove(&id(&old)).expect("a row that is there");
                    }
                    "" => {}
                    other => panic!("{other}"),
                }
            }
            Message::SnapshotEnd(end) => self.sequence = end.sequence,
            Message::SchemaChange(_) | Message::Heartbeat(_) | Message::GoAway(_) | Message::Batch(_) => {}
        }
    }

    fn put(&mut self, row: Option<Value>) {
        let row = row.unwrap();
        self.see(&row);
        self.rows.insert(id(&row), row);
    }

    fn see(&mut self, row: &Value) {
        self.columns_seen.extend(row.as_object().unwrap().keys().cloned());
    }

    async fn read_until(&mut self, stream: &mut tonic::Streaming<SyncResponse>, done: impl Fn(&StructReader) -> bool) {
        let read = async {
            while !done(self) {
                let message = stream.message().await.unwrap().expect("a Sync never just ends");
                self.apply(message);
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the reader comes there");
    }
}

#[expect(clippy::cast_possible_truncation, reason = "ids are small whole numbers")]
fn id(row: &Value) -> i64 {
    row["id"].as_f64().unwrap() as i64
}

fn ids_of(cluster: &Cluster, tenant: &str) -> Vec<i64> {
    let ids =
        format!("SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM orders WHERE tenant_id = '{tenant}'");
    let ids = cluster.psql(&ids).unwrap();
    ids.trim().split(',').filter(|id| !id.is_empty()).map(|id| id.parse().unwrap()).collect()
}

/// Moves rows between the tenants in every direction.
const MOVES: &str = "
    UPDATE orders SET tenant_id = 'globex' WHERE id IN (3, 6, 9);
    UPDATE orders SET tenant_id = 'acme' WHERE id IN (1, 4);
    UPDATE orders SET tenant_id = 'acme' WHERE id = 2; UPDATE orders SET tenant_id = 'other' WHERE id = 12;
    UPDATE orders SET amount = -1, id = id + 1000 WHERE id IN (15, 16);
    DELETE FROM orders WHERE id IN (18, 19);
    INSERT INTO orders VALUES (501, 'acme', 1, 'hush'), (502, 'globex', 1, 'hush'), (503, 'other', 1, 'hush');
    UPDATE orders SET secret = 'hush!' WHERE id IN (21, 22);
    BEGIN; UPDATE orders SET tenant_id = 'globex' WHERE id = 24; UPDATE orders SET tenant_id = 'acme' WHERE id = 24; COMMIT";

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_see_only_their_own_rows_in_snapshot_stream_and_status() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let server = start(&cluster, folder.path()).await;
    let request = SyncRequest {
        schema: "public".into(),
        table: "orders".into(),
        client_id: "structs".into(),
        ..SyncRequest::default()
    };
    let mut tenants = Vec::new();
    for tenant in ["acme", "globex"] {
        let mut client = reader(&server, tenant).await;
        let stream = client.sync(request.clone()).await.unwrap().into_inner();
        let builder = Replica::builder(server.url(), orders()).token(token(tenant)).client_id("replica");
        tenants.push((tenant, stream, StructReader::default(), builder.start().unwrap()));
    }
    let analyst = Replica::builder(server.url(), orders()).token(token("analyst")).start().unwrap();
    for moved in [false, true] {
        if moved {
            cluster.psql(MOVES).unwrap();
        }
        for (tenant, stream, structs, replica) in &mut tenants {
            let expected = ids_of(&cluster, tenant);
            assert!(expected.len() > 90, "{expected:?}");
            structs.read_until(stream, |reader| reader.rows.keys().copied().eq(expected.iter().copied())).await;
            let has_rows = async || {
                let view = replica.view();
                let mut ids: Vec<i32> = view.rows().map(|row| row.get("id").unwrap()).collect();
                ids.sort_unstable();
                ids.iter().copied().map(i64::from).eq(expected.iter().copied())
            };
            eventually(PATIENCE, has_rows).await.unwrap();
            let view = replica.view();
            for row in view.rows() {
                assert_eq!(row.get::<String>("tenant_id").unwrap(), *tenant);
                assert!(row.get::<String>("secret").is_err(), "the column is hidden");
                assert_eq!(row.get::<String>("card").unwrap(), MASKED_CARD);
            }
            let columns = ["id", "tenant_id", "amount", "card"].map(str::to_owned);
            assert_eq!(structs.columns_seen, columns.into());
            for row in structs.rows.values() {
                assert_eq!((&row["tenant_id"], &row["card"]), (&json!(tenant), &json!(MASKED_CARD)), "{row}");
            }
        }
    }
    let all: usize = cluster.psql("SELECT count(*) FROM orders").unwrap().trim().parse().unwrap();
    let sees_all = async || analyst.view().rows().count() == all;
    eventually(PATIENCE, sees_all).await.unwrap();
    assert!(analyst.view().rows().all(|row| row.get::<i64>("card").unwrap() == 4_111_222_233_334_444));
    status_shows_only_own(&server, all).await;
    for (.., replica) in tenants {
        assert_eq!(replica.status().resyncs, 0);
        replica.stop().await;
    }
    analyst.stop().await;
}

async fn status_shows_only_own(server: &ServerProcess, all: usize) {
    let request = GetReplicationStatusRequest { schema: "public".into(), table: "orders".into() };
    for (name, clients, rows) in [
        ("acme", vec!["acme/replica", "acme/structs"], 0),
        ("globex", vec!["globex/replica", "globex/structs"], 0),
        ("analyst", vec!["analyst"], all),
        ("observer", vec!["acme/replica", "acme/structs", "analyst", "globex/replica", "globex/structs"], all),
    ] {
        let status = reader(server, name).await.get_replication_status(request.clone()).await.unwrap().into_inner();
        let mut seen: Vec<&str> = status.clients.iter().map(|client| client.client_id.as_str()).collect();
        seen.sort_unstable();
        assert_eq!(seen, clients, "{name}");
        assert_eq!(status.connected_clients, i32::try_from(clients.len()).unwrap(), "{name}");
        let rows = i64::try_from(rows).unwrap();
        assert_eq!(status.row_count, rows, "{name}");
        let latest = status.latest_snapshot.unwrap();
        assert_eq!((latest.row_count > 0, latest.size_bytes > 0), (rows > 0, rows > 0), "{name}: {latest:?}");
        assert_eq!(status.full_snapshots.is_empty(), name != "observer", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_snapshot_is_sent_to_a_tenant_without_the_rows_and_numbers_of_others() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let server = start(&cluster, folder.path()).await;
    let create =
        CreateSnapshotRequest { tables: vec!["public.orders".into(), "public.private".into()], user_meta: None };
    let ids = oam(&server, "operator").await.create_snapshot(create).await.unwrap().into_inner().snapshot_id;
    let (orders, private) = ids.split_once(',').unwrap();
    for tenant in ["acme", "globex"] {
        let mut client = reader(&server, tenant).await;
        let request = ListSnapshotsRequest { schema: "public".into(), table: "orders".into(), limit: 0 };
        let listed = client.list_snapshots(request).await.unwrap().into_inner().snapshots;
        assert!(listed.iter().any(|snapshot| snapshot.snapshot_id == orders), "{listed:?}");
        assert!(listed.iter().all(|snapshot| (snapshot.row_count, snapshot.size_bytes) == (0, 0)), "{listed:?}");
        let request = FetchSnapshotRequest { snapshot_id: orders.to_owned() };
        let mut stream = client.fetch_snapshot(request).await.unwrap().into_inner();
        let (mut ids, mut ended) = (Vec::new(), None);
        while let Some(chunk) = stream.message().await.unwrap() {
            match chunk.chunk.unwrap() {
                Chunk::Begin(begin) => assert_eq!(begin.row_count, 0),
                Chunk::Row(row) => {
                    let fields = row.row.unwrap().fields;
                    assert!(fields.contains_key("tenant_id") && !fields.contains_key("secret"), "{fields:?}");
                    assert_eq!(fields["card"], MASKED_CARD.into());
                    let Some(prost_types::value::Kind::NumberValue(id)) = fields["id"].kind else {
                        panic!("{fields:?}")
                    };
                    #[expect(clippy::cast_possible_truncation, reason = "ids are small whole numbers")]
                    ids.push(id as i64);
                }
                Chunk::End(end) => ended = Some(end.rows_sent),
            }
        }
        ids.sort_unstable();
        assert_eq!(ids, ids_of(&cluster, tenant));
        assert_eq!(ended, Some(100));
        for unknown in [private, "no-such-7"] {
            let request = FetchSnapshotRequest { snapshot_id: unknown.to_owned() };
            let refused = client.fetch_snapshot(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::NotFound, "{refused}");
            assert_eq!(
                refused.message().replace(unknown, "X"),
                "there is no snapshot `X`; ListSnapshots lists the snapshots"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_grant_are_replaced_and_rows_of_the_same_grant_are_continued() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let server = start(&cluster, folder.path()).await;
    let fresh = SyncRequest { schema: "public".into(), table: "orders".into(), ..SyncRequest::default() };
    let mut held = BTreeMap::new();
    for tenant in ["acme", "analyst"] {
        let mut structs = StructReader::default();
        let mut client = reader(&server, tenant).await;
        let mut stream = client.sync(fresh.clone()).await.unwrap().into_inner();
        let read = async {
            // The marker after the snapshot's end has a position.
            while structs.position.is_empty() {
                match stream.message().await.unwrap().unwrap().message.unwrap() {
                    Message::Handshake(handshake) => structs.handshake = handshake,
                    Message::JournalEntry(entry) => {
                        (structs.sequence, structs.position) = (entry.sequence, entry.source_position);
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap();
        held.insert(tenant, structs);
    }
    for (holder, structs) in &held {
        for caller in ["acme", "globex", "analyst"] {
            for names_snapshot in [true, false] {
                let last_snapshot_id =
                    if names_snapshot { structs.handshake.snapshot_id.clone() } else { String::new() };
                let request = SyncRequest {
                    last_snapshot_id,
                    last_known_sequence: structs.sequence,
                    last_known_source_position: structs.position.clone(),
                    ..fresh.clone()
                };
                let mut stream = reader(&server, caller).await.sync(request).await.unwrap().into_inner();
                let Some(Message::Handshake(handshake)) = stream.message().await.unwrap().unwrap().message else {
                    panic!("a stream begins with a handshake")
                };
                let continues = *holder == caller && names_snapshot;
                let expected = if continues { SyncMode::Delta } else { SyncMode::FullSnapshot };
                assert_eq!(handshake.mode(), expected, "{caller} with the rows of {holder}, {names_snapshot}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_uses_a_token_and_makes_new_ones() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let server = start(&cluster, folder.path()).await;
    let run = |arguments: &[&str], token: Option<&str>| {
        let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
        command.args(arguments);
        if let Some(token) = token {
            command.env("LAREDO_TOKEN", token);
        }
        command.output().unwrap()
    };
    let oam = server.oam_url();
    let source = ["source", "--oam", oam.as_str()];
    let refused = run(&source, None);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("authorization: Bearer TOKEN"), "{refused:?}");
    assert!(run(&source, Some(&token("observer"))).status.success());
    assert!(run(&["source", "--oam", &oam, "--token", &token("observer")], None).status.success());
    assert!(!run(&source, Some(&token("acme"))).status.success());
    let made = run(&["token", "new", "--json"], None);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let text = made["token"].as_str().unwrap();
    assert!(text.starts_with("laredo_") && text.len() == 71, "{made}");
    assert_eq!(made["sha256"], TokenHash::of(text).to_string(), "{made}");
    let other: Value = serde_json::from_slice(&run(&["token", "new", "--json"], None).stdout).unwrap();
    assert_ne!(made, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_the_token_of_its_caller_expires() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let mut config = config(&cluster, folder.path());
    let seconds =
        cluster.psql("SELECT to_char(now() AT TIME ZONE 'UTC' + interval '20 s', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')");
    config.extra = config.extra.replace("2001-01-01T00:00:00Z", seconds.unwrap().trim());
    let mut server = config.start().await;
    server.ends_unverified();
    let request = SyncRequest { schema: "public".into(), table: "orders".into(), ..SyncRequest::default() };
    let mut client = reader(&server, "expired").await;
    let mut stream = client.sync(request.clone()).await.unwrap().into_inner();
    let read = async {
        loop {
            match stream.message().await {
                Ok(message) => assert!(message.is_some(), "it ends with a status"),
                Err(status) => return status,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE + Duration::from_secs(20), read).await.unwrap();
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    assert_eq!(client.sync(request).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_has_its_own_limits() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    cluster
        .psql("INSERT INTO orders SELECT n, 'acme', n, repeat('x', 100) FROM generate_series(1001, 21000) n")
        .unwrap();
    let mut config = config(&cluster, folder.path());
    let limits = "limits { streams = 2, snapshot_rate = 200KiB/s }";
    config.extra =
        config.extra.replace("claims { tenant = acme } }", &format!("claims {{ tenant = acme }}, {limits} }}"));
    let mut server = config.start().await;
    server.ends_unverified();
    let request = SyncRequest { schema: "public".into(), table: "orders".into(), ..SyncRequest::default() };
    let mut acme = reader(&server, "acme").await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(acme.sync(request.clone()).await.unwrap().into_inner());
    }
    let refused = acme.sync(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    reader(&server, "globex").await.sync(request.clone()).await.unwrap();
    streams.pop();
    let again = async || acme.clone().sync(request.clone()).await.is_ok();
    eventually(PATIENCE, again).await.unwrap();
    // A snapshot of more than a megabyte at 200 KiB a second has heartbeats in between.
    let mut heartbeats = 0;
    let mut stream = streams.pop().unwrap();
    let read = async {
        loop {
            match stream.message().await.unwrap().unwrap().message.unwrap() {
                Message::Heartbeat(_) => heartbeats += 1,
                Message::SnapshotEnd(end) => return end.rows_sent,
                _ => {}
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, read).await.unwrap(), 20_100);
    assert!(heartbeats > 3, "{heartbeats}");
}
