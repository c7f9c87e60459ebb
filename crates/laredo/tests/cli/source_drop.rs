//! `laredo source drop` against a real PostgreSQL.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::TempDir;

use crate::support::server::{PATIENCE, ServerPorts, ServerProcessConfig};
use crate::{laredo, output_texts};

const SLOT: &str = "laredo_drop";
const PUBLICATION: &str = "laredo_test_pub";

/// A source with one table, and the configuration of its server.
struct RetirableSource {
    cluster: Cluster,
    config: ServerProcessConfig,
    /// The configuration file, and the folders of journals and snapshots.
    folder: TempDir,
}

impl RetirableSource {
    fn new() -> RetirableSource {
        let cluster = Cluster::start(ClusterOptions::default()).unwrap();
        cluster.psql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = ServerProcessConfig::new(cluster.url("postgres"), [TableName::new("public", "t")]);
        let config = config.slot(SLOT).target(&format!(
            "journal {{ store = local, store_config.path = {:?} }}\n\
             snapshot {{ interval = 1s, store = local, store_config.path = {:?} }}",
            path("journal"),
            path("snapshots")
        ));
        RetirableSource { cluster, config, folder }
    }

    /// Makes the objects that a server would have made, without a server.
    fn with_remains(self) -> RetirableSource {
        self.make_slot(SLOT);
        self.cluster.psql(&format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE ONLY t")).unwrap();
        let journal = self.folder_of("journal");
        fs::create_dir_all(&journal).unwrap();
        for name in ["lock", "00000000000000301234.journal"] {
            fs::write(journal.join(name), "12345").unwrap();
        }
        self
    }

    fn make_slot(&self, name: &str) {
        self.cluster.psql(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")).unwrap();
    }

    fn folder_of(&self, store: &str) -> PathBuf {
        self.folder.path().join(store).join("public/t")
    }

    fn file(&self) -> PathBuf {
        let file = self.folder.path().join("laredo.conf");
        let ports = ServerPorts { grpc: 4001, fanout: 4002, health: 8080, metrics: 9090 };
        fs::write(&file, self.config.to_hocon(&ports)).unwrap();
        file
    }

    /// Runs the command without a terminal. Returns the exit code, the output and the errors.
    fn retire(&self, args: &[&str]) -> (Option<i32>, String, String) {
        output_texts(laredo(&["source", "drop"]).arg("--config").arg(self.file()).args(args).output().unwrap())
    }

    /// Returns the numbers of slots and of publications.
    fn objects(&self) -> String {
        let sql = "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_publication)";
        self.cluster.psql(sql).unwrap()
    }
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[track_caller]
fn assert_line(text: &str, start: &str, part: &str) {
    assert!(text.lines().any(|line| line.starts_with(start) && line.contains(part)), "no {start}…{part} in:\n{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_retired_after_its_server_was_stopped() {
    let source = RetirableSource::new();
    let mut server = source.config.start().await;
    server.verify();
    let has_snapshot = async || fs::read_dir(source.folder_of("snapshots")).is_ok_and(|entries| entries.count() > 1);
    eventually(PATIENCE, has_snapshot).await.expect("a snapshot is written");
    let pid = source.cluster.psql("SELECT active_pid FROM pg_replication_slots").unwrap();
    let (code, _, said) = source.retire(&["--yes"]);
    let expected = format!("nothing was dropped: replication slot {SLOT} is used by process {pid} of PostgreSQL");
    assert!(code == Some(2) && said.contains(&expected), "{code:?} {said}");

    server.process.terminate();
    assert!(server.process.wait(PATIENCE).await.unwrap().success());
    let is_free = async || source.cluster.psql("SELECT active FROM pg_replication_slots").unwrap() == "f";
    eventually(PATIENCE, is_free).await.expect("the connection ends");
    let (code, plan, said) = source.retire(&[]);
    assert!(code == Some(2) && said.contains("standard input is not a terminal; confirm with --yes"), "{said}");
    assert_line(&plan, "source db of ", "database postgres");
    assert_line(&plan, "will drop", &format!("replication slot {SLOT} (PostgreSQL keeps "));
    assert_line(&plan, "will drop", &format!("publication {PUBLICATION} (tables: 1)"));
    let (journal, snapshots) = (source.folder_of("journal"), source.folder_of("snapshots"));
    assert_line(&plan, "will drop", &format!("journal {} (files: ", journal.display()));
    assert_line(&plan, "will drop", &format!("snapshots {} (files: ", snapshots.display()));
    assert_eq!(source.objects(), "1|1", "without an answer nothing is dropped");

    let foreign = journal.join("notes.txt");
    fs::write(&foreign, "of the operator").unwrap();
    let (code, result, said) = source.retire(&["--yes"]);
    assert_eq!((code, said.as_str()), (Some(0), ""), "{result}");
    assert_line(&result, "dropped ", &format!("replication slot {SLOT}"));
    assert_line(&result, "dropped ", &format!("publication {PUBLICATION}"));
    assert_line(&result, "emptied ", &format!("journal {}", journal.display()));
    assert_line(&result, "dropped ", &format!("snapshots {}", snapshots.display()));
    assert_line(&result, "kept ", &format!("{}: it is not a file of laredo", foreign.display()));
    assert_eq!(source.objects(), "0|0");
    let left: Vec<_> = fs::read_dir(&journal).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!((left, snapshots.exists()), (vec![foreign.clone()], false));

    // The second time nothing is there.
    fs::remove_file(foreign).unwrap();
    fs::remove_dir(&journal).unwrap();
    let (code, again, said) = source.retire(&[]);
    assert_eq!((code, said.as_str()), (Some(0), ""), "{again}");
    let absent = [
        format!("is not there   replication slot {SLOT}"),
        format!("is not there   publication {PUBLICATION}"),
        format!("is not there   journal {}", journal.display()),
        format!("is not there   snapshots {}", snapshots.display()),
        "nothing is there to drop".to_owned(),
    ];
    assert_eq!(lines(&again)[1..], absent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_temporary_slot_is_noticed_too() {
    let mut source = RetirableSource::new();
    source.config.slot = None;
    let mut server = source.config.start().await;
    server.verify();
    let (code, _, said) = source.retire(&["--yes"]);
    assert!(code == Some(2) && said.contains("is used by process"), "{code:?} {said}");
    server.process.terminate();
    assert!(server.process.wait(PATIENCE).await.unwrap().success());
    eventually(PATIENCE, async || source.objects() == "0|1").await.expect("the temporary slot ends");
    let (code, result, said) = source.retire(&["--yes"]);
    assert!(code == Some(0) && !result.contains("replication slot"), "{result}{said}");
    assert_eq!(source.objects(), "0|0");
}

#[test]
fn a_folder_in_use_and_a_slot_of_another_database_leave_everything_as_it_is() {
    let source = RetirableSource::new().with_remains();
    let path = source.folder_of("journal").join("lock");
    fs::write(&path, "process 7 on host\n").unwrap();
    let lock = File::open(path).unwrap();
    lock.lock().unwrap();
    let (code, _, said) = source.retire(&["--yes"]);
    let expected = "is in use by another laredo-server (process 7 on host)";
    assert!(code == Some(2) && said.contains("nothing was dropped") && said.contains(expected), "{said}");
    drop(lock);
    source.cluster.psql("CREATE DATABASE other").unwrap();
    source.cluster.psql(&format!("SELECT pg_drop_replication_slot('{SLOT}')")).unwrap();
    let make = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
    source.cluster.psql_in("other", &make).unwrap();
    let (code, _, said) = source.retire(&["--yes"]);
    assert!(code == Some(2) && said.contains("belongs to database other"), "{said}");
    assert_eq!(source.objects(), "1|1");
    assert_eq!(fs::read_dir(source.folder_of("journal")).unwrap().count(), 2);
}

#[test]
fn a_publication_that_others_may_use_is_kept_unless_asked() {
    let source = RetirableSource::new().with_remains();
    source.cluster.psql(&format!("SELECT pg_drop_replication_slot('{SLOT}')")).unwrap();
    source.make_slot("of_another");
    let (code, result, said) = source.retire(&["--yes"]);
    assert_eq!((code, said.as_str()), (Some(0), ""), "{result}");
    assert_line(&result, "is not there", &format!("replication slot {SLOT}"));
    assert_line(&result, "kept ", "other slots of the database may read it: of_another; --drop-publication drops it");
    assert_line(&result, "dropped ", "journal ");

    source.cluster.psql("SELECT pg_drop_replication_slot('of_another')").unwrap();
    source.cluster.psql(&format!("CREATE TABLE u (id int); ALTER PUBLICATION {PUBLICATION} ADD TABLE u")).unwrap();
    source.cluster.psql(laredo_postgres::ddl::INSTALL).unwrap();
    let (code, result, _) = source.retire(&["--yes"]);
    assert_eq!(code, Some(0));
    assert_line(&result, "will keep", "it publishes tables that the source does not have: public.u;");
    assert_line(&result, "will keep", "event trigger of `laredo ddl install`: other servers may use it");
    assert_line(&result, "nothing is there to drop", "");
    let (code, result, _) = source.retire(&["--yes", "--keep-publication"]);
    assert_eq!(code, Some(0));
    assert_line(&result, "will keep", "--keep-publication is given");
    assert_eq!(source.objects(), "0|1");
    let (code, result, _) = source.retire(&["--yes", "--drop-publication"]);
    assert_eq!(code, Some(0));
    assert_line(&result, "dropped ", &format!("publication {PUBLICATION}"));
    assert_eq!(source.objects(), "0|0");
}

#[test]
fn a_part_that_cannot_be_dropped_is_named() {
    let mut source = RetirableSource::new().with_remains();
    source.cluster.psql("CREATE ROLE keeper LOGIN").unwrap();
    source.config.connection = source.config.connection.replace("postgres@", "keeper@");
    let journal = source.folder_of("journal");
    let (code, result, said) = source.retire(&["--yes"]);
    assert!(code == Some(2) && !result.contains("dropped"), "{result}");
    let left = format!("replication slot {SLOT}; publication {PUBLICATION}; journal {}", journal.display());
    assert!(said.contains(&format!("cannot drop replication slot {SLOT}: ")) && said.contains(&left), "{said}");
    assert_eq!((source.objects().as_str(), fs::read_dir(&journal).unwrap().count()), ("1|1", 2));

    source.cluster.psql("ALTER ROLE keeper REPLICATION").unwrap();
    let (code, result, said) = source.retire(&["--yes"]);
    assert_eq!(code, Some(2), "{result}{said}");
    assert_line(&result, "dropped ", "replication slot");
    assert_line(&result, "dropped ", "journal");
    assert!(
        said.contains(&format!("cannot drop publication {PUBLICATION}: ")) && said.contains("must be owner"),
        "{said}"
    );
    assert!(said.contains(&format!("not all was dropped; these are left: publication {PUBLICATION};")), "{said}");
    assert_eq!(source.objects(), "0|1");
}

#[test]
fn the_operator_types_the_name_of_the_source() {
    let source = RetirableSource::new().with_remains();
    let (code, said) = answered(&source.file(), "yes\n");
    assert!(code == Some(1) && said.ends_with("laredo: nothing was dropped\n"), "{code:?} {said}");
    assert_eq!(source.objects(), "1|1");
    assert_eq!(answered(&source.file(), "db\n").0, Some(0));
    assert_eq!(source.objects(), "0|0");
    let (code, _, said) = source.retire(&["none"]);
    assert!(code == Some(2) && said.contains("name one source of the configuration: db"), "{said}");
}

/// Runs the command on a terminal, and types an answer once it asks. Returns the exit code and the
/// errors.
fn answered(file: &Path, answer: &str) -> (Option<i32>, String) {
    let mut controller = File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
    grantpt(&controller).and_then(|()| unlockpt(&controller)).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
    let terminal = File::options().read(true).write(true).open(name).unwrap();
    let mut command = laredo(&["source", "drop", "--config"]);
    command.arg(file).stdin(terminal).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    errors.read_line(&mut said).unwrap();
    assert!(said.contains("this cannot be undone; type db to drop it:"), "{said}");
    controller.write_all(answer.as_bytes()).unwrap();
    while errors.read_line(&mut said).unwrap() > 0 {}
    (child.wait().unwrap().code(), said)
}
