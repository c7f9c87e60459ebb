//! The commit marks in a manifest.

use laredo_core::{CommitMark, CommitTime, Lsn, Xid};
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};

const MICROS: i64 = 1_000_000;

/// The newest commit at or before a position, as the server named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "MarkText", into = "MarkText")]
pub struct PositionMark {
    /// The mark of the commit.
    pub commit: CommitMark,
    /// A server's hash of the names of the tables whose newest commit this is; zero for a commit of
    /// the archive's own table.
    pub scope: u64,
}

/// A mark in the form that a manifest has.
#[derive(Serialize, Deserialize)]
struct MarkText {
    #[serde(with = "super::exactly")]
    end: Lsn,
    xid: u64,
    committed_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

impl From<PositionMark> for MarkText {
    fn from(PositionMark { commit: CommitMark { end, xid, committed_at }, scope }: PositionMark) -> MarkText {
        let micros = committed_at.unix_us();
        let nanos = i32::try_from(micros.rem_euclid(MICROS) * 1000).unwrap_or_default();
        let committed_at = Timestamp { seconds: micros.div_euclid(MICROS), nanos }.to_string();
        MarkText { end, xid: xid.0, committed_at, scope: (scope != 0).then(|| format!("{scope:016x}")) }
    }
}

impl TryFrom<MarkText> for PositionMark {
    type Error = String;

    fn try_from(MarkText { end, xid, committed_at, scope }: MarkText) -> Result<PositionMark, String> {
        let time: Timestamp = committed_at.parse().map_err(|error| format!("{committed_at}: {error}"))?;
        let committed_at = CommitTime::from_unix_us(time.seconds * MICROS + i64::from(time.nanos / 1000));
        let scope = scope.map(|scope| u64::from_str_radix(&scope, 16).map_err(|error| format!("{scope}: {error}")));
        let commit = CommitMark { end, xid: Xid(xid), committed_at };
        Ok(PositionMark { commit, scope: scope.transpose()?.unwrap_or_default() })
    }
}
