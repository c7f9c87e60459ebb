//! Bytes that are not what PostgreSQL would send: what the stream makes of them, and what the state.

mod recording;
mod state;
mod stream;
