//! Requests of new clients for a base, and the answers of the task that makes a table's bases.

use std::time::Duration;

use laredo_core::Sequence;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::contents::JournalContents;

/// The time for which a base is fresh if little was written since it was made.
const FRESH: Duration = Duration::from_millis(250);
/// The time for which a base is fresh if little was written, as a multiple of the time that it took
/// to make. This bounds the share of a processor that new clients can use for bases of a large
/// table.
const FRESH_FACTOR: u32 = 4;
/// The fraction of the base up to which later bytes count as little: one eighth.
const FRESH_SHARE: u64 = 8;
/// The number of bytes that also counts as little during [`FRESH`]. So a small table that is
/// written all the time does not need a base for each new client.
const FRESH_BYTES: u64 = 64 * 1024;

/// The requests for bases of one journal, and the progress of the task that makes them.
#[derive(Debug, Default)]
pub(crate) struct BaseRequests {
    wanted: Notify,
    rounds: watch::Sender<BaseRounds>,
}

/// The progress of the task that makes bases, in rounds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BaseRounds {
    /// The number of rounds that have begun. Each uses the head at its beginning.
    begun: u64,
    /// The number of rounds that have ended, with or without a new base. The end of a round answers
    /// all requests from before its beginning.
    answered: u64,
    /// The time when the last attempt began, and its duration.
    last: Option<(Instant, Duration)>,
    /// True once the task has ended.
    is_closed: bool,
}

impl BaseRequests {
    /// Requests the next base.
    pub(crate) fn request(&self) {
        self.wanted.notify_one();
    }

    /// Waits until a base is requested.
    pub(crate) async fn requested(&self) {
        self.wanted.notified().await;
    }

    /// Requests a base, and waits for the answer. Returns at once if `is_fresh` is true, which
    /// receives the time and duration of the last attempt, or if no more bases are made.
    pub(super) async fn wait_for_fresh(&self, is_fresh: impl Fn(BaseRounds) -> bool) {
        let mut rounds = self.rounds.subscribe();
        // Read before the base is checked, so that a round that begins in between counts. A round
        // that has begun already may use an old head.
        let begun = rounds.borrow().begun;
        if !is_fresh(self.rounds()) {
            self.request();
            // The journal owns the sender, so this ends only with an answer.
            let _ = rounds.wait_for(|rounds| rounds.answered > begun || is_fresh(*rounds)).await;
        }
    }

    /// Begins a round, which answers all requests so far.
    pub(crate) fn begin_round(&self) {
        self.rounds.send_if_modified(|rounds| {
            rounds.begun += 1;
            false
        });
    }

    /// Ends the round. `last` is the time and duration of the attempt to make a base, if there was
    /// one.
    pub(crate) fn answer(&self, last: Option<(Instant, Duration)>) {
        self.rounds.send_modify(|rounds| {
            rounds.answered += 1;
            rounds.last = last.or(rounds.last);
        });
    }

    /// Notes that no more bases will be made.
    pub(crate) fn close(&self) {
        self.rounds.send_modify(|rounds| rounds.is_closed = true);
    }

    /// Returns the progress of the task that makes bases.
    pub(super) fn rounds(&self) -> BaseRounds {
        *self.rounds.borrow()
    }
}

impl BaseRounds {
    /// Returns true if new clients should get the newest base of these contents: it shows the head,
    /// was made recently, or no other one can be made.
    pub(super) fn is_fresh(&self, contents: &JournalContents, head: Sequence) -> bool {
        let (written, little) = (contents.bytes_after_base(), contents.base.bytes() / FRESH_SHARE);
        let is_recent = |(began, took): (Instant, Duration)| match began.elapsed() {
            age if age <= FRESH => written <= little.max(FRESH_BYTES),
            age => age <= took * FRESH_FACTOR && written <= little,
        };
        self.is_closed
            || contents.base.sequence() == head
            || self.last.is_some_and(is_recent)
            || contents.holds_enough()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use tokio::time::advance;

    use super::super::contents::{BasePins, HELD_BYTES_MAX};
    use super::super::tests::{commit, insert, journal, merge_base, options};
    use super::*;

    #[test]
    fn newcomers_share_the_newest_base_while_readers_hold_too_many_older_ones() {
        let (journal, mut writer) = journal(options());
        commit(&mut writer, |writer| insert(writer, 1, "row"));
        assert!(!journal.has_fresh_base());
        let newest = journal.base().sequence();
        let hold = |sequence: Sequence, bytes| {
            let pins = BasePins { readers: 1, bytes };
            journal.contents_mut().pins.insert(sequence, pins);
        };
        hold(newest, HELD_BYTES_MAX);
        assert!(!journal.has_fresh_base(), "the newest itself does not count");
        hold(Sequence(newest.0 - 1), HELD_BYTES_MAX / 2);
        assert!(!journal.has_fresh_base());
        hold(Sequence(newest.0 - 2), HELD_BYTES_MAX / 2);
        assert!(journal.has_fresh_base());
    }

    #[tokio::test(start_paused = true)]
    async fn a_base_of_a_moment_ago_is_old_once_much_was_written() {
        let (journal, mut writer) = journal(options());
        commit(&mut writer, |writer| insert(writer, 1, "row"));
        merge_base(&journal);
        journal.base_requests().answer(Some((Instant::now(), Duration::ZERO)));
        commit(&mut writer, |writer| (0..100).for_each(|id| insert(writer, id, "row")));
        assert!(journal.has_fresh_base(), "a few kilobytes");
        commit(&mut writer, |writer| (0..100).for_each(|id| insert(writer, id, &"x".repeat(1000))));
        assert!(!journal.has_fresh_base(), "a newcomer would be sent 100 kB for a table of one row");
    }

    /// With an older base, the server would also have to send everything that was written since.
    #[tokio::test(start_paused = true)]
    async fn a_newcomer_waits_for_a_round_that_begins_after_it_came() {
        let (journal, mut writer) = journal(options());
        commit(&mut writer, |writer| (0..100).for_each(|id| insert(writer, id, "row")));
        let round = |began| journal.base_requests().answer(Some((began, FRESH)));
        // A round has begun. It takes so long that its base is old when it ends.
        journal.base_requests().begin_round();
        let began = Instant::now();
        merge_base(&journal);
        commit(&mut writer, |writer| (200..300).for_each(|id| insert(writer, id, "row")));
        advance(FRESH * 2).await;
        let mut newcomer = pin!(journal.fresh_base());
        assert!(poll_once(newcomer.as_mut()).is_none());
        round(began);
        assert!(poll_once(newcomer.as_mut()).is_none(), "that base lacks what had been committed");
        assert!(poll_once(pin!(journal.base_requests().requested())).is_some(), "the next one is asked for");
        // The next round begins after the client's request. Its base is good no matter how much is
        // written meanwhile.
        journal.base_requests().begin_round();
        let (began, head) = (Instant::now(), journal.head().sequence);
        merge_base(&journal);
        commit(&mut writer, |writer| (300..400).for_each(|id| insert(writer, id, "row")));
        advance(FRESH * 2).await;
        round(began);
        assert_eq!(poll_once(newcomer.as_mut()).map(|pinned| pinned.base().sequence()), Some(head));
    }

    fn poll_once<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_base_that_took_long_is_shared_for_longer_while_little_is_written() {
        let (journal, mut writer) = journal(options());
        commit(&mut writer, |writer| (0..100).for_each(|id| insert(writer, id, "row")));
        let (began, took) = (Instant::now(), Duration::from_secs(1));
        merge_base(&journal);
        advance(took).await;
        journal.base_requests().answer(Some((began, took)));
        commit(&mut writer, |writer| insert(writer, 1000, "row"));
        advance(took * 3).await;
        assert!(journal.has_fresh_base());
        commit(&mut writer, |writer| (2000..2100).for_each(|id| insert(writer, id, "row")));
        assert!(!journal.has_fresh_base(), "what was written since is as much as the table");
        merge_base(&journal);
        journal.base_requests().answer(Some((Instant::now(), took)));
        commit(&mut writer, |writer| insert(writer, 3000, "row"));
        advance(took * 4 + FRESH).await;
        assert!(!journal.has_fresh_base(), "it is old");
    }
}
