//! The tests of the server. They are one program because linking each takes longer than running it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod bounds;
mod clients;
mod filters;
mod malformed_calls;
mod masks;
mod newcomers;
mod oam;
mod open_requests;
mod protocols;
mod readiness;
mod refusals;
mod request_memory;
mod serving;
mod snapshots;
mod support;
mod sync;
mod tls;
mod unread_ends;
