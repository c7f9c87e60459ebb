//! The identity of a database and the marks of its commits on the wire.

use laredo_core::{CommitMark, CommitTime, Lsn, ScopedMark, SourceIdentity, TimelineSwitch, Xid};

use crate::replication as wire;

impl From<wire::SourceIdentity> for SourceIdentity {
    fn from(wire: wire::SourceIdentity) -> SourceIdentity {
        let wire::SourceIdentity { system_identifier, database, timeline, history } = wire;
        let switch = |wire::TimelineSwitch { timeline, switched_at }| {
            let position = Lsn(switched_at);
            TimelineSwitch { timeline, position }
        };
        SourceIdentity { system_identifier, database, timeline, history: history.into_iter().map(switch).collect() }
    }
}

impl From<SourceIdentity> for wire::SourceIdentity {
    fn from(source: SourceIdentity) -> wire::SourceIdentity {
        let SourceIdentity { system_identifier, database, timeline, history } = source;
        let switch = |TimelineSwitch { timeline, position }| {
            let switched_at = position.0;
            wire::TimelineSwitch { timeline, switched_at }
        };
        wire::SourceIdentity {
            system_identifier,
            database,
            timeline,
            history: history.into_iter().map(switch).collect(),
        }
    }
}

impl From<wire::CommitMark> for ScopedMark {
    fn from(wire: wire::CommitMark) -> ScopedMark {
        let wire::CommitMark { end, xid, committed_at_us, scope } = wire;
        let committed_at = CommitTime::from_unix_us(committed_at_us);
        ScopedMark { commit: CommitMark { end: Lsn(end), xid: Xid(xid), committed_at }, scope }
    }
}

impl From<ScopedMark> for wire::CommitMark {
    fn from(mark: ScopedMark) -> wire::CommitMark {
        let ScopedMark { commit: CommitMark { end, xid, committed_at }, scope } = mark;
        wire::CommitMark { end: end.0, xid: xid.0, committed_at_us: committed_at.unix_us(), scope }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mark_from_the_wire_returns_to_it_unchanged(
            end: u64, xid: u64, scope: u64, committed_at_us in -CommitTime::UNIX_OFFSET_US..i64::MAX,
        ) {
            let mark = wire::CommitMark { end, xid, committed_at_us, scope };
            prop_assert_eq!(wire::CommitMark::from(ScopedMark::from(mark)), mark);
        }

        #[test]
        fn an_identity_from_the_wire_returns_to_it_unchanged(
            system_identifier: String, database: String, timeline: u32,
            history in prop::collection::vec(any::<(u32, u64)>(), 0..4),
        ) {
            let switch = |(timeline, switched_at)| wire::TimelineSwitch { timeline, switched_at };
            let history = history.into_iter().map(switch).collect();
            let wire = wire::SourceIdentity { system_identifier, database, timeline, history };
            prop_assert_eq!(wire::SourceIdentity::from(SourceIdentity::from(wire.clone())), wire);
        }
    }

    #[test]
    fn the_time_of_a_mark_counts_from_another_epoch_on_the_wire() {
        let committed_at_us = CommitTime::UNIX_OFFSET_US + 9;
        let mark = ScopedMark::from(wire::CommitMark { end: 0x16_B374_D848, xid: 7, committed_at_us, scope: 3 });
        let commit = CommitMark { end: Lsn(0x16_B374_D848), xid: Xid(7), committed_at: CommitTime(9) };
        assert_eq!(mark, ScopedMark { commit, scope: 3 });
    }
}
