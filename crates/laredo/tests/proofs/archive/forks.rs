//! The database's history forks under a server and a snapshotter. Every state that the archive
//! returns is one that the database had, in the requested history. Nothing of an abandoned history
//! is returned unless it is requested.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use laredo_archive::{ArchivePoint, ArchiveReadError, Artifact, ArtifactKind, ReadProgress};
use laredo_core::{Lsn, TableName, Tuple};
use laredo_testkit::{Cluster, ClusterOptions, StopMode, StorageCopy, clean_command, eventually};
use laredo_values::project_row;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::open;
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use crate::support::snapshotter::{SnapshotterProcess, table};

/// The database's rows of a table at a position.
#[derive(Clone, Debug)]
struct KnownState {
    /// The histories whose past includes this state, beginning with the one in which it was
    /// archived.
    histories: Vec<usize>,
    position: Lsn,
    rows: Vec<String>,
}

/// A copy of the database's storage, and the number of known states at that time.
struct DatabaseCopy {
    storage: StorageCopy,
    known: usize,
}

struct ForkingArchive {
    // Before the cluster: when the server is dropped, it is verified.
    server: ServerProcess,
    cluster: Cluster,
    snapshotter: SnapshotterProcess,
    folder: TempDir,
    _journal: TempDir,
    known: Vec<KnownState>,
    history: usize,
    /// The number of the next history.
    numbers: usize,
    next: i32,
}

impl ForkingArchive {
    async fn start(keeps_journal: bool) -> ForkingArchive {
        let cluster = Cluster::start(ClusterOptions::default().set("restore_command", "false")).unwrap();
        let sql = "CREATE TABLE kept (n int PRIMARY KEY, body text); INSERT INTO kept SELECT n, 'old' FROM generate_series(1, 100) n";
        cluster.psql(sql).unwrap();
        let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = TableName::new("public", "kept");
        let mut config = ServerProcessConfig::new(cluster.url("postgres"), [name.clone()]).slot("laredo_forks");
        if keeps_journal {
            let path = Value::from(journal.path().to_string_lossy());
            config = config.target(&format!("journal {{ store = local, store_config {{ path = {path} }} }}"));
        }
        let server = config.start().await;
        let keys = json!({ "diff": { "interval": "100ms" } });
        let snapshotter =
            SnapshotterProcess::launch(&[table(&server.url(), &name, folder.path(), &keys)], &json!({}), &[]);
        snapshotter.ready().await;
        ForkingArchive {
            cluster,
            server,
            snapshotter,
            folder,
            _journal: journal,
            known: Vec::new(),
            history: 1,
            numbers: 2,
            next: 1000,
        }
    }

    fn archive(&self) -> PathBuf {
        self.folder.path().join("kept/")
    }

    /// Changes rows, and waits until the archive has them. The archive's head is then a known
    /// state.
    async fn write(&mut self) {
        let (history, first) = (self.history, self.next);
        self.next += 10;
        let sql = format!(
            "INSERT INTO kept SELECT n, 'of {history}' FROM generate_series({first}, {first} + 9) n; UPDATE kept SET body = '{first}' WHERE n <= 3"
        );
        self.cluster.psql(&sql).unwrap();
        self.note().await;
    }

    /// Writes WAL that concerns no table.
    fn fill(&self, bytes: u32) {
        self.cluster.psql(&format!("SELECT pg_logical_emit_message(false, 'test', repeat('x', {bytes}))")).unwrap();
    }

    /// Notes the state at the archive's head, once it equals the database's.
    async fn note(&mut self) {
        let expected = self.rows();
        let found = std::cell::Cell::new(Lsn::ZERO);
        let has_all = async || {
            let Ok(archive) = laredo_archive::Archive::open(place(&self.archive()), None).await else { return false };
            let Ok(rebuilt) = archive.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await else {
                return false;
            };
            found.set(rebuilt.boundary.position.unwrap_or_default());
            shown(&rebuilt.table) == expected
        };
        if eventually(PATIENCE, has_all).await.is_err() {
            panic!("the archive does not come to have what the database has: {:#?}", self.snapshotter.status().await);
        }
        self.known.push(KnownState { histories: vec![self.history], position: found.get(), rows: expected });
    }

    fn rows(&self) -> Vec<String> {
        let text = self.cluster.psql("SELECT n || ':' || body FROM kept ORDER BY n::text COLLATE \"C\"").unwrap();
        let mut rows: Vec<String> = text.lines().map(str::to_owned).collect();
        rows.sort();
        rows
    }

    async fn end_both(&mut self) {
        self.snapshotter.stop().await;
        self.server.process.kill9();
        self.server.process.wait(PATIENCE).await.unwrap();
    }

    async fn begin_both(&mut self) {
        self.server.restart().await;
        self.snapshotter.restart().await;
    }

    async fn copy(&mut self) -> DatabaseCopy {
        let storage = self.cluster.copy_storage(StopMode::Fast).unwrap();
        DatabaseCopy { storage, known: self.known.len() }
    }

    /// Puts the storage back. Another history begins, with the past of the copy.
    fn put_back(
        &mut self,
        copy: &DatabaseCopy,
        how: fn(&mut Cluster, &StorageCopy, StopMode) -> laredo_testkit::Result<()>,
    ) {
        how(&mut self.cluster, &copy.storage, StopMode::Immediate).unwrap();
        let before = self.history;
        self.history = self.numbers;
        self.numbers += 1;
        for state in self.known.iter_mut().take(copy.known).filter(|state| state.histories.contains(&before)) {
            state.histories.push(self.history);
        }
    }

    /// Compares each known state with the archive's state at its position, with and without naming
    /// the history. `ids` are the numbers of the histories in the archive.
    async fn compare(&self, ids: &[u64]) {
        let archive = open(&self.archive()).await;
        let progress = ReadProgress::default();
        archive.verify(&progress, |damage| panic!("{damage}")).await;
        let found: Vec<u64> = archive.manifest().histories().iter().map(|history| history.id).collect();
        assert_eq!(found, ids);
        // A first copy has no commit mark.
        let has_mark = |artifact: &Artifact| artifact.kind == ArtifactKind::Snapshot || artifact.mark.is_some();
        assert!(archive.manifest().artifacts.iter().all(has_mark));
        let past: Vec<_> = self.known.iter().filter(|state| state.histories.contains(&self.history)).collect();
        let rows_of_past: HashSet<&String> = past.iter().flat_map(|state| &state.rows).collect();
        for state in &self.known {
            let of = archive.of_history(ids[state.histories[0] - 1]).unwrap();
            let rebuilt = of.rebuild(ArchivePoint::Position(state.position), &progress).await.unwrap();
            assert_eq!((rebuilt.boundary.position, shown(&rebuilt.table)), (Some(state.position), state.rows.clone()));
            match archive.rebuild(ArchivePoint::Position(state.position), &progress).await {
                Ok(rebuilt) => {
                    let rows = shown(&rebuilt.table);
                    let position = rebuilt.boundary.position.unwrap();
                    let known = past.iter().find(|known| known.position == position);
                    assert!(known.is_none_or(|known| known.rows == rows), "{position}");
                    assert!(rows.iter().all(|row| rows_of_past.contains(row)), "{position} has rows that were lost");
                    assert!(!past.iter().any(|known| position < known.position && known.position <= state.position));
                }
                Err(ArchiveReadError::OtherHistory { .. }) => assert_ne!(state.histories[0], self.history),
                Err(error) => panic!("{}: {error}", state.position),
            }
        }
    }

    fn laredo(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let archive = self.archive();
        let command = [arguments[0], archive.to_str().unwrap()];
        let output = clean_command(env!("CARGO_BIN_EXE_laredo"))
            .arg("archive")
            .args(command)
            .args(&arguments[1..])
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

fn place(folder: &Path) -> std::sync::Arc<dyn laredo_archive::Destination> {
    std::sync::Arc::new(laredo_archive::FolderDestination::new(folder))
}

fn shown(table: &laredo_core::TableState) -> Vec<String> {
    let row = |row: &Tuple| {
        let values = project_row(table.schema(), row.as_ref()).unwrap();
        let texts: Vec<String> = values.iter().map(|(_, value)| value.to_json().to_string().replace('"', "")).collect();
        texts.join(":")
    };
    let mut rows: Vec<String> = table.rows().map(row).collect();
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_put_back_under_a_running_snapshotter_begins_a_history_twice_in_a_row() {
    for keeps_journal in [true, false] {
        let mut scene = ForkingArchive::start(keeps_journal).await;
        scene.note().await;
        scene.write().await;
        let copy = scene.copy().await;
        for _ in 0..3 {
            scene.write().await;
        }
        scene.fill(100_000);
        scene.write().await;
        let lost = scene.known.last().unwrap().clone();
        scene.put_back(&copy, Cluster::put_back);
        // The new history is behind the old one's end, and is archived at once.
        scene.write().await;
        assert!(scene.known.last().unwrap().position < lost.position);
        scene.compare(&[1, 2]).await;
        let at = lost.position.to_string();
        let (code, out, said) = scene.laredo(&["reconstruct", "--at", &at]);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{said}");
        assert!(said.contains(&format!("1:{at}")), "{said}");
        let (code, out, said) = scene.laredo(&["reconstruct", "--at", &format!("1:{at}"), "--exact"]);
        assert_eq!((code, out.lines().count()), (Some(0), lost.rows.len()), "{said}");
        let (_, out, said) = scene.laredo(&["ls"]);
        assert!(out.contains("history 1: epoch 1, ") && out.contains("history 2: epoch 2, "), "{out} {said}");
        // A diff across the fork compares states, and never uses the changes.
        let newest = scene.known.last().unwrap().clone();
        let (code, out, said) = scene.laredo(&["diff", &format!("1:{at}"), "latest", "--exact"]);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(changed_keys(&out), differing_keys(&lost.rows, &newest.rows));

        // Write past the end of the lost history, so that both histories have the position.
        scene.fill(300_000);
        scene.write().await;
        scene.compare(&[1, 2]).await;
        let (code, out, said) = scene.laredo(&["reconstruct", "--at", &at]);
        assert_eq!(code, Some(0), "{said}");
        assert!(out.lines().count() < lost.rows.len() && out.contains("of 2"), "{said}");

        scene.put_back(&copy, Cluster::put_back);
        scene.write().await;
        scene.write().await;
        scene.compare(&[1, 2, 3]).await;
        scene.snapshotter.restart().await;
        scene.write().await;
        scene.compare(&[1, 2, 3]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_put_back_while_nothing_runs_begins_a_history() {
    for (keeps_journal, new_bytes) in [(true, 0), (true, 300_000), (false, 0), (false, 300_000)] {
        let mut scene = ForkingArchive::start(keeps_journal).await;
        scene.note().await;
        let copy = scene.copy().await;
        scene.write().await;
        scene.write().await;
        scene.end_both().await;
        scene.put_back(&copy, Cluster::put_back);
        let sql = "INSERT INTO kept SELECT n, 'of none' FROM generate_series(1, 200) n ON CONFLICT DO NOTHING";
        scene.cluster.psql(sql).unwrap();
        scene.fill(new_bytes);
        scene.begin_both().await;
        scene.write().await;
        scene.write().await;
        scene.compare(&[1, 2]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_loses_nothing_is_no_other_history() {
    for runs in [true, false] {
        let mut scene = ForkingArchive::start(true).await;
        scene.note().await;
        scene.write().await;
        if !runs {
            scene.end_both().await;
        }
        scene.cluster.begin_timeline(StopMode::Fast).unwrap();
        if !runs {
            scene.begin_both().await;
        }
        scene.write().await;
        assert_eq!(scene.snapshotter.snapshot("").await.0, 200);
        scene.write().await;
        scene.compare(&[1]).await;
        for state in &scene.known {
            let (code, _, said) = scene.laredo(&["reconstruct", "--at", &state.position.to_string(), "--exact"]);
            assert_eq!(code, Some(0), "{said}");
        }
    }
}

/// The server reports the last common position, so that earlier states are found without naming a
/// history.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_loses_commits_keeps_the_past_that_both_have() {
    let mut scene = ForkingArchive::start(true).await;
    scene.note().await;
    scene.write().await;
    let copy = scene.copy().await;
    scene.write().await;
    scene.write().await;
    scene.put_back(&copy, Cluster::promote);
    scene.write().await;
    scene.compare(&[1, 2]).await;
    let archive = open(&scene.archive()).await;
    let shared = archive.manifest().histories()[1].shared_until;
    assert!(shared >= scene.known[copy.known - 1].position, "{shared}");
    for state in scene.known.iter().take(copy.known) {
        let rebuilt = archive.rebuild(ArchivePoint::Position(state.position), &ReadProgress::default()).await.unwrap();
        assert_eq!(shown(&rebuilt.table), state.rows);
    }
}

/// Returns the keys of a diff's lines, sorted.
fn changed_keys(lines: &str) -> Vec<String> {
    let key = |line: &str| -> String {
        let line: Value = serde_json::from_str(line).unwrap();
        line["key"].as_str().unwrap().to_owned()
    };
    let mut keys: Vec<String> = lines.lines().map(key).collect();
    keys.sort();
    keys
}

/// Returns the keys of the rows that are not in both.
fn differing_keys(one: &[String], other: &[String]) -> Vec<String> {
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|row| !those.contains(row)).map(|row| row.split(':').next().unwrap().to_owned()).collect()
    };
    let mut keys: Vec<String> = only(one, other).into_iter().chain(only(other, one)).collect();
    keys.sort();
    keys.dedup();
    keys
}
