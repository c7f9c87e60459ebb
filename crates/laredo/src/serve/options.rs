//! The translation of the configuration into the options of the other crates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use laredo_core::Sequence;
use laredo_engine::journal::{BufferPolicy, InstanceId, JournalOptions};
use laredo_engine::source::TableRequest;
use laredo_engine::spool::SpoolOptions;
use laredo_engine::{
    CellReplacement, FolderKind, HashKey, PipelineOptions, SnapshotFormat, SnapshotOptions, TableOptions, Transform,
    ValueMask, VerifySchedule, VerifyTerms,
};
use laredo_postgres::ddl::DdlWatch;
use laredo_postgres::stream::{ReconnectOptions, SlotMode};
use laredo_postgres::{
    ConnectionOptions, ConnectionStringError, PasswordCommand, PasswordSource, PostgresOptions, PublicationOptions,
    SecretText,
};
use laredo_server::{BufferOptions, QueryIndexOptions, QueryOptions};
use laredo_values::{MatchCondition, Pattern, Predicate, Value};
use rand::Rng;
use rand::rngs::StdRng;

use crate::config::ConfigSecret;
use crate::config::server::{
    self as config, DdlWatchConfig, FanoutConfig, FilterConfig, FilterValue, JournalStoreConfig, PostgresSourceConfig,
    ServedTableConfig, SlotConfig, SnapshotConfig, SnapshotSerializer, SourcePasswordConfig, StoreConfig, VerifyConfig,
};

/// The maximum size, in bytes, that a transaction takes in memory, for each table that it touches.
const SPOOL_MEMORY_BYTES: usize = 256 * 1024;
/// The maximum size, in bytes, of the transactions that wait on disk during a copy. Beyond it, the
/// stream is not read until the copy has ended.
const HELD_BYTES_MAX: u64 = 8 << 30;
/// The exclusive upper bound of a journal's first sequence. It leaves room for any number of
/// entries, and makes it unlikely that two journals share a sequence.
const FIRST_SEQUENCE_MAX: u64 = 1 << 52;

pub(super) fn postgres(
    name: &str,
    source: &PostgresSourceConfig,
    folder: &Path,
    random: &mut StdRng,
) -> Result<PostgresOptions, ConnectionStringError> {
    Ok(PostgresOptions {
        connection: connection(source)?,
        slot: slot(name, source),
        publication: PublicationOptions { name: source.publication.name.clone(), create: source.publication.create },
        ddl: match source.ddl.watch {
            DdlWatchConfig::Poll => DdlWatch::Poll,
            DdlWatchConfig::Trigger => DdlWatch::Trigger,
        },
        reconnect: ReconnectOptions {
            attempts_max: source.reconnect.max_attempts,
            backoff_initial: source.reconnect.initial_backoff,
            backoff_max: source.reconnect.max_backoff,
            multiplier: source.reconnect.backoff_multiplier,
        },
        copies_max: source.copies_max as usize,
        copy_timeout: source.copy_timeout,
        spool: Arc::new(SpoolOptions { memory_bytes_max: SPOOL_MEMORY_BYTES, folder: folder.to_owned() }),
        seed: random.random(),
    })
}

/// Returns the slot of the source with this name.
pub(crate) fn slot(name: &str, source: &PostgresSourceConfig) -> SlotMode {
    match &source.slot {
        SlotConfig::Stateful { slot_name } => SlotMode::Stateful { name: slot_name.clone() },
        SlotConfig::Ephemeral { slot_name } => {
            SlotMode::Ephemeral { name_prefix: slot_name.clone().unwrap_or_else(|| slot_name_of(name)) }
        }
    }
}

/// Returns the options of a connection to the source's database.
///
/// # Errors
/// A connection string that cannot be parsed.
pub(crate) fn connection(source: &PostgresSourceConfig) -> Result<ConnectionOptions, ConnectionStringError> {
    let options = ConnectionOptions::parse(source.connection.expose())?;
    let password = match &source.password {
        SourcePasswordConfig::Connection => return Ok(options),
        SourcePasswordConfig::File(path) => PasswordSource::File(path.clone()),
        SourcePasswordConfig::Command { program, arguments, lifetime, time_limit } => {
            let arguments = arguments.iter().map(|argument| SecretText::new(argument.expose()));
            PasswordSource::Command(Arc::new(PasswordCommand::new(program, arguments, *lifetime, *time_limit)))
        }
    };
    Ok(ConnectionOptions { password, ..options })
}

/// Returns the beginning of a slot name, in characters that PostgreSQL accepts.
fn slot_name_of(source: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    format!("laredo_{}", source.chars().map(plain).take(30).collect::<String>())
}

/// Returns the options of a table.
///
/// # Errors
/// When a key of a hash cannot be read, as a sentence that names the table and the file.
pub(super) fn table(table: &ServedTableConfig, folder: &Path, random: &mut StdRng) -> Result<TableOptions, String> {
    let journal = &table.fanout.journal;
    let name = table.name();
    Ok(TableOptions {
        pipeline: pipeline(&table.fanout).map_err(|error| format!("table {name}: transforms: {error}"))?,
        request: TableRequest { name, key_fields: table.key_fields.clone() },
        journal: JournalOptions {
            entries_max: journal.max_entries,
            age_max: journal.max_age,
            bytes_max: journal.max_bytes,
            memory_bytes_max: journal.memory_max_bytes,
            folder: folder.to_owned(),
        },
        held_bytes_max: HELD_BYTES_MAX,
        instance: InstanceId(format!("{:032x}", random.random::<u128>())),
        first_sequence: Sequence(random.random_range(1..FIRST_SEQUENCE_MAX)),
        folder: folder.to_owned(),
        store: journal_folder(table),
        snapshots: table.fanout.snapshot.as_ref().and_then(|snapshot| snapshots(snapshot, table)),
        verify: verify(&table.verify),
    })
}

fn verify(verify: &VerifyConfig) -> Option<VerifySchedule> {
    verify.enabled.then_some(VerifySchedule {
        interval: verify.interval,
        terms: VerifyTerms { bytes_per_second: Some(verify.bytes_per_second), heals: verify.heal },
    })
}

fn snapshots(snapshot: &SnapshotConfig, table: &ServedTableConfig) -> Option<SnapshotOptions> {
    Some(SnapshotOptions {
        folder: own_folder(&snapshot.store, table)?,
        format: match snapshot.serializer {
            SnapshotSerializer::Native => SnapshotFormat::Native,
            SnapshotSerializer::Jsonl => SnapshotFormat::Jsonl,
        },
        interval: snapshot.interval,
        keep_count: snapshot.retention.keep_count,
        age_max: snapshot.retention.max_age,
    })
}

/// Returns the folders in which a table's durable data is: of its journal, and of its snapshots.
pub(crate) fn table_folders(table: &ServedTableConfig) -> Vec<(FolderKind, PathBuf)> {
    let journal = journal_folder(table).map(|folder| (FolderKind::Journal, folder));
    let snapshot = table.fanout.snapshot.as_ref().and_then(|snapshot| own_folder(&snapshot.store, table));
    journal.into_iter().chain(snapshot.map(|folder| (FolderKind::Snapshots, folder))).collect()
}

fn journal_folder(table: &ServedTableConfig) -> Option<PathBuf> {
    match &table.fanout.journal.store {
        JournalStoreConfig::Durable(store) => own_folder(store, table),
        JournalStoreConfig::Memory => None,
    }
}

/// Returns the table's own folder inside the folder of a store.
fn own_folder(store: &StoreConfig, table: &ServedTableConfig) -> Option<PathBuf> {
    match store {
        StoreConfig::Local { path } => Some(path.join(file_name(&table.schema)).join(file_name(&table.table))),
        // The configuration accepts only local stores for journals and snapshots.
        StoreConfig::S3 { .. } => None,
    }
}

/// Returns a folder name that is different for each name of a schema or table. Characters other
/// than ASCII letters, digits, `_` and `-` are escaped as `%XX`, byte by byte.
fn file_name(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let escaped = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(escaped).collect()
}

fn pipeline(fanout: &FanoutConfig) -> Result<PipelineOptions, String> {
    Ok(PipelineOptions {
        filters: fanout.filters.iter().map(predicate).collect(),
        transforms: fanout.transforms.iter().map(transform).collect::<Result<_, _>>()?,
    })
}

pub(super) fn predicate(filter: &FilterConfig) -> Predicate {
    let (field, test) = match filter {
        FilterConfig::FieldEquals { field, value } => (field, MatchCondition::Equals(value_of(value))),
        FilterConfig::FieldPrefix { field, prefix } => (field, MatchCondition::Prefix(prefix.clone())),
        FilterConfig::FieldRegex { field, pattern } => (field, MatchCondition::Regex(Pattern::from(pattern.0.clone()))),
    };
    Predicate { field: field.clone(), test }
}

/// Converts a filter's value. A number becomes a string of its digits: those compare with numbers
/// as a number and lose no precision.
fn value_of(value: &FilterValue) -> Value {
    match value {
        FilterValue::String(text) | FilterValue::Number(text) => Value::String(text.clone()),
        FilterValue::Bool(flag) => Value::Bool(*flag),
        FilterValue::Null => Value::Null,
    }
}

fn transform(transform: &config::TransformConfig) -> Result<Transform, String> {
    Ok(match transform {
        config::TransformConfig::DropFields { fields } => Transform::DropFields(fields.clone()),
        config::TransformConfig::RenameFields { fields } => Transform::RenameFields(fields.clone()),
        config::TransformConfig::AddTimestamp { field } => Transform::AddTimestamp(field.clone()),
        config::TransformConfig::Hash(hash) => Transform::Hash(hash.fields.clone(), hash_key(hash)?),
        config::TransformConfig::Mask(mask) => Transform::Mask(mask.fields.clone(), value_mask(mask)),
    })
}

/// Returns the columns of a grant's mask, each with its replacement.
///
/// # Errors
/// When the key of a hash cannot be read.
pub(super) fn column_masks(mask: &config::ColumnMaskConfig) -> Result<Vec<(String, CellReplacement)>, String> {
    let (fields, replacement) = match mask {
        config::ColumnMaskConfig::Hash(hash) => (&hash.fields, CellReplacement::Hash(hash_key(hash)?)),
        config::ColumnMaskConfig::Mask(mask) => (&mask.fields, CellReplacement::Mask(value_mask(mask))),
    };
    Ok(fields.iter().map(|field| (field.clone(), replacement.clone())).collect())
}

fn value_mask(mask: &config::MaskConfig) -> ValueMask {
    match &mask.value {
        Some(value) => ValueMask::Fixed(value.clone()),
        None => ValueMask::Partial {
            keep_first: mask.keep_first.unwrap_or(0) as usize,
            keep_last: mask.keep_last.unwrap_or(0) as usize,
            with: mask.with.as_ref().and_then(|with| with.chars().next()).unwrap_or('*'),
        },
    }
}

/// Returns the key of a hash. The configuration has checked that there is one.
fn hash_key(hash: &config::HashConfig) -> Result<HashKey, String> {
    let Some(file) = &hash.key_file else {
        let key = hash.key.as_ref().map_or("", ConfigSecret::expose);
        return HashKey::new(key.as_bytes()).map_err(|error| error.to_string());
    };
    let error = |error: &dyn std::fmt::Display| format!("key_file {}: {error}", file.display());
    let mut bytes = std::fs::read(file).map_err(|cause| error(&cause))?;
    while let Some(b'\n' | b'\r') = bytes.last() {
        bytes.pop();
    }
    HashKey::new(&bytes).map_err(|cause| error(&cause))
}

/// Returns the options of a table that answers queries.
pub(super) fn query(fanout: &FanoutConfig) -> QueryOptions {
    let index = |index: &config::QueryIndexConfig| {
        let config::QueryIndexConfig { name, fields, unique } = index.clone();
        Arc::new(QueryIndexOptions { name, fields, unique })
    };
    QueryOptions { indexes: fanout.indexes.iter().map(index).collect() }
}

pub(super) fn buffer(fanout: &FanoutConfig) -> BufferOptions {
    let policy = match fanout.client_buffer.policy {
        config::BufferPolicyConfig::DropDisconnect => BufferPolicy::DropDisconnect,
        config::BufferPolicyConfig::SlowDown => BufferPolicy::SlowDown,
    };
    BufferOptions { behind_max: fanout.client_buffer.max_entries, policy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_a_folder_of_its_own() {
        let names = ["config_document", "a.b", "a/b", "..", "Ä", "A", "a b", "a%20b"].map(file_name);
        assert_eq!(names, ["config_document", "a%2Eb", "a%2Fb", "%2E%2E", "%C3%84", "A", "a%20b", "a%2520b"]);
    }
}
