//! A client's subscription as the feed of an archive's writer.

use laredo_archive::{Feed, FeedStart, FeedUpdate};
use laredo_client::{ResumePoint, Subscription, SubscriptionEvent};
use laredo_core::{Checksum, DefinitionVersion, Lsn, ScopedMark, StateError};

/// A feed that delivers the events of a subscription.
pub(crate) struct SubscriptionFeed(pub(crate) Subscription);

impl Feed for SubscriptionFeed {
    async fn next(&mut self) -> FeedUpdate {
        match self.0.next().await {
            SubscriptionEvent::Restart { reason, shared_until } => FeedUpdate::Restart { reason, shared_until },
            SubscriptionEvent::State { table, position, source } => FeedUpdate::State { table, position, source },
            SubscriptionEvent::Resumed { source, .. } => FeedUpdate::Resumed { source },
            SubscriptionEvent::Transaction(transaction) => FeedUpdate::Transaction(transaction),
            SubscriptionEvent::Current { at, position, checksum } => FeedUpdate::Current { at, position, checksum },
            SubscriptionEvent::Ended { reason } => FeedUpdate::Ended { reason },
        }
    }

    fn definition(&self) -> DefinitionVersion {
        self.0.definition()
    }

    fn mark(&self) -> Option<ScopedMark> {
        self.0.mark()
    }

    fn start_over(&mut self, error: StateError) {
        self.0.start_over(error);
    }

    fn compare(&mut self, position: Lsn, ours: Checksum, theirs: Checksum) -> bool {
        self.0.compare(position, ours, theirs)
    }
}

/// Converts the position and schema of an archive's newest state to the point where a subscription
/// resumes.
pub(super) fn resume_point(start: FeedStart) -> ResumePoint {
    let FeedStart { schema, position, source, definition, mark } = start;
    let mut point = ResumePoint::new(schema, position);
    (point.source, point.definition, point.mark) = (source, definition, mark);
    point
}
