//! The machine's clock, read at the programs' edge.

use std::time::SystemTime;

/// Returns the present time of the machine's clock.
#[expect(clippy::disallowed_methods, reason = "the program's edge: here the clock is handed in")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}
