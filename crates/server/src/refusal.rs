//! The errors that clients receive when a stream cannot begin or continue. Each message says what
//! to do.

use std::time::Duration;

use laredo_core::{Lsn, TableName};
use laredo_engine::journal::{BufferPolicy, CursorError};
use laredo_engine::source::SourceError;
use laredo_engine::{SnapshotError, TableHandle, TablePhase, VerifyError};
use laredo_values::{FilterError, UnprintableType};
use tonic::Status;

use crate::order_rule::OrderRefusal;
use crate::view::{ConditionOrigins, ViewError};

pub(crate) fn stopping() -> Status {
    Status::unavailable("the server is stopping; reconnect to continue where this stream ends")
}

pub(crate) fn no_method(path: &str) -> Status {
    Status::unimplemented(format!(
        "this server has no method {path} that takes one message; call /package.Service/Method"
    ))
}

pub(crate) fn order(refused: OrderRefusal) -> Status {
    match refused {
        OrderRefusal::Remote(_) | OrderRefusal::WebPage => Status::permission_denied(refused.to_string()),
        OrderRefusal::Unknown => Status::internal(refused.to_string()),
    }
}

pub(crate) fn busy_with_requests() -> Status {
    Status::resource_exhausted("the server is receiving too many large requests at once; repeat this one later")
}

pub(crate) fn caller_busy_with_requests() -> Status {
    Status::resource_exhausted("this caller is sending too many large requests at once; repeat this one later")
}

pub(crate) fn journal_replaced() -> Status {
    Status::unavailable(
        "the table's journal was replaced: the database's history has forked, its source was prepared again, or its options were changed; reconnect",
    )
}

pub(crate) fn draining(name: &TableName) -> Status {
    Status::unavailable(format!(
        "this server is draining and accepts no more streams of {name}; connect to another server, or try later"
    ))
}

pub(crate) fn drained() -> Status {
    Status::unavailable(
        "this server has drained, and the time to leave is over; reconnect to continue where this stream ends",
    )
}

pub(crate) fn redefined(name: &TableName) -> Status {
    Status::unavailable(format!(
        "the definition of table {name} has changed; reconnect to continue where this stream ends"
    ))
}

pub(crate) fn unknown_table(name: &TableName) -> Status {
    Status::not_found(format!("this server has no table {name}; request a table of its configuration"))
}

pub(crate) fn removed(name: &TableName) -> Status {
    Status::not_found(format!(
        "table {name} was removed from the configuration of this server; connect to another server that has it"
    ))
}

pub(crate) fn fixed_config() -> Status {
    Status::failed_precondition(
        "this server was not started with a configuration that it can read again; start laredo-server for that",
    )
}

pub(crate) fn too_many_config_orders() -> Status {
    Status::resource_exhausted(
        "other orders that concern the configuration are being carried out; repeat this one when they are done",
    )
}

pub(crate) fn another_identity() -> Status {
    Status::unavailable(
        "the access rules were replaced, and the caller's token or certificate proves another identity now; reconnect",
    )
}

pub(crate) fn closed_health() -> Status {
    Status::unavailable("the access rules were replaced, and health is only for observers now; reconnect with a token")
}

pub(crate) fn another_grant(table: &TableName) -> Status {
    Status::unavailable(format!(
        "the access rules were replaced, and the caller's grant is for other rows or columns of table {table} now; \
         reconnect to be sent those"
    ))
}

pub(crate) fn required(field: &str) -> Status {
    Status::invalid_argument(format!("`{field}` is required and is empty"))
}

pub(crate) fn malformed(field: &str, problem: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("`{field}` is malformed: {problem}"))
}

/// Returns the error for filters that would cost the server too much.
pub(crate) fn too_costly_filters(found: &str, limit: &str) -> Status {
    malformed(
        "filters",
        format!("it has {found}; the limit is {limit}; request fewer, or filter the rows in the client"),
    )
}

/// Returns the error for a condition that does not fit the table. `own_index` is its index in the
/// client's request; `None` if it is a condition of the client's grant.
pub(crate) fn filter(error: &FilterError, own_index: Option<usize>) -> Status {
    if let Some(index) = own_index {
        return malformed(&format!("filters[{index}]"), error);
    }
    Status::permission_denied(format!(
        "the client's grant has a condition on column `{}` that does not fit the table; the operator corrects it in \
         `access.readers`, or the claim that it takes its value from",
        error.column
    ))
}

/// Returns the error for a condition on a column that the client's grant hides, or that the table
/// does not have. Both have the same error, so that no hidden name can be guessed.
pub(crate) fn unshown_column(column: &str) -> Status {
    Status::permission_denied(format!(
        "`filters`: the client's grant shows no column `{column}`; filter by a column that the client is sent"
    ))
}

pub(crate) fn hidden_key(column: &str) -> Status {
    Status::permission_denied(format!(
        "the client's grant leaves out column `{column}`, which is part of the key; readers could not tell rows apart \
         without it, so the operator removes it from `hide` in `access.readers`"
    ))
}

pub(crate) fn masked_column(column: &str) -> Status {
    Status::permission_denied(format!(
        "`filters`: the client's grant masks column `{column}`; filter by another column"
    ))
}

pub(crate) fn masked_key(column: &str) -> Status {
    Status::permission_denied(format!(
        "the client's grant masks column `{column}`, which is part of the key; readers could not tell rows apart, so \
         the operator removes it from `mask` in `access.readers`"
    ))
}

pub(crate) fn unprintable_column(column: &str, type_name: &str, problem: UnprintableType) -> Status {
    Status::permission_denied(format!(
        "the client's grant masks column `{column}` of type {type_name}, and {problem}; the operator hides it, or masks \
         it with a fixed value, in `access.readers`"
    ))
}

/// Returns the error for a stream whose next frame cannot be projected.
pub(crate) fn view(error: &ViewError, origins: &ConditionOrigins) -> Status {
    match error {
        ViewError::Filter(error) => filter(error, origins.own_index(error.index)),
        ViewError::HiddenKey(column) => hidden_key(column),
        ViewError::MaskedKey(column) => masked_key(column),
        ViewError::Unprintable { column, type_name, problem } => unprintable_column(column, type_name, *problem),
        ViewError::Project(_) | ViewError::Batch(_) | ViewError::Schema(_) | ViewError::OldRow | ViewError::Frame => {
            Status::internal(error.to_string())
        }
        ViewError::TooLarge => Status::failed_precondition(error.to_string()),
    }
}

/// Returns the error for a table without a journal. Errors of a table may name any of its columns,
/// so a caller of a part of it is not shown them.
pub(crate) fn not_ready(table: &TableHandle, shows_error: bool) -> Status {
    let why = match table.status().phase {
        TablePhase::Copying { .. } | TablePhase::Live => " yet; reconnect later".to_owned(),
        TablePhase::Retrying { .. } if !shows_error => "; the server tries again, so reconnect later".to_owned(),
        TablePhase::Failed { .. } if !shows_error => format!("; {UNSHOWN_ERROR}"),
        TablePhase::Retrying { error, .. } => format!(": {error}; the server tries again, so reconnect later"),
        TablePhase::Failed { error } => format!(": {error}"),
    };
    Status::unavailable(format!("this server has no rows of table {}{why}", table.name()))
}

/// Returns the error for a table that has failed permanently. A caller of a part of the table is
/// not shown the reason.
pub(crate) fn failed(name: &TableName, error: &str, shows_error: bool) -> Status {
    Status::failed_precondition(match shows_error {
        true => format!("table {name} cannot be followed: {error}"),
        false => format!("table {name} cannot be followed; {UNSHOWN_ERROR}"),
    })
}

/// The advice for a caller who is not shown the error of a table.
const UNSHOWN_ERROR: &str = "the reason is in the server's log, so ask the operator";

/// Returns the error for a caller of a part of a table whose snapshots cannot be listed.
pub(crate) fn no_open_folder() -> Status {
    Status::failed_precondition(format!("the server has no open folder of snapshots for the table; {UNSHOWN_ERROR}"))
}

pub(crate) fn unverified(name: &TableName, error: &VerifyError) -> Status {
    let reason = format!("table {name}: {error}");
    match error {
        VerifyError::Busy => Status::failed_precondition(format!("{reason}; wait for its end")),
        VerifyError::Failed(_) => Status::failed_precondition(reason),
        VerifyError::GivenUp(_) => Status::aborted(reason),
        VerifyError::Stopping => stopping(),
    }
}

pub(crate) fn unknown_check(name: &TableName) -> Status {
    Status::not_found(format!(
        "`check` is unknown: this server did not send it to a client of table {name}, it was answered before, or the \
         answer came too late; answer each check of a heartbeat once, to the server that sent it"
    ))
}

pub(crate) fn ahead(position: Lsn, ours: Lsn, waited: Duration) -> Status {
    let waited = waited.as_secs_f64();
    Status::unavailable(format!(
        "this server is at {ours}, behind the client's position {position}, and did not reach it within {waited} s; \
         reconnect to this or another server"
    ))
}

pub(crate) fn too_many_clients(name: &TableName, clients_max: usize) -> Status {
    Status::resource_exhausted(format!(
        "table {name} has the maximum of {clients_max} clients (`max_clients`); reconnect later, or raise the limit"
    ))
}

pub(crate) fn too_many_watches(watches_max: usize) -> Status {
    Status::resource_exhausted(format!(
        "this server has the maximum of {watches_max} streams of status changes (WatchStatus); end one of them, or try later"
    ))
}

pub(crate) fn too_many_snapshot_orders(orders_max: usize) -> Status {
    Status::resource_exhausted(format!(
        "the maximum of {orders_max} requests to write, check, restore or delete snapshots run now; try again when one of \
         them has ended"
    ))
}

/// Returns the error for a list of names that is longer than the list of all tables.
pub(crate) fn too_many_names(field: &str, names: usize, tables: usize) -> Status {
    malformed(field, format!("it has {names} names, and this server has {tables} tables; name each table once"))
}

pub(crate) fn too_far_behind(behind_max: u64, policy: BufferPolicy) -> Status {
    let what = match policy {
        BufferPolicy::DropDisconnect => "",
        BufferPolicy::SlowDown => ", and the source was slowed down for clients as long as it may be",
    };
    Status::resource_exhausted(format!(
        "too far behind: more than {behind_max} entries (`client_buffer.max_size`){what}; reconnect to continue where this \
         stream ends"
    ))
}

pub(crate) fn stalled(stalled: Duration) -> Status {
    let seconds = stalled.as_secs_f64();
    Status::resource_exhausted(format!(
        "too far behind: the snapshot was not read for {seconds} s; reconnect for a newer one"
    ))
}

pub(crate) fn slow(speed_min: u64) -> Status {
    let kib = speed_min / 1024;
    Status::resource_exhausted(format!(
        "too far behind: the snapshot was read at less than {kib} KiB a second; reconnect over a faster connection"
    ))
}

pub(crate) fn costly() -> Status {
    Status::resource_exhausted(
        "too far behind: the snapshot was read so slowly that the journal grew beyond twice its limits \
         (`journal.max_entries`, `max_bytes`); reconnect for a newer one, or raise the limits",
    )
}

pub(crate) fn cursor(error: &CursorError) -> Status {
    match error {
        CursorError::Pruned(_) => Status::resource_exhausted(format!(
            "too far behind: {error} (`journal.max_entries`, `max_age`, `max_bytes`); reconnect for a snapshot"
        )),
        CursorError::Io(_) => Status::internal(error.to_string()),
    }
}

pub(crate) fn watched(error: &CursorError) -> Status {
    match error {
        CursorError::Pruned(_) => Status::resource_exhausted(format!(
            "too far behind: {error} (`journal.max_entries`, `max_age`, `max_bytes`), so row changes are missing from here on; \
             watch again to continue with new changes"
        )),
        CursorError::Io(_) => Status::internal(error.to_string()),
    }
}

pub(crate) fn no_store() -> Status {
    Status::failed_precondition(
        "no snapshot store configured (`snapshot { store = local }` in the table's target); Sync sends a snapshot without one",
    )
}

/// Returns the error for a table whose snapshots are configured, but not open.
pub(crate) fn folder_not_open(table: &TableHandle) -> Status {
    Status::failed_precondition(unopened_folder(table))
}

/// Returns the error for a snapshot that may be in a table's folder, which is not open.
pub(crate) fn snapshot_not_in_open_folders(id: &str, unopened: &TableHandle) -> Status {
    Status::not_found(format!("no open folder has a snapshot `{id}`, and {}", unopened_folder(unopened)))
}

fn unopened_folder(table: &TableHandle) -> String {
    let why = match table.status().phase {
        TablePhase::Copying { .. } | TablePhase::Live => {
            "the server opens it when it begins to follow the source, so try again later".to_owned()
        }
        TablePhase::Retrying { error, .. } => format!("{error}; the server tries again"),
        TablePhase::Failed { error } => error,
    };
    format!("the snapshot folder of table {} is not open: {why}", table.name())
}

pub(crate) fn unknown_snapshot(id: &str) -> Status {
    Status::not_found(format!("there is no snapshot `{id}`; ListSnapshots lists the snapshots"))
}

pub(crate) fn snapshot(error: &SnapshotError) -> Status {
    let said = error.to_string();
    match error {
        SnapshotError::Unknown(id) => unknown_snapshot(id),
        SnapshotError::Newest(_) | SnapshotError::Served(_) | SnapshotError::Failed(_) => {
            Status::failed_precondition(said)
        }
        SnapshotError::Stopping => stopping(),
        SnapshotError::Store(_) | SnapshotError::Base(_) if error.is_damage() => Status::data_loss(said),
        SnapshotError::Store(_)
        | SnapshotError::Base(_)
        | SnapshotError::Project(_)
        | SnapshotError::Forked
        | SnapshotError::Panicked(_) => Status::internal(said),
    }
}

/// Returns the error for a snapshot that turns out to be damaged, or for a disk that fails.
pub(crate) fn unreadable(error: &std::io::Error) -> Status {
    match error.kind() {
        std::io::ErrorKind::InvalidData => Status::data_loss(error.to_string()),
        _ => Status::internal(format!("reading the snapshot: {error}")),
    }
}

/// Returns the maximum length of a list from a request, where 0 requests all.
pub(crate) fn limit(limit: i32) -> Result<usize, Status> {
    match usize::try_from(limit) {
        Ok(0) => Ok(usize::MAX),
        Ok(limit) => Ok(limit),
        Err(_) => Err(malformed("limit", "it is below zero; 0 is for all")),
    }
}

pub(crate) fn unknown(what: &str, name: &str) -> Status {
    Status::not_found(format!("this server has no {what} `{name}`; GetStatus lists those that it has"))
}

pub(crate) fn of_another_source(table: &TableName, source: &str) -> Status {
    Status::invalid_argument(format!("`source_id`: table {table} is of source `{source}`"))
}

pub(crate) fn unconfirmed(what: &str) -> Status {
    Status::failed_precondition(format!("this means {what}; set `confirm` to do it"))
}

pub(crate) fn source(error: &SourceError) -> Status {
    match error {
        SourceError::Transient(_) | SourceError::Held(_) => Status::unavailable(error.to_string()),
        SourceError::Definite(_) => Status::failed_precondition(error.to_string()),
    }
}

pub(crate) fn no_dead_letters() -> Status {
    Status::unimplemented("there are no dead letters: a table that cannot apply a change stops and reports the reason")
}

pub(crate) fn no_replay() -> Status {
    Status::unimplemented("this version does not replay snapshots")
}

pub(crate) fn no_queries(name: &TableName) -> Status {
    Status::failed_precondition(format!(
        "table {name} answers no queries; set `query = true` in its target (`tables.targets.query`), or follow it (Sync)"
    ))
}

pub(crate) fn not_reached(name: &TableName, position: Lsn, ours: Lsn, waited: Duration) -> Status {
    let waited = waited.as_secs_f64();
    Status::deadline_exceeded(format!(
        "`at_least`: the rows of table {name} are at {ours} and did not reach {position} within {waited} s; repeat the call"
    ))
}

/// Returns the error for an index that the table does not have, or that has a column which the
/// caller's grant hides. Both have the same error, so that no hidden name can be guessed.
pub(crate) fn unknown_index(name: &TableName, index: &str, known: &[&str]) -> Status {
    let known = match known {
        [] => "it has none for this caller; leave `index_name` empty to look up by the key".to_owned(),
        known => format!("it has {}; an empty `index_name` is for the key", known.join(", ")),
    };
    Status::not_found(format!("`index_name`: table {name} has no index `{index}`; {known}"))
}

pub(crate) fn masked_index(index: &str, column: &str) -> Status {
    Status::permission_denied(format!(
        "`index_name`: the caller's grant masks column `{column}` of index `{index}`; look up by another index"
    ))
}

pub(crate) fn ambiguous_index(index: &str) -> Status {
    malformed("index_name", format!("index `{index}` is not unique, so it finds any number of rows; call LookupAll"))
}

pub(crate) fn unusable_index(name: &TableName, index: &str, problem: &str) -> Status {
    Status::failed_precondition(format!(
        "table {name} cannot have the index `{index}`: {problem}; the operator corrects `indexes` in its target"
    ))
}

pub(crate) fn incomparable_key(problem: &str) -> Status {
    Status::failed_precondition(format!("rows of the table cannot be looked up by its key: {problem}; use an index"))
}

pub(crate) fn several_rows(index: &str) -> Status {
    let index = if index.is_empty() { "the key" } else { index };
    Status::failed_precondition(format!(
        "{index} is not unique: several rows have these values; call LookupAll for all of them"
    ))
}

pub(crate) fn too_many_rows(bytes_max: usize) -> Status {
    Status::resource_exhausted(format!(
        "more rows have these values than the {bytes_max} bytes of a response; look up by more columns, or follow the \
         table (Sync)"
    ))
}

/// Returns the error for a page of a listing whose state is no longer kept.
pub(crate) fn listing_over(name: &TableName) -> Status {
    Status::aborted(format!(
        "`page_token`: the state of table {name} has moved, and the one of this listing is no longer kept: it was not \
         continued within 60 s, or took 10 minutes, or the caller began many others, or the server was restarted; list \
         again from the first page"
    ))
}

/// Returns the error for a page of a listing that is older than the caller accepts.
pub(crate) fn listing_older(name: &TableName, ours: Lsn, at_least: &str) -> Status {
    Status::aborted(format!(
        "`at_least`: the listing of table {name} shows {ours}, which is before {at_least} or of another history; list \
         again from the first page"
    ))
}

pub(crate) fn long_key() -> Status {
    Status::failed_precondition("the key of a row is too long for a `next_page_token`; follow the table (Sync)")
}
