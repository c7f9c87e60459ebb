//! Archives that are not as they were written: each fault is named with its object, nothing is handed out, and nothing panics. And archives
//! that others have written.

#![expect(clippy::disallowed_methods, reason = "these run by the machine's own clock")]

mod canaries;
mod damaged;
mod manifests;
mod mutations;
mod others;
mod sample;
mod unlike;
