//! The turns of a source's copies and verifications. Each takes connections of the database, which
//! others need, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The limit on the copies of one source that run at the same time. Tables take turns in the order
/// in which they asked.
#[derive(Clone, Debug)]
pub(crate) struct CopyTurns {
    free: Arc<Semaphore>,
    copies_max: usize,
    waiting: Arc<AtomicUsize>,
}

/// A permit to open one session for a copy. Dropping it passes it to the table that has waited
/// longest.
#[derive(Debug)]
pub(crate) struct CopyPermit {
    _permit: Option<OwnedSemaphorePermit>,
}

/// A guard that counts a table while it waits for its turn.
struct WaiterGuard<'a>(&'a AtomicUsize);

impl<'a> WaiterGuard<'a> {
    fn new(count: &'a AtomicUsize) -> WaiterGuard<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        WaiterGuard(count)
    }
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The numbers of copies of a source at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyCounts {
    /// Copies that have a session of the database.
    pub running: usize,
    /// Tables that wait for their turn.
    pub waiting: usize,
    /// The maximum number of copies that run at the same time.
    pub max: usize,
}

impl CopyTurns {
    /// Returns turns for at most `copies_max` copies at a time, but for at least one.
    pub(crate) fn new(copies_max: usize) -> CopyTurns {
        let copies_max = copies_max.clamp(1, Semaphore::MAX_PERMITS);
        CopyTurns { free: Arc::new(Semaphore::new(copies_max)), copies_max, waiting: Arc::default() }
    }

    /// Waits for a turn. Dropping the future gives up the place in the queue.
    pub(crate) async fn take_permit(&self) -> CopyPermit {
        let _waiting = WaiterGuard::new(&self.waiting);
        // The semaphore is never closed.
        CopyPermit { _permit: Arc::clone(&self.free).acquire_owned().await.ok() }
    }

    /// Returns the number of copies that run and of tables that wait.
    pub(crate) fn counts(&self) -> CopyCounts {
        CopyCounts {
            running: self.copies_max - self.free.available_permits().min(self.copies_max),
            waiting: self.waiting.load(Ordering::Relaxed),
            max: self.copies_max,
        }
    }
}

/// The limit on the verifications that read one source at the same time: at most
/// [`VERIFICATIONS_MAX`], one of them in the background.
#[derive(Clone, Debug)]
pub(crate) struct VerifyTurns {
    /// The permit for a background pass. Background passes take turns.
    pub(crate) background: Arc<Semaphore>,
    /// The permits for sessions that read parts.
    sessions: Arc<Semaphore>,
}

/// The maximum number of verifications that read at the same time. Each takes up to two
/// connections.
const VERIFICATIONS_MAX: usize = 2;

impl Default for VerifyTurns {
    fn default() -> VerifyTurns {
        VerifyTurns { background: Arc::new(Semaphore::new(1)), sessions: Arc::new(Semaphore::new(VERIFICATIONS_MAX)) }
    }
}

impl VerifyTurns {
    /// Waits for a permit to open a session that reads parts.
    pub(crate) async fn take_session_permit(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.sessions).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[tokio::test]
    async fn turns_are_given_in_the_order_in_which_they_were_asked_for() {
        let turns = CopyTurns::new(2);
        let (first, second) = (turns.take_permit().await, turns.take_permit().await);
        let mut context = Context::from_waker(Waker::noop());
        let mut third = pin!(turns.take_permit());
        assert!(third.as_mut().poll(&mut context).is_pending());
        let mut fourth = Box::pin(turns.take_permit());
        assert!(fourth.as_mut().poll(&mut context).is_pending());
        assert_eq!(turns.counts(), CopyCounts { running: 2, waiting: 2, max: 2 });
        drop(second);
        assert!(fourth.as_mut().poll(&mut context).is_pending(), "the third was there before");
        let Poll::Ready(third) = third.poll(&mut context) else { panic!("a turn is free") };
        drop(fourth);
        assert_eq!(turns.counts(), CopyCounts { running: 2, waiting: 0, max: 2 });
        drop((first, third));
        assert_eq!(turns.counts(), CopyCounts { running: 0, waiting: 0, max: 2 });
    }

    #[tokio::test]
    async fn at_least_one_copy_may_run() {
        let turns = CopyTurns::new(0);
        let _turn = turns.take_permit().await;
        assert_eq!(turns.counts(), CopyCounts { running: 1, waiting: 0, max: 1 });
    }
}
