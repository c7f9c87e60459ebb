//! Streams of a real PostgreSQL.

mod changes;
mod harness;
mod histories;
mod positions;
mod reconnects;
