//! Copies of real tables, and their relation to the stream.
mod away_and_back;
mod copies;
mod harness;
mod redefinitions;
mod sessions;
mod triggered;
mod writers;
