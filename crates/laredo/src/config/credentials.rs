//! Named credentials profiles for object stores and AWS services.

use std::collections::BTreeMap;

use super::declaration::{config_variants, optional, required};
use super::fields::BlockFields;
use super::reader::ConfigReader;
use super::schema::{PROFILE, TEXT};

config_variants! {
    /// The way to authenticate to AWS: one profile under `credentials`.
    pub enum CredentialsConfig("credentials type") {
        /// The SDK's default chain: environment, container or task role, instance profile.
        Ambient["ambient"],
        /// A role, assumed with the credentials of `base` or the default chain.
        AssumeRole["assume_role"] {
            /// The ARN of the role.
            role_arn: String = required("role_arn", TEXT),
            /// The external ID that the role's trust policy requires.
            external_id: Option<String> = optional("external_id", TEXT, "none"),
            /// The name of the session in AWS's logs.
            session_name: Option<String> = optional("session_name", TEXT, "the SDK's"),
            /// The region of the token service.
            region: Option<String> = optional("region", TEXT, "the environment's"),
            /// The profile whose credentials assume the role. The bases of a profile may not lead
            /// back to it. Ours.
            base: Option<String> = optional("base", PROFILE, "the default chain"),
        },
    }
}

/// Reports profiles whose bases lead back to them. `owner` is the block that has the profiles.
pub(super) fn check_bases(
    owner: &BlockFields,
    profiles: &BTreeMap<String, CredentialsConfig>,
    reader: &mut ConfigReader,
) {
    for (name, profile) in owner.entries("credentials") {
        if let Some(message) = circle(name, profiles) {
            reader.report(&profile, "base", message);
        }
    }
}

/// Returns the error for a profile whose bases lead back to it. A circle is reported once, at the
/// first of its names.
fn circle(name: &str, profiles: &BTreeMap<String, CredentialsConfig>) -> Option<String> {
    let mut path = vec![name];
    while let Some(base) = profiles.get(path[path.len() - 1]).and_then(CredentialsConfig::base) {
        if base == name {
            let is_own = path.len() == 1;
            path.push(base);
            return Some(if is_own {
                "a profile cannot be its own base".to_owned()
            } else {
                format!("leads back to itself: {}", path.join(" → "))
            });
        }
        // The circle does not contain this profile, or is reported at another name.
        if base < name || path.contains(&base) {
            return None;
        }
        path.push(base);
    }
    None
}

impl CredentialsConfig {
    fn base(&self) -> Option<&str> {
        match self {
            CredentialsConfig::AssumeRole { base, .. } => base.as_deref(),
            CredentialsConfig::Ambient => None,
        }
    }
}
