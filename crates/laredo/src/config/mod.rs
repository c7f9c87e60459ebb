//! The configuration: from files, variables and arguments to checked values.
//!
//! ```text
//! files, variables, arguments ──load──▶ tree with places ──check──▶ problems
//!                                             ├──read (server)──▶ ServerConfig
//!                                             └──read (snapshotter)──▶ SnapshotterConfig
//! ```
//!
//! [`ConfigLoader`] merges the layers. A program's schema defines which keys exist. The program's
//! reader makes typed values and finds the problems that a schema cannot detect. A [`ConfigReport`]
//! has all problems at once.

mod check;
mod credentials;
mod diagnostics;
mod document;
mod fields;
mod key_places;
mod layers;
mod leaf;
mod load;
mod overrides;
mod references;
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
pub use secret::{ConfigSecret, MASK};
pub use server::ServerConfig;
pub use snapshotter::SnapshotterConfig;
