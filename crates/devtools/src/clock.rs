//! The clock by which the processes of a demo or a benchmark compare times.

use std::time::SystemTime;

use laredo_core::CommitTime;

/// Returns the microseconds since 1970-01-01 UTC.
#[expect(
    clippy::disallowed_methods,
    reason = "a program's edge: all processes are on this machine and share its clock"
)]
pub(crate) fn now_us() -> i64 {
    CommitTime::from(SystemTime::now()).unix_us()
}
