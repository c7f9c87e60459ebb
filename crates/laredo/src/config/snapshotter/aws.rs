//! The connection to a service of AWS, or to a compatible one.

use http::Uri;
use http::uri::Authority;

use super::super::declaration::{config_block, optional};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{PROFILE, SettingKind, TAG, TEXT};

config_block! {
    /// The settings that every service of AWS needs.
    pub struct AwsConfig {
        /// The region.
        pub region: Option<String> = optional("region", TEXT, "the environment's"),
        /// The URL of a service that is not AWS's own. Ours.
        pub endpoint: Option<String> = optional("endpoint", URL, "the region's"),
        /// The credentials profile.
        pub credentials: Option<String> = optional("credentials", PROFILE, "the SDK's default chain"),
    }
}

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

/// Reports a block whose type is a service of AWS, if the program was built without them. A build
/// knows the keys nevertheless, so that each problem of a configuration is found in any build.
pub(super) fn check_built_with_aws(fields: &BlockFields, reader: &mut ConfigReader) {
    if !cfg!(feature = "aws") {
        let message = format!(
            "{} needs the feature aws, and this program was built without it (--no-default-features); \
             use a program that was built with the default features",
            fields.tag
        );
        reader.report(fields, TAG, message);
    }
}
