//! The credentials and the HTTP client for calls to AWS.

mod held;
mod http;
mod profiles;

pub(crate) use held::{Bridge, NoCredentials};
pub(crate) use http::connector;
pub use profiles::{AssumeRole, Credentials, Profile, ProfileError, Profiles};
