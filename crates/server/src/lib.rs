//! The server: sessions over the engine's journals, the Replication service, health and metrics. Services know gRPC, and every port
//! of theirs speaks gRPC-Web and Connect as well.
//!
//! A stream to a client is a body that is pulled: HTTP/2's flow control asks for the next bytes, and only then is the next
//! piece of the journal looked for. No queue stands between the journal and a connection, so a slow client costs one piece.

mod accept;
mod acknowledgements;
mod drain;
mod grpc;
mod http;
mod oam;
mod options;
mod origins;
mod problems;
mod protocols;
mod query;
mod receive;
mod refusal;
mod request;
mod roster;
mod serve;
mod session;
mod shared;
mod table;
mod tls;
mod view;

pub use http::{WaitingFor, serve_http, serve_startup};
pub use options::{
    BufferOptions, HttpOptions, Listeners, ServeError, ServedSource, ServedTableOptions, ServerOptions, TlsFile,
    TlsOptions, Waits,
};
pub use serve::Server;
