//! A client of the Struct protocol as a reader of the contract might write it in an afternoon. It
//! has a map of rows by key and the last received position.
//!
//! It shares no code with the real client, so that both cannot have the same error. While its
//! stream began with a snapshot, it checks everything that the contract promises of an entry.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use laredo_core::TableName;
use laredo_proto::replication::laredo_replication_service_client::LaredoReplicationServiceClient;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{
    ColumnDefinition, FieldPredicate, ReplicationJournalEntry, SchemaChangeNotification, SyncMode, SyncRequest,
    SyncResponse,
};
use laredo_values::Value;
use prost_types::{Struct, value::Kind};
use tokio::task::JoinHandle;

/// A row: names and values.
pub type JsonRow = serde_json::Map<String, serde_json::Value>;

/// The rows and the position of a client.
#[derive(Clone, Debug, Default)]
pub struct SimpleState {
    key: Vec<String>,
    /// The rows by the JSON of the key's values.
    pub rows: BTreeMap<String, JsonRow>,
    staged: Option<StagedSnapshot>,
    /// The last received position, of any entry.
    pub position: String,
    /// The last received sequence.
    pub sequence: i64,
    /// The ID of the snapshot, which also names the journal.
    pub snapshot_id: String,
    /// True if no entry on this stream may repeat an earlier one.
    is_strict: bool,
    /// True if the client sends the snapshot's ID when it resumes by position.
    pub names_snapshot: bool,
    /// True if the client resumes by sequence, so that no entry of a later stream may be a repeat
    /// either.
    pub resumes_exactly: bool,
    /// True after the first complete snapshot.
    pub is_loaded: bool,
    /// Streams that began with a snapshot, and streams that did not.
    pub snapshots: u32,
    pub deltas: u32,
    /// Applied entries.
    pub entries: u64,
    /// Violations of the contract by the server.
    pub violations: Vec<String>,
}

/// A snapshot that has not ended. Entries that arrive before its end change its rows.
#[derive(Clone, Debug, Default)]
struct StagedSnapshot {
    rows: BTreeMap<String, JsonRow>,
    /// The number of rows that the snapshot itself had.
    count: i64,
}

impl SimpleState {
    pub fn new(key: &[&str]) -> SimpleState {
        SimpleState { key: key.iter().map(|name| (*name).to_owned()).collect(), ..SimpleState::default() }
    }

    /// Applies one message.
    pub fn apply(&mut self, message: SyncResponse) {
        match message.message {
            Some(Message::Handshake(handshake)) => {
                let is_full = handshake.mode() == SyncMode::FullSnapshot;
                self.is_strict = is_full || self.resumes_exactly;
                *(if is_full { &mut self.snapshots } else { &mut self.deltas }) += 1;
                self.staged = None;
                self.snapshot_id = handshake.snapshot_id;
            }
            Some(Message::SnapshotBegin(_)) => self.staged = Some(StagedSnapshot::default()),
            Some(Message::SnapshotRow(row)) => {
                let row = to_json(row.row);
                let key = self.key_of(&row);
                match &mut self.staged {
                    None => self.complain("a snapshot row before the snapshot's begin", &key),
                    Some(staged) => {
                        staged.count += 1;
                        if staged.rows.insert(key.clone(), row).is_some() {
                            self.complain("a snapshot has two rows of one key", &key);
                        }
                    }
                }
            }
            Some(Message::SnapshotEnd(end)) => match self.staged.take() {
                None => self.complain("a snapshot's end before its begin", ""),
                Some(staged) => {
                    if end.rows_sent != staged.count {
                        self.complain("a snapshot with another number of rows than it says", "");
                    }
                    self.rows = staged.rows;
                    self.is_loaded = true;
                    self.sequence = end.sequence;
                }
            },
            Some(Message::JournalEntry(entry)) => self.entry(entry),
            Some(Message::SchemaChange(change)) => self.cast(&change),
            Some(Message::Heartbeat(_) | Message::GoAway(_) | Message::Batch(_)) | None => {}
        }
    }

    /// Returns the request that resumes by position.
    pub fn resume_by_position(&self) -> SyncRequest {
        let request = SyncRequest { last_known_source_position: self.position.clone(), ..SyncRequest::default() };
        match self.names_snapshot {
            true => SyncRequest {
                last_known_source_position: request.last_known_source_position,
                ..self.resume_by_sequence()
            },
            false => request,
        }
    }

    /// Returns the request that resumes by sequence.
    pub fn resume_by_sequence(&self) -> SyncRequest {
        SyncRequest {
            last_known_sequence: self.sequence,
            last_snapshot_id: self.snapshot_id.clone(),
            ..SyncRequest::default()
        }
    }

    fn entry(&mut self, entry: ReplicationJournalEntry) {
        self.entries += 1;
        // Inside a snapshot, an entry has no position. The client's position counts from the
        // snapshot's end.
        if self.staged.is_some() {
            if entry.source_position != "0/0" || entry.action.is_empty() {
                self.complain("an entry inside a snapshot that says where the client is", &entry.action);
            }
        } else {
            (self.sequence, self.position) = (entry.sequence, entry.source_position);
        }
        let is_strict = self.is_strict;
        let (has_old, has_new) = (entry.old_values.is_some(), entry.new_values.is_some());
        let (old, new) = (to_json(entry.old_values), to_json(entry.new_values));
        let (old_key, new_key) = (self.key_of(&old), self.key_of(&new));
        match (entry.action.as_str(), has_old, has_new) {
            ("", false, false) => {}
            ("TRUNCATE", false, false) => self.changing().clear(),
            ("INSERT", false, true) => {
                if self.changing().insert(new_key.clone(), new).is_some() && is_strict {
                    self.complain("INSERT of a row that is there", &new_key);
                }
            }
            ("UPDATE", true, true) => {
                if old_key != new_key {
                    self.complain("UPDATE that changes the key", &format!("{old_key} to {new_key}"));
                }
                let before = self.changing().insert(new_key.clone(), new);
                self.check_old(before, &old, &new_key);
            }
            ("DELETE", true, false) => {
                let before = self.changing().remove(&old_key);
                self.check_old(before, &old, &old_key);
            }
            (action, _, _) => self.complain("an entry that makes no sense", &format!("{action} {has_old} {has_new}")),
        }
    }

    /// Returns the rows that an entry changes.
    fn changing(&mut self) -> &mut BTreeMap<String, JsonRow> {
        self.staged.as_mut().map_or(&mut self.rows, |staged| &mut staged.rows)
    }

    fn check_old(&mut self, before: Option<JsonRow>, old: &JsonRow, key: &str) {
        if self.is_strict && before.as_ref() != Some(old) {
            self.complain("old values that are not the row's", &format!("{key}: has {before:?}, was told {old:?}"));
        }
    }

    /// Casts all rows to the new columns. A column with the same name and type stays, and others
    /// are NULL until a row has a value.
    fn cast(&mut self, change: &SchemaChangeNotification) {
        let is_same =
            |a: &ColumnDefinition, b: &ColumnDefinition| a.column_name == b.column_name && a.data_type == b.data_type;
        for row in self.changing().values_mut() {
            let cast = change.new_columns.iter().map(|column| {
                let stays = change.old_columns.iter().any(|old| is_same(old, column));
                let value = row.remove(&column.column_name).filter(|_| stays);
                (column.column_name.clone(), value.unwrap_or(serde_json::Value::Null))
            });
            *row = cast.collect();
        }
    }

    fn key_of(&self, row: &JsonRow) -> String {
        key_of(&self.key, row)
    }

    fn complain(&mut self, what: &str, of: &str) {
        self.violations.push(format!("{what}: {}", of.chars().take(3000).collect::<String>()));
    }
}

/// Returns the JSON of the values of a row's key.
pub fn key_of<N: AsRef<str>>(key: &[N], row: &JsonRow) -> String {
    let values: Vec<_> = key.iter().map(|name| row.get(name.as_ref()).cloned().unwrap_or_default()).collect();
    serde_json::Value::from(values).to_string()
}

/// Returns a Struct as JSON, with numbers written as projections write them.
pub fn to_json(row: Option<Struct>) -> JsonRow {
    let fields = row.unwrap_or_default().fields.into_iter();
    fields.map(|(name, value)| (name, to_value(value).to_json())).collect()
}

fn to_value(value: prost_types::Value) -> Value {
    match value.kind.expect("a value has a kind") {
        Kind::NullValue(_) => Value::Null,
        Kind::BoolValue(value) => Value::Bool(value),
        Kind::NumberValue(value) => Value::Number(value),
        Kind::StringValue(text) => Value::String(text),
        Kind::ListValue(list) => Value::List(list.values.into_iter().map(to_value).collect()),
        Kind::StructValue(object) => {
            Value::Object(object.fields.into_iter().map(|(name, value)| (name, to_value(value))).collect())
        }
    }
}

/// A running client, which resumes by position when its stream ends.
#[derive(Debug)]
pub struct SimpleClient {
    state: Arc<Mutex<SimpleState>>,
    running: JoinHandle<()>,
}

impl SimpleClient {
    pub fn start(url: &str, table: &TableName, key: &[&str], filters: Vec<FieldPredicate>) -> SimpleClient {
        SimpleClient::start_with(url, table, SimpleState::new(key), filters)
    }

    /// Starts a client that also sends the snapshot's ID when it resumes.
    pub fn start_naming_snapshots(
        url: &str,
        table: &TableName,
        key: &[&str],
        filters: Vec<FieldPredicate>,
    ) -> SimpleClient {
        let state = SimpleState { names_snapshot: true, ..SimpleState::new(key) };
        SimpleClient::start_with(url, table, state, filters)
    }

    fn start_with(url: &str, table: &TableName, state: SimpleState, filters: Vec<FieldPredicate>) -> SimpleClient {
        let state = Arc::new(Mutex::new(state));
        let (url, table, shared) = (url.to_owned(), table.clone(), state.clone());
        let running = tokio::spawn(async move {
            loop {
                let request = lock(&shared).resume_by_position();
                let request = SyncRequest {
                    schema: table.schema.clone(),
                    table: table.table.clone(),
                    client_id: "simple".to_owned(),
                    filters: filters.clone(),
                    ..request
                };
                if let Ok(mut stream) = open(&url, request).await {
                    while let Ok(Some(message)) = stream.message().await {
                        if matches!(message.message, Some(Message::GoAway(_))) {
                            break;
                        }
                        lock(&shared).apply(message);
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        SimpleClient { state, running }
    }

    pub fn state(&self) -> MutexGuard<'_, SimpleState> {
        lock(&self.state)
    }
}

impl Drop for SimpleClient {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// Opens one stream.
pub async fn open(url: &str, request: SyncRequest) -> Result<tonic::Streaming<SyncResponse>, tonic::Status> {
    let endpoint = tonic::transport::Endpoint::from_shared(url.to_owned()).unwrap();
    let channel = endpoint.connect().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let client = LaredoReplicationServiceClient::new(channel).max_decoding_message_size(1 << 30);
    Ok({ client }.sync(request).await?.into_inner())
}

fn lock(state: &Mutex<SimpleState>) -> MutexGuard<'_, SimpleState> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
