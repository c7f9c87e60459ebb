//! The readers of examples/read-archive, run as their README says, on an archive of laredo.

use std::path::{Path, PathBuf};
use std::process::Command;

use laredo_testkit::programs;
use serde_json::Value;

use crate::pipeline::{ArchivePipeline, HISTORY, PipelineArchive, THINGS, answer};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/read-archive");

/// Returns the commands of the README, without those that install something.
fn commands() -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(EXAMPLE).join("README.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines = blocks.flat_map(str::lines).filter(|line| !line.starts_with("pip install"));
    lines.map(str::to_owned).collect()
}

/// Returns the rows sorted, by column, with numbers as doubles.
fn rows(text: &str) -> Vec<Value> {
    fn plain(value: Value) -> Value {
        match value {
            Value::Number(number) => number.as_f64().into(),
            Value::Array(items) => items.into_iter().map(plain).collect(),
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.into_iter().map(|(name, value)| (name, plain(value))).collect();
                fields.sort_by(|(one, _), (other, _)| one.cmp(other));
                fields.into_iter().collect()
            }
            value => value,
        }
    }
    let mut rows: Vec<Value> = text.lines().map(|line| plain(serde_json::from_str(line).expect(line))).collect();
    rows.sort_by_key(Value::to_string);
    rows
}

fn run(line: &str, archive: &Path, folder: &Path, programs: &Path) -> String {
    let line = line.replace("/var/lib/laredo/archive/users", archive.to_str().unwrap());
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh").args(["-c", &line]).current_dir(folder).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Copies the example's files to a folder of the test's own.
fn example() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(EXAMPLE).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn python_and_duckdb_rebuild_what_we_do_with_the_manifest_alone() {
    let (programs, folder) = (programs("readers").unwrap(), example());
    let archives = [PipelineArchive { table: "things", formats: &["jsonl", "protobuf"], name: "things" }];
    let pipeline = ArchivePipeline::start(THINGS, &archives).await;
    let archive: PathBuf = pipeline.archive("things");
    let all = |archive: &Path| {
        let mut rebuilt = 0;
        for line in commands() {
            let text = run(&line, archive, folder.path(), &programs);
            if line.contains("read_archive.") {
                assert_eq!(rows(&text), rows(&answer(&["reconstruct", archive.to_str().unwrap()])), "{line}");
                rebuilt += 1;
            }
        }
        assert_eq!(rebuilt, 3, "jsonl and protobuf by Python, jsonl by DuckDB");
    };
    all(&archive);
    // The readers must agree with laredo at each step, because a later step can hide an earlier
    // error.
    for sql in HISTORY {
        pipeline.write(sql).await;
        all(&archive);
    }
    let expected = pipeline
        .cluster
        .psql("SELECT json_build_object('shop', shop, 'key', \"it's \"\"it\"\"\", 'big', big) FROM things")
        .unwrap();
    let found = rows(&answer(&["reconstruct", archive.to_str().unwrap()]));
    let expected: Value = serde_json::from_str(&expected).unwrap();
    assert_eq!(found.len(), 1);
    for (ours, theirs) in [("shop", "shop"), ("it's \"it\"", "key"), ("big", "big")] {
        assert_eq!(found[0][ours].as_f64(), expected[theirs].as_f64());
        assert_eq!(found[0][ours].as_str(), expected[theirs].as_str());
    }
}

#[test]
fn the_script_is_as_short_as_it_is_said_to_be() {
    let script = std::fs::read_to_string(Path::new(EXAMPLE).join("read_archive.py")).unwrap();
    let lines = script.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("\"\"\""));
    assert_eq!(lines.count(), 15);
}
