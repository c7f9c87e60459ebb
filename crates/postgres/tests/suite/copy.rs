//! Copies of real tables, and their relation to the stream.
mod copies;
mod event_trigger;
mod harness;
mod redefinitions;
mod sessions;
mod undone_changes;
mod writers;
