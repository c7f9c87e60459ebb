//! Tests of the messages to clients about the definition of their rows.

use laredo_core::{DefinitionVersion, Lsn};
use laredo_engine::source::{SourceEvent, TableIndex};
use laredo_proto::replication::{RowBatch, SyncHandshake};

use super::*;

/// Copies the first table under a new definition, together with these changes, which no event
/// announces.
async fn redefine(quiet: &IdleServer, definition: &str, changes: Vec<SimChange>) -> DefinitionVersion {
    let copies = || quiet.table().handle().status().copies;
    let before = copies();
    quiet.database.redefine(definition);
    quiet.database.change_silently(0, changes);
    quiet
        .database
        .inject_event(SourceEvent::Moved { table: TableIndex(0), reason: definition.to_owned(), definition: None })
        .await;
    eventually(|| copies() > before).await;
    let head = quiet.journal().head().position;
    quiet.journal().definition_at(head)
}

/// Reads messages up to a wanted one.
async fn until<T>(stream: &mut SessionStream, wanted: impl Fn(&Message) -> Option<T>) -> T {
    loop {
        if let Some(found) = pull(stream).await.iter().find_map(&wanted) {
            return found;
        }
    }
}

fn handshake(message: &Message) -> Option<SyncHandshake> {
    match message {
        Message::Handshake(handshake) => Some(handshake.clone()),
        _ => None,
    }
}

fn defining(message: &Message) -> Option<RowBatch> {
    match message {
        Message::Batch(batch) => Some(batch.clone()).filter(|batch| batch.definition != 0),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn who_reads_batches_knows_the_definition_at_every_position() {
    let quiet = IdleServer::new().await;
    let one = redefine(&quiet, "one", vec![SimChange::Insert(1, "one".to_owned())]).await;
    // The next base is made at once, so that new clients need not process the copy.
    eventually(|| quiet.journal().pin_base().base().rows() == 1).await;
    let mut stream = quiet.stream(RowEncoding::PostgresBinary);
    assert_eq!(DefinitionVersion(until(&mut stream, handshake).await.definition), one);
    let end = |message: &Message| if let Message::SnapshotEnd(end) = message { Some(end.clone()) } else { None };
    let begun = until(&mut stream, end).await;
    assert_eq!(DefinitionVersion(begun.definition), one);
    // No row differs, so the definition is sent with the next progress.
    let two = redefine(&quiet, "two", Vec::new()).await;
    advance(INTERVAL).await;
    let told = until(&mut stream, defining).await;
    assert_eq!((DefinitionVersion(told.definition), told.count, told.ends), (two, 0, true));
    assert!(one != two && Lsn(told.position) > begun.source_position.parse().unwrap());
    let three = redefine(&quiet, "three", vec![SimChange::Update(1, "three".to_owned())]).await;
    assert_eq!(DefinitionVersion(until(&mut stream, defining).await.definition), three);
}

#[tokio::test(start_paused = true)]
async fn a_definition_comes_through_a_filter_that_no_row_passes() {
    use laredo_proto::replication::{FieldPredicate, field_predicate::Match};
    let quiet = IdleServer::new().await;
    let nothing = Some(Match::Prefix("nothing begins so".to_owned()));
    let filters = vec![FieldPredicate { field: "body".to_owned(), r#match: nothing }];
    let accept = vec![RowEncoding::PostgresBinary.into()];
    let mut stream = quiet.ask(SyncRequest { accept, filters, ..SyncRequest::default() });
    until(&mut stream, handshake).await;
    let one = redefine(&quiet, "one", vec![SimChange::Insert(1, "one".to_owned())]).await;
    let told = until(&mut stream, defining).await;
    assert_eq!((DefinitionVersion(told.definition), told.count), (one, 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_knows_no_definitions_is_given_an_id_that_names_the_new_one() {
    let quiet = IdleServer::new().await;
    let one = redefine(&quiet, "one", vec![SimChange::Insert(1, "one".to_owned())]).await;
    eventually(|| quiet.journal().pin_base().base().rows() == 1).await;
    let mut stream = quiet.stream(RowEncoding::Struct);
    let id = until(&mut stream, handshake).await.snapshot_id;
    assert!(id.ends_with(&format!("-d{one}")), "{id}");
    let marker =
        |message: &Message| if let Message::JournalEntry(entry) = message { Some(entry.clone()) } else { None };
    until(&mut stream, marker).await;
    // No row differs, so the stream continues.
    redefine(&quiet, "two", Vec::new()).await;
    let two = redefine(&quiet, "three", vec![SimChange::Insert(2, "two".to_owned())]).await;
    let entry = until(&mut stream, marker).await;
    assert_eq!(entry.action, "INSERT");
    let status = end_of(&mut stream).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("definition"), "{status}");
    let continues = SyncRequest {
        last_known_source_position: entry.source_position,
        last_known_sequence: entry.sequence,
        last_snapshot_id: id,
        ..SyncRequest::default()
    };
    let mut stream = quiet.ask(continues);
    let handshake = until(&mut stream, handshake).await;
    assert_eq!(handshake.mode(), SyncMode::Delta, "its rows are of this journal");
    assert!(handshake.snapshot_id.ends_with(&format!("-d{two}")), "{}", handshake.snapshot_id);
    advance(INTERVAL).await;
    heartbeat(&mut stream).await;
}

#[tokio::test(start_paused = true)]
async fn rows_of_another_definition_are_replaced() {
    let quiet = IdleServer::new().await;
    let one = redefine(&quiet, "one", vec![SimChange::Insert(1, "one".to_owned())]).await;
    let head = quiet.journal().head();
    let old = DefinitionVersion(one.0 ^ 1);
    let binary = |definition: DefinitionVersion| SyncRequest {
        accept: vec![RowEncoding::PostgresBinary.into()],
        instance_id: "another".to_owned(),
        last_known_source_position: head.position.to_string(),
        definition: definition.0,
        ..SyncRequest::default()
    };
    let structs = |definition: DefinitionVersion| SyncRequest {
        last_snapshot_id: format!("another-7-d{definition}"),
        last_known_source_position: head.position.to_string(),
        ..SyncRequest::default()
    };
    let mode = async |request| until(&mut quiet.ask(request), handshake).await.mode();
    assert_eq!([mode(binary(one)).await, mode(structs(one)).await], [SyncMode::Delta; 2]);
    assert_eq!([mode(binary(old)).await, mode(structs(old)).await], [SyncMode::FullSnapshot; 2]);
}
