//! The demo as a user runs it. It needs the server and the snapshotter of the same build. Run
//! `cargo build -p laredo` first if this crate is tested alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use laredo_testkit::{ChildProcess, clean_command, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

fn demo(arguments: &[&str]) -> ChildProcess {
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo-demo"));
    command.args(arguments);
    ChildProcess::spawn(command).unwrap()
}

#[tokio::test]
async fn it_ends_with_clients_equal_to_the_database() {
    let demo = demo(&["--seconds", "2", "--rate", "4"]);
    let verdict = demo.wait_for_line(r#"^\{"rows""#).await.unwrap();
    assert!(demo.wait(PATIENCE).await.unwrap().success());
    let verdict: serde_json::Value = serde_json::from_str(&verdict).unwrap();
    assert_eq!(verdict["equal"], true, "{verdict}");
    let (rows, changes) = (verdict["rows"].as_u64().unwrap(), verdict["changes"].as_u64().unwrap());
    assert!(changes < rows / 2, "the rows that were there from the beginning are no changes: {verdict}");
    let verified = &verdict["verify"];
    assert_eq!((&verified["equal"], &verified["archive"]["equal"]), (&true.into(), &true.into()), "{verdict}");
}

#[tokio::test]
async fn its_archive_is_written_and_rebased_and_rebuilds_the_table() {
    // A new base follows within ten seconds.
    let demo = demo(&["--seconds", "13", "--rate", "50"]);
    let line = demo.wait_for_line(r"archive: epoch +1, +\d+ artifacts, head [0-9A-F]+/[0-9A-F]+$").await.unwrap();
    assert!(line.contains("commits/s"), "{line}");
    let verdict = demo.wait_for_line(r#"^\{"rows""#).await.unwrap();
    assert!(demo.wait(PATIENCE).await.unwrap().success());
    let verdict: serde_json::Value = serde_json::from_str(&verdict).unwrap();
    let archive = &verdict["archive"];
    assert_eq!((&verdict["equal"], &archive["equal"]), (&true.into(), &true.into()), "{verdict}");
    let number = |name: &str| archive[name].as_u64().unwrap();
    assert!(number("epochs") >= 2 && number("artifacts") > 2 * number("epochs"), "{verdict}");
    // The clients have roughly two thirds of the rows; the archive has all.
    assert!(number("rows") > verdict["rows"].as_u64().unwrap() / 2, "{verdict}");
}

#[tokio::test]
async fn ctrl_c_ends_it_quietly_and_leaves_nothing() {
    let demo = demo(&[]);
    demo.wait_for_line("commits/s").await.unwrap();
    let started = descendants(demo.id());
    let folders: Vec<PathBuf> = started.values().flat_map(|command| folders(command)).collect();
    let is_there = |program: &str| started.values().any(|command| command[0].ends_with(program));
    assert!(
        ["postgres", "laredo-server", "laredo-snapshotter", "laredo-demo"].into_iter().all(is_there),
        "{started:?}"
    );
    assert!(folders.len() >= 2 && folders.iter().all(|folder| folder.exists()), "{folders:?}");
    demo.interrupt();
    assert_eq!(demo.wait(PATIENCE).await.unwrap().code(), Some(0));
    let complaints: Vec<_> = demo.output().into_iter().filter(|line| line.contains("rror")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    let gone = async || !started.keys().any(|pid| parent(*pid).is_some()) && !folders.iter().any(|f| f.exists());
    eventually(PATIENCE, gone).await.unwrap();
}

/// Returns the folder of PostgreSQL, or of a program's configuration, that a command names.
fn folders(command: &[String]) -> Option<PathBuf> {
    let at = command.iter().position(|argument| argument == "-D" || argument == "--config")?;
    Some(Path::new(command.get(at + 1)?).parent()?.to_owned())
}

/// Returns all descendants of a process, each with its command.
fn descendants(ancestor: u32) -> BTreeMap<u32, Vec<String>> {
    let names = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let parents: BTreeMap<u32, u32> =
        names.filter_map(|name| name.parse().ok()).filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = BTreeMap::new();
    let mut generation = vec![ancestor];
    while !generation.is_empty() {
        generation = parents.iter().filter(|(_, parent)| generation.contains(parent)).map(|(pid, _)| *pid).collect();
        found.extend(generation.iter().map(|pid| (*pid, command(*pid))));
    }
    found
}

fn command(pid: u32) -> Vec<String> {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Returns the parent of a process that has not ended.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name precedes the state. It is in parentheses and may contain any characters.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    fields.next().filter(|_| state != "Z")?.parse().ok()
}
