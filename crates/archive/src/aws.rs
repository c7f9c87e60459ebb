//! AWS: as whom it is called, and over which HTTP client.

mod held;
mod http;
mod profiles;

pub(crate) use held::{Bridge, NoCredentials};
pub(crate) use http::connector;
pub use profiles::{AssumeRole, Credentials, Profile, ProfileError, Profiles};
