//! The translation of the configuration into the options of the other crates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use laredo_core::{Sequence, TableName};
use laredo_engine::journal::{BufferPolicy, InstanceId, JournalOptions};
use laredo_engine::source::TableRequest;
use laredo_engine::spool::SpoolOptions;
use laredo_engine::{PipelineOptions, SnapshotFormat, SnapshotOptions, TableOptions, VerifySchedule, VerifyTerms};
use laredo_postgres::ddl::DdlWatch;
use laredo_postgres::stream::{ReconnectOptions, SlotMode};
use laredo_postgres::{ConnectionOptions, ConnectionStringError, PostgresOptions, PublicationOptions};
use laredo_server::BufferOptions;
use laredo_values::{MatchCondition, Pattern, Predicate, Value};
use rand::Rng;
use rand::rngs::StdRng;

use crate::config::server::{
    self as config, DdlWatchConfig, FanoutConfig, FilterConfig, FilterValue, JournalStoreConfig, PostgresSourceConfig,
    ServedTableConfig, SlotConfig, SnapshotConfig, SnapshotSerializer, StoreConfig, VerifyConfig,
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
    let slot = match &source.slot {
        SlotConfig::Stateful { slot_name } => SlotMode::Stateful { name: slot_name.clone() },
        SlotConfig::Ephemeral { slot_name } => {
            SlotMode::Ephemeral { name_prefix: slot_name.clone().unwrap_or_else(|| slot_name_of(name)) }
        }
    };
    Ok(PostgresOptions {
        connection: ConnectionOptions::parse(source.connection.expose())?,
        slot,
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

/// Returns the beginning of a slot name, in characters that PostgreSQL accepts.
fn slot_name_of(source: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    format!("laredo_{}", source.chars().map(plain).take(30).collect::<String>())
}

pub(super) fn table(table: &ServedTableConfig, folder: &Path, random: &mut StdRng) -> TableOptions {
    let journal = &table.fanout.journal;
    TableOptions {
        request: TableRequest {
            name: TableName::new(&table.schema, &table.table),
            key_fields: table.key_fields.clone(),
        },
        pipeline: pipeline(&table.fanout),
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
        store: match &journal.store {
            JournalStoreConfig::Durable(store) => own_folder(store, table),
            JournalStoreConfig::Memory => None,
        },
        snapshots: table.fanout.snapshot.as_ref().and_then(|snapshot| snapshots(snapshot, table)),
        verify: verify(&table.verify),
    }
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

fn pipeline(fanout: &FanoutConfig) -> PipelineOptions {
    PipelineOptions {
        filters: fanout.filters.iter().map(predicate).collect(),
        transforms: fanout.transforms.iter().map(transform).collect(),
    }
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

fn transform(transform: &config::TransformConfig) -> laredo_engine::Transform {
    match transform {
        config::TransformConfig::DropFields { fields } => laredo_engine::Transform::DropFields(fields.clone()),
        config::TransformConfig::RenameFields { fields } => laredo_engine::Transform::RenameFields(fields.clone()),
        config::TransformConfig::AddTimestamp { field } => laredo_engine::Transform::AddTimestamp(field.clone()),
    }
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
