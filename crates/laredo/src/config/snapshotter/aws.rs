//! The connection to a service of AWS, or to a compatible one.

use http::Uri;
use http::uri::Authority;

use super::super::credentials;
use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::schema::{KeySchema, SettingKind, TEXT};
use super::super::write::{self, text};

/// The settings that every service of AWS needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AwsConfig {
    /// The region; if missing, that of the environment.
    pub region: Option<String>,
    /// The URL of a service that is not AWS's own; if missing, the region's.
    pub endpoint: Option<String>,
    /// The credentials profile; if missing, the SDK's default chain.
    pub credentials: Option<String>,
}

pub(super) const REGION: KeySchema = KeySchema::new("region", TEXT);
pub(super) const ENDPOINT: KeySchema = KeySchema::new("endpoint", URL);
pub(super) const PROFILE: KeySchema = KeySchema::new("credentials", TEXT);

/// An HTTP address without a user name or password. Credentials belong in a profile, because the
/// address is printed.
pub(super) const URL: SettingKind =
    SettingKind::Text { accepts: is_url, expected: "a URL that begins with http:// or https:// and names no user" };

fn is_url(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| {
        let names_a_host = |authority: &Authority| !authority.host().is_empty() && !authority.as_str().contains('@');
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some_and(names_a_host)
    })
}

impl AwsConfig {
    pub(super) fn read(fields: &BlockFields, profiles: &[&str], problems: &mut Vec<ConfigProblem>) -> Self {
        AwsConfig {
            region: fields.text("region"),
            endpoint: fields.text("endpoint"),
            credentials: credentials::read_name(fields, profiles, problems),
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.put_if("region", self.region.as_deref().map(text));
        out.put_if("endpoint", self.endpoint.as_deref().map(text));
        out.put_if("credentials", self.credentials.as_deref().map(text));
    }
}
