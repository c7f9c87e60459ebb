//! Named credentials profiles for object stores and AWS services.

use super::fields::Variant;
use super::schema::{Block, Key, Kind, TEXT, Tagged};
use super::write::{Block as Out, text};

/// How to authenticate to AWS: one profile under `credentials`.
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

impl Credentials {
    pub(super) fn read(profile: &Variant) -> Credentials {
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

    pub(super) fn write(&self, out: &mut Out) {
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
