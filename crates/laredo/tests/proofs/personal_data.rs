//! Values that transforms drop, hash or mask leave the server in no form: not to clients, not in a
//! file, not in a report. The hashes are those that PostgreSQL computes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use laredo_client::Replica;
use laredo_core::TableName;
use laredo_proto::replication::laredo_replication_service_client::LaredoReplicationServiceClient;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{FetchSnapshotRequest, ListSnapshotsRequest, RowEncoding, SyncRequest};
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, clean_command, eventually};
use prost::Message as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_postgres::Client;

use super::bad_input::run;
use crate::support::compare::view_differences;
use crate::support::server::{PATIENCE, PATIENT, ServerProcess, ServerProcessConfig};
use crate::support::simple::open;
use crate::support::snapshotter::{SnapshotterProcess, table as archived_table};

/// A text that each value to be hidden contains.
const CLEAR: &str = "clear-personal-data";

const KEYS: [&str; 2] = ["a1b2c3d4e5f6a7b8c9d0", "another key, which is longer"];

/// The replica identity is the primary key, which is hashed. The essays are stored outside of the
/// table's file, so PostgreSQL leaves them out of updates that do not change them.
const SCHEMA: &str = "
    CREATE EXTENSION pgcrypto;
    CREATE TYPE contact AS (mail text, since date);
    CREATE TABLE people (login text PRIMARY KEY, email varchar(80), names text[], reach contact, name text NOT NULL,
        phone varchar(60), essay text, diary text, born date, visits int NOT NULL);
    ALTER TABLE people ALTER essay SET STORAGE EXTERNAL, ALTER diary SET STORAGE EXTERNAL;
    CREATE FUNCTION person(n int) RETURNS people LANGUAGE sql AS $$
        SELECT 'clear-personal-data-' || n, CASE WHEN n % 7 > 0 THEN 'clear-personal-data@' || n END,
            ARRAY['clear-personal-data', NULL, 'b ' || n], ROW('clear-personal-data', '2020-02-02')::contact,
            'clear-personal-data ' || n, CASE n % 3 WHEN 0 THEN '12' WHEN 1 THEN 'clear-personal-data 555-' || n END,
            repeat('clear-personal-data essay ' || n || ' ', 200), repeat('clear-personal-data diary ' || n || ' ', 200),
            date '1815-12-10' + n, 0 $$;
    INSERT INTO people SELECT (person(n)).* FROM generate_series(1, 60) n;";

/// Returns the transforms of the table, and the SQL of a view with the same result.
fn transforms(key_file: &Path) -> String {
    let key_file = Value::from(key_file.to_string_lossy());
    format!(
        "transforms = [
            {{ type = drop-fields, fields = [diary] }}
            {{ type = hash, fields = [login, email, names, reach, born, essay], key_file = {key_file} }}
            {{ type = mask, fields = [name], value = \"hidden\" }}
            {{ type = mask, fields = [phone], keep_last = 4 }}
            {{ type = rename-fields, fields {{ email = email_hash }} }}
        ]"
    )
}

fn view(key: &str) -> String {
    let hash = |column: &str| format!("encode(hmac({column}::text, '{key}', 'sha256'), 'hex')");
    format!(
        "CREATE OR REPLACE VIEW seen AS SELECT {} AS login, {} AS email_hash, {} AS names, {} AS reach,
            'hidden'::text AS name,
            CASE WHEN length(phone) <= 4 THEN repeat('*', length(phone))
                 ELSE repeat('*', length(phone) - 4) || right(phone, 4) END AS phone,
            {} AS essay, {} AS born, visits FROM people",
        hash("login"),
        hash("email"),
        hash("names"),
        hash("reach"),
        hash("essay"),
        hash("born"),
    )
}

/// Returns true if the bytes contain the clear text: as it is, in hex, or in base64.
fn has_clear_text(bytes: &[u8]) -> bool {
    let hex: String = CLEAR.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![CLEAR.as_bytes().to_vec(), hex.into_bytes()];
    for before in 0..3 {
        // The characters of base64 that depend on the clear text alone, at each of three offsets.
        let text = BASE64.encode([&vec![0; before], CLEAR.as_bytes()].concat());
        forms.push(text.as_bytes()[(before * 8).div_ceil(6)..(before + CLEAR.len()) * 8 / 6].to_vec());
    }
    forms.iter().any(|form| bytes.windows(form.len()).any(|window| window == form))
}

/// Returns the files in a folder, and in the folders within it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn clear_text_is_found_in_each_form() {
    for before in 0..4 {
        let bytes = [&vec![b'x'; before], CLEAR.as_bytes(), b"y"].concat();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(has_clear_text(&bytes) && has_clear_text(hex.as_bytes()));
        assert!(has_clear_text(BASE64.encode(&bytes).as_bytes()), "{before}");
    }
    assert!(!has_clear_text(b"clear-personal") && !has_clear_text(BASE64.encode("clear-personal").as_bytes()));
}

#[tokio::test]
async fn transforms_that_do_not_fit_the_table_are_refused_at_the_start() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE people (login text PRIMARY KEY, email text, paid money)").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (short, absent) = (folder.path().join("short"), folder.path().join("absent"));
    std::fs::write(&short, "0123456789abcde\n").unwrap();
    let key = "key = \"0123456789abcdef\"";
    for (transform, expected) in [
        ("type = mask, fields = [login], value = x".to_owned(), "mask names column `login`, which is part of the key"),
        (format!("type = hash, fields = [phone], {key}"), "hash names column `phone`, which the table does not have"),
        (format!("type = hash, fields = [paid], {key}"), "hash names column `paid` of type money, and laredo cannot"),
        (
            format!("type = hash, fields = [email], key_file = {}", json!(short)),
            "the key has 15 bytes and needs at least",
        ),
        (format!("type = hash, fields = [email], key_file = {}", json!(absent)), "absent: No such file"),
    ] {
        let config = format!(
            "sources {{ db {{ type = postgresql, connection = \"{}\", publication {{ name = p, create = true }} }} }}
             tables = [{{ source = db, schema = public, table = people, targets = [{{
                type = replication-fanout, grpc {{ port = 0 }}, transforms = [{{ {transform} }}] }}] }}]
             grpc {{ port = 0 }}, health {{ http_port = 0 }}, observability {{ metrics {{ port = 0 }} }}",
            cluster.url("postgres")
        );
        let (code, said) = run(&config, &["--strict"]).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("table public.people: ") && said.contains(expected), "{expected} is not in\n{said}");
    }
    assert_eq!(cluster.psql("SELECT count(*) FROM pg_publication").unwrap(), "0");
}

struct MaskedPeople {
    // Before the cluster: when the server is dropped, it is verified.
    server: ServerProcess,
    cluster: Cluster,
    sql: Client,
    folder: TempDir,
    canary: PathBuf,
    replica: Replica,
    snapshotter: SnapshotterProcess,
}

impl MaskedPeople {
    async fn start() -> MaskedPeople {
        let cluster = Cluster::start(ClusterOptions::default()).unwrap();
        cluster.psql(SCHEMA).unwrap();
        cluster.psql(&view(KEYS[0])).unwrap();
        let sql = cluster.connect().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("archive")).unwrap();
        std::fs::write(path("key"), format!("{}\n", KEYS[0])).unwrap();
        let store = |name: &str| format!("store = local, store_config {{ path = {} }}", json!(path(name)));
        let mut config = ServerProcessConfig::new(cluster.url("postgres"), [people()])
            .slot("laredo_people")
            .target(PATIENT)
            .target(&format!("journal {{ {} }}", store("journal")))
            .target(&format!("snapshot {{ {}, interval = 1s, serializer = jsonl }}", store("snapshots")))
            .target(&transforms(&path("key")));
        let canary = path("canary");
        config.environment.push(("LAREDO_TEST_CANARY", canary.to_string_lossy().into_owned()));
        let mut server = config.start().await;
        let address = format!("127.0.0.1:{}", server.ports.grpc);
        let formats = ["jsonl", "protobuf"];
        let keys = json!({
            "key_prefix": "people/",
            "diff": { "interval": "200ms" },
            "formats": { "snapshot": formats, "diff": formats },
        });
        let blocks = [archived_table(&address, &people(), &path("archive"), &keys)];
        let snapshotter = SnapshotterProcess::launch(&blocks, &json!({}), &[]);
        snapshotter.ready().await;
        server.has_archive(&people(), &path("archive/people"));
        let replica = Replica::builder(server.url(), people()).local_snapshot_path(path("local"));
        let replica = replica.local_snapshot_interval(Duration::from_millis(200)).seed(1);
        let replica = replica.start().unwrap();
        replica.ready(PATIENCE).await.unwrap();
        MaskedPeople { server, cluster, sql, folder, canary, replica, snapshotter }
    }

    async fn differences(&self) -> String {
        let oracle = rows_at_rest(&self.sql, &TableName::new("public", "seen"), &["login"], "true").await.unwrap();
        view_differences(&self.replica.view(), &oracle, &["login"])
    }

    /// Waits until the replica has what the view of the database has.
    async fn settle(&self) {
        if eventually(PATIENCE, async || self.differences().await.is_empty()).await.is_err() {
            panic!("{}", self.differences().await);
        }
        let position = flushed(&self.sql).await.unwrap();
        eventually(PATIENCE, async || self.server.is_live_at(position).await).await.unwrap();
    }

    async fn write(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap();
        self.settle().await;
    }

    /// Reads a stream until it is quiet, and checks that it has no clear text.
    async fn read_stream(&self, request: SyncRequest) {
        let request = SyncRequest { schema: "public".to_owned(), table: "people".to_owned(), ..request };
        let mut stream = open(&self.server.url(), request).await.unwrap();
        let (mut bytes, mut heartbeats) = (0, 0);
        while heartbeats < 2 {
            let message = stream.message().await.unwrap().unwrap();
            let encoded = message.encode_to_vec();
            assert!(!has_clear_text(&encoded), "{message:?}");
            bytes += encoded.len();
            heartbeats += u32::from(matches!(message.message, Some(Message::Heartbeat(_))));
        }
        assert!(bytes > 1000, "{bytes} bytes are not the table");
    }

    /// Fetches a snapshot of the server's folder, and checks that it has no clear text.
    async fn fetch_snapshot(&self) {
        let endpoint = tonic::transport::Endpoint::from_shared(self.server.url()).unwrap();
        let mut client = LaredoReplicationServiceClient::new(endpoint.connect().await.unwrap());
        let request = ListSnapshotsRequest { schema: "public".to_owned(), table: "people".to_owned(), limit: 1 };
        let snapshot_id = client.list_snapshots(request).await.unwrap().into_inner().snapshots.remove(0).snapshot_id;
        let mut stream = client.fetch_snapshot(FetchSnapshotRequest { snapshot_id }).await.unwrap().into_inner();
        let mut messages = 0;
        while let Some(message) = stream.message().await.unwrap() {
            assert!(!has_clear_text(&message.encode_to_vec()), "{message:?}");
            messages += 1;
        }
        assert!(messages > 60);
    }

    /// Checks every file of the server, the snapshotter and the client, and the logs.
    async fn check_files(&self) {
        for wanted in [".journal", ".base", ".jsonl", ".pb", "manifest.json", "local"] {
            let exists = async || files(self.folder.path()).iter().any(|path| path.to_string_lossy().ends_with(wanted));
            eventually(PATIENCE, exists).await.expect(wanted);
        }
        for path in files(self.folder.path()) {
            // Files are replaced and removed meanwhile.
            let Ok(bytes) = std::fs::read(&path) else { continue };
            assert!(!has_clear_text(&bytes), "{}", path.display());
            let is_key = path.ends_with("key");
            assert!(is_key || !KEYS.iter().any(|key| String::from_utf8_lossy(&bytes).contains(key)), "{path:?}");
        }
        for process in [&self.server.process, &self.snapshotter.process] {
            let log = process.output().join("\n");
            assert!(!has_clear_text(log.as_bytes()) && !KEYS.iter().any(|key| log.contains(key)), "{log}");
        }
    }

    /// Has the server make a row wrong, and checks that the report about it has no clear text.
    #[cfg(debug_assertions)]
    async fn check_report(&self, fault: &str) {
        std::fs::write(&self.canary, format!("public.people {fault}\n")).unwrap();
        self.sql.batch_execute("UPDATE people SET visits = visits + 1 WHERE login LIKE '%-60'").await.unwrap();
        eventually(PATIENCE, async || !self.canary.exists()).await.unwrap();
        let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
        command.args(["verify", "public.people", "--oam", &self.server.oam_url(), "--values", "--json"]);
        let output = command.output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        assert_eq!(report["differing"], 1, "{report}");
        let difference = &report["differences"][0];
        assert_eq!(difference["key"]["login"].as_str().map(str::len), Some(64), "{report}");
        assert!(!has_clear_text(&output.stdout), "{report}");
        self.settle().await;
    }
}

fn people() -> TableName {
    TableName::new("public", "people")
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_values_leave_in_no_form() {
    let mut scene = MaskedPeople::start().await;
    scene.settle().await;
    scene.write("INSERT INTO people SELECT (person(n)).* FROM generate_series(100, 140) n").await;
    // The large values are not sent, and the key is not changed.
    scene.write("UPDATE people SET visits = visits + 1").await;
    scene.write("UPDATE people SET login = login || '-renamed' WHERE visits = 1 AND login LIKE '%5'").await;
    scene
        .write("UPDATE people SET email = NULL, phone = '12345', essay = 'clear-personal-data' WHERE login LIKE '%3'")
        .await;
    scene.write("DELETE FROM people WHERE login LIKE '%7'").await;
    // Larger than what is kept in memory.
    scene.write("INSERT INTO people SELECT (person(n)).* FROM generate_series(1000, 1400) n").await;
    #[cfg(debug_assertions)]
    for fault in ["changed-cell", "missing-row", "extra-row"] {
        scene.check_report(fault).await;
    }
    let typed = vec![RowEncoding::PostgresBinary as i32];
    for accept in [Vec::new(), typed] {
        scene.read_stream(SyncRequest { accept, ..SyncRequest::default() }).await;
    }
    scene.fetch_snapshot().await;
    scene.check_files().await;
    scene.server.restart().await;
    scene.write("UPDATE people SET visits = visits + 1, essay = essay || '.' WHERE login LIKE '%-1%'").await;
    scene.check_files().await;
    rotate_key(&mut scene).await;
}

/// With another key, all rows are others: clients and archives receive the table again.
async fn rotate_key(scene: &mut MaskedPeople) {
    let manifest = scene.folder.path().join("archive/people/manifest.json");
    let epoch = || serde_json::from_slice::<Value>(&std::fs::read(&manifest).unwrap()).unwrap()["epoch"].as_u64();
    let (before, resyncs) = (epoch(), scene.replica.status().resyncs);
    std::fs::write(scene.folder.path().join("key"), KEYS[1]).unwrap();
    scene.cluster.psql(&view(KEYS[1])).unwrap();
    scene.server.restart().await;
    scene.settle().await;
    assert_eq!(scene.replica.status().resyncs, resyncs + 1);
    eventually(PATIENCE, async || epoch() > before).await.unwrap();
    scene.check_files().await;
    scene.snapshotter.stop().await;
}
