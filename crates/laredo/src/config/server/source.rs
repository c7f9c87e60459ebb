//! Sources: the databases that rows come from.

use std::time::Duration;

use laredo_postgres::stream::ReconnectOptions;
use laredo_postgres::{ConnectionOptions, PasswordSource};

use super::super::declaration::{
    ConfigKey, block, config_block, config_choice, config_field, group, key, optional, required,
};
use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::leaf::show_time;
use super::super::reader::ConfigReader;
use super::super::schema::{AGE, FieldSchema, SettingKind};
use super::super::secret::ConfigSecret;
use super::super::write::HoconBlock;
use super::source_password::{self, SourcePasswordConfig};

config_block! {
    /// A PostgreSQL database that is followed through one replication slot.
    pub struct PostgresSourceConfig("source type" ["postgresql", "pg"]) [PostgresSourceConfig::check] {
        /// The [connection string](#connection-strings) of libpq, as a URL or as `key=value` pairs.
        /// Secret.
        pub connection: ConfigSecret = required("connection", SettingKind::Connection),
        /// The place of the role's password, if it is not in the connection string.
        pub password: SourcePasswordConfig = group(
            source_password::FIELDS,
            || SourcePasswordConfig::Connection,
            |_, fields, reader| Some(SourcePasswordConfig::read(fields, reader)),
            |password, _, out| password.write(out),
        ),
        /// The replication slot.
        pub slot: SlotConfig = group(
            &[config_field!(SLOT_MODE), config_field!(SLOT_NAME)],
            || SlotConfig::Ephemeral { slot_name: None },
            |_, fields, reader| Some(SlotConfig::read(fields, reader)),
            |slot, _, out| slot.write(out),
        ),
        /// The publication.
        pub publication: PublicationConfig = block("publication"),
        /// The detection of changed definitions.
        pub ddl: DdlConfig = block("ddl"),
        /// The retries after the connection is lost.
        pub reconnect: ReconnectConfig = block("reconnect"),
        /// The maximum number of tables that are copied at the same time. Each copy takes a
        /// connection ([the total](operations.md#connections)).
        pub copies_max: u32 = key("copies_max", SettingKind::Count { min: 1, max: 1000 }, || 4),
        /// The maximum time that a copy holds its lock and its snapshot. After it, the copy is
        /// ended and tried again.
        pub copy_timeout: Duration = key("copy_timeout", AGE, || laredo_postgres::COPY_TIMEOUT),
    }
}

/// The kind of replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotConfig {
    /// A permanent slot: PostgreSQL keeps WAL while the server is stopped, and a restart resumes.
    Stateful {
        /// The slot's name.
        slot_name: String,
    },
    /// A temporary slot, with a full copy at each start.
    Ephemeral {
        /// The name of the slot; if missing, it is made from the source's name and a part that is
        /// unique to the process.
        slot_name: Option<String>,
    },
}

const SLOT_MODE: ConfigKey<&str> =
    key("slot_mode", SettingKind::Choice(&[&["ephemeral"], &["stateful"]]), || "ephemeral").doc(
        "The kind of replication slot. `stateful`: a permanent slot, and a restart resumes. `ephemeral`: a \
         temporary slot, and a full copy at each start.",
    );

const SLOT_NAME: ConfigKey<Option<String>> = optional(
    "slot_name",
    SettingKind::Text {
        accepts: is_slot_name,
        expected: "a slot name: lower-case letters, digits and underscores, at most 63",
    },
    "required for `stateful`",
)
.doc(
    "The name of the slot. For `ephemeral`, the default is the source's name and a part that is unique to the process.",
);

config_block! {
    /// The publication that is read.
    pub struct PublicationConfig {
        /// The name of the publication.
        pub name: String = key("name", IDENTIFIER, String::new)
            .defaults_to("`{slot_name}_pub`, or `laredo_{source}_pub` without a `slot_name`"),
        /// True if the server creates the publication if it is missing, and adds missing tables to
        /// it. Otherwise the publication must exist.
        pub create: bool = key("create", SettingKind::Flag, || false),
    }
    also [
        FieldSchema::refused(
            "publish",
            "is refused: laredo publishes inserts, updates, deletes and truncates alike, because a copy \
             that does not receive one of them is wrong",
        ),
        FieldSchema::refused(
            "tables",
            "is refused: a publication whose row filter or column list lacks a column of the replica \
             identity makes PostgreSQL fail your own UPDATE and DELETE; filter in the target instead \
             (filters, transforms)",
        ),
    ]
}

config_block! {
    /// The detection of changed definitions that PostgreSQL does not announce in the stream.
    pub struct DdlConfig {
        /// The way in which changed definitions are detected that PostgreSQL does not announce; see
        /// below.
        pub watch: DdlWatchConfig = key("watch", DdlWatchConfig::KIND, || DdlWatchConfig::Poll),
    }
}

config_choice! {
    /// The method of detecting changed definitions.
    pub enum DdlWatchConfig {
        /// The server reads the catalog every 10 s.
        Poll = "poll",
        /// An event trigger in the database writes the changes into the stream.
        Trigger = "trigger",
    }
}

config_block! {
    /// The retries of a lost connection.
    pub struct ReconnectConfig [ReconnectConfig::check] {
        /// The number of failures in a row after which the source is `refused` instead of
        /// `retrying`. It is still tried again every 10 s. With `--strict`, a start ends with exit
        /// code 1.
        pub max_attempts: Option<u32> =
            optional("max_attempts", SettingKind::Count { min: 1, max: u32::MAX as u64 }, "no limit"),
        /// The wait after the first failure.
        pub initial_backoff: Duration = key("initial_backoff", BACKOFF, || ReconnectOptions::default().backoff_initial),
        /// The longest wait. No wait is longer than 10 s, so that the end of a fault is noticed.
        pub max_backoff: Duration = key("max_backoff", BACKOFF, || ReconnectOptions::default().backoff_max),
        /// The factor by which each wait is longer than the one before.
        pub backoff_multiplier: f64 =
            key("backoff_multiplier", SettingKind::Ratio { min: 1.0, max: 100.0 }, || ReconnectOptions::default().multiplier),
    }
}

const BACKOFF: SettingKind = SettingKind::Time { min: Duration::from_millis(10), max: Duration::from_secs(3600) };

/// Returns true if a slot may have the name, by the rules of PostgreSQL.
fn is_slot_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

const IDENTIFIER: SettingKind =
    SettingKind::Text { accepts: PublicationConfig::is_name, expected: "a PostgreSQL name of at most 63 bytes" };

/// The maximum length of a name in bytes. PostgreSQL truncates longer ones.
const NAME_BYTES_MAX: usize = 63;

/// Checks the names of the sources, and that there is a source.
pub(super) fn check_names(root: &BlockFields, reader: &mut ConfigReader) {
    if root.has("sources") && root.names("sources").is_empty() {
        reader.report(root, "sources", "there is no source; describe at least one database");
    }
    for (name, fields) in root.entries("sources") {
        if !is_source_name(name) {
            let message = "a source's name has letters, digits, underscores and hyphens, at most 63";
            reader.problems.push(ConfigProblem::new(&fields.place, &fields.path, message));
        }
    }
}

fn is_source_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

impl PublicationConfig {
    /// Returns true if a publication may have the name, by the rules of PostgreSQL.
    pub fn is_name(name: &str) -> bool {
        (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains('\0')
    }
}

impl SlotConfig {
    fn read(fields: &BlockFields, reader: &mut ConfigReader) -> Self {
        let slot_name = SLOT_NAME.read(fields, reader);
        if SLOT_MODE.read(fields, reader) == "ephemeral" {
            return SlotConfig::Ephemeral { slot_name };
        }
        if !fields.has(SLOT_NAME.name()) {
            let message = "is required with slot_mode = stateful: the slot must be found again";
            reader.report_at(fields, SLOT_MODE.name(), SLOT_NAME.name(), message);
        }
        SlotConfig::Stateful { slot_name: slot_name.unwrap_or_default() }
    }

    fn write(&self, out: &mut HoconBlock) {
        match self {
            SlotConfig::Stateful { slot_name } => {
                SLOT_MODE.write(&"stateful", out);
                SLOT_NAME.write(&Some(slot_name.clone()), out);
            }
            SlotConfig::Ephemeral { slot_name } => {
                SLOT_MODE.write(&"ephemeral", out);
                SLOT_NAME.write(slot_name, out);
            }
        }
    }
}

impl PostgresSourceConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        if fields.leaf::<String>("connection").is_some() {
            match ConnectionOptions::parse(self.connection.expose()) {
                Ok(ConnectionOptions { password: PasswordSource::Environment { passfile: None }, .. }) => {}
                Ok(_) => self.password.check_alone(fields, reader),
                Err(error) => reader.report(fields, "connection", error.to_string()),
            }
        }
        if self.publication.name.is_empty() {
            self.publication.name = match SLOT_NAME.read(fields, reader) {
                Some(slot_name) => format!("{slot_name}_pub"),
                None => format!("laredo_{}_pub", fields.name()),
            };
        }
        let name = &self.publication.name;
        if name.len() > NAME_BYTES_MAX {
            let block = fields.block("publication");
            let message = format!("is required: the default, {name}, is longer than {NAME_BYTES_MAX} bytes");
            reader.problems.push(ConfigProblem::new(&block.place, &block.path.key("name"), message));
        }
    }
}

impl PostgresSourceConfig {
    /// Returns a warning if the database is on another machine, and the connection does not check
    /// that its server is the right one.
    pub(super) fn warning(&self) -> Option<String> {
        ConnectionOptions::parse(self.connection.expose()).ok()?.identity_warning()
    }
}

impl ReconnectConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        let (initial, longest) = (self.initial_backoff, self.max_backoff);
        if initial > longest {
            let is_set = fields.leaf::<Duration>("max_backoff").is_some();
            let key = if is_set { "max_backoff" } else { "initial_backoff" };
            let (initial, longest) = (show_time(initial), show_time(longest));
            let message = format!("initial_backoff, {initial}, is longer than max_backoff, {longest}");
            reader.report(fields, key, message);
        }
    }
}
