//! `laredo snapshot`: the snapshots that a server keeps of its tables.

use std::process::ExitCode;

use laredo_proto::oam::*;
use serde_json::{Value, json};

use super::args::{
    OamArgs, SnapshotCommand, SnapshotCreateArgs, SnapshotIdArgs, SnapshotListArgs, SnapshotPruneArgs,
    SnapshotRestoreArgs,
};
use super::error::CliError;
use super::oam::{call_oam, print_outcome};
use super::print_output;
use super::text_table::{bytes, grouped, pairs, table};

pub(super) async fn run(command: SnapshotCommand) -> Result<ExitCode, CliError> {
    match command {
        SnapshotCommand::Create(args) => create(args).await,
        SnapshotCommand::List(args) => list(args).await,
        SnapshotCommand::Inspect(args) => inspect(args).await,
        SnapshotCommand::Restore(args) => restore(args).await,
        SnapshotCommand::Delete(args) => delete(args).await,
        SnapshotCommand::Prune(args) => prune(args).await,
    }
}

async fn create(args: SnapshotCreateArgs) -> Result<ExitCode, CliError> {
    let text = |text: String| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text)) };
    let meta = args.meta.into_iter().map(|(name, value)| (name, text(value))).collect();
    let user_meta = Some(prost_types::Struct { fields: meta }).filter(|meta| !meta.fields.is_empty());
    let request = CreateSnapshotRequest { tables: args.tables.iter().map(ToString::to_string).collect(), user_meta };
    let answer = call_oam(&args.oam, async |mut client| client.create_snapshot(request).await).await?;
    if !args.oam.json {
        return print_outcome(&args.oam, answer.accepted, &answer.message.replace("; ", "\n"));
    }
    let ids: Vec<&str> = answer.snapshot_id.split(',').collect();
    print_output(&format!(
        "{}\n",
        json!({ "accepted": answer.accepted, "snapshot_ids": ids, "message": answer.message })
    ))?;
    Ok(ExitCode::from(u8::from(!answer.accepted)))
}

async fn list(args: SnapshotListArgs) -> Result<ExitCode, CliError> {
    let table = args.table.map_or_else(String::new, |name| name.to_string());
    let request = ListSnapshotsRequest { table, limit: args.limit };
    let found = call_oam(&args.oam, async |mut client| client.list_snapshots(request).await).await?.snapshots;
    print_output(&match args.oam.json {
        true => format!("{}\n", found.iter().map(to_json).collect::<Value>()),
        false => list_text(&found),
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn inspect(args: SnapshotIdArgs) -> Result<ExitCode, CliError> {
    let request = InspectSnapshotRequest { snapshot_id: args.id };
    let info = call_oam(&args.oam, async |mut client| client.inspect_snapshot(request).await).await?.info;
    let info = info.unwrap_or_default();
    print_output(&if args.oam.json { format!("{}\n", to_json(&info)) } else { info_text(&info) })?;
    Ok(ExitCode::SUCCESS)
}

async fn restore(args: SnapshotRestoreArgs) -> Result<ExitCode, CliError> {
    let request =
        RestoreSnapshotRequest { snapshot_id: args.id, confirm: args.confirm, ..RestoreSnapshotRequest::default() };
    let answer = call_oam(&args.oam, async |mut client| client.restore_snapshot(request).await).await?;
    print_outcome(&args.oam, answer.accepted, &answer.message)
}

async fn delete(args: SnapshotIdArgs) -> Result<ExitCode, CliError> {
    let request = DeleteSnapshotRequest { snapshot_id: args.id.clone() };
    let deleted = call_oam(&args.oam, async |mut client| client.delete_snapshot(request).await).await?.deleted;
    print_outcome(&args.oam, deleted, &format!("{} is removed", args.id))
}

async fn prune(args: SnapshotPruneArgs) -> Result<ExitCode, CliError> {
    let table = args.table.as_ref().map_or_else(String::new, ToString::to_string);
    let request = PruneSnapshotsRequest { keep: args.keep, table };
    let count = call_oam(&args.oam, async |mut client| client.prune_snapshots(request).await).await?.deleted_count;
    pruned(&args.oam, count)
}

fn pruned(args: &OamArgs, count: i32) -> Result<ExitCode, CliError> {
    print_output(&match args.json {
        true => format!("{}\n", json!({ "deleted_count": count })),
        false => format!("{count} snapshots are removed\n"),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The facts of a snapshot that are printed. A snapshot is of one table.
struct SnapshotFacts {
    table: String,
    rows: u64,
    position: String,
    size_bytes: u64,
    created_at: String,
}

impl SnapshotFacts {
    fn of(info: &SnapshotInfo) -> SnapshotFacts {
        let table = info.tables.first();
        let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
        SnapshotFacts {
            table: table.map_or_else(String::new, |table| format!("{}.{}", table.schema, table.table)),
            rows: table.map_or(0, |table| unsigned(table.row_count)),
            position: info.source_positions.first().map_or_else(String::new, |entry| entry.position.clone()),
            size_bytes: unsigned(info.size_bytes),
            created_at: info.created_at.as_ref().map_or_else(String::new, ToString::to_string),
        }
    }
}

fn list_text(found: &[SnapshotInfo]) -> String {
    let rows = found.iter().map(|info| {
        let SnapshotFacts { table, rows, position, size_bytes, created_at } = SnapshotFacts::of(info);
        [info.snapshot_id.clone(), table, created_at, grouped(rows), bytes(size_bytes), position, info.format.clone()]
    });
    table(["SNAPSHOT", "TABLE", "WRITTEN", "ROWS", "SIZE", "POSITION", "FORMAT"], &[3, 4, 5], rows.collect())
}

fn info_text(info: &SnapshotInfo) -> String {
    let SnapshotFacts { table, rows, position, size_bytes, created_at } = SnapshotFacts::of(info);
    let mut lines = vec![
        ["snapshot".to_owned(), info.snapshot_id.clone()],
        ["table".to_owned(), table],
        ["written".to_owned(), created_at],
        ["rows".to_owned(), grouped(rows)],
        ["position".to_owned(), position],
        ["size".to_owned(), bytes(size_bytes)],
        ["format".to_owned(), info.format.clone()],
        ["file".to_owned(), info.store_location.clone()],
    ];
    let meta = info.user_meta.iter().flat_map(|meta| &meta.fields);
    let mut meta: Vec<[String; 2]> = meta.map(|(name, value)| [name.clone(), meta_json(value).to_string()]).collect();
    meta.sort();
    lines.extend(meta);
    format!("{}every byte is what was written\n", pairs(lines))
}

fn to_json(info: &SnapshotInfo) -> Value {
    let SnapshotFacts { table, rows, position, size_bytes, created_at } = SnapshotFacts::of(info);
    let meta = info.user_meta.as_ref();
    let meta =
        meta.map(|meta| meta.fields.iter().map(|(name, value)| (name.clone(), meta_json(value))).collect::<Value>());
    json!({
        "snapshot_id": info.snapshot_id,
        "table": table,
        "created_at": created_at,
        "row_count": rows,
        "position": position,
        "size_bytes": size_bytes,
        "format": info.format,
        "file": info.store_location,
        "user_meta": meta,
    })
}

pub(super) fn meta_json(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(value)) => (*value).into(),
        Some(Kind::StringValue(text)) => text.as_str().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(meta_json).collect(),
        Some(Kind::StructValue(object)) => {
            object.fields.iter().map(|(name, value)| (name.clone(), meta_json(value))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_a_text_and_a_json_form() {
        let kind = Some(prost_types::value::Kind::StringValue("deploy 7".to_owned()));
        let meta = [("why".to_owned(), prost_types::Value { kind })];
        let info = SnapshotInfo {
            snapshot_id: "a1-5".to_owned(),
            format: "jsonl".to_owned(),
            source_positions: vec![SourcePositionEntry { source_id: "s".to_owned(), position: "0/10".to_owned() }],
            tables: vec![TableSnapshotSummary {
                schema: "public".to_owned(),
                table: "t".to_owned(),
                row_count: 1234,
                target_type: String::new(),
            }],
            size_bytes: 2048,
            store_location: "/s/f.jsonl".to_owned(),
            user_meta: Some(prost_types::Struct { fields: meta.into() }),
            ..SnapshotInfo::default()
        };
        assert_eq!(
            list_text(std::slice::from_ref(&info)),
            "SNAPSHOT  TABLE     WRITTEN   ROWS     SIZE  POSITION  FORMAT\n\
             a1-5      public.t           1,234  2.0 KiB      0/10  jsonl\n"
        );
        let text = info_text(&info);
        assert!(
            text.contains("why       \"deploy 7\"") && text.ends_with("every byte is what was written\n"),
            "{text}"
        );
        assert_eq!(to_json(&info)["user_meta"], json!({ "why": "deploy 7" }));
        assert_eq!(to_json(&info)["row_count"], 1234);
    }
}
