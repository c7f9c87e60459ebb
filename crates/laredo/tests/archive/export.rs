//! The export of a table to an archive without a server.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use laredo_testkit::{ChildProcess, Cluster, ClusterOptions, clean_command, eventually};
use serde_json::{Value, json};

use crate::pipeline::{THINGS, answer, assert_same, laredo, manifest, refusal};
use crate::support::server::PATIENCE;

fn is_clean(cluster: &Cluster) -> bool {
    let left = "SELECT (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_replication_slots)";
    cluster.psql(left).unwrap() == "0|0"
}

async fn assert_clean(cluster: &Cluster) {
    // PostgreSQL drops a temporary slot slightly after its connection ends.
    eventually(PATIENCE, async || is_clean(cluster)).await.expect("no publication and no slot is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_exported_as_it_is_and_nothing_stays_behind() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(THINGS).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("a/b");
    let (place, url) = (place.to_str().unwrap(), cluster.url("postgres"));
    let export = [
        "export",
        place,
        "--postgres",
        &url,
        "--table",
        "public.things",
        "--format",
        "jsonl",
        "--format",
        "protobuf.zst",
    ];
    let told: Value = serde_json::from_str(&answer(&export)).unwrap();
    assert_eq!(
        (&told["table"], &told["epoch"], &told["rows"]),
        (&json!("public.things"), &json!(1), &json!(5)),
        "{told}"
    );
    assert_clean(&cluster).await;
    assert!(answer(&["verify", place]).starts_with("whole: 1 artifacts"));
    answer(&[
        "reconstruct",
        place,
        "--at",
        told["position"].as_str().unwrap(),
        "--exact",
        "--postgres",
        &url,
        "--table",
        "public.back",
        "--create",
    ]);
    assert_same(&cluster, "postgres", "things", "back");

    // A second export is one more epoch, of a table that is now empty.
    cluster.psql("TRUNCATE things").unwrap();
    let told: Value = serde_json::from_str(&answer(&export)).unwrap();
    assert_eq!((&told["epoch"], &told["rows"]), (&json!(2), &json!(0)), "{told}");
    assert_eq!(manifest(std::path::Path::new(place))["artifacts"].as_array().unwrap().len(), 2);
    assert_eq!(answer(&["reconstruct", place]), "");
    assert_clean(&cluster).await;

    cluster.psql("CREATE TABLE others (id int PRIMARY KEY)").unwrap();
    let said = refusal(&["export", place, "--postgres", &url, "--table", "public.others"]);
    assert!(said.contains("is of table public.things, not of public.others"), "{said}");
    assert_clean(&cluster).await;

    // An existing publication of another owner is used, and stays.
    cluster.psql("CREATE PUBLICATION theirs FOR TABLE things, others").unwrap();
    let elsewhere = folder.path().join("others");
    answer(&[
        "export",
        elsewhere.to_str().unwrap(),
        "--postgres",
        &url,
        "--table",
        "public.others",
        "--publication",
        "theirs",
    ]);
    assert_eq!(cluster.psql("SELECT pubname FROM pg_publication").unwrap(), "theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_another_writer_is_taken_over_only_when_that_is_said() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(THINGS).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (place, url) = (folder.path().join("things"), cluster.url("postgres"));
    let export = ["export", place.to_str().unwrap(), "--postgres", &url, "--table", "public.things"];
    answer(&export);
    for writer in [Some("host:1:0123456789abcdef"), None] {
        let mut theirs = manifest(&place);
        match writer {
            Some(id) => theirs["writer"]["id"] = json!(id),
            None => drop(theirs.as_object_mut().unwrap().remove("writer")),
        }
        std::fs::write(place.join("manifest.json"), theirs.to_string()).unwrap();
        let said = refusal(&export);
        assert!(said.contains(writer.unwrap_or("another program")) && said.contains("--take-over"), "{said}");
        assert_eq!(manifest(&place), theirs, "nothing is claimed");
        assert_clean(&cluster).await;
        let told: Value = serde_json::from_str(&answer(&[&export[..], &["--take-over"]].concat())).unwrap();
        assert_eq!(told["rows"], json!(5), "{told}");
    }
    assert_eq!(manifest(&place)["artifacts"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_for_an_export_is_said() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(THINGS).unwrap();
    cluster
        .psql(
            "CREATE TABLE keyless (id int); CREATE ROLE reader LOGIN; GRANT SELECT ON things TO reader; CREATE ROLE replicator LOGIN REPLICATION; \
             GRANT SELECT ON things TO replicator",
        )
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = |role: &str| cluster.url("postgres").replacen("postgres@", &format!("{role}@"), 1);
    for (role, table, words) in [
        ("reader", "public.things", &["reader", "REPLICATION"][..]),
        ("replicator", "public.things", &["grant it CREATE on the database", "--publication"]),
        ("postgres", "public.keyless", &["public.keyless", "primary key"]),
        ("postgres", "public.nobody", &["public.nobody"]),
        ("nobody", "public.things", &["nobody"]),
    ] {
        let place = folder.path().join(role).join(table);
        let said = refusal(&["export", place.to_str().unwrap(), "--postgres", &url(role), "--table", table]);
        assert!(
            said.contains("nothing was exported: ") && words.iter().all(|word| said.contains(word)),
            "{role} {table}: {said}"
        );
        assert!(!place.exists(), "{role} {table}: something is left behind");
        assert_clean(&cluster).await;
    }
    let plain = Cluster::start(ClusterOptions::default().set("wal_level", "replica")).unwrap();
    plain.psql(THINGS).unwrap();
    let place = folder.path().join("plain");
    let said =
        refusal(&["export", place.to_str().unwrap(), "--postgres", &plain.url("postgres"), "--table", "public.things"]);
    assert!(said.contains("wal_level"), "{said}");
    assert_clean(&plain).await;
    let (code, _, said) =
        laredo(&["export", "x", "--postgres", "postgresql://x", "--table", "public.things", "--format", "csv"]);
    assert!(code == Some(2) && said.contains("jsonl"), "{said}");
}

/// PostgreSQL creates a slot only after all open transactions have ended. Here the export waits for
/// one, and is interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_interrupted_leaves_nothing_behind() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(THINGS).unwrap();
    let session = cluster.connect().await.unwrap();
    session.batch_execute("BEGIN; CREATE TABLE open (id int)").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
    command.args(["archive", "export"]).arg(folder.path().join("things"));
    command.args(["--postgres", &cluster.url("postgres"), "--table", "public.things"]);
    let export = ChildProcess::spawn(command).unwrap();
    let is_published = async || cluster.psql("SELECT count(*) FROM pg_publication").unwrap() == "1";
    eventually(PATIENCE, is_published).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    export.interrupt();
    export.wait_for_line("the export was interrupted").await.unwrap();
    let status = export.wait(PATIENCE).await.unwrap();
    assert_eq!(status.code(), Some(2), "{:?}", export.output());
    session.batch_execute("COMMIT").await.unwrap();
    assert_clean(&cluster).await;
}

/// Returns the ends of the symbolic links that are the descriptors of a process.
fn descriptors(pid: u32) -> Vec<String> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").flatten();
    links.filter_map(|link| std::fs::read_link(link.path()).ok()?.into_os_string().into_string().ok()).collect()
}

/// Returns the fields of the lines of a table of sockets.
fn sockets(pid: u32, table: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
    text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// The export has the rows in plain text while it waits. Here it waits for a lock of the table.
#[tokio::test(flavor = "multi_thread")]
async fn no_other_user_can_read_an_export_that_runs() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(THINGS).unwrap();
    let session = cluster.connect().await.unwrap();
    session.batch_execute("BEGIN; LOCK TABLE things IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let (folder, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
    command.args(["archive", "export"]).arg(folder.path().join("things")).env("TMPDIR", temporary.path());
    command.args(["--postgres", &cluster.url("postgres"), "--table", "public.things"]);
    let export = ChildProcess::spawn(command).unwrap();
    let pid = export.id();
    let owned = |table: &str| {
        let descriptors = descriptors(pid);
        let is_own = |inode: &String| descriptors.contains(&format!("socket:[{inode}]"));
        sockets(pid, table).into_iter().filter(|socket| socket.iter().any(is_own)).collect::<Vec<_>>()
    };
    // A Unix socket with a path is one that a process listens at.
    let listens = async || {
        let paths = owned("unix").into_iter().filter_map(|socket| socket.get(7).cloned());
        paths.collect::<Vec<_>>().iter().any(|path| path.starts_with(temporary.path().to_str().unwrap()))
    };
    eventually(PATIENCE, listens).await.expect("the export listens at a Unix socket");
    for table in ["tcp", "tcp6"] {
        // The state 0A is LISTEN.
        let open: Vec<_> = owned(table).into_iter().filter(|socket| socket[3] == "0A").collect();
        assert!(open.is_empty(), "the export listens at a port: {open:?}");
    }
    let folders: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().flatten().collect();
    let socket_folder = folders.iter().find(|entry| entry.path().join("socket").exists()).expect("its folder");
    assert_eq!(socket_folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    session.batch_execute("COMMIT").await.unwrap();
    let status = export.wait(PATIENCE).await.unwrap();
    assert!(status.success(), "{:?}", export.output());
    assert!(!socket_folder.path().exists(), "the folder is removed");
    assert_clean(&cluster).await;
}
