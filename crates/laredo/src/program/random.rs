//! The programs' source of randomness. The code below the programs receives randomness as
//! arguments.

/// Returns a random number. Such numbers distinguish runs of a program, and spread retries in time.
#[expect(clippy::disallowed_methods, reason = "the programs' edge: here randomness is handed in")]
pub(crate) fn random() -> u64 {
    rand::random()
}
