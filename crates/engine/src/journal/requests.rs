//! Bases on request: what newcomers say to the task that makes a table's bases, and what it answers.

use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Inner, Journal, PinnedBase};

/// A base is fresh for this long, as long as little was written since.
const FRESH: Duration = Duration::from_millis(250);
/// A base stays fresh for so many times the time that it took to make, as long as little was written since. It bounds the share of
/// a processor that newcomers can claim for bases of a large table.
const FRESH_FACTOR: u32 = 4;
/// Little is this part of the base.
const FRESH_SHARE: u64 = 8;
/// At first this many bytes are little as well, so that a small table that is written all the time needs no base for each newcomer.
const FRESH_BYTES: u64 = 64 * 1024;
/// Older bases that readers still hold may take this many bytes of disk, or [`HELD_FACTOR`] times the newest base.
const HELD_BYTES_MAX: u64 = 256 * 1024 * 1024;
const HELD_FACTOR: u64 = 3;

/// The newcomers' side and the maker's side of one journal.
#[derive(Debug, Default)]
pub(super) struct BaseRequests {
    wanted: Notify,
    rounds: watch::Sender<BaseRounds>,
}

/// What the maker has done.
#[derive(Clone, Copy, Debug, Default)]
struct BaseRounds {
    /// The number of rounds that have begun. Each takes the head as it is then.
    begun: u64,
    /// The number of rounds that have ended, with a new base or without. All requests from before such a round are answered.
    answered: u64,
    /// When the last attempt began, and how long it took.
    last: Option<(Instant, Duration)>,
    /// The maker has ended.
    is_closed: bool,
}

impl Journal {
    /// The newest base, pinned, if it is fresh enough for a newcomer. `None` where [`Journal::fresh_base`] would have one made.
    #[must_use]
    pub fn fresh_base_now(&self) -> Option<PinnedBase> {
        self.has_fresh_base().then(|| self.pin_base())
    }

    /// A base for a newcomer, pinned: the newest if it is fresh enough, or else one that is made of the head now. All newcomers of
    /// that time share it.
    ///
    /// Where none can be made, because the disk is full or because readers hold too many older ones, it is the newest there is.
    pub async fn fresh_base(&self) -> PinnedBase {
        let requests = &self.shared.requests;
        let mut rounds = requests.rounds.subscribe();
        // Read before the base is looked at: a round that begins in between counts. One that has begun already may have taken a
        // head of long ago.
        let begun = rounds.borrow().begun;
        if !self.has_fresh_base() {
            requests.wanted.notify_one();
            // The journal has the sender, so there is an end of it only by an answer.
            let _ = rounds.wait_for(|rounds| rounds.answered > begun || self.has_fresh_base_in(*rounds)).await;
        }
        self.pin_base()
    }

    /// Whether the newest base shows the head, or was made a moment ago, or has to do.
    pub(crate) fn has_fresh_base(&self) -> bool {
        let rounds = *self.shared.requests.rounds.borrow();
        self.has_fresh_base_in(rounds)
    }

    /// For a caller that has the rounds borrowed, and must not borrow them again.
    fn has_fresh_base_in(&self, rounds: BaseRounds) -> bool {
        let inner = self.shared.inner.read();
        let (written, little) = (inner.bytes_after_base(), inner.base.bytes() / FRESH_SHARE);
        let is_recent = |(began, took): (Instant, Duration)| match began.elapsed() {
            age if age <= FRESH => written <= little.max(FRESH_BYTES),
            age => age <= took * FRESH_FACTOR && written <= little,
        };
        rounds.is_closed
            || inner.base.sequence() == self.head().sequence
            || rounds.last.is_some_and(is_recent)
            || inner.holds_enough()
    }

    /// Asks for the next base.
    pub(crate) fn request_base(&self) {
        self.shared.requests.wanted.notify_one();
    }

    /// Waits until a base is asked for.
    pub(crate) async fn base_requested(&self) {
        self.shared.requests.wanted.notified().await;
    }

    /// Begins a round, which answers all requests so far.
    pub(crate) fn begin_round(&self) {
        self.shared.requests.rounds.send_if_modified(|rounds| {
            rounds.begun += 1;
            false
        });
    }

    /// Ends the round; `last` where a base was made, or was tried to be.
    pub(crate) fn answer_requests(&self, last: Option<(Instant, Duration)>) {
        self.shared.requests.rounds.send_modify(|rounds| {
            rounds.answered += 1;
            rounds.last = last.or(rounds.last);
        });
    }

    /// No more bases are made.
    pub(crate) fn close_requests(&self) {
        self.shared.requests.rounds.send_modify(|rounds| rounds.is_closed = true);
    }
}

impl Inner {
    /// Whether readers hold so many older bases that newcomers share the newest as it is.
    fn holds_enough(&self) -> bool {
        let newest = self.base.sequence();
        let held: u64 = self.pins.range(..newest).map(|(_, pins)| pins.bytes).sum();
        held >= HELD_BYTES_MAX.max(self.base.bytes().saturating_mul(HELD_FACTOR))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use laredo_core::Sequence;
    use tokio::time::advance;

    use super::super::BasePins;
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
            journal.shared.inner.write().pins.insert(sequence, pins);
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
        journal.answer_requests(Some((Instant::now(), Duration::ZERO)));
        commit(&mut writer, |writer| (0..100).for_each(|id| insert(writer, id, "row")));
        assert!(journal.has_fresh_base(), "a few kilobytes");
        commit(&mut writer, |writer| (0..100).for_each(|id| insert(writer, id, &"x".repeat(1000))));
        assert!(!journal.has_fresh_base(), "a newcomer would be sent 100 kB for a table of one row");
    }

    /// An older base would have the server send everything that was written since as well.
    #[tokio::test(start_paused = true)]
    async fn a_newcomer_waits_for_a_round_that_begins_after_it_came() {
        let (journal, mut writer) = journal(options());
        commit(&mut writer, |writer| (0..100).for_each(|id| insert(writer, id, "row")));
        let round = |began| journal.answer_requests(Some((began, FRESH)));
        // A round is under way, and takes so long that its base is old when it is there.
        journal.begin_round();
        let began = Instant::now();
        merge_base(&journal);
        commit(&mut writer, |writer| (200..300).for_each(|id| insert(writer, id, "row")));
        advance(FRESH * 2).await;
        let mut newcomer = pin!(journal.fresh_base());
        assert!(poll_once(newcomer.as_mut()).is_none());
        round(began);
        assert!(poll_once(newcomer.as_mut()).is_none(), "that base lacks what had been committed");
        assert!(poll_once(pin!(journal.base_requested())).is_some(), "the next one is asked for");
        // The next one began after it had come, and is good however much is written meanwhile.
        journal.begin_round();
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
        journal.answer_requests(Some((began, took)));
        commit(&mut writer, |writer| insert(writer, 1000, "row"));
        advance(took * 3).await;
        assert!(journal.has_fresh_base());
        commit(&mut writer, |writer| (2000..2100).for_each(|id| insert(writer, id, "row")));
        assert!(!journal.has_fresh_base(), "what was written since is as much as the table");
        merge_base(&journal);
        journal.answer_requests(Some((Instant::now(), took)));
        commit(&mut writer, |writer| insert(writer, 3000, "row"));
        advance(took * 4 + FRESH).await;
        assert!(!journal.has_fresh_base(), "it is old");
    }
}
