//! A fuzzer for decoders: it mutates valid inputs, keeps those that reach something new, and
//! reports an input that panics, takes too much memory or time, or breaks a property.
//!
//! A target is a test in a module `fuzz_tests`. `./dev fuzz` builds the crates with counters of
//! their branches, which guide the mutations. `./dev test` runs the same targets in the ordinary
//! build, guided only by the outcomes that they return. docs/adr/0020 has the reasons.

mod allocations;
mod corpus;
mod coverage;
mod mutation;
mod random;
mod run;

pub use run::{FuzzTarget, outcome};
