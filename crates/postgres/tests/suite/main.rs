//! The tests against a real PostgreSQL. They are one program because linking each takes longer than
//! running it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod certificates;
mod conformance;
mod connect;
mod copy;
mod hostile;
mod passwords;
mod stream;
mod validate;
mod verify;
