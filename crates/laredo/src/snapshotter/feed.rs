//! A client's subscription as the feed of an archive's writer.

use laredo_archive::{Feed, FeedStart, FeedUpdate, PositionMark, SourceId, TimelineSwitch};
use laredo_client::{ResumePoint, Subscription, SubscriptionEvent};
use laredo_core::{Checksum, CommitMark, CommitTime, DefinitionVersion, Lsn, StateError, Xid};
use laredo_proto::replication::{self, SourceIdentity};

/// A feed that delivers the events of a subscription.
pub(crate) struct SubscriptionFeed(pub(crate) Subscription);

impl Feed for SubscriptionFeed {
    async fn next(&mut self) -> FeedUpdate {
        match self.0.next().await {
            SubscriptionEvent::Restart { reason, shared_until } => FeedUpdate::Restart { reason, shared_until },
            SubscriptionEvent::State { table, position, source } => {
                FeedUpdate::State { table, position, source: source.map(source_id) }
            }
            SubscriptionEvent::Resumed { source, .. } => FeedUpdate::Resumed { source: source.map(source_id) },
            SubscriptionEvent::Transaction(transaction) => FeedUpdate::Transaction(transaction),
            SubscriptionEvent::Current { at, position, checksum } => FeedUpdate::Current { at, position, checksum },
            SubscriptionEvent::Ended { reason } => FeedUpdate::Ended { reason },
        }
    }

    fn definition(&self) -> DefinitionVersion {
        self.0.definition()
    }

    fn mark(&self) -> Option<PositionMark> {
        self.0.mark().map(|wire| {
            let committed_at = CommitTime::from_unix_us(wire.committed_at_us);
            PositionMark {
                commit: CommitMark { end: Lsn(wire.end), xid: Xid(wire.xid), committed_at },
                scope: wire.scope,
            }
        })
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
    (point.source, point.definition, point.mark) = (source.map(identity), definition, mark.map(wire_mark));
    point
}

pub(crate) fn wire_mark(PositionMark { commit, scope }: PositionMark) -> replication::CommitMark {
    let CommitMark { end, xid, committed_at } = commit;
    replication::CommitMark { end: end.0, xid: xid.0, committed_at_us: committed_at.unix_us(), scope }
}

fn source_id(identity: SourceIdentity) -> SourceId {
    let SourceIdentity { system_identifier, database, timeline, history } = identity;
    let switch = |switch: replication::TimelineSwitch| TimelineSwitch {
        timeline: switch.timeline,
        position: Lsn(switch.switched_at),
    };
    SourceId { system_identifier, database, timeline, history: history.into_iter().map(switch).collect() }
}

fn identity(source: SourceId) -> SourceIdentity {
    let SourceId { system_identifier, database, timeline, history } = source;
    let switch = |switch: TimelineSwitch| replication::TimelineSwitch {
        timeline: switch.timeline,
        switched_at: switch.position.0,
    };
    SourceIdentity { system_identifier, database, timeline, history: history.into_iter().map(switch).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_the_same_in_the_archive_and_on_the_wire() {
        let switched = replication::TimelineSwitch { timeline: 1, switched_at: 0x16_B374_D848 };
        let wire = SourceIdentity {
            system_identifier: "7".to_owned(),
            database: "db".to_owned(),
            timeline: 2,
            history: vec![switched],
        };
        assert_eq!(identity(source_id(wire.clone())), wire);
    }
}
