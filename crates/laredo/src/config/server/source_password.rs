//! The place of a source's password.

use std::path::PathBuf;
use std::time::Duration;

use super::super::declaration::{ConfigKey, config_field, custom, key, optional};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{FieldSchema, SettingKind, TEXT};
use super::super::secret::{ConfigSecret, MASK};
use super::super::write::{HoconBlock, list, text};

/// The place of the password of a source's role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourcePasswordConfig {
    /// The connection string, or the places of libpq: `PGPASSWORD` or a password file.
    Connection,
    /// A file that holds the password alone.
    File(PathBuf),
    /// A command that prints the password.
    Command {
        /// The name or path of the program.
        program: String,
        /// The arguments, which may be secret.
        arguments: Vec<ConfigSecret>,
        /// The time for which a password is used. Zero runs the command at each attempt to connect.
        lifetime: Duration,
        /// The time limit of a run.
        time_limit: Duration,
    },
}

/// The keys of [`SourcePasswordConfig`].
pub(super) const FIELDS: &[FieldSchema] =
    &[config_field!(FILE), config_field!(COMMAND), config_field!(LIFETIME), config_field!(TIME_LIMIT)];

const FILE: ConfigKey<Option<PathBuf>> = optional("password_file", TEXT, "none").doc(
    "A file that holds the password alone. It is read at each attempt to connect ([passwords](#passwords)). Ours.",
);

const COMMAND: ConfigKey<Vec<ConfigSecret>> = custom::<Vec<ConfigSecret>>(
    "password_command",
    SettingKind::List(&SettingKind::Secret),
    Vec::new,
    |key, fields, _| Some(fields.texts(key.name()).into_iter().map(|(text, ..)| ConfigSecret::new(text)).collect()),
    |words, key, out| {
        if let Some((program, arguments)) = words.split_first() {
            let arguments = arguments.iter().map(|_| text(MASK));
            out.put(key.name(), list(std::iter::once(text(program.expose())).chain(arguments)));
        }
    },
)
.defaults_to("none")
.doc("A command that prints the password, as a list of its program and arguments. No shell reads them. Ours.");

const LIFETIME: ConfigKey<Duration> =
    key("password_lifetime", SettingKind::Time { min: Duration::ZERO, max: Duration::from_secs(366 * 86_400) }, || {
        Duration::from_secs(600)
    })
    .doc(
        "The time for which the password of a command is used for new connections. `0s` runs the command at each \
         attempt. A password that PostgreSQL refuses is forgotten at once. Ours.",
    );

const TIME_LIMIT: ConfigKey<Duration> = key(
    "password_timeout",
    SettingKind::Time { min: Duration::from_millis(100), max: Duration::from_secs(600) },
    || Duration::from_secs(30),
)
.doc("The time limit of a run of the command. Ours.");

impl SourcePasswordConfig {
    pub(super) fn read(fields: &BlockFields, reader: &mut ConfigReader) -> Self {
        let (file, command) = (FILE.read(fields, reader), COMMAND.read(fields, reader));
        let (lifetime, time_limit) = (LIFETIME.read(fields, reader), TIME_LIMIT.read(fields, reader));
        if fields.has(FILE.name()) && fields.has(COMMAND.name()) {
            reader.report(fields, COMMAND.name(), "is given as well as password_file; keep one of them");
        }
        if !fields.has(COMMAND.name()) {
            for unused in [LIFETIME.name(), TIME_LIMIT.name()].into_iter().filter(|key| fields.has(key)) {
                reader.report(fields, unused, "has a meaning only with password_command");
            }
        } else if fields.item_count(COMMAND.name()) == 0 {
            reader.report(
                fields,
                COMMAND.name(),
                "expected a program and its arguments, as [\"program\", \"argument\"]",
            );
        }
        let mut words = command.into_iter();
        match (words.next(), file) {
            (Some(program), _) => SourcePasswordConfig::Command {
                program: program.expose().to_owned(),
                arguments: words.collect(),
                lifetime,
                time_limit,
            },
            (None, Some(path)) => SourcePasswordConfig::File(path),
            (None, None) => SourcePasswordConfig::Connection,
        }
    }

    pub(super) fn write(&self, out: &mut HoconBlock) {
        match self {
            SourcePasswordConfig::Connection => {}
            SourcePasswordConfig::File(path) => FILE.write(&Some(path.clone()), out),
            SourcePasswordConfig::Command { program, arguments, lifetime, time_limit } => {
                let words = std::iter::once(ConfigSecret::new(program)).chain(arguments.iter().cloned());
                COMMAND.write(&words.collect(), out);
                LIFETIME.write(lifetime, out);
                TIME_LIMIT.write(time_limit, out);
            }
        }
    }

    /// Reports a place of the password in addition to the connection string.
    pub(super) fn check_alone(&self, fields: &BlockFields, reader: &mut ConfigReader) {
        let key = match self {
            SourcePasswordConfig::Connection => return,
            SourcePasswordConfig::File(_) => FILE.name(),
            SourcePasswordConfig::Command { .. } => COMMAND.name(),
        };
        let message = "is given as well as a password or passfile in the connection string; keep one of them";
        reader.report(fields, key, message);
    }
}
