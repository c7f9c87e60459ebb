//! The identity of a database, and of the line of its history.

use crate::Lsn;

/// A database, and the timelines that led to its present state.
///
/// Positions of two databases cannot be compared. Positions of one database can, as far as their
/// timelines share a past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SourceIdentity {
    /// The cluster's system identifier, as PostgreSQL writes it.
    pub system_identifier: String,
    /// The name of the database.
    pub database: String,
    /// The timeline that the database writes.
    pub timeline: u32,
    /// The ends of the earlier timelines, oldest first.
    pub history: Vec<TimelineSwitch>,
}

/// The point where a timeline ended and the next one began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TimelineSwitch {
    /// The timeline that ended.
    pub timeline: u32,
    /// The position where the timeline ended.
    pub position: Lsn,
}

impl SourceIdentity {
    /// Returns true if both are the same database of the same cluster, on any timeline.
    #[must_use]
    pub fn is_same_database(&self, other: &SourceIdentity) -> bool {
        (&self.system_identifier, &self.database) == (&other.system_identifier, &other.database)
    }

    /// Returns the position at which an earlier timeline ended, or `None` if the timeline is not an
    /// earlier one of this history.
    #[must_use]
    pub fn left_at(&self, timeline: u32) -> Option<Lsn> {
        self.history.iter().find(|switch| switch.timeline == timeline).map(|switch| switch.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> SourceIdentity {
        let switch = |timeline, position| TimelineSwitch { timeline, position: Lsn(position) };
        SourceIdentity {
            system_identifier: "7".to_owned(),
            database: "db".to_owned(),
            timeline: 3,
            history: vec![switch(1, 0x16_B374_D848), switch(2, 0x17_0000_0000)],
        }
    }

    #[test]
    fn only_earlier_timelines_were_left() {
        let left: Vec<_> = (0..5).map(|timeline| identity().left_at(timeline)).collect();
        assert_eq!(left, [None, Some(Lsn(0x16_B374_D848)), Some(Lsn(0x17_0000_0000)), None, None]);
    }

    #[test]
    fn a_database_stays_the_same_on_another_timeline_only() {
        let promoted = SourceIdentity { timeline: 4, history: Vec::new(), ..identity() };
        assert!(promoted.is_same_database(&identity()));
        let renamed = SourceIdentity { database: "other".to_owned(), ..identity() };
        assert!(!renamed.is_same_database(&identity()));
        let elsewhere = SourceIdentity { system_identifier: "8".to_owned(), ..identity() };
        assert!(!elsewhere.is_same_database(&identity()));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn the_json_of_an_identity_is_the_one_of_manifests() {
        let json = r#"{"system_identifier":"7","database":"db","timeline":3,"history":[{"timeline":1,"position":"16/B374D848"},{"timeline":2,"position":"17/0"}]}"#;
        assert_eq!(serde_json::to_string(&identity()).unwrap(), json);
        assert_eq!(serde_json::from_str::<SourceIdentity>(json).unwrap(), identity());
    }
}
