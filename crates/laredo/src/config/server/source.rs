//! Sources: the databases that rows come from.

use std::collections::BTreeMap;
use std::time::Duration;

use laredo_postgres::ConnectionOptions;

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::leaf::show_time;
use super::super::schema::{AGE, BlockSchema, KeySchema, SettingKind, VariantSchema};
use super::super::secret::ConfigSecret;
use super::super::write::{self, text};

/// A PostgreSQL database that is followed through one replication slot.
#[derive(Debug, Clone, PartialEq)]
pub struct PostgresSourceConfig {
    /// The connection string of libpq, as a URL or as key=value pairs.
    pub connection: ConfigSecret,
    /// The replication slot.
    pub slot: SlotConfig,
    /// The publication.
    pub publication: PublicationConfig,
    /// The detection of changed definitions.
    pub ddl: DdlConfig,
    /// The retries after the connection is lost.
    pub reconnect: ReconnectConfig,
    /// The maximum number of copies that run at the same time. Default 4.
    pub copies_max: u32,
    /// The maximum time that a copy holds its lock and its snapshot. Default 24 h.
    pub copy_timeout: Duration,
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

/// The publication that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationConfig {
    /// The name. Default `{slot_name}_pub`, or `laredo_{source}_pub` if no slot is named.
    pub name: String,
    /// True if the server creates the publication if it is missing, and adds missing tables to it.
    /// Default false.
    pub create: bool,
}

/// The detection of changed definitions that PostgreSQL does not announce in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DdlConfig {
    /// The method of detection. Default `poll`.
    pub watch: DdlWatchConfig,
}

/// The method of detecting changed definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DdlWatchConfig {
    /// The server reads the catalog every 10 s.
    Poll,
    /// An event trigger in the database writes the changes into the stream.
    Trigger,
}

/// The retries of a lost connection.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconnectConfig {
    /// The number of failures in a row after which the source gives up; `None`, the default, means
    /// never.
    pub max_attempts: Option<u32>,
    /// The wait after the first failure. Default 1 s.
    pub initial_backoff: Duration,
    /// The longest wait. Default 60 s.
    pub max_backoff: Duration,
    /// The factor by which each wait is longer than the one before. Default 2.
    pub backoff_multiplier: f64,
}

/// The schema of `sources { NAME { … } }`.
pub(super) const SOURCES: SettingKind = SettingKind::Map(&SettingKind::Tagged(&SOURCE));

static SOURCE: VariantSchema =
    VariantSchema { tag: "type", what: "source type", variants: &[(&["postgresql", "pg"], &POSTGRESQL)] };

static POSTGRESQL: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("type", SettingKind::Choice(&[&["postgresql", "pg"]])),
        KeySchema::required("connection", SettingKind::Secret),
        KeySchema::new("slot_mode", SettingKind::Choice(&[&["ephemeral"], &["stateful"]])),
        KeySchema::new("slot_name", SLOT_NAME),
        KeySchema::new("publication", SettingKind::Block(&PUBLICATION)),
        KeySchema::new("ddl", SettingKind::Block(&DDL)),
        KeySchema::new("reconnect", SettingKind::Block(&RECONNECT)),
        KeySchema::new("copies_max", SettingKind::Count { min: 1, max: 1000 }),
        KeySchema::new("copy_timeout", AGE),
    ],
};

static PUBLICATION: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("name", IDENTIFIER),
        KeySchema::new("create", SettingKind::Flag),
        KeySchema::new(
            "publish",
            SettingKind::Refused(
                "is refused: laredo publishes inserts, updates, deletes and truncates alike, because a copy \
                 that is not told of one of them is wrong",
            ),
        ),
        KeySchema::new(
            "tables",
            SettingKind::Refused(
                "is refused: a publication whose row filter or column list lacks a column of the replica \
                 identity makes PostgreSQL fail your own UPDATE and DELETE; filter in the target instead \
                 (filters, transforms)",
            ),
        ),
    ],
};

static DDL: BlockSchema =
    BlockSchema { keys: &[KeySchema::new("watch", SettingKind::Choice(&[&["poll"], &["trigger"]]))] };

static RECONNECT: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("max_attempts", SettingKind::Count { min: 1, max: u32::MAX as u64 }),
        KeySchema::new("initial_backoff", BACKOFF),
        KeySchema::new("max_backoff", BACKOFF),
        KeySchema::new("backoff_multiplier", SettingKind::Ratio { min: 1.0, max: 100.0 }),
    ],
};

const BACKOFF: SettingKind = SettingKind::Time { min: Duration::from_millis(10), max: Duration::from_secs(3600) };

/// A slot name by the rules of PostgreSQL.
const SLOT_NAME: SettingKind = SettingKind::Text {
    accepts: |name| {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    },
    expected: "a slot name: lower-case letters, digits and underscores, at most 63",
};

const IDENTIFIER: SettingKind = SettingKind::Text {
    accepts: |name| (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains('\0'),
    expected: "a PostgreSQL name of at most 63 bytes",
};

/// The maximum length of a name in bytes. PostgreSQL truncates longer ones.
const NAME_BYTES_MAX: usize = 63;

pub(super) fn read_all(
    root: &BlockFields,
    problems: &mut Vec<ConfigProblem>,
) -> BTreeMap<String, PostgresSourceConfig> {
    if root.has("sources") && root.names("sources").is_empty() {
        problems.push(ConfigProblem::new(
            root.place_of("sources"),
            &root.path.key("sources"),
            "there is no source; describe at least one database",
        ));
    }
    root.variants_by_name("sources")
        .into_iter()
        .map(|(name, source)| {
            let fields = &source.fields;
            if !is_name(name) {
                problems.push(ConfigProblem::new(
                    &fields.place,
                    &fields.path,
                    "a source's name has letters, digits, underscores and hyphens, at most 63",
                ));
            }
            (name.to_owned(), PostgresSourceConfig::read(name, fields, problems))
        })
        .collect()
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

impl PostgresSourceConfig {
    fn read(source: &str, fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Self {
        let slot_name = fields.text("slot_name");
        let slot = match fields.word("slot_mode") {
            Some("stateful") => {
                if !fields.has("slot_name") {
                    problems.push(ConfigProblem::new(
                        fields.place_of("slot_mode"),
                        &fields.path.key("slot_name"),
                        "is required with slot_mode = stateful: the slot must be found again",
                    ));
                }
                SlotConfig::Stateful { slot_name: slot_name.clone().unwrap_or_default() }
            }
            _ => SlotConfig::Ephemeral { slot_name: slot_name.clone() },
        };
        let connection = fields.text("connection");
        if let Some(Err(error)) = connection.as_deref().map(ConnectionOptions::parse) {
            problems.push(ConfigProblem::new(
                fields.place_of("connection"),
                &fields.path.key("connection"),
                error.to_string(),
            ));
        }
        PostgresSourceConfig {
            connection: ConfigSecret::new(connection.unwrap_or_default()),
            publication: PublicationConfig::read(source, slot_name.as_deref(), &fields.block("publication"), problems),
            ddl: DdlConfig::read(&fields.block("ddl")),
            reconnect: ReconnectConfig::read(&fields.block("reconnect"), problems),
            copies_max: fields.count_u32("copies_max").unwrap_or(4),
            copy_timeout: fields.time("copy_timeout").unwrap_or(laredo_postgres::COPY_TIMEOUT),
            slot,
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.put("type", "postgresql");
        out.put("connection", text(&self.connection.masked_connection()));
        match &self.slot {
            SlotConfig::Stateful { slot_name } => {
                out.put("slot_mode", "stateful");
                out.put("slot_name", text(slot_name));
            }
            SlotConfig::Ephemeral { slot_name } => {
                out.put("slot_mode", "ephemeral");
                out.put_if("slot_name", slot_name.as_deref().map(text));
            }
        }
        out.block("publication", |out| {
            out.put("name", text(&self.publication.name));
            out.put("create", self.publication.create);
        });
        out.block("ddl", |out| {
            let watch = match self.ddl.watch {
                DdlWatchConfig::Poll => "poll",
                DdlWatchConfig::Trigger => "trigger",
            };
            out.put("watch", watch);
        });
        out.block("reconnect", |out| {
            out.put_if("max_attempts", self.reconnect.max_attempts);
            out.put("initial_backoff", show_time(self.reconnect.initial_backoff));
            out.put("max_backoff", show_time(self.reconnect.max_backoff));
            out.put("backoff_multiplier", self.reconnect.backoff_multiplier);
        });
        out.put("copies_max", self.copies_max);
        out.put("copy_timeout", show_time(self.copy_timeout));
    }
}

impl PublicationConfig {
    fn read(source: &str, slot_name: Option<&str>, fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Self {
        let base = match slot_name {
            Some(slot_name) => slot_name.to_owned(),
            None => format!("laredo_{source}"),
        };
        let name = fields.text("name").unwrap_or(format!("{base}_pub"));
        if name.len() > NAME_BYTES_MAX {
            problems.push(ConfigProblem::new(
                &fields.place,
                &fields.path.key("name"),
                format!("is required: the default, {name}, is longer than {NAME_BYTES_MAX} bytes"),
            ));
        }
        PublicationConfig { name, create: fields.flag("create").unwrap_or(false) }
    }
}

impl DdlConfig {
    fn read(fields: &BlockFields) -> Self {
        let watch = match fields.word("watch") {
            Some("trigger") => DdlWatchConfig::Trigger,
            _ => DdlWatchConfig::Poll,
        };
        DdlConfig { watch }
    }
}

impl ReconnectConfig {
    fn read(fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Self {
        let initial = fields.time("initial_backoff");
        let longest = fields.time("max_backoff");
        let config = ReconnectConfig {
            max_attempts: fields.count_u32("max_attempts"),
            initial_backoff: initial.unwrap_or(Duration::from_secs(1)),
            max_backoff: longest.unwrap_or(Duration::from_secs(60)),
            backoff_multiplier: fields.ratio("backoff_multiplier").unwrap_or(2.0),
        };
        if config.initial_backoff > config.max_backoff {
            let key = if longest.is_some() { "max_backoff" } else { "initial_backoff" };
            problems.push(ConfigProblem::new(
                fields.place_of(key),
                &fields.path.key(key),
                format!(
                    "initial_backoff, {}, is longer than max_backoff, {}",
                    show_time(config.initial_backoff),
                    show_time(config.max_backoff)
                ),
            ));
        }
        config
    }
}
