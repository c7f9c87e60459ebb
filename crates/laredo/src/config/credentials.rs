//! Named credentials profiles for object stores and AWS services.

use std::collections::BTreeMap;

use super::diagnostics::Problem;
use super::fields::{Fields, Variant};
use super::references::dangling;
use super::schema::{Block, Key, Kind, TEXT, Tagged};
use super::write::{Block as Out, text};

/// The way to authenticate to AWS: one profile under `credentials`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
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
pub(super) const CREDENTIALS: Kind = Kind::Map(&Kind::Tagged(&PROFILE));

static PROFILE: Tagged = Tagged {
    tag: "type",
    what: "credentials type",
    variants: &[(&["ambient"], &AMBIENT), (&["assume_role"], &ASSUME_ROLE)],
};

static AMBIENT: Block = Block { keys: &[Key::required("type", TEXT)] };

static ASSUME_ROLE: Block = Block {
    keys: &[
        Key::required("type", TEXT),
        Key::required("role_arn", TEXT),
        Key::new("external_id", TEXT),
        Key::new("session_name", TEXT),
        Key::new("region", TEXT),
        Key::new("base", TEXT),
    ],
};

/// The name of a profile in errors.
const PROFILE_NAME: &str = "credentials profile";

/// Reads the `credentials` of a block.
pub(super) fn read_all(owner: &Fields, problems: &mut Vec<Problem>) -> BTreeMap<String, Credentials> {
    let names = owner.names("credentials");
    let profiles = owner.variants_by_name("credentials");
    let read: BTreeMap<String, Credentials> =
        profiles.iter().map(|(name, profile)| ((*name).to_owned(), Credentials::read(profile))).collect();
    for (name, profile) in &profiles {
        let Some(base) = read.get(*name).and_then(Credentials::base) else { continue };
        dangling(&profile.fields, "base", base, &names, PROFILE_NAME, problems);
        if let Some(message) = circle(name, &read) {
            let path = profile.fields.path.key("base");
            problems.push(Problem::new(profile.fields.place_of("base"), &path, message));
        }
    }
    read
}

/// Returns the error for a profile whose bases lead back to it. A circle is reported once, at the
/// first of its names.
fn circle(name: &str, profiles: &BTreeMap<String, Credentials>) -> Option<String> {
    let mut path = vec![name];
    while let Some(base) = profiles.get(path[path.len() - 1]).and_then(Credentials::base) {
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
pub(super) fn read_name(fields: &Fields, known: &[&str], problems: &mut Vec<Problem>) -> Option<String> {
    let name = fields.text("credentials")?;
    dangling(fields, "credentials", &name, known, PROFILE_NAME, problems);
    Some(name)
}

/// Writes the profiles as a block, unless there are none.
pub(super) fn write_all(profiles: &BTreeMap<String, Credentials>, out: &mut Out) {
    if profiles.is_empty() {
        return;
    }
    out.block("credentials", |out| {
        for (name, profile) in profiles {
            out.block(name, |out| profile.write(out));
        }
    });
}

impl Credentials {
    fn base(&self) -> Option<&str> {
        match self {
            Credentials::AssumeRole { base, .. } => base.as_deref(),
            Credentials::Ambient => None,
        }
    }

    fn read(profile: &Variant) -> Credentials {
        let fields = &profile.fields;
        match profile.tag {
            "assume_role" => Credentials::AssumeRole {
                role_arn: fields.text("role_arn").unwrap_or_default(),
                external_id: fields.text("external_id"),
                session_name: fields.text("session_name"),
                region: fields.text("region"),
                base: fields.text("base"),
            },
            _ => Credentials::Ambient,
        }
    }

    fn write(&self, out: &mut Out) {
        match self {
            Credentials::Ambient => out.put("type", "ambient"),
            Credentials::AssumeRole { role_arn, external_id, session_name, region, base } => {
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
