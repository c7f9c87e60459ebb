//! Commands of the OAM service: orders to a server, and questions about its sources and tables.

use std::process::ExitCode;

use laredo_core::TableName;
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_proto::oam::watch_status_response::Event;
use laredo_proto::oam::*;
use prost_types::value::Kind;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::args::{DrainArgs, OamArgs, ReadyArgs, ReloadArgs, ResetSourceArgs, SchemaArgs, SourceArgs, WatchArgs};
use super::connect::{ServerChannel, channel};
use super::error::{CliError, OAM_OPTION};
use super::print_output;
use super::text_table::{bytes, grouped, table};
use crate::printable::printable;

pub(super) type OamClient = LaredoOamServiceClient<ServerChannel>;

pub(super) async fn drain(args: DrainArgs) -> Result<ExitCode, CliError> {
    let (schema, table) = args.table.map_or_else(Default::default, |name| (name.schema, name.table));
    let deadline = i64::try_from(args.deadline.map_or(0, |time| time.as_secs().max(1))).unwrap_or(i64::MAX);
    let request = DrainReplicationRequest { schema, table, drain_deadline_seconds: deadline };
    let answer = call_oam(&args.oam, async |mut client| client.drain_replication(request).await).await?;
    print_outcome(&args.oam, answer.accepted, &answer.message)
}

pub(super) async fn reload(args: ReloadArgs) -> Result<ExitCode, CliError> {
    let (accepted, message) = match args.table {
        Some(TableName { schema, table }) => {
            let request = ReloadTableRequest { schema, table, ..ReloadTableRequest::default() };
            let answer = call_oam(&args.oam, async |mut client| client.reload_table(request).await).await?;
            (answer.accepted, answer.message)
        }
        None => {
            let answer =
                call_oam(&args.oam, async |mut client| client.reload_all(ReloadAllRequest::default()).await).await?;
            (answer.accepted, answer.message)
        }
    };
    print_outcome(&args.oam, accepted, &message)
}

pub(super) async fn reset_source(args: ResetSourceArgs) -> Result<ExitCode, CliError> {
    let ResetSourceArgs { source, confirm, drop_publication, oam } = args;
    let request = ResetSourceRequest { source_id: source, confirm, drop_publication };
    let answer = call_oam(&oam, async |mut client| client.reset_source(request).await).await?;
    print_outcome(&oam, answer.accepted, &answer.message)
}

pub(super) async fn pause(args: SourceArgs) -> Result<ExitCode, CliError> {
    let request = PauseSyncRequest { source_id: args.source.clone().unwrap_or_default() };
    let answer = call_oam(&args.oam, async |mut client| client.pause_sync(request).await).await?;
    print_state(&args.oam, answer.state())
}

pub(super) async fn resume(args: SourceArgs) -> Result<ExitCode, CliError> {
    let request = ResumeSyncRequest { source_id: args.source.clone().unwrap_or_default() };
    let answer = call_oam(&args.oam, async |mut client| client.resume_sync(request).await).await?;
    print_state(&args.oam, answer.state())
}

pub(super) async fn source(args: SourceArgs) -> Result<ExitCode, CliError> {
    let request = GetSourceInfoRequest { source_id: args.source.clone().unwrap_or_default() };
    let sources = call_oam(&args.oam, async |mut client| client.get_source_info(request).await).await?.sources;
    print_output(&if args.oam.json { format!("{}\n", sources_json(&sources)) } else { sources_text(sources) })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn tables(args: OamArgs) -> Result<ExitCode, CliError> {
    let request = ListTablesRequest::default();
    let tables = call_oam(&args, async |mut client| client.list_tables(request).await).await?.tables;
    print_output(&if args.json { format!("{}\n", tables_json(&tables)) } else { tables_text(tables) })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn pipelines(args: OamArgs) -> Result<ExitCode, CliError> {
    let request = GetStatusRequest::default();
    let pipelines = call_oam(&args, async |mut client| client.get_status(request).await).await?.pipelines;
    print_output(&if args.json { format!("{}\n", pipelines_json(&pipelines)) } else { pipelines_text(pipelines) })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn schema(args: SchemaArgs) -> Result<ExitCode, CliError> {
    let TableName { schema, table } = args.table;
    let request = GetTableSchemaRequest { schema, table };
    let columns = call_oam(&args.oam, async |mut client| client.get_table_schema(request).await).await?.columns;
    print_output(&if args.oam.json { format!("{}\n", columns_json(&columns)) } else { columns_text(columns) })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn ready(args: ReadyArgs) -> Result<ExitCode, CliError> {
    let table = args.table.map_or_else(String::new, |name| name.to_string());
    let request = CheckReadyRequest { table, ..CheckReadyRequest::default() };
    let answer = call_oam(&args.oam, async |mut client| client.check_ready(request).await).await?;
    let reasons = &answer.not_ready_reasons;
    print_output(&match (args.oam.json, answer.ready) {
        (true, ready) => format!("{}\n", json!({ "ready": ready, "not_ready_reasons": reasons })),
        (false, true) if reasons.is_empty() => "ready\n".to_owned(),
        (false, true) => format!("ready, but some tables are not served\n{}\n", lines_text(reasons)),
        (false, false) => format!("not ready\n{}\n", lines_text(reasons)),
    })?;
    Ok(ExitCode::from(u8::from(!answer.ready)))
}

/// Prints states and their changes until `stop` is canceled or the server ends the stream.
pub(super) async fn watch(args: WatchArgs, stop: CancellationToken) -> Result<ExitCode, CliError> {
    let tables = args.tables.iter().map(ToString::to_string).collect();
    let request = WatchStatusRequest { tables, pipeline_ids: Vec::new() };
    let mut changes = call_oam(&args.oam, async |mut client| client.watch_status(request).await).await?;
    loop {
        let change = tokio::select! {
            () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
            change = changes.message() => change,
        };
        let Some(change) = change.map_err(|status| oam_error(&args.oam, &status))? else {
            return Ok(ExitCode::SUCCESS);
        };
        if let Some(change) = StatusEvent::of(change) {
            print_output(&if args.oam.json { format!("{}\n", change.to_json()) } else { change.to_text() })?;
        }
    }
}

/// Connects and sends a request, both within `args.timeout`.
pub(super) async fn call_oam<T>(
    args: &OamArgs,
    ask: impl AsyncFnOnce(OamClient) -> Result<tonic::Response<T>, Status>,
) -> Result<T, CliError> {
    let asked = async {
        let client = OamClient::new(channel(&args.oam, &args.tls, OAM_OPTION).await?);
        ask(client).await.map(tonic::Response::into_inner).map_err(|status| oam_error(args, &status))
    };
    let in_time = tokio::time::timeout(args.timeout, asked).await;
    in_time.map_err(|_| CliError::timeout(&args.oam, args.timeout, OAM_OPTION))?
}

pub(super) fn oam_error(args: &OamArgs, status: &Status) -> CliError {
    let server = args.oam.clone();
    match (status.code(), status.message()) {
        // Another service of laredo listens there, or another program.
        (Code::Unimplemented, "") => CliError::NotOam(server),
        (code, "") => CliError::ServerAnswer { server, reason: code.description().to_owned() },
        (_, reason) => CliError::ServerAnswer { server, reason: reason.to_owned() },
    }
}

pub(super) fn print_outcome(args: &OamArgs, accepted: bool, message: &str) -> Result<ExitCode, CliError> {
    print_output(&match args.json {
        true => format!("{}\n", json!({ "accepted": accepted, "message": message })),
        false => format!("{}\n", lines_text(message.lines())),
    })?;
    Ok(ExitCode::from(u8::from(!accepted)))
}

/// Returns sentences of the server, each on a line of its own.
fn lines_text(sentences: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let lines: Vec<String> = sentences.into_iter().map(|sentence| printable(sentence.as_ref())).collect();
    lines.join("\n")
}

fn print_state(args: &OamArgs, state: ServiceState) -> Result<ExitCode, CliError> {
    let name = short(state.as_str_name());
    print_output(&if args.json { format!("{}\n", json!({ "state": name })) } else { format!("{name}\n") })?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the name that is printed for a state: `paused` for `SERVICE_STATE_PAUSED`.
fn short(name: &str) -> String {
    let name = name.trim_start_matches("SERVICE_STATE_").trim_start_matches("PIPELINE_STATE_");
    name.to_ascii_lowercase()
}

fn sources_text(sources: Vec<SourceInfo>) -> String {
    let rows = sources.into_iter().map(|source| {
        let lag = source.lag_time.map_or_else(String::new, |lag| lag_text(&lag));
        let (kept, wal) = (detail(&source, "retained_bytes"), detail(&source, "wal_status"));
        let left = detail(&source, "seconds_left");
        let kept = kept.as_u64().map_or_else(String::new, bytes);
        let left = left.as_u64().map_or_else(String::new, |seconds| format!("{seconds} s"));
        let wal = wal.as_str().unwrap_or_default().to_owned();
        [source.source_id, source.source_type, source.current_position, source.acked_position, lag, kept, wal, left]
    });
    let headings = ["SOURCE", "TYPE", "POSITION", "ACKNOWLEDGED", "LAG", "WAL KEPT", "WAL STATUS", "LEFT"];
    table(headings, &[2, 3, 4, 5, 7], rows.collect())
}

/// Returns a detail of a source; null if the server does not report it. All numbers are whole
/// numbers.
fn detail(source: &SourceInfo, name: &str) -> Value {
    let found = source.details.as_ref().and_then(|details| details.fields.get(name)?.kind.as_ref());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole numbers and not below zero, as the server has them"
    )]
    match found {
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::BoolValue(flag)) => json!(flag),
        Some(Kind::NumberValue(number)) => json!(*number as u64),
        _ => Value::Null,
    }
}

/// The names of the details that a server reports about a source and its slot.
const DETAILS: [&str; 15] = [
    "paused",
    "slot",
    "wal_status",
    "slot_lag_bytes",
    "retained_bytes",
    "safe_bytes",
    "seconds_left",
    "slot_losses",
    "last_loss",
    "history_forks",
    "last_fork",
    "copies_running",
    "copies_waiting",
    "copies_max",
    "connections_max",
];

fn lag_text(lag: &prost_types::Duration) -> String {
    match (lag.seconds, lag.nanos / 1_000_000) {
        (0, ms) => format!("{ms} ms"),
        (seconds, _) => format!("{seconds} s"),
    }
}

fn sources_json(sources: &[SourceInfo]) -> Value {
    let source = |source: &SourceInfo| {
        let lag_ms = source.lag_time.as_ref().map(|lag| lag.seconds * 1000 + i64::from(lag.nanos / 1_000_000));
        let mut object = json!({
            "source_id": source.source_id,
            "source_type": source.source_type,
            "supports_resume": source.supports_resume,
            "current_position": source.current_position,
            "acked_position": source.acked_position,
            "lag_bytes": source.lag_bytes,
            "lag_ms": lag_ms,
        });
        for name in DETAILS {
            object[name] = detail(source, name);
        }
        object
    };
    sources.iter().map(source).collect()
}

fn tables_text(tables: Vec<TableConfig>) -> String {
    let rows = tables.into_iter().map(|config| {
        let name = TableName::new(config.schema, config.table).to_string();
        [name, config.primary_key, config.source_id, config.target_type]
    });
    table(["TABLE", "KEY", "SOURCE", "TARGET"], &[], rows.collect())
}

fn tables_json(tables: &[TableConfig]) -> Value {
    let table = |config: &TableConfig| {
        json!({
            "schema": config.schema,
            "table": config.table,
            "primary_key": config.primary_key,
            "source_id": config.source_id,
            "source_type": config.source_type,
            "target_type": config.target_type,
        })
    };
    tables.iter().map(table).collect()
}

fn pipelines_text(pipelines: Vec<PipelineStatus>) -> String {
    let count = |count: i64| grouped(u64::try_from(count).unwrap_or(0));
    let rows = pipelines.into_iter().map(|pipeline| {
        let state = short(pipeline.state().as_str_name());
        [
            pipeline.pipeline_id,
            state,
            count(pipeline.row_count),
            count(pipeline.inserts_applied),
            count(pipeline.updates_applied),
            count(pipeline.deletes_applied),
            count(pipeline.truncates_applied),
            pipeline.error_message,
        ]
    });
    let headings = ["PIPELINE", "STATE", "ROWS", "INSERTS", "UPDATES", "DELETES", "TRUNCATES", "ERROR"];
    table(headings, &[2, 3, 4, 5, 6], rows.collect())
}

fn pipelines_json(pipelines: &[PipelineStatus]) -> Value {
    let pipeline = |pipeline: &PipelineStatus| {
        json!({
            "pipeline_id": pipeline.pipeline_id,
            "source_id": pipeline.source_id,
            "schema": pipeline.schema,
            "table": pipeline.table,
            "target_type": pipeline.target_type,
            "state": short(pipeline.state().as_str_name()),
            "row_count": pipeline.row_count,
            "inserts_applied": pipeline.inserts_applied,
            "updates_applied": pipeline.updates_applied,
            "deletes_applied": pipeline.deletes_applied,
            "truncates_applied": pipeline.truncates_applied,
            "last_change_at": pipeline.last_change_at.as_ref().map(ToString::to_string),
            "error_message": pipeline.error_message,
        })
    };
    pipelines.iter().map(pipeline).collect()
}

fn columns_text(columns: Vec<ColumnDefinition>) -> String {
    let rows = columns.into_iter().map(|column| {
        let key = if column.is_primary_key { column.primary_key_ordinal.to_string() } else { String::new() };
        let null = if column.not_null { "not null" } else { "" };
        [column.column_name, column.data_type, null.to_owned(), key]
    });
    table(["COLUMN", "TYPE", "NULL", "KEY"], &[3], rows.collect())
}

fn columns_json(columns: &[ColumnDefinition]) -> Value {
    let column = |column: &ColumnDefinition| {
        json!({
            "ordinal_position": column.ordinal_position,
            "column_name": column.column_name,
            "data_type": column.data_type,
            "not_null": column.not_null,
            "is_primary_key": column.is_primary_key,
            "primary_key_ordinal": column.primary_key_ordinal,
        })
    };
    columns.iter().map(column).collect()
}

/// An event, with its time.
struct StatusEvent {
    at: String,
    what: StatusEventKind,
}

enum StatusEventKind {
    /// A change of the state of a pipeline, or of the whole server.
    State { pipeline: Option<String>, from: String, to: String },
    /// A change of a source.
    Source(SourceStateChange),
}

impl StatusEvent {
    /// Converts an event. Returns `None` for a change of a row, which `tail` shows.
    fn of(change: WatchStatusResponse) -> Option<StatusEvent> {
        let at = change.timestamp.as_ref().map_or_else(String::new, ToString::to_string);
        let what = match change.event? {
            Event::ServiceStateChange(change) => {
                let (from, to) = (short(change.old_state().as_str_name()), short(change.new_state().as_str_name()));
                StatusEventKind::State { pipeline: None, from, to }
            }
            Event::PipelineStateChange(change) => {
                let (from, to) = (short(change.old_state().as_str_name()), short(change.new_state().as_str_name()));
                StatusEventKind::State { pipeline: Some(change.pipeline_id), from, to }
            }
            Event::SourceStateChange(change) => StatusEventKind::Source(change),
            Event::RowChange(_) => return None,
        };
        Some(StatusEvent { at, what })
    }

    fn to_text(&self) -> String {
        let text = match &self.what {
            StatusEventKind::State { pipeline, to, .. } => format!("{} {to}", pipeline.as_deref().unwrap_or("server")),
            StatusEventKind::Source(SourceStateChange { source_id, message, .. }) => format!("{source_id} {message}"),
        };
        format!("{} {}\n", self.at, printable(&text))
    }

    fn to_json(&self) -> Value {
        match &self.what {
            StatusEventKind::State { pipeline, from, to } => {
                // The first event of each reports the current state, so there is no old state.
                let from = (from != "unspecified").then_some(from);
                json!({ "at": self.at, "pipeline_id": pipeline, "old_state": from, "new_state": to })
            }
            StatusEventKind::Source(SourceStateChange { source_id, event_type, message }) => {
                json!({ "at": self.at, "source_id": source_id, "event_type": event_type, "message": message })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_of_a_server_have_a_line_each_and_cannot_control_the_terminal() {
        let sentences = ["table a\x1b]0;x\x07 is copied", "b\nready"];
        assert_eq!(lines_text(sentences), "table a\\u{1b}]0;x\\u{7} is copied\nb\\nready");
        assert_eq!(lines_text("one\ntwo".lines()), "one\ntwo");
        assert_eq!(lines_text([""; 0]), "");
    }
}
