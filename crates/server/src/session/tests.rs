//! Tests of idle streams and of clients that do not read, with a clock that only these tests move.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn, TableState};
use laredo_engine::journal::{Journal, JournalOptions, ReaderState};
use laredo_engine::{Engine, EngineHandle};
use laredo_proto::frame::PREFIX_LENGTH;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{
    FieldPredicate, Heartbeat, RowEncoding, SyncMode, SyncRequest, SyncResponse, field_predicate,
};
use laredo_testkit::{SimChange, SimDatabase, sim_table};
use laredo_values::{MatchCondition, Predicate, Value};
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::{Instant, advance};
use tonic::{Code, Status};

use super::{Session, SessionStream, SessionStreamItem};
use crate::access::{AccessGate, Caller, RowScope};
use crate::peer::{PeerAddress, PeerInfo};
use crate::request::SessionRequest;
use crate::response_task::ResponseTask;
use crate::server_state::ServerState;
use crate::table::ServedTable;
use crate::{HttpOptions, ServedTableOptions, ServerTimeLimits};

mod checks;
mod definitions;
mod newcomers;
mod turns;

const INTERVAL: Duration = Duration::from_secs(5);

struct IdleServer {
    engine: EngineHandle,
    shared: Arc<ServerState>,
    database: SimDatabase,
}

impl IdleServer {
    async fn new() -> IdleServer {
        IdleServer::with(|_| {}, |_| {}).await
    }

    async fn with(journal: impl Fn(&mut JournalOptions), served: impl Fn(&mut ServedTableOptions)) -> IdleServer {
        let database = SimDatabase::new(2);
        let started = tokio::time::Instant::now();
        let micros = move || i64::try_from(started.elapsed().as_micros()).unwrap();
        let clock: laredo_engine::Clock = Arc::new(move || CommitTime(micros()));
        let mut tables = vec![sim_table("t0"), sim_table("t1")];
        tables.iter_mut().for_each(|table| journal(&mut table.journal));
        let engine = Engine::prepare(database.clone(), tables, clock.clone()).await.unwrap();
        let handle = engine.handle();
        tokio::spawn(engine.run(std::future::pending()));
        let tables = handle.tables();
        let options = tables.iter().map(|t| {
            let mut options = ServedTableOptions::new(t.clone());
            served(&mut options);
            Arc::new(ServedTable::new(options, false))
        });
        let served = options.collect();
        let shared = Arc::new(ServerState::new(
            Vec::new(),
            served,
            clock,
            ServerTimeLimits::default(),
            HttpOptions::default(),
            AccessGate::new(None),
            || 0,
        ));
        for table in handle.tables().iter() {
            table.wait_journal().await.unwrap();
        }
        IdleServer { engine: handle, shared, database }
    }

    fn stream(&self, encoding: RowEncoding) -> SessionStream {
        let accept = match encoding {
            RowEncoding::Struct => vec![],
            RowEncoding::PostgresBinary => vec![encoding.into()],
        };
        self.ask(SyncRequest { accept, ..SyncRequest::default() })
    }

    fn ask(&self, request: SyncRequest) -> SessionStream {
        self.ask_from(None, 0, request)
    }

    fn ask_from(&self, peer: Option<&PeerInfo>, table: usize, request: SyncRequest) -> SessionStream {
        self.session(peer, table, request).into_stream()
    }

    fn session(&self, peer: Option<&PeerInfo>, table: usize, request: SyncRequest) -> Session {
        let table = self.shared.tables()[table].clone();
        Session {
            shared: self.shared.clone(),
            caller: Caller::unlimited(peer),
            ask: SessionRequest::new(request, RowScope::default()).unwrap(),
            seat: table.take_seat().unwrap(),
            task: ResponseTask::default(),
            table,
        }
    }

    fn table(&self) -> Arc<ServedTable> {
        self.shared.tables()[0].clone()
    }

    fn journal(&self) -> Journal {
        self.table().handle().journal().unwrap()
    }

    /// Inserts rows in the first table, each in its own transaction, and waits until the journal
    /// shows them.
    async fn rows(&self, ids: std::ops::Range<i64>) {
        for id in ids {
            let end = self.database.commit(0, vec![SimChange::Insert(id, String::new())]);
            self.journal().watch_head().wait_for(|head| head.position >= end).await.unwrap();
        }
    }

    /// Inserts a row in the other table, and waits until the first table's journal has the
    /// position.
    async fn elsewhere(&self, id: i64) -> String {
        self.insert(1, id).await
    }

    async fn insert(&self, table: usize, id: i64) -> String {
        let end = self.database.commit(table, vec![SimChange::Insert(id, String::new())]);
        let journal = self.engine.tables()[0].journal().unwrap();
        journal.watch_head().wait_for(|head| head.position >= end).await.unwrap();
        end.to_string()
    }
}

async fn pull(stream: &mut SessionStream) -> Vec<Message> {
    let pulled = poll_fn(|cx| stream.poll_next(cx)).await.unwrap();
    let SessionStreamItem::Frames(bytes) = pulled else { panic!("{pulled:?}") };
    messages(bytes)
}

fn messages(mut bytes: bytes::Bytes) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(length) = laredo_proto::frame::length(&bytes) {
        let message = bytes.split_to(PREFIX_LENGTH + length).split_off(PREFIX_LENGTH);
        messages.extend(SyncResponse::decode(message).unwrap().message);
    }
    messages
}

async fn end_of(stream: &mut SessionStream) -> Status {
    loop {
        if let SessionStreamItem::End(status) = poll_fn(|cx| stream.poll_next(cx)).await.unwrap() {
            return status;
        }
    }
}

/// Waits for the work of other threads, without moving the clock.
async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if holds() {
            return;
        }
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).await.unwrap();
    }
    panic!("it did not hold for a minute");
}

async fn is_silent(stream: &mut SessionStream) -> bool {
    poll_fn(|cx| Poll::Ready(stream.poll_next(cx).is_pending())).await
}

async fn heartbeat(stream: &mut SessionStream) -> Heartbeat {
    match pull(stream).await.as_slice() {
        [Message::Heartbeat(heartbeat)] => heartbeat.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_comes_when_nothing_else_did_for_its_interval() {
    let quiet = IdleServer::new().await;
    let mut stream = quiet.stream(RowEncoding::Struct);
    assert!(matches!(pull(&mut stream).await.as_slice(), [Message::Handshake(_), Message::SnapshotBegin(_)]));
    let end = pull(&mut stream).await;
    let [Message::SnapshotEnd(_), Message::JournalEntry(marker)] = end.as_slice() else { panic!("{end:?}") };
    let position = marker.source_position.clone();
    for _ in 0..3 {
        assert!(is_silent(&mut stream).await);
        advance(INTERVAL - Duration::from_millis(1)).await;
        assert!(is_silent(&mut stream).await);
        advance(Duration::from_millis(1)).await;
        let heartbeat = heartbeat(&mut stream).await;
        assert_eq!(heartbeat.source_position, position);
        assert_eq!(heartbeat.earlier_source_position, "", "an extension it did not ask for");
    }
}

#[tokio::test(start_paused = true)]
async fn progress_is_reported_at_once_and_then_ten_times_a_second_at_most() {
    let quiet = IdleServer::new().await;
    let mut stream = quiet.stream(RowEncoding::PostgresBinary);
    pull(&mut stream).await;
    pull(&mut stream).await;
    heartbeat(&mut stream).await;
    advance(Duration::from_secs(1)).await;
    assert!(is_silent(&mut stream).await);
    let position = quiet.elsewhere(1).await;
    assert_eq!(heartbeat(&mut stream).await.source_position, position);
    quiet.elsewhere(2).await;
    assert!(is_silent(&mut stream).await);
    advance(Duration::from_millis(99)).await;
    let position = quiet.elsewhere(3).await;
    assert!(is_silent(&mut stream).await);
    advance(Duration::from_millis(1)).await;
    assert_eq!(heartbeat(&mut stream).await.source_position, position);
    assert!(is_silent(&mut stream).await);
}

/// Returns a stream of Structs that has been sent everything.
async fn live(quiet: &IdleServer) -> SessionStream {
    until_live(quiet.stream(RowEncoding::Struct)).await
}

async fn until_live(mut stream: SessionStream) -> SessionStream {
    while !matches!(pull(&mut stream).await.as_slice(), [Message::SnapshotEnd(_), Message::JournalEntry(_)]) {}
    while !is_silent(&mut stream).await {}
    stream
}

#[tokio::test(start_paused = true)]
async fn who_continues_without_a_snapshot_gets_a_marker_and_an_id_that_names_this_journal() {
    let quiet = IdleServer::new().await;
    quiet.rows(0..3).await;
    let head = quiet.journal().head();
    let (mut stream, mut began) = (quiet.stream(RowEncoding::Struct), Vec::new());
    while began.len() < 2 {
        began.append(&mut pull(&mut stream).await);
    }
    let [Message::Handshake(handshake), Message::SnapshotBegin(begin)] = began.as_slice() else { panic!("{began:?}") };
    assert_eq!(handshake.snapshot_id, begin.snapshot_id);
    let by_snapshot = SyncRequest {
        last_known_sequence: head.sequence.to_wire(),
        last_snapshot_id: begin.snapshot_id.clone(),
        ..SyncRequest::default()
    };
    let by_position = SyncRequest {
        last_known_source_position: head.position.to_string(),
        last_snapshot_id: "elsewhere-7".to_owned(),
        ..SyncRequest::default()
    };
    let own = quiet.journal().instance().snapshot_id(head.sequence);
    for (request, id) in [(by_snapshot, begin.snapshot_id.clone()), (by_position, own)] {
        let begins = pull(&mut quiet.ask(request)).await;
        let [Message::Handshake(handshake), Message::JournalEntry(marker)] = begins.as_slice() else {
            panic!("{begins:?}")
        };
        assert_eq!(handshake.mode(), SyncMode::Delta);
        assert_eq!(handshake.snapshot_id, id);
        assert_eq!((marker.action.as_str(), &marker.old_values, &marker.new_values), ("", &None, &None));
        assert_eq!(marker.sequence, head.sequence.to_wire());
        assert_eq!(marker.source_position, head.position.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_cut_leaves_its_seat_even_if_it_is_not_polled() {
    let quiet = IdleServer::with(
        |_| {},
        |served| {
            served.limits.clients_max = 1;
            served.limits.buffer.behind_max = 1;
        },
    )
    .await;
    let mut stream = live(&quiet).await;
    assert!(quiet.table().take_seat().is_err());
    quiet.rows(0..3).await;
    eventually(|| {
        quiet.shared.sweep(Instant::now());
        quiet.table().clients() == 0
    })
    .await;
    assert!(quiet.table().take_seat().is_ok());
    assert_eq!(end_of(&mut stream).await.code(), Code::ResourceExhausted);
    assert_eq!(quiet.table().clients(), 0, "and leaves it once");
}

/// Returns a task that sends a response without an end, and a receiver that is notified of the
/// task's end.
async fn endless_task() -> (ResponseTask, oneshot::Receiver<()>) {
    let (begun, begins) = oneshot::channel();
    let (until_end, ended) = oneshot::channel();
    ResponseTask::spawn(async move {
        let _until_end: oneshot::Sender<()> = until_end;
        begun.send(ResponseTask::current()).unwrap();
        std::future::pending::<()>().await;
    });
    (begins.await.unwrap(), ended)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_cut_and_takes_nothing_has_its_stream_reset() {
    let quiet = IdleServer::with(|_| {}, |served| served.limits.buffer.behind_max = 1).await;
    let (mut streams, mut tasks) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (task, ended) = endless_task().await;
        let session = Session { task, ..quiet.session(None, 0, SyncRequest::default()) };
        streams.push(until_live(session.into_stream()).await);
        tasks.push(ended);
    }
    quiet.rows(0..3).await;
    eventually(|| {
        quiet.shared.sweep(Instant::now());
        quiet.table().clients() == 0
    })
    .await;
    // One of them takes its final status in time.
    let mut reading = streams.pop().unwrap();
    assert_eq!(end_of(&mut reading).await.code(), Code::ResourceExhausted);
    let wait = ServerTimeLimits::default().stop;
    advance(wait - Duration::from_millis(1)).await;
    quiet.shared.sweep(Instant::now());
    tokio::task::yield_now().await;
    assert!(tasks.iter_mut().all(|ended| ended.try_recv() == Err(TryRecvError::Empty)), "both still have time");
    advance(Duration::from_millis(1)).await;
    quiet.shared.sweep(Instant::now());
    let mut read = tasks.pop().unwrap();
    assert!(tasks.pop().unwrap().await.is_err(), "the task has ended");
    quiet.shared.sweep(Instant::now());
    tokio::task::yield_now().await;
    assert_eq!(read.try_recv(), Err(TryRecvError::Empty), "it is not the server that ends this one");
}

#[tokio::test(start_paused = true)]
async fn an_error_names_the_side_that_set_the_condition_whatever_the_order_of_the_shared_ones() {
    let equals = |field: &str, text: &str| FieldPredicate {
        field: field.to_owned(),
        r#match: Some(field_predicate::Match::Equals(text.into())),
    };
    let predicate = |field: &str, text: &str| Predicate {
        field: field.to_owned(),
        test: MatchCondition::Equals(Value::String(text.to_owned())),
    };
    let (fits, misfits) = (("body", "x"), ("id", "no number"));
    for order in [[fits, misfits], [misfits, fits]] {
        let quiet = IdleServer::new().await;
        let shared: Arc<[_]> = order.iter().map(|(field, text)| predicate(field, text)).collect();
        let rules = crate::view::ColumnRules::default();
        let _view = quiet.table().views().get(RowEncoding::Struct, &shared, &rules).unwrap();
        for (own, granted, code) in [(misfits, fits, Code::InvalidArgument), (fits, misfits, Code::PermissionDenied)] {
            let request = SyncRequest { filters: vec![equals(own.0, own.1)], ..SyncRequest::default() };
            let scope =
                RowScope { predicates: vec![predicate(granted.0, granted.1)], is_ruled: true, ..RowScope::default() };
            let ask = SessionRequest::new(request, scope).unwrap();
            let session = Session { ask, ..quiet.session(None, 0, SyncRequest::default()) };
            let status = end_of(&mut session.into_stream()).await;
            assert_eq!(status.code(), code, "{order:?}: {status}");
            assert_eq!(status.message().contains("`filters[0]`"), code == Code::InvalidArgument, "{status}");
            assert!(status.message().contains("column `id`"), "{status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_of_a_replaced_journal_keeps_nothing_even_if_it_is_not_polled() {
    for encoding in [RowEncoding::Struct, RowEncoding::PostgresBinary] {
        let quiet = IdleServer::new().await;
        quiet.rows(0..3).await;
        let mut in_snapshot = quiet.stream(encoding);
        pull(&mut in_snapshot).await;
        let mut following = live(&quiet).await;
        assert_eq!(quiet.table().clients(), 2);
        let before = quiet.journal();
        let base = Arc::downgrade(&before.base());
        quiet.database.put_back(Lsn(before.head().position.0 - 1));
        while quiet.database.end() <= before.head().position {
            quiet.database.commit(0, vec![SimChange::Insert(9, String::new())]);
        }
        before.closed().await;
        eventually(|| {
            quiet.shared.sweep(Instant::now());
            quiet.table().clients() == 0 && base.upgrade().is_none()
        })
        .await;
        assert!(before.readers().is_empty(), "{encoding:?}");
        for stream in [&mut in_snapshot, &mut following] {
            let status = end_of(stream).await;
            assert_eq!(status.code(), Code::Unavailable, "{encoding:?}: {status}");
            assert!(status.message().contains("history has forked"), "{encoding:?}: {status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_read_too_slowly_does_not_keep_the_journal_beyond_twice_its_limits() {
    let quiet = IdleServer::with(|journal| journal.entries_max = 10, |_| {}).await;
    let mut slow = quiet.stream(RowEncoding::Struct);
    assert!(matches!(pull(&mut slow).await.as_slice(), [Message::Handshake(_), Message::SnapshotBegin(_)]));
    let mut rows = 0;
    while quiet.journal().overdue_pin().is_none() {
        // Newer bases are made meanwhile, as the limits require.
        quiet.rows(rows..rows + 1).await;
        rows += 1;
        assert!(rows < 100_000, "no newer base was made");
    }
    let before = quiet.journal().info().entries;
    // A client that reads a newer base is not cut.
    let mut newer = quiet.stream(RowEncoding::Struct);
    pull(&mut newer).await;
    quiet.shared.sweep(Instant::now());
    assert_eq!(quiet.journal().overdue_pin(), None);
    assert_eq!(quiet.table().clients(), 1);
    let status = end_of(&mut slow).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("the journal grew beyond twice its limits"), "{status}");
    assert!(before > 20 && quiet.journal().info().entries <= before - 10);
    pull(&mut newer).await;
}

#[tokio::test(start_paused = true)]
async fn readers_of_batches_see_that_they_reach_the_head() {
    let quiet = IdleServer::new().await;
    let mut stream = quiet.stream(RowEncoding::PostgresBinary);
    pull(&mut stream).await;
    pull(&mut stream).await;
    heartbeat(&mut stream).await;
    advance(Duration::from_secs(1)).await;
    let position = quiet.insert(0, 1).await;
    assert!(matches!(pull(&mut stream).await.as_slice(), [Message::Batch(_)]));
    let told = heartbeat(&mut stream).await;
    assert_eq!(told.source_position, position);
    assert!(told.server_time.unwrap().seconds >= 1);
    quiet.insert(0, 2).await;
    assert!(matches!(pull(&mut stream).await.as_slice(), [Message::Batch(_)]));
    assert!(is_silent(&mut stream).await);
    advance(Duration::from_millis(100)).await;
    heartbeat(&mut stream).await;
    assert!(is_silent(&mut stream).await);
}

#[tokio::test(start_paused = true)]
async fn readers_that_never_see_the_end_of_the_changes_get_their_position() {
    let quiet = IdleServer::new().await;
    let mut stream = quiet.stream(RowEncoding::PostgresBinary);
    pull(&mut stream).await;
    pull(&mut stream).await;
    heartbeat(&mut stream).await;
    quiet.insert(0, 0).await;
    let (mut batches, mut heartbeats, mut last) = (0, 0, 0.0);
    // Whenever the client takes a message there is another transaction, so that the stream never
    // sees the journal's end.
    for id in 1..50 {
        advance(Duration::from_millis(50)).await;
        for message in pull(&mut stream).await {
            match message {
                Message::Batch(_) => batches += 1,
                Message::Heartbeat(heartbeat) => {
                    let time = heartbeat.server_time.unwrap();
                    let seconds = time.seconds as f64 + f64::from(time.nanos) / 1e9;
                    assert!(!heartbeat.source_position.is_empty() && seconds > last, "{seconds} after {last}");
                    (heartbeats, last) = (heartbeats + 1, seconds);
                }
                other => panic!("{other:?}"),
            }
        }
        quiet.insert(0, id).await;
    }
    assert!(batches > 20 && heartbeats > 10 && last > 1.0, "{batches} batches, {heartbeats} heartbeats, {last}");
}

#[tokio::test(start_paused = true)]
async fn who_reads_structs_is_sent_heartbeats_alone_once_it_was_asked_to_leave() {
    let quiet = IdleServer::new().await;
    let mut stream = live(&quiet).await;
    quiet.table().drain().begin(Instant::now(), Some(Duration::from_secs(60)));
    let told = pull(&mut stream).await;
    let [Message::GoAway(told)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(told.reason, "draining");
    assert!(told.drain_deadline_unix_ms > 59_000, "{told:?}");
    assert_eq!(quiet.journal().readers()[0].state, ReaderState::Draining);
    quiet.rows(0..3).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(50) {
        heartbeat(&mut stream).await;
    }
    let status = end_of(&mut stream).await;
    assert_eq!((status.code(), began.elapsed()), (Code::Unavailable, Duration::from_secs(60)));
}

#[tokio::test(start_paused = true)]
async fn a_client_of_ours_is_asked_to_leave_once_and_sent_on_what_commits() {
    let quiet = IdleServer::new().await;
    let mut stream = quiet.stream(RowEncoding::PostgresBinary);
    pull(&mut stream).await;
    pull(&mut stream).await;
    heartbeat(&mut stream).await;
    quiet.table().drain().begin(Instant::now(), None);
    let (mut farewells, mut rows) = (0, 0);
    quiet.rows(0..3).await;
    while rows < 3 {
        for message in pull(&mut stream).await {
            match message {
                Message::GoAway(told) => {
                    assert_eq!(told.drain_deadline_unix_ms, 0, "any time");
                    farewells += 1;
                }
                Message::Batch(batch) => rows += batch.count,
                Message::Heartbeat(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((farewells, quiet.journal().readers()[0].state), (1, ReaderState::Draining));
}

/// Returns the number of snapshot permits in use with its maximum so far, and the number of clients
/// that wait for one.
fn admission(server: &IdleServer) -> ((usize, usize), usize) {
    let usage = server.shared.admission().usage();
    ((usage.granted, usage.granted_max), usage.waiting)
}

/// Returns true for the beginning of a snapshot, with or without the handshake.
fn begins(messages: &[Message]) -> bool {
    matches!(messages, [Message::Handshake(_), Message::SnapshotBegin(_)] | [Message::SnapshotBegin(_)])
}

#[tokio::test(start_paused = true)]
async fn so_many_are_sent_a_snapshot_at_once_and_the_others_stand_in_line() {
    let quiet = IdleServer::new().await;
    let mut streams: Vec<_> = (0..20).map(|_| quiet.stream(RowEncoding::Struct)).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        let first = pull(stream).await;
        match number < 16 {
            true => assert!(begins(&first), "{number}: {first:?}"),
            false => assert!(matches!(first.as_slice(), [Message::Handshake(_)]), "{number}: {first:?}"),
        }
    }
    assert_eq!(admission(&quiet), ((16, 16), 4));
    assert!(is_silent(&mut streams[16]).await);
    advance(INTERVAL).await;
    assert_eq!(heartbeat(&mut streams[16]).await.source_position, "");
    // A client that leaves releases its permit, and so does one that has its snapshot. The permit
    // goes to the first client in the queue.
    drop(streams.swap_remove(3));
    assert!(begins(&pull(&mut streams[16]).await));
    while !matches!(pull(&mut streams[16]).await.as_slice(), [Message::SnapshotEnd(_), ..]) {}
    while !is_silent(&mut streams[16]).await {}
    assert_eq!(admission(&quiet).1, 2);
    assert_eq!(admission(&quiet).0, (16, 16), "never more");
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_a_snapshot_gives_its_place_to_the_next_and_continues_later() {
    let quiet = IdleServer::new().await;
    let mut idle: Vec<_> = (0..16).map(|_| quiet.stream(RowEncoding::Struct)).collect();
    for stream in &mut idle {
        assert!(begins(&pull(stream).await));
    }
    let mut next = quiet.stream(RowEncoding::Struct);
    assert!(matches!(pull(&mut next).await.as_slice(), [Message::Handshake(_)]));
    advance(Duration::from_millis(1001)).await;
    quiet.shared.sweep(Instant::now());
    assert!(begins(&pull(&mut next).await));
    assert_eq!(admission(&quiet).0, (1, 16));
    // This client reads nothing either, and loses its permit later. Meanwhile the others continue
    // where they were.
    for stream in &mut idle {
        while !matches!(pull(stream).await.as_slice(), [Message::SnapshotEnd(_), ..]) {}
    }
    advance(Duration::from_millis(1001)).await;
    quiet.shared.sweep(Instant::now());
    while !matches!(pull(&mut next).await.as_slice(), [Message::SnapshotEnd(_), ..]) {}
}

/// Tests a permit that was granted to a stream which is not read, and taken back before the stream
/// noticed.
#[tokio::test(start_paused = true)]
async fn a_place_that_came_and_went_unseen_is_asked_for_again() {
    let quiet = IdleServer::new().await;
    let mut streams: Vec<_> = (0..17).map(|_| quiet.stream(RowEncoding::Struct)).collect();
    for stream in &mut streams {
        pull(stream).await;
    }
    for _ in 0..2 {
        advance(Duration::from_millis(1001)).await;
        quiet.shared.sweep(Instant::now());
    }
    let ((granted, _), waiting) = admission(&quiet);
    assert_eq!((granted, waiting), (0, 0));
    assert!(begins(&pull(&mut streams[16]).await));
}

/// Applies the batches among messages to a state, which begins with the handshake's schema.
fn follow(state: &mut Option<TableState>, messages: &[Message]) {
    for message in messages {
        match message {
            Message::Handshake(handshake) => {
                let schema = handshake.encoding.clone().and_then(|encoding| encoding.schema).unwrap();
                let schema = Arc::new(laredo_proto::schema::from_wire(schema).unwrap());
                *state = Some(TableState::new(schema, &[], 0).unwrap());
            }
            Message::Batch(batch) => {
                let state = state.as_mut().unwrap();
                let schema = state.schema().clone();
                for entry in laredo_proto::batch::BatchEntries::new(&batch.entries, &schema) {
                    state.apply_change(&entry.unwrap().to_change()).unwrap();
                }
            }
            Message::SnapshotEnd(end) => assert_eq!(end.checksum, state.as_ref().unwrap().checksum().to_bytes()),
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_gets_the_checksum_of_what_was_sent() {
    let quiet = IdleServer::new().await;
    quiet.rows(0..3).await;
    let accept = vec![RowEncoding::PostgresBinary.into()];
    let mut stream = quiet.ask(SyncRequest { accept, wants_checksums: true, ..SyncRequest::default() });
    let (mut state, mut compared) = (None, 0);
    for id in 3..9 {
        // This collects everything up to the next heartbeat with a position.
        loop {
            let messages = pull(&mut stream).await;
            follow(&mut state, &messages);
            let heartbeats = messages.iter().filter_map(|message| match message {
                Message::Heartbeat(heartbeat) if !heartbeat.source_position.is_empty() => Some(heartbeat),
                _ => None,
            });
            if let Some(heartbeat) = heartbeats.last() {
                assert_eq!(heartbeat.checksum, state.as_ref().unwrap().checksum().to_bytes(), "row {id}");
                compared += 1;
                break;
            }
        }
        quiet.rows(id..id + 1).await;
    }
    assert_eq!((compared, state.map(|state| state.len())), (6, Some(8)));
}

#[tokio::test(start_paused = true)]
async fn no_other_client_gets_one() {
    let quiet = IdleServer::new().await;
    quiet.rows(0..3).await;
    let accept = vec![RowEncoding::PostgresBinary.into()];
    let r#match = Some(laredo_proto::replication::field_predicate::Match::Prefix(String::new()));
    let filters = vec![laredo_proto::replication::FieldPredicate { field: "body".to_owned(), r#match }];
    let structs = SyncRequest { wants_checksums: true, ..SyncRequest::default() };
    let filtered = SyncRequest { accept: accept.clone(), filters, wants_checksums: true, ..SyncRequest::default() };
    let silent = SyncRequest { accept, ..SyncRequest::default() };
    for request in [structs, filtered, silent] {
        let mut stream = quiet.ask(request.clone());
        let mut heartbeats = 0;
        while heartbeats == 0 {
            for message in pull(&mut stream).await {
                match message {
                    Message::SnapshotEnd(end) => assert!(end.checksum.is_empty(), "{request:?}"),
                    Message::Heartbeat(heartbeat) => {
                        assert!(heartbeat.checksum.is_empty(), "{request:?}");
                        heartbeats += 1;
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Tests that the client's claimed position does not matter if its rows are wrong.
#[tokio::test(start_paused = true)]
async fn a_client_whose_rows_differed_gets_all_rows_and_is_counted() {
    let quiet = IdleServer::new().await;
    quiet.rows(0..3).await;
    let accept = vec![RowEncoding::PostgresBinary.into()];
    let last_known_source_position = quiet.journal().head().position.to_string();
    let mut stream = quiet.ask(SyncRequest {
        accept,
        last_known_source_position,
        contents_differed: true,
        ..SyncRequest::default()
    });
    let messages = pull(&mut stream).await;
    let Some(Message::Handshake(handshake)) = messages.first() else { panic!("{messages:?}") };
    assert_eq!((handshake.mode(), handshake.reason.as_str()), (SyncMode::FullSnapshot, super::CONTENTS_DIFFERED));
    assert_eq!(quiet.table().counters().read().snapshots.get(super::CONTENTS_DIFFERED), Some(&1));
}
