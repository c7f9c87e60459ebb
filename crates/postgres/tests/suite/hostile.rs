//! Bytes that PostgreSQL would not send, and their effects on the stream and on the table state.

mod recording;
mod state;
mod stream;
