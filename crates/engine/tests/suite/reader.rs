//! A reader that reads a journal as a client does.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Change, Lsn, Sequence, TableState};
use laredo_engine::journal::{Journal, frames};
use laredo_proto::batch::BatchEntries;
use laredo_testkit::{SimDatabase, SimRows};

/// The rows of a reader, and the place where it resumes.
pub(crate) struct JournalTestReader {
    pub(crate) state: TableState,
    pub(crate) at: Sequence,
    pub(crate) position: Lsn,
}

impl JournalTestReader {
    pub(crate) fn from_base(journal: &Journal) -> JournalTestReader {
        let pinned = journal.pin_base();
        let base = pinned.base();
        let mut state = TableState::new(base.schema().clone(), &[], 0).unwrap();
        base.for_each_row::<laredo_engine::base::BaseError>(|row| {
            state.put(row.to_tuple());
            Ok(())
        })
        .unwrap();
        base.checksum().into_iter().for_each(|sum| assert_eq!(sum, state.checksum(), "a base says what it has"));
        let mut reader = JournalTestReader { state, at: base.sequence(), position: base.position() };
        reader.read_on(journal);
        reader
    }

    /// Applies all available entries. Every change must fit exactly, and at the head the checksum
    /// must match the rows.
    pub(crate) fn read_on(&mut self, journal: &Journal) {
        let mut cursor = journal.cursor(self.at);
        while let Some(piece) = cursor.next_piece().unwrap() {
            for frame in frames(piece.frames.clone()) {
                if let Some(schema) = frame.batch.schema.clone() {
                    let schema = Arc::new(laredo_proto::schema::from_wire(schema).unwrap());
                    self.state.apply_change(&Change::Schema(schema)).unwrap();
                }
                let schema = self.state.schema().clone();
                for entry in BatchEntries::new(&frame.batch.entries, &schema) {
                    self.state.apply_change(&entry.unwrap().to_change()).unwrap();
                }
                assert!(frame.header.last_sequence > self.at, "sequences increase");
                self.at = frame.header.last_sequence;
                if frame.header.ends {
                    assert!(frame.header.position > self.position, "positions of commits increase");
                    self.position = frame.header.position;
                }
            }
        }
        let head = journal.head();
        if head.sequence == self.at
            && let Some(checksum) = head.checksum
        {
            assert_eq!(checksum, self.state.checksum(), "at {}", head.position);
        }
    }

    pub(crate) fn rows(&self) -> SimRows {
        self.state.rows().map(|row| SimDatabase::parse(row.as_ref()).unwrap()).collect()
    }
}

pub(crate) async fn wait_until_reached(journal: &Journal, position: Lsn) {
    let mut head = journal.watch_head();
    let waiting = head.wait_for(|head| head.position >= position);
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the head gets there").unwrap();
}
