//! `laredo fanout status` and `laredo fanout clients`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use laredo_core::TableName;
use laredo_proto::replication::laredo_replication_service_client::LaredoReplicationServiceClient;
use laredo_proto::replication::{GetReplicationStatusRequest, GetReplicationStatusResponse};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::args::FanoutCommand;
use super::connect::{TlsArgs, channel};
use super::error::{CliError, SERVER_OPTION};
use super::print_output;
use super::text_table::{bytes, grouped, pairs, table};

/// The maximum size, in bytes, of an answer. Tens of thousands of clients fit. No memory is
/// reserved in advance.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Runs the command: asks the server, and prints the answer.
pub(super) async fn run(command: FanoutCommand) -> Result<ExitCode, CliError> {
    let args = match &command {
        FanoutCommand::Status(args) | FanoutCommand::Clients(args) => args,
    };
    let asked = tokio::time::timeout(
        args.server.timeout,
        fetch_replication_status(&args.server.server, &args.server.tls, &args.table),
    )
    .await;
    let answer = asked.map_err(|_| CliError::timeout(&args.server.server, args.server.timeout, SERVER_OPTION))??;
    print_output(&match (&command, args.json) {
        (FanoutCommand::Status(_), false) => status_text(&args.table, &answer),
        (FanoutCommand::Status(_), true) => format!("{}\n", status_json(&args.table, &answer)),
        (FanoutCommand::Clients(_), false) => clients_text(&args.table, &answer),
        (FanoutCommand::Clients(_), true) => format!("{}\n", clients_json(&answer)),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the server about the journal and the clients of a table.
pub(super) async fn fetch_replication_status(
    server: &str,
    tls: &TlsArgs,
    table: &TableName,
) -> Result<GetReplicationStatusResponse, CliError> {
    let channel = channel(server, tls, SERVER_OPTION).await?;
    let mut client = LaredoReplicationServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let request = GetReplicationStatusRequest { schema: table.schema.clone(), table: table.table.clone() };
    let answer = client.get_replication_status(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| CliError::from_status(server, table, status.code(), status.message()))
}

fn status_text(name: &TableName, answer: &GetReplicationStatusResponse) -> String {
    let snapshot = answer.latest_snapshot.as_ref().map_or_else(
        || "none yet".to_owned(),
        |snapshot| {
            let rows = grouped(unsigned(snapshot.row_count));
            let size = bytes(unsigned(snapshot.size_bytes));
            let taken = snapshot.created_at.as_ref().map_or_else(String::new, |at| format!(", of {at}"));
            let (id, at) = (&snapshot.snapshot_id, &snapshot.source_position);
            format!("{id}: {rows} rows, {size}, at {at}{taken}")
        },
    );
    let mut streams = vec![format!("{} resumed", grouped(unsigned(answer.deltas)))];
    streams.extend(reasons(answer).map(|(reason, count)| format!("{} snapshots ({reason})", grouped(unsigned(count)))));
    let oldest = answer.journal_oldest_sequence;
    let entries = grouped(unsigned(answer.journal_entry_count));
    pairs(
        [
            ("table", name.to_string()),
            ("rows", grouped(unsigned(answer.row_count))),
            ("sequence", answer.current_sequence.to_string()),
            ("journal", format!("{entries} entries, from sequence {oldest}")),
            ("clients", grouped(unsigned(answer.connected_clients.into()))),
            ("newest snapshot", snapshot),
            ("streams so far", streams.join(", ")),
        ]
        .map(|(name, value)| [name.to_owned(), value])
        .into(),
    )
}

/// Returns the number of full snapshots for each reason, sorted by reason.
fn reasons(answer: &GetReplicationStatusResponse) -> impl Iterator<Item = (&str, i64)> {
    let sorted: BTreeMap<_, _> = answer.full_snapshots.iter().collect();
    sorted.into_iter().map(|(reason, count)| (reason.as_str(), *count))
}

fn status_json(name: &TableName, answer: &GetReplicationStatusResponse) -> Value {
    let snapshot = answer.latest_snapshot.as_ref().map(|snapshot| {
        json!({
            "snapshot_id": snapshot.snapshot_id,
            "sequence": snapshot.sequence,
            "source_position": snapshot.source_position,
            "row_count": snapshot.row_count,
            "size_bytes": snapshot.size_bytes,
            "created_at": time(snapshot.created_at.as_ref()),
        })
    });
    json!({
        "schema": name.schema,
        "table": name.table,
        "current_sequence": answer.current_sequence,
        "journal_oldest_sequence": answer.journal_oldest_sequence,
        "journal_entry_count": answer.journal_entry_count,
        "row_count": answer.row_count,
        "connected_clients": answer.connected_clients,
        "latest_snapshot": snapshot,
        "full_snapshots": reasons(answer).collect::<BTreeMap<_, _>>(),
        "deltas": answer.deltas,
    })
}

fn clients_text(name: &TableName, answer: &GetReplicationStatusResponse) -> String {
    if answer.clients.is_empty() {
        return format!("no client follows {name}\n");
    }
    let rows = answer.clients.iter().map(|client| {
        let id = if client.client_id.is_empty() { "(unnamed)" } else { &client.client_id };
        [
            id.to_owned(),
            client.state.clone(),
            client.current_sequence.to_string(),
            grouped(unsigned(client.behind_count)),
            grouped(unsigned(client.buffer_depth.into())),
            client.connected_at.as_ref().map_or_else(|| "?".to_owned(), Timestamp::to_string),
        ]
    });
    let headings = ["CLIENT", "STATE", "SEQUENCE", "BEHIND", "BUFFERED", "CONNECTED"];
    table(headings, &[2, 3, 4], rows.collect())
}

fn clients_json(answer: &GetReplicationStatusResponse) -> Value {
    let clients = answer.clients.iter().map(|client| {
        json!({
            "client_id": client.client_id,
            "state": client.state,
            "current_sequence": client.current_sequence,
            "behind_count": client.behind_count,
            "buffer_depth": client.buffer_depth,
            "connected_at": time(client.connected_at.as_ref()),
        })
    });
    clients.collect()
}

fn time(at: Option<&Timestamp>) -> Option<String> {
    at.map(Timestamp::to_string)
}

/// Converts a count, which is signed on the wire but never negative.
fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use laredo_proto::replication::{ConnectedClient, ReplicationSnapshotInfo};

    use super::*;

    fn answer() -> GetReplicationStatusResponse {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let client = |id: &str, state: &str, behind_count| ConnectedClient {
            client_id: id.to_owned(),
            current_sequence: 5000 - behind_count,
            behind_count,
            buffer_depth: 0,
            connected_at: at(1_700_000_000),
            state: state.to_owned(),
        };
        GetReplicationStatusResponse {
            current_sequence: 5000,
            journal_oldest_sequence: 1000,
            journal_entry_count: 4000,
            row_count: 1_234_567,
            connected_clients: 2,
            clients: vec![client("app\x1b", "live", 0), client("", "catching_up", 1200)],
            latest_snapshot: Some(ReplicationSnapshotInfo {
                snapshot_id: "j-7".to_owned(),
                sequence: 1000,
                source_position: "0/200".to_owned(),
                row_count: 1_200_000,
                size_bytes: 3 << 20,
                created_at: at(1_700_000_000),
            }),
            full_snapshots: [("fresh client".to_owned(), 2), ("another journal".to_owned(), 1)].into(),
            deltas: 1100,
        }
    }

    #[test]
    fn people_read_columns() {
        let name = TableName::new("public", "t");
        assert_eq!(
            clients_text(&name, &answer()),
            "CLIENT     STATE        SEQUENCE  BEHIND  BUFFERED  CONNECTED\n\
             app\\u{1b}  live             5000       0         0  2023-11-14T22:13:20Z\n\
             (unnamed)  catching_up      3800   1,200         0  2023-11-14T22:13:20Z\n"
        );
        assert_eq!(
            status_text(&name, &answer()),
            "table            public.t\n\
             rows             1,234,567\n\
             sequence         5000\n\
             journal          4,000 entries, from sequence 1000\n\
             clients          2\n\
             newest snapshot  j-7: 1,200,000 rows, 3.0 MiB, at 0/200, of 2023-11-14T22:13:20Z\n\
             streams so far   1,100 resumed, 1 snapshots (another journal), 2 snapshots (fresh client)\n"
        );
        let nothing = GetReplicationStatusResponse::default();
        assert_eq!(clients_text(&name, &nothing), "no client follows public.t\n");
        assert!(status_text(&name, &nothing).contains("newest snapshot  none yet\n"));
    }

    #[test]
    fn programs_read_the_contracts_names() {
        let status = status_json(&TableName::new("public", "t"), &answer());
        assert_eq!(status["journal_entry_count"], 4000);
        assert_eq!((&status["deltas"], &status["full_snapshots"]["fresh client"]), (&json!(1100), &json!(2)));
        assert_eq!(status["latest_snapshot"]["created_at"], "2023-11-14T22:13:20Z");
        let clients = clients_json(&answer());
        assert_eq!((&clients[1]["state"], &clients[1]["behind_count"]), (&json!("catching_up"), &json!(1200)));
        assert_eq!(clients_json(&GetReplicationStatusResponse::default()), json!([]));
    }
}
