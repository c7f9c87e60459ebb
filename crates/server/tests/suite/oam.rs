//! The operators' service: the status that it reports, and the orders that a server carries out.

use crate::support::{LONG, SimServer, SimpleReplica, next, request, serve_with, within};
use laredo_engine::retention::{ReplicationSlotState, WalRetention, WalStatus};
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_proto::oam::laredo_query_service_client::LaredoQueryServiceClient;
use laredo_proto::oam::watch_status_response::Event;
use laredo_proto::oam::*;
use laredo_proto::replication::RowEncoding;
use laredo_proto::replication::sync_response::Message;
use laredo_testkit::SimChange::{Delete, Insert, Truncate, Update};
use laredo_testkit::{SimDatabase, eventually};
use tonic::transport::Channel;
use tonic::{Code, Status};

const TABLE: &str = "t0";

async fn oam(server: &SimServer) -> LaredoOamServiceClient<Channel> {
    LaredoOamServiceClient::new(server.channel().await)
}

async fn two_tables() -> (SimDatabase, SimServer) {
    let database = SimDatabase::new(2);
    database.commit(0, vec![Insert(1, "a".to_owned()), Insert(2, "b".to_owned())]);
    let server = serve_with(&database, "a", 2, |_| {}).await;
    server.ready().await;
    (database, server)
}

async fn status(server: &SimServer) -> GetStatusResponse {
    oam(server).await.get_status(GetStatusRequest {}).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_sources_tables_and_their_states() {
    let (database, server) = two_tables().await;
    let end = database.commit(0, vec![Insert(3, "c".to_owned())]);
    let there = async || status(&server).await.sources[0].current_position == end.to_string();
    eventually(LONG, there).await.unwrap();
    let status = status(&server).await;
    assert_eq!(status.state(), ServiceState::Streaming);
    let source = &status.sources[0];
    assert_eq!((source.source_id.as_str(), source.source_type.as_str()), ("sim", "simulated"));
    let table = &status.pipelines[0];
    assert_eq!((table.pipeline_id.as_str(), table.state()), ("sim/public.t0", PipelineState::Streaming));
    assert_eq!((table.row_count, table.inserts_applied), (3, 1));
    let mut client = oam(&server).await;
    let one = GetPipelineStatusRequest { pipeline_id: "sim/public.t1".to_owned() };
    assert_eq!(client.get_pipeline_status(one).await.unwrap().into_inner().status.unwrap().row_count, 0);
    let tables = client.list_tables(ListTablesRequest {}).await.unwrap().into_inner().tables;
    let named: Vec<_> =
        tables.iter().map(|t| (t.table.as_str(), t.primary_key.as_str(), t.source_id.as_str())).collect();
    assert_eq!(named, [("t0", "id", "sim"), ("t1", "id", "sim")]);
    let schema = GetTableSchemaRequest { schema: "public".to_owned(), table: TABLE.to_owned() };
    let columns = client.get_table_schema(schema).await.unwrap().into_inner().columns;
    let named: Vec<_> =
        columns.iter().map(|c| (c.column_name.as_str(), c.data_type.as_str(), c.is_primary_key)).collect();
    assert_eq!(named, [("id", "bigint", true), ("body", "text", false)]);
    let source = GetSourceInfoRequest { source_id: "sim".to_owned() };
    let info = client.get_source_info(source).await.unwrap().into_inner().sources.remove(0);
    assert_eq!(info.current_position, end.to_string());
    let ready = client.check_ready(CheckReadyRequest::default()).await.unwrap().into_inner();
    assert!(ready.ready && ready.not_ready_reasons.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_copies_again_and_clients_see_what_differs() {
    let (database, server) = two_tables().await;
    let mut stream = server.sync(request(RowEncoding::PostgresBinary)).await;
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, database.end()).await;
    let mut client = oam(&server).await;
    let one = ReloadTableRequest { schema: "public".to_owned(), table: TABLE.to_owned(), ..Default::default() };
    assert!(client.reload_table(one).await.unwrap().into_inner().accepted);
    let copies = |n| server.engine.tables()[0].status().copies == n;
    eventually(LONG, async || copies(2)).await.unwrap();
    assert!(client.reload_all(ReloadAllRequest::default()).await.unwrap().into_inner().accepted);
    eventually(LONG, async || copies(3) && server.engine.tables()[1].status().copies == 2).await.unwrap();
    let end = database.commit(0, vec![Insert(3, "c".to_owned())]);
    replica.read_to(&mut stream, end).await;
    assert_eq!((&replica.rows, replica.snapshots), (&database.rows_at(0, end), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_source_stands_still_and_continues_where_it_was() {
    let (database, server) = two_tables().await;
    let mut client = oam(&server).await;
    let state = client.pause_sync(PauseSyncRequest::default()).await.unwrap().into_inner().state();
    assert_eq!(state, ServiceState::Paused);
    let before = status(&server).await.pipelines[0].clone();
    assert_eq!(before.state(), PipelineState::Paused);
    let ends: Vec<_> = (10..200).map(|id| database.commit(0, vec![Insert(id, "x".to_owned())])).collect();
    assert_eq!(status(&server).await.pipelines[0].row_count, before.row_count);
    let resume = ResumeSyncRequest { source_id: "sim".to_owned() };
    assert_eq!(client.resume_sync(resume).await.unwrap().into_inner().state(), ServiceState::Streaming);
    let mut stream = server.sync(request(RowEncoding::PostgresBinary)).await;
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, *ends.last().unwrap()).await;
    assert_eq!(replica.rows, database.rows_at(0, *ends.last().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_table_is_drained_and_its_neighbor_is_served_on() {
    let (database, server) = two_tables().await;
    let mut stream = server.sync(request(RowEncoding::Struct)).await;
    SimpleReplica::default().read_to(&mut stream, database.end()).await;
    let mut client = oam(&server).await;
    let one =
        DrainReplicationRequest { schema: "public".to_owned(), table: TABLE.to_owned(), drain_deadline_seconds: 600 };
    let drained = client.drain_replication(one).await.unwrap().into_inner();
    assert!(drained.accepted && drained.message.starts_with("1 clients"), "{drained:?}");
    assert_eq!(drained.drained_targets, 1);
    loop {
        match next(&mut stream).await.unwrap() {
            Message::GoAway(farewell) if farewell.reason == "draining" && farewell.drain_deadline_unix_ms > 0 => break,
            Message::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let refused = server.client().await.sync(request(RowEncoding::Struct)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let mut neighbor = request(RowEncoding::Struct);
    neighbor.table = "t1".to_owned();
    let mut other = server.sync(neighbor).await;
    assert!(matches!(next(&mut other).await.unwrap(), Message::Handshake(_)));
    assert_eq!(server.get("/health/ready").await.0, 200, "the other table is there");
    let ready = client.check_ready(CheckReadyRequest::default()).await.unwrap().into_inner();
    assert_eq!(ready.not_ready_reasons, ["public.t0: draining"]);
    let all = DrainReplicationRequest { drain_deadline_seconds: 1, ..Default::default() };
    assert_eq!(client.drain_replication(all).await.unwrap().into_inner().drained_targets, 2);
    eventually(LONG, async || server.get("/health/ready").await.0 == 503).await.unwrap();
    let ended = loop {
        if let Err(status) = next(&mut other).await {
            break status;
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "whoever stays to the end is cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn states_are_sent_as_they_change() {
    let (_database, mut server) = two_tables().await;
    let mut client = oam(&server).await;
    let request = WatchStatusRequest { tables: vec!["public.t1".to_owned()], ..Default::default() };
    let mut changes = client.watch_status(request).await.unwrap().into_inner();
    // State changes of sources come in between.
    let mut change = async || loop {
        match within(changes.message(), "a change").await.map(|told| told.unwrap().event.unwrap()) {
            Ok(Event::SourceStateChange(_)) => {}
            other => break other,
        }
    };
    let states = |event: &Event| match event {
        Event::ServiceStateChange(change) => (String::new(), change.old_state, change.new_state),
        Event::PipelineStateChange(change) => (change.pipeline_id.clone(), change.old_state, change.new_state),
        other => panic!("{other:?}"),
    };
    assert_eq!(states(&change().await.unwrap()), (String::new(), 0, ServiceState::Streaming.into()));
    let pipeline = "sim/public.t1".to_owned();
    assert_eq!(states(&change().await.unwrap()), (pipeline.clone(), 0, PipelineState::Streaming.into()));
    server.engine.pause(true);
    let (streaming, paused) = (ServiceState::Streaming.into(), ServiceState::Paused.into());
    assert_eq!(states(&change().await.unwrap()), (String::new(), streaming, paused));
    let (streaming, paused) = (PipelineState::Streaming.into(), PipelineState::Paused.into());
    assert_eq!(states(&change().await.unwrap()), (pipeline, streaming, paused));
    server.stop();
    assert_eq!(change().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_sent_as_they_change_with_their_transaction() {
    let (database, server) = two_tables().await;
    let mut client = oam(&server).await;
    let mut changes = client.watch_status(WatchStatusRequest::default()).await.unwrap().into_inner();
    // The state comes first, and row changes from there on.
    within(changes.message(), "a state").await.unwrap();
    let first = database.commit(0, vec![Insert(3, "c".to_owned()), Update(1, "d".to_owned())]);
    let second = database.commit(1, vec![Insert(1, "e".to_owned())]);
    let third = database.commit(0, vec![Delete(3), Truncate]);
    let mut told = Vec::new();
    while told.len() < 5 {
        if let Some(Event::RowChange(change)) = within(changes.message(), "a change").await.unwrap().unwrap().event {
            assert_eq!(
                (change.schema.as_str(), change.pipeline_id),
                ("public", format!("sim/public.{}", change.table))
            );
            told.push((change.table, change.action, change.position, change.xid));
        }
    }
    told.sort_by_key(|(table, ..)| table.clone());
    let change = |table: &str, action: &str, end: laredo_core::Lsn, xid| {
        (table.to_owned(), action.to_owned(), end.to_string(), xid)
    };
    let expected = [
        change("t0", "INSERT", first, 701),
        change("t0", "UPDATE", first, 701),
        change("t0", "DELETE", third, 703),
        change("t0", "TRUNCATE", third, 703),
        change("t1", "INSERT", second, 702),
    ];
    assert_eq!(told, expected);
}

/// The server keeps nothing extra for a watcher that does not read, only the entries of the
/// journal.
#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_falls_behind_the_journal_is_cut_with_a_reason() {
    let database = SimDatabase::new(1);
    let mut table = laredo_testkit::sim_table(TABLE);
    table.journal.entries_max = 100;
    let server = crate::support::start(database.clone(), vec![table], |_| {}).await;
    server.ready().await;
    let mut client = oam(&server).await;
    let mut changes = client.watch_status(WatchStatusRequest::default()).await.unwrap().into_inner();
    within(changes.message(), "a state").await.unwrap();
    // Write more than all windows of the connection hold.
    for i in 0..400 {
        let rows = (0..500).map(|j| Insert(500 * i + j, "x".to_owned()));
        database.commit(0, rows.collect());
    }
    let journal = server.engine.tables()[0].journal().unwrap();
    let next = std::cell::Cell::new(200_000);
    // A base is made on the next event, and only the entries that it covers are removed.
    let is_forgotten = async || {
        let end = database.commit(0, vec![Insert(next.replace(next.get() + 1), "x".to_owned())]);
        let is_there = eventually(LONG, async || journal.head().position >= end);
        is_there.await.is_ok() && journal.info().entries < 1000
    };
    eventually(LONG, is_forgotten).await.unwrap();
    let ended = loop {
        match within(changes.message(), "an end").await {
            Ok(told) => assert!(told.is_some(), "it does not just end"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::ResourceExhausted, "{ended:?}");
    assert!(ended.message().contains("row changes are missing"), "{ended:?}");
}

fn retention(wal_status: WalStatus) -> WalRetention {
    let left = Some(std::time::Duration::from_secs(90));
    let standing =
        ReplicationSlotState { wal_status, lag_bytes: 10, retained_bytes: 2048, safe_bytes: Some(4096), left };
    WalRetention {
        slot: "laredo".to_owned(),
        standing: Some(standing),
        losses: 0,
        last_loss: None,
        forks: 0,
        last_fork: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wal_that_the_slot_keeps_is_shown_everywhere_and_decides_nothing() {
    let (database, server) = two_tables().await;
    let mut client = oam(&server).await;
    let mut changes = client.watch_status(WatchStatusRequest::default()).await.unwrap().into_inner();
    within(changes.message(), "a state").await.unwrap();
    database.retain(retention(WalStatus::Unreserved));
    let (code, body) = server.get("/health/ready").await;
    let report: serde_json::Value = serde_json::from_str(&body).unwrap();
    let expected = serde_json::json!([{
        "source": "sim", "paused": false, "slot": "laredo", "lag_ms": report["sources"][0]["lag_ms"], "wal_status": "unreserved",
        "lag_bytes": 10, "retained_bytes": 2048, "safe_bytes": 4096, "left_ms": 90_000, "losses": 0, "ddl_watch": "poll",
        "state": "following", "state_age_ms": report["sources"][0]["state_age_ms"],
        "copies_running": 0, "copies_waiting": 0, "copies_max": 4, "connections_max": 0
    }]);
    assert_eq!((code, &report["sources"]), (200, &expected));
    let details = status(&server).await.sources.remove(0).source_details.unwrap();
    let number = |name: &str| details.fields[name].kind.clone();
    assert_eq!(number("retained_bytes"), Some(prost_types::value::Kind::NumberValue(2048.0)));
    assert_eq!(number("seconds_left"), Some(prost_types::value::Kind::NumberValue(90.0)));
    let metrics = async || server.get("/metrics").await.1;
    let told = metrics().await;
    for line in [
        "laredo_slot_wal_status{source=\"sim\",status=\"unreserved\"} 1",
        "laredo_slot_wal_status{source=\"sim\",status=\"reserved\"} 0",
        "laredo_slot_retained_bytes{source=\"sim\"} 2048",
        "laredo_slot_left_seconds{source=\"sim\"} 90",
        "laredo_slot_losses_total{source=\"sim\"} 0",
    ] {
        assert!(told.lines().any(|told| told == line), "{line} is not in\n{told}");
    }
    let mut told_of_source = async || loop {
        if let Some(Event::SourceStateChange(change)) = within(changes.message(), "it").await.unwrap().unwrap().event {
            break (change.event_type, change.message);
        }
    };
    assert_eq!(told_of_source().await.1, "the WAL that slot laredo needs is unreserved");
    let last_loss = "replication slot laredo was invalidated".to_owned();
    database.retain(WalRetention {
        slot: "laredo".to_owned(),
        standing: None,
        losses: 1,
        last_loss: Some(last_loss.clone()),
        ..WalRetention::default()
    });
    assert_eq!(told_of_source().await, ("slot_lost".to_owned(), last_loss));
    let told = metrics().await;
    assert!(told.contains("laredo_slot_retained_bytes{source=\"sim\"} NaN"), "what is not known is no number: {told}");
    assert!(told.contains("laredo_slot_losses_total{source=\"sim\"} 1"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_asks_to_be_confirmed_and_copies_all_tables_again() {
    let (database, server) = two_tables().await;
    let mut stream = server.sync(request(RowEncoding::PostgresBinary)).await;
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, database.end()).await;
    let mut client = oam(&server).await;
    let mut reset = ResetSourceRequest { source_id: "sim".to_owned(), confirm: false, drop_publication: false };
    let refused = client.reset_source(reset.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    reset.confirm = true;
    let answer = client.reset_source(reset.clone()).await.unwrap().into_inner();
    assert!(answer.accepted && answer.message.contains("2 tables are copied again"), "{answer:?}");
    let are_copied = async || server.engine.tables().iter().all(|table| table.status().copies == 2);
    eventually(LONG, are_copied).await.unwrap();
    let end = database.commit(0, vec![Insert(3, "c".to_owned())]);
    replica.read_to(&mut stream, end).await;
    assert_eq!((&replica.rows, replica.snapshots), (&database.rows_at(0, end), 1));
    reset.drop_publication = true;
    let refused = client.reset_source(reset).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "a simulated database has no publication")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_is_named_and_the_fan_out_port_takes_no_orders() {
    let (_database, server) = two_tables().await;
    let mut client = oam(&server).await;
    let said = |refused: Result<(), Status>, code: Code, words: &str| {
        let status = refused.unwrap_err();
        assert!(status.code() == code && status.message().contains(words), "{status:?}: {words}");
    };
    let unknown = ReloadTableRequest { schema: "public".to_owned(), table: "no".to_owned(), ..Default::default() };
    said(client.reload_table(unknown).await.map(drop), Code::NotFound, "public.no");
    let other = ReloadTableRequest { source_id: "x".to_owned(), schema: "public".to_owned(), table: TABLE.to_owned() };
    said(client.reload_table(other).await.map(drop), Code::InvalidArgument, "is of source `sim`");
    let pause = PauseSyncRequest { source_id: "x".to_owned() };
    said(client.pause_sync(pause).await.map(drop), Code::NotFound, "source `x`");
    let pipeline = GetPipelineStatusRequest { pipeline_id: "x".to_owned() };
    said(client.get_pipeline_status(pipeline).await.map(drop), Code::NotFound, "pipeline `x`");
    said(
        client.get_pipeline_status(GetPipelineStatusRequest::default()).await.map(drop),
        Code::InvalidArgument,
        "`pipeline_id`",
    );
    let watch = WatchStatusRequest { tables: vec!["x".to_owned()], ..Default::default() };
    said(client.watch_status(watch).await.map(drop), Code::InvalidArgument, "`tables`");
    let drain = DrainReplicationRequest { drain_deadline_seconds: -1, ..Default::default() };
    said(client.drain_replication(drain).await.map(drop), Code::InvalidArgument, "`drain_deadline_seconds`");
    let reset = ResetSourceRequest { source_id: "sim".to_owned(), ..Default::default() };
    said(client.reset_source(reset).await.map(drop), Code::FailedPrecondition, "set `confirm`");
    said(
        client.create_snapshot(CreateSnapshotRequest::default()).await.map(drop),
        Code::FailedPrecondition,
        "no snapshot store",
    );
    said(
        client.list_dead_letters(ListDeadLettersRequest::default()).await.map(drop),
        Code::Unimplemented,
        "no dead letters",
    );
    said(client.start_replay(StartReplayRequest::default()).await.map(drop), Code::Unimplemented, "does not replay");
    let mut queries = LaredoQueryServiceClient::new(server.channel().await);
    let (schema, table) = ("public".to_owned(), "t0".to_owned());
    let row = GetRowRequest { schema: schema.clone(), table: table.clone(), ..GetRowRequest::default() };
    said(queries.get_row(row).await.map(drop), Code::FailedPrecondition, "answers no queries");
    let changes = SubscribeRequest { schema, table, replay_existing: false };
    said(queries.subscribe(changes).await.map(drop), Code::FailedPrecondition, "answers no queries");
    let fanout = Channel::from_shared(format!("http://{}", server.fanout)).unwrap().connect().await.unwrap();
    let mut there = LaredoOamServiceClient::new(fanout.clone());
    said(there.get_status(GetStatusRequest {}).await.map(drop), Code::Unimplemented, "");
    let mut client = crate::support::GrpcTestClient::new(fanout);
    assert!(client.sync(request(RowEncoding::Struct)).await.is_ok(), "the fan-out itself is there");
}
