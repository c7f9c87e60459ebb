//! A database, a server, a snapshotter, and the archives that they produce.

use std::path::{Path, PathBuf};

use laredo_core::{Lsn, TableName};
use laredo_testkit::{Cluster, ClusterOptions, clean_command, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use crate::support::snapshotter::{SnapshotterProcess, table};

/// A table with quoted names, a key of two columns in an order of its own, and common types.
pub(crate) const THINGS: &str = r#"
    CREATE TABLE things (shop int, "it's ""it""" text, amount numeric(12, 2), big bigint, ratio float8, at timestamptz, day date,
        ok boolean NOT NULL, note text, PRIMARY KEY ("it's ""it""", shop));
    INSERT INTO things VALUES
        (1, 'a''b', 1.50, 9007199254740993, 0.1, '2026-01-02 03:04:05.678+00', '2026-01-02', true, NULL),
        (1, '"quoted", with a comma', -7, 2, 'NaN', 'infinity', '-infinity', false, ''),
        (2, 'a''b', NULL, NULL, NULL, NULL, NULL, true, E'two\nlines'),
        (3, '[1 2]', 12.34, 4, 1e300, now(), now(), true, E'\\.'),
        (4, ' spaces ', 0, 0, 0, now(), now(), false, 'NULL');"#;

/// The transactions of the table. Each becomes a diff.
pub(crate) const HISTORY: [&str; 5] = [
    r#"UPDATE things SET amount = 99.99, note = 'changed' WHERE shop = 1; INSERT INTO things VALUES (5, E'é\\"🌍', 5, 5, 5, now(), now(), true, 'new')"#,
    "DELETE FROM things WHERE shop = 3",
    r#"UPDATE things SET "it's ""it""" = 'another key' WHERE shop = 4"#,
    "TRUNCATE things; INSERT INTO things VALUES (1, 'a''b', 1, 1, 1, now(), now(), true, 'after'), (7, '''', 7, 7, 7, now(), now(), false, 'all')",
    "UPDATE things SET big = big + 1 WHERE shop = 7; DELETE FROM things WHERE shop = 1",
];

/// An archive to write: a table, its formats, and the name of its folder.
pub(crate) struct PipelineArchive<'a> {
    pub(crate) table: &'a str,
    pub(crate) formats: &'a [&'a str],
    pub(crate) name: &'a str,
}

pub(crate) struct ArchivePipeline {
    // Before the cluster: when the server is dropped, it is verified.
    _server: ServerProcess,
    pub(crate) cluster: Cluster,
    folder: TempDir,
    names: Vec<String>,
    snapshotter: SnapshotterProcess,
}

impl ArchivePipeline {
    /// Starts everything with the tables that the SQL creates. Returns when each archive has its
    /// first base.
    pub(crate) async fn start(sql: &str, archives: &[PipelineArchive<'_>]) -> ArchivePipeline {
        let cluster = Cluster::start(ClusterOptions::default()).unwrap();
        cluster.psql(sql).unwrap();
        let mut tables: Vec<TableName> = archives.iter().map(|one| TableName::new("public", one.table)).collect();
        tables.dedup();
        let server = ServerProcessConfig::new(cluster.url("postgres"), tables).start().await;
        let folder = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", server.ports.grpc);
        let block = |one: &PipelineArchive<'_>| {
            let keys = json!({
                "key_prefix": format!("{}/", one.name),
                "diff": { "interval": "100ms" },
                "formats": { "snapshot": one.formats, "diff": one.formats },
            });
            table(&address, &TableName::new("public", one.table), folder.path(), &keys)
        };
        let blocks: Vec<Value> = archives.iter().map(block).collect();
        let snapshotter = SnapshotterProcess::launch(&blocks, &json!({}), &[]);
        snapshotter.ready().await;
        let names = archives.iter().map(|one| one.name.to_owned()).collect();
        ArchivePipeline { cluster, folder, names, snapshotter, _server: server }
    }

    /// Returns the folder of the archive with this name.
    pub(crate) fn archive(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a change of every archive's table, and waits until the archives have it.
    pub(crate) async fn write(&self, sql: &str) {
        let before = self.cluster.psql("SELECT pg_current_wal_insert_lsn()").unwrap();
        self.cluster.psql(&format!("BEGIN; {sql}; COMMIT")).unwrap();
        self.reach(Lsn(before.parse::<Lsn>().unwrap().0 + 1)).await;
    }

    /// Writes `HISTORY`, and copies the table at each head to a table. `things_0` is that of the
    /// base. Returns the heads.
    pub(crate) async fn write_history(&self) -> Vec<String> {
        let mut heads = Vec::new();
        for number in 0..=HISTORY.len() {
            if let Some(sql) = number.checked_sub(1).map(|place| HISTORY[place]) {
                self.write(sql).await;
            }
            self.cluster.psql(&format!("CREATE TABLE things_{number} AS TABLE things")).unwrap();
            heads.push(head(&self.archive(&self.names[0])).unwrap().to_string());
        }
        heads
    }

    async fn reach(&self, position: Lsn) {
        let reached = async || self.names.iter().all(|name| head(&self.archive(name)) >= Some(position));
        eventually(PATIENCE, reached).await.unwrap();
    }

    /// Stops the snapshotter, and waits for its end.
    pub(crate) async fn end(&self) {
        self.snapshotter.stop().await;
    }
}

pub(crate) fn manifest(archive: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(archive.join("manifest.json")).unwrap()).unwrap()
}

fn head(archive: &Path) -> Option<Lsn> {
    let manifest = std::fs::read(archive.join("manifest.json")).ok()?;
    serde_json::from_slice::<Value>(&manifest).ok()?["head_position"].as_str()?.parse().ok()
}

/// Returns the names of the objects, oldest first.
pub(crate) fn objects(archive: &Path) -> Vec<String> {
    let manifest = manifest(archive);
    let stored =
        manifest["artifacts"].as_array().unwrap().iter().flat_map(|one| one["formats"].as_object().unwrap().values());
    let name = |uri: &str| uri[uri.find("epoch=").unwrap()..].to_owned();
    stored.map(|stored| name(stored["uri"].as_str().unwrap())).collect()
}

/// Runs `laredo archive`. Returns the exit code, the standard output and the standard error.
pub(crate) fn laredo(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = clean_command(env!("CARGO_BIN_EXE_laredo")).arg("archive").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Returns the output of a successful command.
pub(crate) fn answer(arguments: &[&str]) -> String {
    let (code, out, said) = laredo(arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {said}");
    out
}

/// Returns the error message of a command that must fail without any output.
pub(crate) fn refusal(arguments: &[&str]) -> String {
    let (code, out, said) = laredo(arguments);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {said}");
    assert!(said.starts_with("laredo: "), "{said}");
    said
}

/// Checks that two tables of a database have the same rows, and at least one.
pub(crate) fn assert_same(cluster: &Cluster, database: &str, one: &str, two: &str) {
    let sql = format!(
        "SELECT (SELECT count(*) FROM (TABLE {one} EXCEPT ALL TABLE {two}) a), (SELECT count(*) FROM (TABLE {two} EXCEPT ALL TABLE {one}) b), \
         (SELECT count(*) FROM {one}) > 0"
    );
    assert_eq!(cluster.psql_in(database, &sql).unwrap(), "0|0|t", "{one} and {two}");
}
