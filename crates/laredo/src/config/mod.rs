//! The configuration: from files, variables and arguments to checked values.
//!
//! ```text
//! files, variables, arguments ──load──▶ tree with places ──check──▶ problems
//!                                             ├──read (server)──▶ ServerConfig
//!                                             └──read (snapshotter)──▶ SnapshotterConfig
//! ```
//!
//! [`ConfigLoader`] merges the layers. Each block declares its keys once (`declaration`). The
//! schema, the typed reading, the output and the reference in `docs/configuration.md` come from the
//! declarations. A [`ConfigReport`] has all problems at once.
//!
//! A configuration can also be built in code: each block has a default, and public fields.

mod check;
mod credentials;
mod declaration;
mod diagnostics;
mod document;
mod fields;
#[cfg(test)]
mod fuzz_tests;
mod key_places;
mod layers;
mod leaf;
mod load;
mod overrides;
mod port;
mod reader;
mod reference;
mod schema;
mod secret;
pub mod server;
pub mod snapshotter;
mod sources;
mod suggestions;
mod syntax;
mod tree;
mod value;
mod variables;
mod write;

pub use credentials::CredentialsConfig;
pub use diagnostics::ConfigReport;
pub use load::ConfigLoader;
pub use port::{CertificateDemand, PortTlsConfig};
pub use secret::{ConfigSecret, MASK};
pub use server::ServerConfig;
pub use snapshotter::SnapshotterConfig;
