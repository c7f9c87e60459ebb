//! Kept snapshots: clients list and fetch them, and operators manage them.

use std::path::Path;
use std::time::Duration;

use crate::support::{
    GrpcTestClient, LONG, SimServer, SimpleReplica, clock, http, next, request, start, start_engine, within,
};
use laredo_engine::{Engine, SnapshotFormat, SnapshotOptions};
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_proto::oam::{
    CreateSnapshotRequest, DeleteSnapshotRequest, GetStatusRequest, GetTableSchemaRequest, InspectSnapshotRequest,
    ListSnapshotsRequest as OamListRequest, PruneSnapshotsRequest, RestoreSnapshotRequest,
};
use laredo_proto::replication::fetch_snapshot_response::Chunk;
use laredo_proto::replication::{
    FetchSnapshotRequest, GetReplicationStatusRequest, ListSnapshotsRequest, RowEncoding, SyncMode, SyncRequest,
};
use laredo_testkit::SimChange::{Delete, Insert};
use laredo_testkit::{SimDatabase, SimRows, eventually, sim_table};
use prost_types::value::Kind;
use tonic::transport::Channel;
use tonic::{Code, Status};

const META: &str = "before the move";

pub(crate) fn kept(name: &str, folder: &Path, format: SnapshotFormat) -> laredo_engine::TableOptions {
    let (folder, interval) = (folder.join(name), Duration::from_secs(3600));
    let snapshots = Some(SnapshotOptions { folder, format, interval, keep_count: 10, age_max: None });
    laredo_engine::TableOptions { snapshots, ..sim_table(name) }
}

/// Starts a server with snapshots, and waits for the first one.
async fn serve(database: &SimDatabase, folder: &Path, format: SnapshotFormat) -> SimServer {
    let server = start(database.clone(), vec![kept("t0", folder, format)], |_| {}).await;
    server.ready().await;
    let written = async || server.engine.tables()[0].snapshots().unwrap().newest().is_some();
    eventually(LONG, written).await.unwrap();
    server
}

async fn oam(server: &SimServer) -> LaredoOamServiceClient<Channel> {
    LaredoOamServiceClient::new(server.channel().await)
}

/// Requests a snapshot once the journal has everything.
async fn create(server: &SimServer, database: &SimDatabase) -> String {
    let end = database.end();
    let mut head = server.engine.tables()[0].journal().unwrap().watch_head();
    within(head.wait_for(|head| head.position >= end), "the head").await.unwrap();
    let kind = Some(Kind::StringValue(META.to_owned()));
    let user_meta = Some(prost_types::Struct { fields: [("why".to_owned(), prost_types::Value { kind })].into() });
    let request = CreateSnapshotRequest { tables: vec!["public.t0".to_owned()], user_meta };
    let answer = oam(server).await.create_snapshot(request).await.unwrap().into_inner();
    assert!(answer.accepted);
    answer.snapshot_id
}

fn in_table(limit: i32) -> ListSnapshotsRequest {
    ListSnapshotsRequest { schema: "public".to_owned(), table: "t0".to_owned(), limit }
}

/// Fetches a complete snapshot. Returns its rows, sequence and position.
async fn fetch(client: &mut GrpcTestClient, snapshot_id: &str) -> Result<(SimRows, i64, String), Status> {
    let request = FetchSnapshotRequest { snapshot_id: snapshot_id.to_owned() };
    let mut stream = client.fetch_snapshot(request).await?.into_inner();
    let (mut rows, mut begin, mut end) = (SimRows::new(), None, None);
    while let Some(answer) = within(stream.message(), "a part").await? {
        match answer.chunk.unwrap() {
            Chunk::Begin(message) => assert!(begin.replace(message).is_none()),
            Chunk::Row(row) => {
                let (id, body) = crate::support::parse(&row.row.unwrap());
                assert!(rows.insert(id, body).is_none() && begin.is_some() && end.is_none());
            }
            Chunk::End(message) => assert!(end.replace(message).is_none()),
        }
    }
    let (begin, end) = (begin.unwrap(), end.unwrap());
    assert_eq!(
        (begin.snapshot_id.as_str(), begin.row_count, end.rows_sent),
        (snapshot_id, end.rows_sent, rows.len() as i64)
    );
    assert_eq!((begin.sequence, &begin.source_position), (end.sequence, &end.source_position));
    Ok((rows, end.sequence, end.source_position))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_listed_and_fetched_and_gone_on_from() {
    for format in [SnapshotFormat::Native, SnapshotFormat::Jsonl] {
        let (database, folder) = (SimDatabase::new(1), tempfile::tempdir().unwrap());
        let large = (0..200).map(|id| Insert(id, format!("{id}").repeat(2000))).collect();
        let copied = database.commit(0, large);
        let server = serve(&database, folder.path(), format).await;
        let end = database.commit(0, vec![Delete(7), Insert(1000, "new".to_owned())]);
        let id = create(&server, &database).await;
        let mut client = server.client().await;
        let listed = client.list_snapshots(in_table(0)).await.unwrap().into_inner().snapshots;
        assert_eq!(listed.len(), 2, "the newest first");
        assert_eq!(
            (listed[0].snapshot_id.as_str(), listed[0].source_position.as_str()),
            (id.as_str(), end.to_string().as_str())
        );
        assert_eq!((listed[0].row_count, listed[1].row_count), (200, 200));
        assert_eq!(client.list_snapshots(in_table(1)).await.unwrap().into_inner().snapshots, listed[..1]);
        let status = GetReplicationStatusRequest { schema: "public".to_owned(), table: "t0".to_owned() };
        let status = client.get_replication_status(status).await.unwrap().into_inner();
        assert_eq!(status.latest_snapshot.as_ref(), listed.first());
        let (rows, sequence, position) = fetch(&mut client, &id).await.unwrap();
        assert_eq!((&rows, position), (&database.rows_at(0, end), end.to_string()));
        let older = fetch(&mut client, &listed[1].snapshot_id).await.unwrap();
        assert_eq!((older.0, older.2), (database.rows_at(0, copied), copied.to_string()));
        // A client resumes from the snapshot with its name and sequence, and needs no other
        // snapshot.
        let later = database.commit(0, vec![Delete(8)]);
        let on = SyncRequest { last_snapshot_id: id, last_known_sequence: sequence, ..request(RowEncoding::Struct) };
        let mut stream = server.sync(on).await;
        let mut replica = SimpleReplica::default();
        replica.rows = rows;
        replica.read_to(&mut stream, later).await;
        assert_eq!((replica.handshake.mode(), replica.snapshots), (SyncMode::Delta, 0));
        assert_eq!(replica.rows, database.rows_at(0, later));
        for (name, least) in [("laredo_stored_snapshots", 2.0), ("laredo_stored_snapshot_writes_total", 2.0)] {
            assert_eq!(server.metric(&format!("{name}{{table=\"public.t0\"}}")).await, least, "{name}");
        }
    }
}

/// Like everything else, a snapshot is also available in JSON over HTTP/1.1.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_fetched_in_every_protocol() {
    let (database, folder) = (SimDatabase::new(1), tempfile::tempdir().unwrap());
    database.commit(0, vec![Insert(1, "one".to_owned())]);
    let server = serve(&database, folder.path(), SnapshotFormat::Native).await;
    let path = |method| format!("/laredo.replication.v1.LaredoReplicationService/{method}");
    let json = [("Content-Type", "application/json")];
    let ask = br#"{"schema":"public","table":"t0"}"#;
    let mut listed = http::http1(server.fanout, "POST", &path("ListSnapshots"), &json, ask).await;
    let id = listed.json().await["snapshots"][0]["snapshotId"].as_str().unwrap().to_owned();
    let body = serde_json::json!({ "snapshotId": id }).to_string();
    let stream = [("Content-Type", "application/connect+json")];
    let reply =
        http::http1(server.fanout, "POST", &path("FetchSnapshot"), &stream, &http::frame(body.as_bytes())).await;
    assert_eq!(reply.status, 200);
    let (mut frames, mut told) = (reply.frames(), Vec::new());
    while let Some(frame) = frames.next().await {
        told.push(serde_json::from_slice::<serde_json::Value>(&frame[5..]).unwrap());
    }
    let [begin, row, end, last] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((&begin["begin"]["snapshotId"], &end["end"]["rowsSent"]), (&id.into(), &"1".into()));
    assert_eq!((&row["row"]["row"], last), (&serde_json::json!({ "id": 1.0, "body": "one" }), &serde_json::json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_look_after_snapshots() {
    let (database, folder) = (SimDatabase::new(1), tempfile::tempdir().unwrap());
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let server = serve(&database, folder.path(), SnapshotFormat::Jsonl).await;
    let mut ids = Vec::new();
    for id in 10..14 {
        database.commit(0, vec![Insert(id, "b".to_owned())]);
        ids.push(create(&server, &database).await);
    }
    let mut client = oam(&server).await;
    let status = client.get_status(GetStatusRequest {}).await.unwrap().into_inner().snapshot_status.unwrap();
    assert_eq!((status.enabled, status.store_type.as_str(), status.snapshot_count), (true, "local", 5));
    assert!(status.next_scheduled_at.is_some() && status.last_snapshot_at.is_some());
    let all = client.list_snapshots(OamListRequest::default()).await.unwrap().into_inner().snapshots;
    let newest = all.iter().find(|info| info.snapshot_id == ids[3]).unwrap();
    let inspect = InspectSnapshotRequest { snapshot_id: ids[3].clone() };
    let info = client.inspect_snapshot(inspect).await.unwrap().into_inner().info.unwrap();
    assert_eq!(&info, newest);
    assert_eq!((info.format.as_str(), info.tables[0].row_count, info.tables[0].table.as_str()), ("jsonl", 5, "t0"));
    assert_eq!(
        (info.source_positions[0].source_id.as_str(), &info.source_positions[0].position),
        ("sim", &database.end().to_string())
    );
    assert_eq!(info.user_meta.unwrap().fields["why"].kind, Some(Kind::StringValue(META.to_owned())));
    assert!(Path::new(&info.store_location).is_file());
    let delete = |id: &str| DeleteSnapshotRequest { snapshot_id: id.to_owned() };
    assert!(client.delete_snapshot(delete(&ids[1])).await.unwrap().into_inner().deleted);
    let prune = PruneSnapshotsRequest { keep: 2, table: "public.t0".to_owned() };
    assert_eq!(client.prune_snapshots(prune).await.unwrap().into_inner().deleted_count, 2);
    let left = client.list_snapshots(OamListRequest { table: "public.t0".to_owned(), limit: 9 }).await.unwrap();
    let left: Vec<_> = left.into_inner().snapshots.into_iter().map(|info| info.snapshot_id).collect();
    assert!(left.len() == 2 && ids[2..].iter().all(|id| left.contains(id)), "{left:?}");

    let said = |refused: Result<(), Status>, code: Code, words: &str| {
        let status = refused.unwrap_err();
        assert!(status.code() == code && status.message().contains(words), "{status:?}: {words}");
    };
    said(client.delete_snapshot(delete(&ids[3])).await.map(drop), Code::FailedPrecondition, "is the newest");
    said(client.delete_snapshot(delete(&ids[1])).await.map(drop), Code::NotFound, &ids[1]);
    said(client.delete_snapshot(delete("")).await.map(drop), Code::InvalidArgument, "`snapshot_id`");
    let none = PruneSnapshotsRequest::default();
    said(client.prune_snapshots(none).await.map(drop), Code::InvalidArgument, "`keep`");
    let below = OamListRequest { limit: -1, ..OamListRequest::default() };
    said(client.list_snapshots(below).await.map(drop), Code::InvalidArgument, "`limit`");
    let unknown = CreateSnapshotRequest { tables: vec!["public.no".to_owned()], user_meta: None };
    said(client.create_snapshot(unknown).await.map(drop), Code::NotFound, "public.no");
    let mut restore = RestoreSnapshotRequest { snapshot_id: ids[3].clone(), ..RestoreSnapshotRequest::default() };
    said(client.restore_snapshot(restore.clone()).await.map(drop), Code::FailedPrecondition, "set `confirm`");
    restore.confirm = true;
    said(client.restore_snapshot(restore).await.map(drop), Code::FailedPrecondition, "never go back in time");
    let mut replication = server.client().await;
    said(fetch(&mut replication, "nothing").await.map(drop), Code::NotFound, "nothing");
    // Flip a byte of a row.
    let mut bytes = std::fs::read(&info.store_location).unwrap();
    let place = bytes.len() - 200;
    bytes[place] ^= 1;
    std::fs::write(&info.store_location, bytes).unwrap();
    let inspect = InspectSnapshotRequest { snapshot_id: ids[3].clone() };
    said(client.inspect_snapshot(inspect.clone()).await.map(drop), Code::DataLoss, &info.store_location);
    said(client.inspect_snapshot(inspect).await.map(drop), Code::NotFound, "no snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_restored_where_nothing_newer_is_served() {
    let (database, folder) = (SimDatabase::new(1), tempfile::tempdir().unwrap());
    database.commit(0, vec![Insert(1, "stays".to_owned()), Insert(2, "goes".to_owned())]);
    let mut table = kept("t0", folder.path(), SnapshotFormat::Native);
    // Filtered rows cannot be followed from, so the table is copied at each start.
    let test = laredo_values::MatchCondition::Prefix(String::new());
    table.pipeline.filters = vec![laredo_values::Predicate { field: "body".to_owned(), test }];
    let first = start(database.clone(), vec![table.clone()], |_| {}).await;
    first.ready().await;
    let id = create(&first, &database).await;
    let newest = first.engine.tables()[0].snapshots().unwrap().newest().unwrap();
    drop(first);
    // The snapshot is of another run, whose source has discarded the later changes. The folder is
    // free once the engine has ended.
    let opened = async || std::fs::File::open(folder.path().join("t0/lock")).unwrap().try_lock().is_ok();
    eventually(LONG, opened).await.unwrap();
    let another = SimDatabase::new(1);
    for id in 0..50 {
        another.commit(0, vec![Insert(id + 100, "x".to_owned())]);
    }
    another.commit(0, vec![Insert(1, "stays".to_owned())]);
    assert!(another.end() > newest.position);
    another.hold_copies();
    another.redefine("another");
    let server = start(another.clone(), vec![table], |_| {}).await;
    let restore = RestoreSnapshotRequest { snapshot_id: id, confirm: true, skip_meta_check: false };
    let restored = oam(&server).await.restore_snapshot(restore).await.unwrap().into_inner();
    assert!(restored.accepted && restored.warnings[0].contains(&newest.position.to_string()), "{restored:?}");
    assert_eq!(restored.user_meta.unwrap().fields["why"].kind, Some(Kind::StringValue(META.to_owned())));
    let mut stream = server.sync(request(RowEncoding::Struct)).await;
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, newest.position).await;
    assert_eq!(replica.rows, database.rows_at(0, newest.position));
    another.release_copies();
    replica.read_to(&mut stream, another.end()).await;
    assert_eq!((&replica.rows, replica.snapshots), (&another.rows_at(0, another.end()), 1));
}

/// All clients share one encoding. No more of them are served at once than there are snapshot
/// permits, and each gets everything.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_clients_at_once_share_one_base_and_stand_in_line() {
    let database = SimDatabase::new(1);
    let rows = (0..300).map(|id| Insert(id, format!("{id}").repeat(300))).collect();
    database.commit(0, rows);
    let server = crate::support::serve(&database, "a").await;
    server.ready().await;
    let mut clients = Vec::new();
    for number in 0..500 {
        let encoding = if number % 2 == 0 { RowEncoding::Struct } else { RowEncoding::PostgresBinary };
        // A connection carries at most two hundred streams.
        let mut client = if number % 50 == 0 { server.client().await } else { client_of(&clients) };
        clients.push((
            client.clone(),
            tokio::spawn(async move {
                let mut stream = within(client.sync(request(encoding)), "a stream").await.unwrap().into_inner();
                let mut replica = SimpleReplica::default();
                replica.read(&mut stream).await;
                while replica.snapshots == 0 {
                    replica.read(&mut stream).await;
                }
                (replica, stream)
            }),
        ));
    }
    let mut followers = Vec::new();
    for (_, task) in clients {
        followers.push(within(task, "a client").await.unwrap());
    }
    let end = database.commit(0, vec![Insert(1000, "for all".to_owned())]);
    for (replica, stream) in &mut followers {
        replica.read_to(stream, end).await;
        assert_eq!((&replica.rows, replica.snapshots), (&database.rows_at(0, end), 1));
    }
    let metric = async |name: &str| server.metric(name).await;
    assert_eq!(metric("laredo_bases_total{table=\"public.t0\"}").await, 1.0);
    assert_eq!(metric("laredo_snapshots_total{table=\"public.t0\",reason=\"fresh client\"}").await, 500.0);
    let projected = metric("laredo_projected_entries_total{table=\"public.t0\",kind=\"struct\"}").await;
    assert_eq!(projected, 301.0, "for all who want Structs together");
    let (most, now) = (metric("laredo_snapshot_sends_max").await, metric("laredo_snapshot_sends").await);
    assert!(most <= 16.0 && most > 1.0 && now == 0.0, "{most} at once, {now} now");
    assert_eq!(metric("laredo_snapshot_waits").await, 0.0);
}

fn client_of<T>(clients: &[(GrpcTestClient, T)]) -> GrpcTestClient {
    clients.last().unwrap().0.clone()
}

/// Serves a table whose snapshots have a file where their folder should be.
async fn serve_with_unopened_folder(folder: &Path) -> SimServer {
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    std::fs::write(folder.join("t0"), "not a folder").unwrap();
    let engine = Engine::new("sim", database, vec![kept("t0", folder, SnapshotFormat::Native)], clock());
    start_engine(engine, |options| options.waits.ready = Duration::from_millis(200)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_opened_is_named_as_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve_with_unopened_folder(folder.path()).await;
    let table = server.engine.tables()[0].clone();
    let has_failed = async || table.status().phase.error().is_some();
    eventually(LONG, has_failed).await.unwrap();
    let place = folder.path().join("t0").display().to_string();
    let (mut client, mut oam) = (server.client().await, oam(&server).await);
    let fetched = FetchSnapshotRequest { snapshot_id: "a-1".to_owned() };
    let deleted = DeleteSnapshotRequest { snapshot_id: "a-1".to_owned() };
    let refused = [
        client.list_snapshots(in_table(0)).await.unwrap_err(),
        client.fetch_snapshot(fetched).await.unwrap_err(),
        oam.list_snapshots(OamListRequest::default()).await.unwrap_err(),
        oam.create_snapshot(CreateSnapshotRequest::default()).await.unwrap_err(),
        oam.delete_snapshot(deleted).await.unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        let says = |text: &str| status.message().contains(text);
        assert!(says("the snapshot folder of table public.t0 is not open") && says(&place), "{status:?}");
    }
    let schema = GetTableSchemaRequest { schema: "public".to_owned(), table: "t0".to_owned() };
    let status = GetReplicationStatusRequest { schema: "public".to_owned(), table: "t0".to_owned() };
    let unserved = [
        oam.get_table_schema(schema).await.unwrap_err(),
        client.get_replication_status(status).await.unwrap_err(),
        next(&mut server.sync(request(RowEncoding::Struct)).await).await.unwrap_err(),
    ];
    for status in unserved {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let says = |text: &str| status.message().contains(text);
        assert!(says("no rows of table public.t0") && says(&place) && !says("first time"), "{status:?}");
    }
}
