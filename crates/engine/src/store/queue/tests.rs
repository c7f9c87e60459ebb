//! Tests of the queue on a disk that refuses every write.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;

use laredo_core::{CommitMark, CommitTime, Lsn, Sequence};

use super::*;

const BYTES_MAX: u64 = 1 << 30;

#[test]
fn what_a_disk_refuses_is_not_durable() {
    let folder = tempfile::tempdir().unwrap();
    let store = JournalFolder::open(folder.path(), BYTES_MAX).unwrap();
    let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
    let full = Arc::new(DataFile::of_store(full, PathBuf::from("/dev/full"), 0));
    let queue = DiskQueue::new();
    let (committed_at, mark) = (CommitTime(0), CommitMark::default());
    let head = Head { sequence: Sequence(1001), position: Lsn(600), committed_at, mark, checksum: None };
    let write = || DiskJob::Write {
        file: full.clone(),
        at: 0,
        bytes: [b"lost".as_slice().into(), Bytes::new(), Bytes::new()],
        head: Some(head),
    };
    queue.push(write());
    queue.close();
    run(&queue, &store);
    let status = store.status().borrow().clone();
    assert_eq!((status.durable.position(), status.sequence, status.syncs), (Lsn::ZERO, Sequence(0), 0));
    assert!(status.failed.as_ref().is_some_and(|error| error.contains("No space left")), "{status:?}");
    // Jobs do not accumulate after the failure.
    (0..100).for_each(|_| queue.push(write()));
    assert!(!queue.is_behind());
}

#[test]
fn a_full_disk_is_waited_for_until_the_table_ends() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(JournalFolder::open(folder.path(), BYTES_MAX).unwrap());
    let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
    let full = Arc::new(DataFile::of_store(full, PathBuf::from("/dev/full"), 0));
    let queue = Arc::new(DiskQueue::new());
    let write = || DiskJob::Write {
        file: full.clone(),
        at: 0,
        bytes: [vec![0; 1 << 20].into(), Bytes::new(), Bytes::new()],
        head: None,
    };
    let (taking, keeping) = (queue.clone(), store.clone());
    let thread = std::thread::spawn(move || run(&taking, &keeping));
    queue.push(write());
    let mut status = store.status();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let stalled = runtime.block_on(status.wait_for(|status| status.stalled.is_some())).unwrap().stalled.clone();
    assert!(stalled.is_some_and(|reason| reason.contains("No space left")));
    assert!(!queue.is_behind() && queue.wait_for_place().is_ok());
    // Whole transactions never block. A piece of a large one is refused.
    (0..70).for_each(|_| queue.push(write()));
    assert!(queue.is_behind() && queue.wait_for_place().is_err());
    assert_eq!(status.borrow().failed, None);
    queue.end_waiting();
    thread.join().unwrap();
    let ended = status.borrow().clone();
    assert!(ended.failed.is_some_and(|error| error.contains("No space left")) && ended.stalled.is_none());
    assert_eq!(ended.durable.position(), Lsn::ZERO);
}
