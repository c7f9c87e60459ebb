//! Commit marks in the form that a manifest has.

use laredo_core::{CommitMark, CommitTime, Lsn, ScopedMark, Xid};
use prost_types::Timestamp;
use serde::de::{Deserializer, Error as _};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

const MICROS: i64 = 1_000_000;

#[derive(Serialize, Deserialize)]
struct MarkText {
    end: Lsn,
    xid: u64,
    committed_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

pub(super) fn serialize<S: Serializer>(mark: &Option<ScopedMark>, to: S) -> Result<S::Ok, S::Error> {
    mark.map(MarkText::from).serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ScopedMark>, D::Error> {
    let text = Option::<MarkText>::deserialize(from)?;
    text.map(ScopedMark::try_from).transpose().map_err(D::Error::custom)
}

impl From<ScopedMark> for MarkText {
    fn from(mark: ScopedMark) -> MarkText {
        let ScopedMark { commit: CommitMark { end, xid, committed_at }, scope } = mark;
        let micros = committed_at.unix_us();
        let nanos = i32::try_from(micros.rem_euclid(MICROS) * 1000).unwrap_or_default();
        let committed_at = Timestamp { seconds: micros.div_euclid(MICROS), nanos }.to_string();
        MarkText { end, xid: xid.0, committed_at, scope: (scope != 0).then(|| format!("{scope:016x}")) }
    }
}

impl TryFrom<MarkText> for ScopedMark {
    type Error = String;

    fn try_from(MarkText { end, xid, committed_at, scope }: MarkText) -> Result<ScopedMark, String> {
        let time: Timestamp = committed_at.parse().map_err(|error| format!("{committed_at}: {error}"))?;
        let committed_at = CommitTime::from_unix_us(time.seconds * MICROS + i64::from(time.nanos / 1000));
        let scope = scope.map(|scope| u64::from_str_radix(&scope, 16).map_err(|error| format!("{scope}: {error}")));
        let commit = CommitMark { end, xid: Xid(xid), committed_at };
        Ok(ScopedMark { commit, scope: scope.transpose()?.unwrap_or_default() })
    }
}
