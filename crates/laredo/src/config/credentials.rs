//! Named credentials profiles for object stores and AWS services.

use std::collections::BTreeMap;

use super::diagnostics::ConfigProblem;
use super::fields::{BlockFields, BlockVariant};
use super::references::report_dangling;
use super::schema::{BlockSchema, KeySchema, SettingKind, TEXT, VariantSchema};
use super::write::{HoconBlock as Out, text};

/// The way to authenticate to AWS: one profile under `credentials`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialsConfig {
    /// The SDK's default chain: environment, container or task role, instance profile.
    Ambient,
    /// A role, assumed with the credentials of `base` or the default chain.
    AssumeRole {
        /// The role's ARN.
        role_arn: String,
        /// The external id that the role's trust policy asks for.
        external_id: Option<String>,
        /// The name of the session in AWS's logs.
        session_name: Option<String>,
        /// The region of the token service.
        region: Option<String>,
        /// The profile to assume the role with.
        base: Option<String>,
    },
}

/// The schema of a `credentials { NAME { … } }` block.
pub(super) const CREDENTIALS: SettingKind = SettingKind::Map(&SettingKind::Tagged(&PROFILE));

static PROFILE: VariantSchema = VariantSchema {
    tag: "type",
    what: "credentials type",
    variants: &[(&["ambient"], &AMBIENT), (&["assume_role"], &ASSUME_ROLE)],
};

static AMBIENT: BlockSchema = BlockSchema { keys: &[KeySchema::required("type", TEXT)] };

static ASSUME_ROLE: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("type", TEXT),
        KeySchema::required("role_arn", TEXT),
        KeySchema::new("external_id", TEXT),
        KeySchema::new("session_name", TEXT),
        KeySchema::new("region", TEXT),
        KeySchema::new("base", TEXT),
    ],
};

/// The name of a profile in errors.
const PROFILE_NAME: &str = "credentials profile";

/// Reads the `credentials` of a block.
pub(super) fn read_all(owner: &BlockFields, problems: &mut Vec<ConfigProblem>) -> BTreeMap<String, CredentialsConfig> {
    let names = owner.names("credentials");
    let profiles = owner.variants_by_name("credentials");
    let read: BTreeMap<String, CredentialsConfig> =
        profiles.iter().map(|(name, profile)| ((*name).to_owned(), CredentialsConfig::read(profile))).collect();
    for (name, profile) in &profiles {
        let Some(base) = read.get(*name).and_then(CredentialsConfig::base) else { continue };
        report_dangling(&profile.fields, "base", base, &names, PROFILE_NAME, problems);
        if let Some(message) = circle(name, &read) {
            let path = profile.fields.path.key("base");
            problems.push(ConfigProblem::new(profile.fields.place_of("base"), &path, message));
        }
    }
    read
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

/// Reads the `credentials` of a block that refers to a profile. Reports a profile that does not
/// exist.
pub(super) fn read_name(fields: &BlockFields, known: &[&str], problems: &mut Vec<ConfigProblem>) -> Option<String> {
    let name = fields.text("credentials")?;
    report_dangling(fields, "credentials", &name, known, PROFILE_NAME, problems);
    Some(name)
}

/// Writes the profiles as a block, unless there are none.
pub(super) fn write_all(profiles: &BTreeMap<String, CredentialsConfig>, out: &mut Out) {
    if profiles.is_empty() {
        return;
    }
    out.block("credentials", |out| {
        for (name, profile) in profiles {
            out.block(name, |out| profile.write(out));
        }
    });
}

impl CredentialsConfig {
    fn base(&self) -> Option<&str> {
        match self {
            CredentialsConfig::AssumeRole { base, .. } => base.as_deref(),
            CredentialsConfig::Ambient => None,
        }
    }

    fn read(profile: &BlockVariant) -> CredentialsConfig {
        let fields = &profile.fields;
        match profile.tag {
            "assume_role" => CredentialsConfig::AssumeRole {
                role_arn: fields.text("role_arn").unwrap_or_default(),
                external_id: fields.text("external_id"),
                session_name: fields.text("session_name"),
                region: fields.text("region"),
                base: fields.text("base"),
            },
            _ => CredentialsConfig::Ambient,
        }
    }

    fn write(&self, out: &mut Out) {
        match self {
            CredentialsConfig::Ambient => out.put("type", "ambient"),
            CredentialsConfig::AssumeRole { role_arn, external_id, session_name, region, base } => {
                out.put("type", "assume_role");
                out.put("role_arn", text(role_arn));
                out.put_if("external_id", external_id.as_deref().map(text));
                out.put_if("session_name", session_name.as_deref().map(text));
                out.put_if("region", region.as_deref().map(text));
                out.put_if("base", base.as_deref().map(text));
            }
        }
    }
}
