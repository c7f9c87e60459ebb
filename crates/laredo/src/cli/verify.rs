//! `laredo verify`.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use laredo_core::TableName;
use laredo_proto::oam::verify_table_response::Event;
use laredo_proto::oam::{VerifyDifference, VerifyProgress, VerifyResult, VerifyTableRequest};
use prost_types::Struct;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::args::VerifyArgs;
use super::error::CliError;
use super::oam::{ask, refused};
use super::print;
use super::snapshot::meta_json;
use super::table::{bytes, grouped, printable, table};

/// Characters of the progress bar.
const BAR: usize = 30;

/// Verifies a table, and prints the result.
pub(super) async fn run(args: VerifyArgs, stop: CancellationToken) -> Result<ExitCode, CliError> {
    let request = VerifyTableRequest {
        schema: args.table.schema.clone(),
        table: args.table.table.clone(),
        bytes_per_second: args.rate.map_or(0, |mib| i64::from(mib) << 20),
        heal: !args.no_heal,
        values: args.values,
    };
    let mut events = ask(&args.oam, async |mut client| client.verify_table(request).await).await?;
    let bar = ProgressBar::new(io::stderr().is_terminal());
    let ended = || CliError::Told { server: args.oam.oam.clone(), reason: "it ended without a result".to_owned() };
    let result = loop {
        let event = tokio::select! {
            () = stop.cancelled() => {
                bar.clear();
                let reason = "the verification was interrupted".to_owned();
                return Err(CliError::Told { server: args.oam.oam.clone(), reason });
            }
            event = events.message() => event,
        };
        match event.map_err(|status| refused(&args.oam, &status)).inspect_err(|_| bar.clear())?.map(|event| event.event)
        {
            Some(Some(Event::Progress(progress))) => bar.show(&progress),
            Some(Some(Event::Result(result))) => break result,
            // A kind of event of a later server.
            Some(None) => {}
            None => return Err(ended()),
        }
    };
    bar.clear();
    print(&match args.oam.json {
        true => format!("{}\n", to_json(&args.table, &result)),
        false => to_text(&args.table, &result, args.values),
    })?;
    Ok(ExitCode::from(u8::from(result.differing > 0)))
}

/// The progress on a terminal; elsewhere nothing.
struct ProgressBar {
    is_shown: bool,
}

impl ProgressBar {
    fn new(is_shown: bool) -> ProgressBar {
        ProgressBar { is_shown }
    }

    fn show(&self, progress: &VerifyProgress) {
        self.write(&format!("\r{}\x1b[K", line(progress)));
    }

    fn clear(&self) {
        self.write("\r\x1b[K");
    }

    fn write(&self, text: &str) {
        if self.is_shown {
            // Where standard error is closed, nothing is lost.
            let _ = write!(io::stderr().lock(), "{text}");
        }
    }
}

fn line(progress: &VerifyProgress) -> String {
    if !progress.has_begun {
        return "waiting until the table can be verified".to_owned();
    }
    let (blocks, total) = (progress.blocks.max(0).min(progress.blocks_total), progress.blocks_total.max(1));
    let filled = usize::try_from(blocks * BAR as i64 / total).unwrap_or(0);
    let (rows, size) = (grouped(progress.rows.unsigned_abs()), bytes(progress.bytes.unsigned_abs()));
    format!("[{:BAR$}] {:3} %  {rows} rows, {size}", "#".repeat(filled), blocks * 100 / total)
}

fn to_text(name: &TableName, result: &VerifyResult, values: bool) -> String {
    let (rows, size) = (grouped(result.rows.unsigned_abs()), bytes(result.bytes.unsigned_abs()));
    let differing = grouped(result.differing.unsigned_abs());
    let mut text = match (result.differing, result.is_cut) {
        (0, _) => format!("{name} is equal to the database's: {rows} rows, {size}, at {}\n", result.position),
        (_, false) => format!("{name} differs in {differing} of {rows} rows, at {}\n", result.position),
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
    let field = |(name, value): (&String, &prost_types::Value)| match meta_json(value) {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    };
    fields.map(field).collect::<Vec<_>>().join(", ")
}

fn to_json(name: &TableName, result: &VerifyResult) -> Value {
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
    })
}

fn struct_json(fields: &Struct) -> Value {
    fields.fields.iter().map(|(name, value)| (name.clone(), meta_json(value))).collect()
}

#[cfg(test)]
mod tests {
    use prost_types::value::Kind;

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
    fn a_result_is_told_in_words_and_in_json() {
        let name = TableName::new("public", "t");
        let equal = VerifyResult { rows: 1000, bytes: 2048, position: "0/10".to_owned(), ..VerifyResult::default() };
        let text = "public.t is equal to the database's: 1,000 rows, 2.0 KiB, at 0/10\n";
        assert_eq!(to_text(&name, &equal, false), text);
        assert_eq!(to_json(&name, &equal)["equal"], true);
        let text = to_text(&name, &differing(), true);
        assert!(text.starts_with("public.t differs in 1 of 1,000 rows, at 0/10\n"), "{text}");
        for line in ["different  id=7  price", "the server has {\"price\":3}; the database has {\"price\":4}"] {
            assert!(text.contains(line), "{text}");
        }
        let json = to_json(&name, &differing());
        assert_eq!((&json["equal"], &json["differences"][0]["key"]["id"]), (&json!(false), &json!(7)));
    }

    #[test]
    fn progress_is_a_bar() {
        let progress = VerifyProgress { has_begun: true, rows: 1200, bytes: 2048, blocks: 5, blocks_total: 10 };
        assert_eq!(line(&progress), "[###############               ]  50 %  1,200 rows, 2.0 KiB");
        let unknown = VerifyProgress { blocks: 0, blocks_total: 0, ..progress };
        assert!(line(&unknown).contains("]   0 %"), "{}", line(&unknown));
        assert!(line(&VerifyProgress::default()).contains("waiting"));
    }
}
