//! The rebuilt state of an archive equals the database's rows at that position. Real processes are
//! killed now and then, and compared with a history that the database itself records.

mod cloud;
mod forks;
mod history;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use laredo_archive::{Archive, ArchivePoint, FolderDestination, ReadProgress};
use laredo_core::{KeyColumns, Lsn, Tuple};
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions, WorkloadTable, WorkloadTableShape};
use laredo_testkit::{eventually, is_full, oracle};
use laredo_values::project_row;
use serde_json::{Value, json};

use super::restarts::with_durable_journal;
use crate::support::compare::struct_differences;
use crate::support::fleet::{await_transactions, cluster, serve_all};
use crate::support::server::PATIENCE;
use crate::support::simple::{JsonRow, key_of};
use crate::support::snapshotter::{SnapshotterProcess, table};

/// Returns the tables whose rows PostgreSQL sends as a record. The others are compared at rest.
fn remembered() -> Vec<&'static WorkloadTable> {
    TABLES
        .iter()
        .filter(|table| {
            matches!(table.shape, WorkloadTableShape::Plain | WorkloadTableShape::ByIndex | WorkloadTableShape::Full)
        })
        .collect()
}

fn folder(root: &Path, table: &WorkloadTable) -> std::path::PathBuf {
    root.join(format!("{:?}", table.shape))
}

fn archive_of(root: &Path, table: &WorkloadTable) -> std::path::PathBuf {
    folder(root, table).join(format!("{}/", table.table))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_boundary_is_the_table_as_it_was() {
    let boundaries = if is_full() { 1500 } else { 200 };
    let cluster = cluster();
    let sql = cluster.connect().await.unwrap();
    history::remember(&sql, &remembered()).await;
    let (journal, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server =
        with_durable_journal(serve_all(cluster.url("postgres")).slot("laredo_archive"), &journal).start().await;
    let options = WorkloadOptions { value_bytes_max: 4096, ..WorkloadOptions::default() };
    let workload = Workload::start(&cluster.url("postgres"), 4, options);
    let keys = json!({
        "diff": { "interval": "100ms" },
        "snapshot": { "min_interval": "500ms", "max_churn_records": 2000, "max_diff_fraction": 3.0 },
        "formats": { "snapshot": ["jsonl", "protobuf.zst"], "diff": ["protobuf"] },
    });
    let tables: Vec<Value> =
        TABLES.iter().map(|name| table(&server.url(), &name.name(), &folder(root.path(), name), &keys)).collect();
    let mut snapshotter = SnapshotterProcess::launch(&tables, &Value::Null, &[]);
    snapshotter.ready().await;
    for round in 0.. {
        await_transactions(&workload, 300).await;
        let written = snapshotter.status().await;
        let epochs: u64 = written.iter().map(|table| table["epoch"].as_u64().unwrap_or(0)).sum();
        if counted(root.path()).await >= boundaries && round >= 4 && epochs > 10 {
            break;
        }
        match round % 4 {
            0 => snapshotter.restart().await,
            1 => {
                // A slot's restart position advances with records that PostgreSQL logs every 15 s,
                // which is longer than a server lives here.
                sql.batch_execute("CHECKPOINT").await.unwrap();
                server.restart().await;
            }
            2 => assert_eq!(snapshotter.snapshot("").await.0, 200),
            _ => {}
        }
        // PostgreSQL itself sometimes cannot decode a table that was rewritten (`could not map
        // filenode`). Then every table is copied, and a writer that was ahead receives all rows.
        if round % 4 == 0 && server.source_metric("laredo_slot_losses_total").await == Some(0) {
            continues(&snapshotter).await;
        }
    }
    let paused = workload.pause().await;
    let position = oracle::flushed(&sql).await.unwrap();
    let marks: Vec<String> = TABLES.iter().map(|table| table.mark(77)).collect();
    sql.batch_execute(&marks.join("; ")).await.unwrap();
    let has_all = async || {
        let status = snapshotter.status().await;
        status.iter().all(|table| position_of(&table["position"]) > position)
    };
    eventually(PATIENCE, has_all).await.expect("it has everything");
    snapshotter.stop().await;
    let checked = compare_with_history(root.path(), &history::recall(&sql).await).await;
    assert!(checked >= boundaries, "only {checked} boundaries were compared");
    for name in TABLES {
        let rebuilt =
            open(&archive_of(root.path(), name)).await.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await;
        let rebuilt = rebuilt.unwrap().table;
        let rows = oracle::rows_at_rest(&sql, &name.name(), name.key, "true").await.unwrap();
        // An archive does not keep the spelling of JSON. It keeps everything else, and the recorded
        // tables were compared byte by byte.
        let schema = rebuilt.schema();
        let row = |row: &Tuple| -> JsonRow {
            let values = project_row(schema, row.as_ref()).unwrap().into_iter();
            values.map(|(name, value)| (name.to_owned(), value.to_json())).collect()
        };
        let keyed = |row: JsonRow| (key_of(name.key, &row), row);
        let ours: BTreeMap<String, JsonRow> = rebuilt.rows().map(row).map(keyed).collect();
        let found = struct_differences(&ours, &rows, schema, name.key);
        assert!(found.is_empty() && ours.len() == rows.rows.len(), "{}:\n{found}", name.name());
    }
    workload.resume(paused);
    workload.stop().await.unwrap();
    // An archive does not keep the spelling of JSON, so the rows of this table would differ.
    for name in TABLES.iter().filter(|table| table.shape != WorkloadTableShape::Wide) {
        server.has_archive(&name.name(), &archive_of(root.path(), name));
    }
}

/// Checks that a killed writer resumes from its archive, without loading a table again.
async fn continues(snapshotter: &SnapshotterProcess) {
    let is_connected = async || {
        let status = snapshotter.status().await;
        status.iter().all(|table| table["stream"]["connected"] == true)
    };
    eventually(PATIENCE, is_connected).await.expect("it connects");
    for table in snapshotter.status().await {
        assert_eq!(table["stream"]["full_snapshots"], 0, "{table}");
    }
}

fn position_of(position: &Value) -> Lsn {
    position.as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

async fn open(folder: &Path) -> Archive {
    Archive::open(Arc::new(FolderDestination::new(folder)), None).await.unwrap()
}

/// Returns the number of artifacts of the recorded tables.
async fn counted(root: &Path) -> usize {
    let mut count = 0;
    for table in remembered() {
        count += open(&archive_of(root, table)).await.manifest().artifacts.len();
    }
    count
}

/// Rebuilds the state of every artifact with the manifest of that time, and compares it with the
/// recorded history.
async fn compare_with_history(
    root: &Path,
    history: &std::collections::HashMap<String, history::RecordedHistory>,
) -> usize {
    let mut compared = 0;
    for table in remembered() {
        let folder = archive_of(root, table);
        let mut states: BTreeMap<Lsn, Vec<BTreeMap<Vec<u8>, Tuple>>> = BTreeMap::new();
        let mut key = KeyColumns::new([]);
        for count in 1..=open(&folder).await.manifest().artifacts.len() {
            let (position, rows, columns) = rebuilt_after(&folder, count).await;
            states.entry(position).or_default().push(rows);
            key = columns;
        }
        let positions: Vec<Lsn> = states.keys().copied().collect();
        history[table.table].replay(&key, &positions, |position, expected| {
            for rows in &states[&position] {
                assert!(rows == expected, "{} at {position}: {}", table.name(), differing(rows, expected));
                compared += 1;
            }
        });
    }
    compared
}

fn differing(rows: &BTreeMap<Vec<u8>, Tuple>, expected: &BTreeMap<Vec<u8>, Tuple>) -> String {
    let lacking = expected.keys().filter(|key| !rows.contains_key(*key)).count();
    let more = rows.keys().filter(|key| !expected.contains_key(*key)).count();
    let other = rows.iter().filter(|(key, row)| expected.get(*key).is_some_and(|there| there != *row)).count();
    format!("{lacking} rows are lacking, {more} are too many, {other} are other ones, of {}", expected.len())
}

/// Returns the state after `count` of an archive's artifacts, read with a manifest that ends there.
async fn rebuilt_after(folder: &Path, count: usize) -> (Lsn, BTreeMap<Vec<u8>, Tuple>, KeyColumns) {
    let then = tempfile::tempdir().unwrap();
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let artifacts = manifest["artifacts"].as_array_mut().unwrap();
    artifacts.truncate(count);
    let last = artifacts.last().unwrap().clone();
    (manifest["epoch"], manifest["head_position"]) = (last["epoch"].clone(), last["to_position"].clone());
    std::fs::write(then.path().join("manifest.json"), manifest.to_string()).unwrap();
    for epoch in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if epoch.file_name().to_string_lossy().starts_with("epoch=") {
            let copy = then.path().join(epoch.file_name());
            std::fs::create_dir(&copy).unwrap();
            for object in std::fs::read_dir(epoch.path()).unwrap().map(Result::unwrap) {
                std::fs::hard_link(object.path(), copy.join(object.file_name())).unwrap();
            }
        }
    }
    let rebuilt = open(then.path()).await.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await.unwrap();
    let key = rebuilt.table.schema().key().clone();
    let keyed = |row: &Tuple| (key.key_of(row.as_ref()).as_ref().bytes().to_vec(), row.clone());
    (rebuilt.boundary.position.unwrap(), rebuilt.table.rows().map(keyed).collect(), key)
}
