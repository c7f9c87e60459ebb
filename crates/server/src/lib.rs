//! The server: sessions over the engine's journals, the Replication service, health and metrics.
//! The services implement gRPC, and their ports also offer gRPC-Web and Connect.
//!
//! A stream to a client is a body that is polled. HTTP/2's flow control requests the next bytes,
//! and only then is the next piece of the journal read. There is no queue between the journal and a
//! connection, so a slow client costs one piece.

mod accept;
mod access;
mod config_order;
mod connections;
mod drain;
#[cfg(test)]
mod fuzz_tests;
mod grpc;
mod handshake;
mod health;
mod hosts;
mod http;
mod lease;
mod listener;
mod log_limits;
pub mod metrics_page;
mod oam;
mod options;
mod order_rule;
mod origins;
mod peer;
mod problems;
mod protocols;
mod query;
mod query_state;
mod receive;
mod refusal;
mod request;
mod response_task;
mod roster;
mod rpc_rules;
mod serve;
mod server_state;
mod session;
mod table;
mod tls;
mod unread_request;
mod view;

pub use access::{
    AccessGrants, AccessOptions, AccessRules, AccessToken, GrantSubjects, IdentityLimits, IdentityOptions,
    JwtAlgorithm, JwtKeyFeed, JwtKeySet, JwtKeySetError, JwtKeys, JwtOptions, NamePattern, OperatorGrant, ReaderGrant,
    RowRule, RowTest, TablePattern, TablePatternError, TokenHash, TokenHashError, TokenOptions,
};
pub use config_order::{ConfigChange, ConfigEffect, ConfigOrder, ConfigOrderKind, ConfigOutcome};
pub use hosts::AllowedHosts;
pub use http::{AwaitedSources, CERTIFICATE_METRICS, metrics_reference, serve_http, serve_startup};
pub use listener::{ListenAddress, ListenAddressError, PortListener};
pub use options::{
    BufferOptions, CLIENTS_MAX, CONNECTIONS_MAX, HttpOptions, QueryIndexOptions, QueryOptions, ServeError,
    ServedSource, ServedTableOptions, ServerListeners, ServerOptions, ServerTimeLimits, TableLimits,
};
pub use order_rule::{OrderRefusal, check_order};
pub use peer::PeerAddress;
pub use rpc_rules::order_names;
pub use serve::{Server, ServerHandle};
pub use tls::{ClientCertificates, ServerTls, ServerTlsOptions, TlsFile, TlsFileProblem};
