//! The events of the log, and the catalog of errors: docs/errors.md has every warning, error and
//! refusal, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use regex::Regex;

use super::{files, read};

/// A call of a macro of `tracing`, up to the name of its event.
const LOG_LINE: &str = r#"\b(?:tracing::)?(trace|debug|info|warn|error)!\s*\(\s*(?:target: "[a-z]+",\s*)?(?:event = "([a-z][a-z0-9_]*)",)?"#;

/// The beginning of a status of gRPC with an error.
const STATUS: &str = r"\bStatus::(cancelled|unknown|invalid_argument|deadline_exceeded|not_found|already_exists|permission_denied|resource_exhausted|failed_precondition|aborted|out_of_range|unimplemented|internal|unavailable|data_loss|unauthenticated)\(";

/// The crates whose lines are in no program's log.
const UNLOGGED: [&str; 3] = ["crates/devtools/", "crates/fuzz/", "crates/testkit/"];

/// A status in the code: its code, and the texts that its message may be.
#[derive(Debug, PartialEq, Eq)]
struct StatusInCode {
    code: String,
    texts: Vec<String>,
}

/// A row of the table of refusals: a code, and a part of the message. The part is empty for all
/// messages of the code that have no fixed words.
type RefusalRow = (String, String);

#[test]
fn each_line_of_the_log_has_an_event_of_one_level() {
    let (mut levels, mut count) = (BTreeMap::<String, BTreeSet<String>>::new(), 0);
    for (path, code) in sources() {
        for (level, event) in log_lines(&code) {
            let event = event.unwrap_or_else(|| panic!("{path}: a line of level {level} does not begin with `event`"));
            levels.entry(event).or_default().insert(level);
            count += 1;
        }
    }
    let mixed: Vec<_> = levels.iter().filter(|(_, levels)| levels.len() > 1).collect();
    assert!(mixed.is_empty(), "an event has one level, so that it can be documented: {mixed:?}");
    assert!(count > 150, "the pattern finds all {count} lines");
}

#[test]
fn the_catalog_has_every_warning_and_error_of_the_log() {
    let mut expected = BTreeSet::new();
    for (_, code) in sources() {
        let lines = log_lines(&code).into_iter().filter(|(level, _)| level == "warn" || level == "error");
        expected.extend(lines.filter_map(|(level, event)| Some((event?, level.to_uppercase()))));
    }
    let rows = rows_of("## Events");
    let found: Vec<_> = rows.iter().map(|row| (row[0].trim_matches('`').to_owned(), row[1].clone())).collect();
    let unique: BTreeSet<_> = found.iter().cloned().collect();
    let missing: Vec<_> = expected.difference(&unique).collect();
    let extra: Vec<_> = unique.difference(&expected).collect();
    assert!(missing.is_empty() && extra.is_empty(), "docs/errors.md lacks {missing:#?}\nand has too much: {extra:#?}");
    assert_eq!(found.len(), unique.len(), "an event has one row");
    assert!(rows.iter().all(|row| row.len() == 4 && row.iter().all(|cell| !cell.is_empty())), "{rows:#?}");
}

#[test]
fn the_catalog_has_every_refusal() {
    let rows = rows_of("## Refusals");
    let rows: Vec<RefusalRow> = rows.iter().map(|row| (row[0].clone(), part_of_message(&row[1]))).collect();
    let rows: Vec<RefusalRow> =
        rows.into_iter().map(|(code, part)| (code.trim_matches('`').to_owned(), part)).collect();
    let statuses: Vec<StatusInCode> = sources()
        .into_iter()
        .filter(|(path, _)| path.starts_with("crates/server/"))
        .flat_map(|(_, code)| statuses(&code))
        .collect();
    assert!(statuses.len() > 80, "the pattern finds all {} refusals", statuses.len());
    let is_in = |status: &StatusInCode, (code, part): &RefusalRow| {
        let has_part = status.texts.iter().any(|text| !part.is_empty() && text.contains(part.as_str()));
        *code == status.code && (has_part || part.is_empty() && status.texts.is_empty())
    };
    let mut missing = Vec::new();
    for status in &statuses {
        // Each text of a status is a refusal of its own.
        let own = |text: &String| StatusInCode { code: status.code.clone(), texts: vec![text.clone()] };
        let parts = if status.texts.is_empty() {
            vec![StatusInCode { code: status.code.clone(), texts: Vec::new() }]
        } else {
            status.texts.iter().map(own).collect()
        };
        missing.extend(parts.into_iter().filter(|part| !rows.iter().any(|row| is_in(part, row))));
    }
    let unused: Vec<_> = rows.iter().filter(|row| !statuses.iter().any(|status| is_in(status, row))).collect();
    assert!(
        missing.is_empty() && unused.is_empty(),
        "docs/errors.md lacks {missing:#?}\nand has too much: {unused:#?}"
    );
}

#[test]
fn the_catalog_has_every_exit_code() {
    let sources: Vec<String> = sources().into_iter().map(|(_, code)| code).collect();
    let constant = Regex::new(r"const ([A-Z_]+): u8 = (\d+);").unwrap();
    let constants: BTreeMap<String, String> = sources
        .iter()
        .flat_map(|code| constant.captures_iter(code))
        .map(|found| (found[1].to_owned(), found[2].to_owned()))
        .collect();
    let codes: BTreeSet<String> = sources.iter().flat_map(|code| exit_codes(code, &constants)).collect();
    let rows = rows_of("## Exit codes");
    let documented: BTreeSet<String> = rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    assert_eq!(codes, documented);
}

/// Returns the exit codes in the code. `constants` are the values of constants, which it may use.
fn exit_codes(code: &str, constants: &BTreeMap<String, String>) -> Vec<String> {
    let of = Regex::new(r"ExitCode::(SUCCESS|FAILURE|from\()|\bexit\(").unwrap();
    let part = Regex::new(r"\b(\d+|u8::from|[A-Z_]{2,})\b").unwrap();
    let mut found = Vec::new();
    for place in of.captures_iter(code) {
        let end = place.get(0).map_or(0, |whole| whole.end());
        match place.get(1).map(|kind| kind.as_str()) {
            Some("SUCCESS") => found.push("0".to_owned()),
            Some("FAILURE") => found.push("1".to_owned()),
            _ => {
                for part in part.captures_iter(&code[end..end_of_argument(code, end)]) {
                    match &part[1] {
                        "u8::from" => found.extend(["0", "1"].map(str::to_owned)),
                        name => found.push(constants.get(name).cloned().unwrap_or_else(|| name.to_owned())),
                    }
                }
            }
        }
    }
    found
}

#[test]
fn exit_codes_are_found() {
    let code = "ExitCode::SUCCESS; ExitCode::from(if is_right() { 0 } else { 3 }); ExitCode::from(MINE); \
                std::process::exit(7); ExitCode::from(u8::from(differs))";
    let constants = BTreeMap::from([("MINE".to_owned(), "2".to_owned())]);
    assert_eq!(exit_codes(code, &constants), ["0", "0", "3", "2", "7", "0", "1"]);
}

#[test]
fn events_and_refusals_are_found() {
    let code = "tracing::warn!(event = \"a_b\", %table, \"x\");\ninfo!(\n    target: \"audit\",\n    event = \"c\", \"y\");\n\
                tracing::error!(%error, event = \"late\", \"z\");\n// warn!(\"no code\")\n";
    let event = |name: &str| Some(name.to_owned());
    let expected = [("warn".to_owned(), event("a_b")), ("info".to_owned(), event("c")), ("error".to_owned(), None)];
    assert_eq!(log_lines(code), expected);
    let code = "Status::not_found(format!(\"no table {name} (`x`) \\\n     there\"));\nStatus::internal(match e {\n    \
                A => \"it is a\",\n    B => return Status::unavailable(\"it is b\"),\n})\nStatus::aborted(error.to_string())";
    let status = |code: &str, texts: &[&str]| {
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        StatusInCode { code: code.to_owned(), texts }
    };
    let expected = [
        status("NOT_FOUND", &["no table {name} (`x`) there"]),
        status("INTERNAL", &["it is a"]),
        status("UNAVAILABLE", &["it is b"]),
        status("ABORTED", &[]),
    ];
    assert_eq!(statuses(code), expected);
}

/// Returns the paths and the code of all programs and libraries, without tests and comments.
fn sources() -> Vec<(String, String)> {
    let is_logged = |path: &String| {
        let is_source = path.starts_with("crates/") && path.contains("/src/") && path.ends_with(".rs");
        is_source && !path.contains("tests") && !UNLOGGED.iter().any(|crate_path| path.starts_with(crate_path))
    };
    let paths = files().into_iter().map(|path| path.to_string_lossy().into_owned()).filter(is_logged);
    paths
        .filter_map(|path| {
            let text = read(Path::new(&path))?;
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let lines: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            Some((path, lines.join("\n")))
        })
        .collect()
}

/// Returns the level of each line that the code logs, and its event if it begins with one.
fn log_lines(code: &str) -> Vec<(String, Option<String>)> {
    let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let line = Regex::new(LOG_LINE).unwrap();
    let found = |found: regex::Captures<'_>| (found[1].to_owned(), found.get(2).map(|event| event.as_str().to_owned()));
    line.captures_iter(&code.join("\n")).map(found).collect()
}

/// Returns the statuses that the code makes. A text belongs to the innermost status around it.
fn statuses(code: &str) -> Vec<StatusInCode> {
    let (status, literal) = (Regex::new(STATUS).unwrap(), Regex::new(r#""((?:[^"\\]|\\(?s:.))*)""#).unwrap());
    let continuation = Regex::new(r"\\\n\s*").unwrap();
    let mut found: Vec<(usize, usize, StatusInCode)> = status
        .captures_iter(code)
        .map(|found| {
            let begin = found.get(0).map_or(0, |whole| whole.end());
            (begin, end_of_argument(code, begin), StatusInCode { code: found[1].to_uppercase(), texts: Vec::new() })
        })
        .collect();
    for text in literal.captures_iter(code).filter_map(|found| found.get(1)) {
        let around = found.iter_mut().rev().find(|(begin, end, _)| (*begin..*end).contains(&text.start()));
        let words = continuation.replace_all(text.as_str(), "").into_owned();
        if let Some((_, _, status)) = around.filter(|_| words.contains(' ')) {
            status.texts.push(words);
        }
    }
    found.into_iter().map(|(_, _, status)| status).collect()
}

/// Returns the index of the parenthesis that closes the argument at `begin`.
fn end_of_argument(code: &str, begin: usize) -> usize {
    let (mut depth, mut is_text, mut is_escaped) = (1, false, false);
    for (at, byte) in code.bytes().enumerate().skip(begin) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b'(' if !is_text => depth += 1,
            b')' if !is_text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// Returns the cells of the tables under a heading of docs/errors.md, without their heads.
fn rows_of(heading: &str) -> Vec<Vec<String>> {
    let page = read(Path::new("docs/errors.md")).expect("the page is there");
    let (_, section) = page.split_once(&format!("\n{heading}\n")).expect("the heading is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// Returns the words in backticks of the cell that shows a message, or none.
fn part_of_message(cell: &str) -> String {
    cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`')).unwrap_or_default().to_owned()
}
