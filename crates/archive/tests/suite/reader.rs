//! Archives that are not as they were written: each fault is named with its object, nothing is handed out, and nothing panics. And archives
//! that others have written.

mod canaries;
mod damaged;
mod manifests;
mod mutations;
mod others;
mod sample;
mod unlike;
