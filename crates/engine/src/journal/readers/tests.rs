//! Tests of waits and cuts, on a clock that only the tests advance.

use super::*;
use crate::journal::tests::{begin, commit, insert, journal, options};

fn reader(behind_max: u64, policy: BufferPolicy) -> ReaderOptions {
    ReaderOptions { client_id: "r".to_owned(), owner: String::new(), behind_max, policy }
}

fn live(journal: &crate::journal::Journal, behind_max: u64, policy: BufferPolicy) -> JournalReader {
    let at = journal.head().sequence;
    let reader = journal.register(reader(behind_max, policy), at);
    reader.note_progress(at, true);
    reader
}

#[tokio::test(start_paused = true)]
async fn a_transaction_larger_than_the_bound_does_not_cut_who_keeps_up() {
    let (journal, mut writer) = journal(options());
    let reading = live(&journal, 10, BufferPolicy::DropDisconnect);
    let at_once = live(&journal, 10, BufferPolicy::DropDisconnect);
    for _ in 0..3 {
        commit(&mut writer, |writer| (0..50).for_each(|id| insert(writer, id, "x")));
        assert!(writer.enforce_buffer_policies().is_none());
    }
    at_once.note_progress(journal.head().sequence, true);
    reading.note_progress(Sequence(1025), false);
    for _ in 0..10 {
        commit(&mut writer, |writer| insert(writer, 7, "x"));
        assert!(writer.enforce_buffer_policies().is_none());
    }
    assert!(!reading.is_cut() && !at_once.is_cut(), "behind by ten, and by what is larger than the bound");
    reading.note_progress(Sequence(1150), false);
    assert!(writer.enforce_buffer_policies().is_none());
    assert!(!reading.is_cut());
    commit(&mut writer, |writer| insert(writer, 7, "x"));
    assert!(writer.enforce_buffer_policies().is_none());
    assert!(reading.is_cut() && at_once.is_cut(), "by eleven small ones");
}

#[tokio::test(start_paused = true)]
async fn small_transactions_count_while_a_large_one_waits() {
    let (journal, mut writer) = journal(options());
    let reader = live(&journal, 10, BufferPolicy::DropDisconnect);
    for count in [4, 50, 6, 50] {
        commit(&mut writer, |writer| (0..count).for_each(|id| insert(writer, id, "x")));
        assert!(writer.enforce_buffer_policies().is_none());
        assert!(!reader.is_cut());
    }
    commit(&mut writer, |writer| insert(writer, 7, "x"));
    assert!(writer.enforce_buffer_policies().is_none());
    assert!(reader.is_cut());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_slows_the_source_down_is_cut_after_thirty_seconds() {
    let (journal, mut writer) = journal(options());
    let reader = live(&journal, 1, BufferPolicy::SlowDown);
    for id in 0..3 {
        commit(&mut writer, |writer| insert(writer, id, "x"));
    }
    let began = Instant::now();
    while let Some(patience) = writer.enforce_buffer_policies() {
        assert!(!reader.is_cut());
        assert_eq!(journal.readers()[0].state, ReaderState::Backpressured);
        patience.wait().await;
    }
    assert!(reader.is_cut());
    assert_eq!(began.elapsed(), SLOW_DOWN_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_catches_up_sets_the_source_going_at_once() {
    let (journal, mut writer) = journal(options());
    let (one, other) = (live(&journal, 1, BufferPolicy::SlowDown), live(&journal, 1, BufferPolicy::SlowDown));
    for round in 0..5 {
        for id in 0..3 {
            commit(&mut writer, |writer| insert(writer, id, "x"));
        }
        let began = Instant::now();
        let patience = writer.enforce_buffer_policies().unwrap();
        let head = journal.head().sequence;
        one.note_progress(head, false);
        other.note_progress(head, false);
        patience.wait().await;
        assert!(writer.enforce_buffer_policies().is_none(), "round {round}");
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(journal.readers().iter().all(|reader| reader.state == ReaderState::Live));
        // If the start of its first slow time were kept, a reader would be cut at its next slow
        // time.
        tokio::time::advance(SLOW_DOWN_MAX).await;
    }
    assert!(!one.is_cut() && !other.is_cut());
}

/// Lets the source wait for a reader that takes nothing, until the reader is cut. Returns the time.
async fn wait_for_stalled_reader(
    journal: &crate::journal::Journal,
    writer: &mut crate::journal::JournalWriter,
) -> Duration {
    let reader = live(journal, 1, BufferPolicy::SlowDown);
    for id in 0..3 {
        commit(writer, |writer| insert(writer, id, "x"));
    }
    let began = Instant::now();
    while let Some(patience) = writer.enforce_buffer_policies() {
        patience.wait().await;
    }
    assert!(reader.is_cut());
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn readers_that_come_back_slow_the_source_down_for_a_quarter_of_the_time() {
    let (journal, mut writer) = journal(options());
    let began = Instant::now();
    let mut held = wait_for_stalled_reader(&journal, &mut writer).await;
    assert_eq!(held, SLOW_DOWN_MAX);
    for pause in [0, 0, 4, 40, 0, 120, 1200].map(Duration::from_secs) {
        assert!(writer.enforce_buffer_policies().is_none());
        tokio::time::advance(pause).await;
        let waited = wait_for_stalled_reader(&journal, &mut writer).await;
        assert_eq!(waited, (pause / SLOW_DOWN_SHARE).min(SLOW_DOWN_MAX), "after {pause:?}");
        held += waited;
        let shared = (began.elapsed() - held) / SLOW_DOWN_SHARE;
        assert!(held <= SLOW_DOWN_MAX + shared, "{held:?} of {:?}", began.elapsed());
    }
    assert_eq!(journal.info().slowed_down, held);
}

#[tokio::test(start_paused = true)]
async fn two_slow_readers_at_once_slow_the_source_down_no_longer_than_one() {
    let (journal, mut writer) = journal(options());
    let other = live(&journal, 1, BufferPolicy::SlowDown);
    assert_eq!(wait_for_stalled_reader(&journal, &mut writer).await, SLOW_DOWN_MAX);
    assert!(other.is_cut());
    assert_eq!(journal.info().slowed_down, SLOW_DOWN_MAX);
}

#[test]
fn a_move_during_the_writers_look_is_never_missed() {
    const ROUNDS: i64 = 2000;
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (journal, mut writer) = journal(options());
    let reader = live(&journal, 1, BufferPolicy::SlowDown);
    let mut heads = journal.watch_head();
    let last = journal.head().sequence.plus(2 * ROUNDS.unsigned_abs());
    let following = runtime();
    let follower = std::thread::spawn(move || {
        loop {
            let head = heads.borrow_and_update().sequence;
            reader.note_progress(head, false);
            if head == last {
                return reader.is_cut();
            }
            following.block_on(heads.changed()).unwrap();
        }
    });
    runtime().block_on(async {
        for id in 0..ROUNDS {
            for _ in 0..2 {
                begin(&mut writer);
                insert(&mut writer, id, "x");
                writer.commit().unwrap();
            }
            writer.publish().unwrap();
            while let Some(patience) = writer.enforce_buffer_policies() {
                patience.wait().await;
            }
        }
    });
    assert!(!follower.join().unwrap(), "the source stood still until the reader was cut");
}
