//! Files with the rows of a table are only for the user who runs the program, whatever the umask.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use laredo_client::Replica;
use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use rustix::fs::Mode;
use serde_json::json;

use crate::support::server::{PATIENCE, ServerProcessConfig};
use crate::support::snapshotter::{SnapshotterProcess, table as archived};

/// The variable with the umask of the test that runs in a process of its own, in octal digits.
const UMASK: &str = "LAREDO_TEST_UMASK";

#[test]
fn files_with_rows_are_private_whatever_the_umask() {
    for umask in ["022", "000"] {
        // A umask is that of a process, and other tests run in this one.
        let mut tests = Command::new(std::env::current_exe().unwrap());
        tests.args(["--exact", "private_files::files_under_a_umask", "--ignored"]).env(UMASK, umask);
        let output = tests.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "umask {umask}: {said}");
    }
}

/// Returns the permissions of a file or folder, and of everything below it.
fn modes(path: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    let Ok(about) = fs::symlink_metadata(path) else { return found };
    found.insert(path.display().to_string(), about.permissions().mode() & 0o777);
    if about.is_dir() {
        let inside = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        found.extend(inside.flat_map(|inner| modes(&inner)));
    }
    found
}

fn has_file(folder: &Path, extensions: &[&str]) -> bool {
    modes(folder).keys().any(|path| extensions.iter().any(|extension| path.ends_with(extension)))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "sets the umask of its process: files_with_rows_are_private_whatever_the_umask runs it"]
async fn files_under_a_umask() {
    let umask = u32::from_str_radix(&std::env::var(UMASK).unwrap_or("022".to_owned()), 8).unwrap();
    rustix::process::umask(Mode::from_bits_truncate(umask));
    let (cluster, folder) = (Cluster::start(ClusterOptions::default()).unwrap(), tempfile::tempdir().unwrap());
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'one')").unwrap();
    let place = |name: &str| folder.path().join(name);
    let temporary = place("temporary");
    fs::create_dir(&temporary).unwrap();
    let table = TableName::new("public", "t");
    let target = format!(
        "journal {{ store = local, store_config {{ path = \"{}\" }} }}\n\
         snapshot {{ interval = 1s, store = local, store_config {{ path = \"{}\" }} }}",
        place("deep/journal").display(),
        place("snapshots").display()
    );
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]).slot("private").target(&target);
    config.extra = format!("temp_dir = \"{}\"", temporary.display());
    let server = config.start().await;
    let keys = json!({ "diff": { "interval": "100ms" } });
    let snapshotter = SnapshotterProcess::launch(
        &[archived(&format!("localhost:{}", server.ports.grpc), &table, &place("archive"), &keys)],
        &json!({}),
        &[],
    );
    snapshotter.ready().await;
    let local = place("local");
    fs::create_dir(&local).unwrap();
    let replica = Replica::builder(server.url(), table.clone()).local_snapshot_path(local.join("rows"));
    let replica = replica.local_snapshot_interval(Duration::from_millis(100)).start().unwrap();
    replica.ready(PATIENCE).await.unwrap();
    let written = async || {
        cluster.psql("INSERT INTO t SELECT max(id) + 1, 'more' FROM t").unwrap();
        let has_diff = modes(&place("archive")).keys().any(|path| path.contains("/diff-"));
        has_file(&place("deep"), &[".journal"])
            && has_file(&place("snapshots"), &[".native", ".jsonl"])
            && has_diff
            && local.join("rows").exists()
    };
    eventually(PATIENCE, written).await.unwrap();

    for private in ["deep/journal", "snapshots", "archive/t/.writing", "local/rows"] {
        let found = modes(&place(private));
        assert!(!found.is_empty(), "{private}");
        // An unfinished file of an archive has the mode of the finished one, in a private folder.
        let is_inside =
            |path: &String| path.split_once("/laredo-staging-").is_some_and(|(_, inner)| inner.contains('/'));
        for (path, mode) in found.iter().filter(|(path, _)| !is_inside(path)) {
            assert_eq!(mode & 0o077, 0, "{path}: {mode:o}");
        }
    }
    // Temporary files have no name. Only their process reads them.
    assert_eq!(modes(&temporary).len(), 1);
    // Archives are for other programs, as far as the umask allows.
    for (path, mode) in modes(&place("archive")).iter().filter(|(path, _)| !path.contains(".writing")) {
        let expected = if Path::new(path).is_dir() { 0o777 } else { 0o666 } & !umask;
        assert_eq!(*mode, expected, "{path}: {mode:o}");
    }
}
