//! Access: who calls, and what each caller may do.
//!
//! Without the block `access` of a configuration, everyone may do everything. With it, whatever is
//! not granted is denied. `rules` admits each request by its headers, before its body is read, and
//! `layer` attaches a [`Caller`] to it. Services ask the caller which rows of a table it may read
//! ([`RowScope`]), and refuse a request that has none.
//!
//! The rules of one time are in `control`, and `grant` decides, as pure functions. When the rules
//! are replaced, `layer` judges the callers of open streams again. `jwt` verifies tokens that an
//! identity provider has signed.

mod audit;
mod caller;
mod certificate;
mod control;
mod credential;
mod grant;
mod identity;
mod jwt;
mod layer;
mod limits;
mod pattern;
mod rules;
mod token;

pub use control::{AccessOptions, IdentityOptions, TokenOptions};
pub use grant::{AccessGrants, GrantSubjects, OperatorGrant, ReaderGrant, RowRule, RowTest};
pub use jwt::{JwtAlgorithm, JwtKeyFeed, JwtKeySet, JwtKeySetError, JwtKeys, JwtOptions};
pub use limits::IdentityLimits;
pub use pattern::{NamePattern, TablePattern, TablePatternError};
pub use rules::AccessRules;
pub use token::{AccessToken, TokenHash, TokenHashError};

pub(crate) use caller::Caller;
pub(crate) use control::admitted;
pub(crate) use grant::{RowScope, split_fingerprint};
pub(crate) use layer::AccessGate;
pub(crate) use limits::StreamPermit;
