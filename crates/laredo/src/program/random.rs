//! Where the programs take their randomness from; what is below is handed it.

/// A number that nobody else has: it tells runs of a program apart, and spreads what they try again.
#[expect(clippy::disallowed_methods, reason = "the programs' edge: here randomness is handed in")]
pub(crate) fn random() -> u64 {
    rand::random()
}
