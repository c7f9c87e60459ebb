//! What a stream says while nothing happens, on a clock that only these tests move.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use laredo_core::CommitTime;
use laredo_engine::{Engine, EngineHandle};
use laredo_proto::frame::PREFIX_LENGTH;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{Heartbeat, RowEncoding, SyncRequest, SyncResponse};
use laredo_testkit::{SimChange, SimDatabase, sim_table};
use prost::Message as _;
use tokio::time::advance;

use super::{Pulled, Session, SyncStream};
use crate::request::Ask;
use crate::shared::Shared;
use crate::table::Served;
use crate::{HttpOptions, ServedTableOptions, Waits};

const INTERVAL: Duration = Duration::from_secs(5);

struct Quiet {
    engine: EngineHandle,
    shared: Arc<Shared>,
    database: SimDatabase,
}

impl Quiet {
    async fn new() -> Quiet {
        let database = SimDatabase::new(2);
        let clock: laredo_engine::Clock = Arc::new(|| CommitTime(0));
        let tables = vec![sim_table("t0"), sim_table("t1")];
        let engine = Engine::prepare(database.clone(), tables, clock.clone()).await.unwrap();
        let handle = engine.handle();
        tokio::spawn(engine.run(std::future::pending()));
        let tables = handle.tables().iter();
        let options = tables.map(|t| ServedTableOptions::new(t.clone(), handle.identity().clone()));
        let served = options.map(|options| Arc::new(Served::new(options))).collect();
        let shared = Arc::new(Shared::new(served, clock, Waits::default(), HttpOptions::default()));
        for table in handle.tables() {
            table.wait_journal().await.unwrap();
        }
        Quiet { engine: handle, shared, database }
    }

    fn stream(&self, encoding: RowEncoding) -> SyncStream {
        let accept = match encoding {
            RowEncoding::Struct => vec![],
            RowEncoding::PostgresBinary => vec![encoding.into()],
        };
        let table = self.shared.tables[0].clone();
        let session = Session {
            shared: self.shared.clone(),
            ask: Ask::new(SyncRequest { accept, ..SyncRequest::default() }).unwrap(),
            seat: table.take_seat().unwrap(),
            table,
        };
        session.into_stream()
    }

    /// Something happens to the other table, and the first one's journal has heard of it.
    async fn elsewhere(&self, id: i64) -> String {
        let end = self.database.commit(1, vec![SimChange::Insert(id, String::new())]);
        let journal = self.engine.tables()[0].journal().unwrap();
        journal.watch_head().wait_for(|head| head.position >= end).await.unwrap();
        end.to_string()
    }
}

async fn pull(stream: &mut SyncStream) -> Vec<Message> {
    let pulled = poll_fn(|cx| stream.poll_next(cx)).await.unwrap();
    let Pulled::Frames(mut bytes) = pulled else { panic!("{pulled:?}") };
    let mut messages = Vec::new();
    while let Some(length) = laredo_proto::frame::length(&bytes) {
        let message = bytes.split_to(PREFIX_LENGTH + length).split_off(PREFIX_LENGTH);
        messages.extend(SyncResponse::decode(message).unwrap().message);
    }
    messages
}

async fn is_silent(stream: &mut SyncStream) -> bool {
    poll_fn(|cx| Poll::Ready(stream.poll_next(cx).is_pending())).await
}

async fn heartbeat(stream: &mut SyncStream) -> Heartbeat {
    match pull(stream).await.as_slice() {
        [Message::Heartbeat(heartbeat)] => heartbeat.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_comes_when_nothing_else_did_for_its_interval() {
    let quiet = Quiet::new().await;
    let mut stream = quiet.stream(RowEncoding::Struct);
    assert!(matches!(pull(&mut stream).await.as_slice(), [Message::Handshake(_), Message::SnapshotBegin(_)]));
    let end = pull(&mut stream).await;
    assert!(matches!(end.as_slice(), [Message::SnapshotEnd(_), Message::JournalEntry(_)]), "{end:?}");
    for _ in 0..3 {
        assert!(is_silent(&mut stream).await);
        advance(INTERVAL - Duration::from_millis(1)).await;
        assert!(is_silent(&mut stream).await);
        advance(Duration::from_millis(1)).await;
        let heartbeat = heartbeat(&mut stream).await;
        assert_eq!(heartbeat.source_position, "", "an extension it did not ask for");
    }
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_at_once_and_then_ten_times_a_second_at_most() {
    let quiet = Quiet::new().await;
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
