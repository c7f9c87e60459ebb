//! `laredo verify`.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use laredo_core::TableName;
use laredo_proto::oam::verify_table_response::Event;
use laredo_proto::oam::{ClientComparison, VerifyDifference, VerifyProgress, VerifyResult, VerifyTableRequest};
use prost_types::Struct;
use prost_types::value::Kind;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::archive::{ArchiveComparison, compare_with_server};
use super::args::VerifyArgs;
use super::error::CliError;
use super::oam::{call_oam, oam_error};
use super::print_output;
use super::snapshot::meta_json;
use super::text_table::{bytes, grouped, table};
use crate::printable::printable;

mod clients;

/// The minimum timeout of a comparison with an archive.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(600);

/// The bound below which a double holds every whole number: 2^53.
const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;

/// The results of a verification.
struct VerificationResults {
    table: VerifyResult,
    /// The results of the clients, if they were asked for.
    clients: Option<Vec<ClientComparison>>,
    /// The result of the archive, if one was given.
    archive: Option<ArchiveComparison>,
}

/// Verifies a table's clients if asked to, then the table, then its archive if one is given. Prints
/// the results.
pub(super) async fn run(args: VerifyArgs, stop: CancellationToken) -> Result<ExitCode, CliError> {
    let interrupted = || CliError::ServerAnswer {
        server: args.oam.oam.clone(),
        reason: "the verification was interrupted".to_owned(),
    };
    let verified = async {
        let (table, clients) = verify(&args).await?;
        let archive = match &args.compare.archive {
            Some(place) => {
                let line = (&args.oam.tls, args.oam.timeout.max(COMPARE_TIMEOUT));
                Some(compare_with_server(place, &args.compare, &args.table, line).await?)
            }
            None => None,
        };
        Ok::<_, CliError>(VerificationResults { table, clients, archive })
    };
    let verified = tokio::select! {
        () = stop.cancelled() => return Err(interrupted()),
        verified = verified => verified?,
    };
    print_output(&match args.oam.json {
        true => format!("{}\n", to_json(&args.table, &verified)),
        false => to_text(&args.table, &verified, args.values),
    })?;
    let VerificationResults { table, clients, archive } = verified;
    let differs = table.differing > 0
        || clients.is_some_and(|clients| clients::is_alarming(&clients))
        || archive.is_some_and(|archive| archive.differing > 0);
    Ok(ExitCode::from(u8::from(differs)))
}

/// Makes the server verify the table, and shows the progress.
async fn verify(args: &VerifyArgs) -> Result<(VerifyResult, Option<Vec<ClientComparison>>), CliError> {
    let request = VerifyTableRequest {
        schema: args.table.schema.clone(),
        table: args.table.table.clone(),
        bytes_per_second: args.rate.map_or(0, |mib| i64::from(mib) << 20),
        heal: !args.no_heal,
        values: args.values,
        clients: args.clients,
    };
    let mut clients = None;
    let mut events = call_oam(&args.oam, async |mut client| client.verify_table(request).await).await?;
    let bar = if io::stderr().is_terminal() { ProgressBar::new(1) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("verifying {bar:30} {percent} %, {msg}") {
        bar.set_style(style);
    }
    loop {
        let event = events.message().await.map_err(|status| oam_error(&args.oam, &status))?;
        match event.map(|event| event.event) {
            Some(Some(Event::Progress(progress))) => show_progress(&bar, &progress),
            Some(Some(Event::Clients(comparisons))) => clients = Some(comparisons.clients),
            Some(Some(Event::Result(result))) => {
                bar.finish_and_clear();
                if args.clients && clients.is_none() {
                    let reason =
                        "the server is of an earlier version, which cannot compare its clients; update it, or \
                                  leave --clients out"
                            .to_owned();
                    return Err(CliError::ServerAnswer { server: args.oam.oam.clone(), reason });
                }
                return Ok((result, clients));
            }
            // The event is of a kind that only a later server sends.
            Some(None) => {}
            None => {
                let reason = "the verification ended without a result".to_owned();
                return Err(CliError::ServerAnswer { server: args.oam.oam.clone(), reason });
            }
        }
    }
}

fn show_progress(bar: &ProgressBar, progress: &VerifyProgress) {
    bar.set_length(progress.blocks_total.max(1).unsigned_abs());
    bar.set_position(progress.blocks.max(0).unsigned_abs());
    bar.set_message(match progress.has_begun {
        _ if progress.compares_clients => "comparing clients".to_owned(),
        true => format!("{} rows, {}", grouped(progress.rows.unsigned_abs()), bytes(progress.bytes.unsigned_abs())),
        false => "waiting until the table is copied".to_owned(),
    });
}

fn archive_text(archive: &ArchiveComparison) -> String {
    let ArchiveComparison { boundary, position, rows, differing } = archive;
    let rows = grouped(*rows);
    match differing {
        0 => format!("the archive, written up to {boundary}, is equal to the server's: {rows} rows, at {position}\n"),
        _ => format!(
            "the archive, written up to {boundary}, differs in {} of {rows} rows, at {position}; have a new base \
             written (POST /snapshot of laredo-snapshotter), and report this\n",
            grouped(*differing)
        ),
    }
}

fn to_text(name: &TableName, verified: &VerificationResults, values: bool) -> String {
    let mut text = table_text(name, &verified.table, values);
    if let Some(clients) = &verified.clients {
        text += &clients::to_text(clients);
    }
    text + &verified.archive.as_ref().map_or_else(String::new, archive_text)
}

fn table_text(name: &TableName, result: &VerifyResult, values: bool) -> String {
    let (rows, size) = (grouped(result.rows.unsigned_abs()), bytes(result.bytes.unsigned_abs()));
    let (differing, position) = (grouped(result.differing.unsigned_abs()), printable(&result.position));
    let mut text = match (result.differing, result.is_cut) {
        (0, _) => format!("{name} is equal to the database's: {rows} rows, {size}, at {position}\n"),
        (_, false) => format!("{name} differs in {differing} of {rows} rows, at {position}\n"),
        (_, true) => format!("{name} differs in at least {differing} rows; the rest of it was not read\n"),
    };
    if result.unverified > 0 {
        let unverified = grouped(result.unverified.unsigned_abs());
        text += &format!("{unverified} rows changed meanwhile and were not compared; verify the table once more\n");
    }
    if !result.differences.is_empty() {
        let rows = result
            .differences
            .iter()
            .map(|difference| [difference.kind.clone(), key_text(difference), difference.columns.join(", ")]);
        text += &format!("\n{}", table(["ROW", "KEY", "COLUMNS"], &[], rows.collect()));
    }
    for difference in result.differences.iter().filter(|_| values) {
        let row = |row: &Option<Struct>| row.as_ref().map_or("no row".to_owned(), |row| struct_json(row).to_string());
        let (held, stored) = (row(&difference.held), row(&difference.stored));
        let key = key_text(difference);
        text += &printable(&format!("{key}: the server has {held}; the database has {stored}"));
        text.push('\n');
    }
    if result.heals {
        text += "\nThe table is copied again, and clients are sent what differs. Report this.\n";
    }
    text
}

fn key_text(difference: &VerifyDifference) -> String {
    let fields = difference.key.iter().flat_map(|key| &key.fields);
    let field = |(name, value): (&String, &prost_types::Value)| match value_json(value) {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    };
    fields.map(field).collect::<Vec<_>>().join(", ")
}

fn to_json(name: &TableName, verified: &VerificationResults) -> Value {
    let VerificationResults { table: result, clients, archive } = verified;
    let difference = |difference: &VerifyDifference| {
        json!({
            "kind": difference.kind,
            "key": difference.key.as_ref().map(struct_json),
            "columns": difference.columns,
            "held": difference.held.as_ref().map(struct_json),
            "stored": difference.stored.as_ref().map(struct_json),
        })
    };
    json!({
        "table": name.to_string(),
        "equal": result.differing == 0,
        "rows": result.rows,
        "bytes": result.bytes,
        "position": result.position,
        "differing": result.differing,
        "is_cut": result.is_cut,
        "unverified": result.unverified,
        "heals": result.heals,
        "differences": result.differences.iter().map(difference).collect::<Vec<_>>(),
        "clients": clients.as_deref().map(clients::to_json),
        "archive": archive.as_ref().map(|archive| json!({
            "boundary": archive.boundary.to_string(),
            "position": archive.position.to_string(),
            "rows": archive.rows,
            "equal": archive.differing == 0,
            "differing": archive.differing,
        })),
    })
}

fn struct_json(fields: &Struct) -> Value {
    fields.fields.iter().map(|(name, value)| (name.clone(), value_json(value))).collect()
}

/// Converts a value to JSON in which a whole number stays one: 7, not 7.0.
fn value_json(value: &prost_types::Value) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "whole, and within the integers that a double holds")]
    match &value.kind {
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < EXACT_INTEGERS => {
            json!(*number as i64)
        }
        Some(Kind::ListValue(list)) => list.values.iter().map(value_json).collect(),
        Some(Kind::StructValue(fields)) => struct_json(fields),
        Some(Kind::NumberValue(_) | Kind::NullValue(_) | Kind::StringValue(_) | Kind::BoolValue(_)) | None => {
            meta_json(value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(name: &str, value: f64) -> Option<Struct> {
        let value = prost_types::Value { kind: Some(Kind::NumberValue(value)) };
        Some(Struct { fields: [(name.to_owned(), value)].into() })
    }

    fn differing() -> VerifyResult {
        let (held, stored) = (number("price", 3.0), number("price", 4.0));
        let columns = vec!["price".to_owned()];
        let key = number("id", 7.0);
        VerifyResult {
            rows: 1000,
            bytes: 2048,
            position: "0/10".to_owned(),
            differing: 1,
            differences: vec![VerifyDifference { kind: "different".to_owned(), key, columns, held, stored }],
            heals: true,
            ..VerifyResult::default()
        }
    }

    #[test]
    fn a_result_has_a_text_and_a_json_form() {
        let name = TableName::new("public", "t");
        let equal = VerifyResult { rows: 1000, bytes: 2048, position: "0/10".to_owned(), ..VerifyResult::default() };
        let text = "public.t is equal to the database's: 1,000 rows, 2.0 KiB, at 0/10\n";
        let equal = VerificationResults { table: equal, clients: None, archive: None };
        assert_eq!(to_text(&name, &equal, false), text);
        let json = to_json(&name, &equal);
        assert_eq!((&json["equal"], &json["clients"]), (&json!(true), &Value::Null));
        let alone = VerificationResults { clients: Some(Vec::new()), ..equal };
        assert_eq!(to_text(&name, &alone, false), format!("{text}no client was connected\n"));
        assert_eq!(to_json(&name, &alone)["clients"], json!([]));
        let differing = VerificationResults { table: differing(), clients: None, archive: None };
        let text = to_text(&name, &differing, true);
        assert!(text.starts_with("public.t differs in 1 of 1,000 rows, at 0/10\n"), "{text}");
        for line in ["different  id=7  price", "the server has {\"price\":3}; the database has {\"price\":4}"] {
            assert!(text.contains(line), "{text}");
        }
        let json = to_json(&name, &differing);
        assert_eq!((&json["equal"], &json["differences"][0]["key"]["id"]), (&json!(false), &json!(7)));
    }
}
