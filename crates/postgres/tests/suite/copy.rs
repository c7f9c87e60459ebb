//! Copies of real tables, and what they have to do with the stream.
mod away_and_back;
mod copies;
mod harness;
mod redefinitions;
mod sessions;
mod triggered;
mod writers;
