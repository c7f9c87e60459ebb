//! PostgreSQL's storage is put back to an earlier state, or its timeline changes, while servers run
//! or do not run. Every client ends with the database's rows, without a restart and without an
//! operator.

use laredo_core::{Lsn, TableName};
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{SyncMode, SyncRequest};
use laredo_testkit::{Cluster, ClusterOptions, StopMode, eventually, oracle};
use tempfile::TempDir;

use crate::support::fleet::{CategoryFilter, ClientPair};
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use crate::support::simple;

/// The data that a server keeps for its next start, and the kind of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeptServerData {
    Journal,
    Snapshots,
    Nothing,
    NothingAndNoSlot,
}

const ALL: [KeptServerData; 4] =
    [KeptServerData::Journal, KeptServerData::Snapshots, KeptServerData::Nothing, KeptServerData::NothingAndNoSlot];

struct ForkingDatabase {
    // Before the cluster: when the server is dropped, it is verified.
    server: ServerProcess,
    cluster: Cluster,
    table: TableName,
    _folder: TempDir,
    pair: ClientPair,
    mark: i32,
}

impl ForkingDatabase {
    /// Starts a table of a thousand rows, a server, and two clients that have all of it.
    async fn start(keeps: KeptServerData) -> ForkingDatabase {
        let cluster = Cluster::start(ClusterOptions::default().set("restore_command", "false")).unwrap();
        cluster
            .psql(
                "CREATE TABLE kept (n int PRIMARY KEY, body text);
                 INSERT INTO kept SELECT n, 'in both' FROM generate_series(1, 1000) n",
            )
            .unwrap();
        let (folder, table) = (tempfile::tempdir().unwrap(), TableName::new("public", "kept"));
        let path = serde_json::Value::from(folder.path().to_string_lossy());
        let keys = match keeps {
            KeptServerData::Journal => format!("journal {{ store = local, store_config {{ path = {path} }} }}"),
            KeptServerData::Snapshots => {
                format!("snapshot {{ interval = 1s, store = local, store_config {{ path = {path} }} }}")
            }
            KeptServerData::Nothing | KeptServerData::NothingAndNoSlot => String::new(),
        };
        let config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]).target(&keys);
        let config = if keeps == KeptServerData::NothingAndNoSlot { config } else { config.slot("laredo_histories") };
        let server = config.start().await;
        let pair = ClientPair::start(&server.url(), &table, &["n"], CategoryFilter::All);
        let mut scene = ForkingDatabase { cluster, table, _folder: folder, server, pair, mark: 0 };
        scene.clients_have_everything().await;
        scene
    }

    /// Writes rows of a history, and then WAL that belongs to no table.
    fn write(&self, history: &str, first: i32, bytes: u32) {
        let sql = format!(
            "INSERT INTO kept SELECT n, '{history}' FROM generate_series({first}, {first} + 99) n;
             UPDATE kept SET body = '{history}' WHERE n <= 10;
             SELECT pg_logical_emit_message(false, 'test', repeat('x', {bytes}))"
        );
        self.cluster.psql(&sql).unwrap();
    }

    /// Waits until both clients have the database's rows and follow it.
    async fn clients_have_everything(&mut self) {
        self.mark -= 1;
        let sql = self.cluster.connect().await.unwrap();
        sql.batch_execute(&format!("INSERT INTO kept VALUES ({}, 'mark')", self.mark)).await.unwrap();
        let position = oracle::flushed(&sql).await.unwrap();
        self.clients_are_equal(position).await;
    }

    /// Waits until both clients have the database's rows, at a position or later.
    async fn clients_are_equal(&self, position: Lsn) {
        let sql = self.cluster.connect().await.unwrap();
        let rows = oracle::rows_at_rest(&sql, &self.table, &["n"], "true").await.unwrap();
        let equal = async || self.pair.replica.view().position() >= position && self.pair.differences(&rows).is_empty();
        if eventually(PATIENCE, equal).await.is_err() {
            let status = self.pair.replica.status();
            panic!("at {position}:\n{}\n{status:?}\n{:#?}", self.pair.differences(&rows), self.server.process.output());
        }
    }

    /// Waits until the server has everything on disk that its clients have.
    async fn is_kept(&self, keeps: KeptServerData) {
        let position = self.pair.replica.view().position().0;
        let kept = async || {
            let durable = self.server.metric("laredo_stored_snapshot_position_bytes", &self.table).await;
            keeps != KeptServerData::Snapshots || durable >= Some(position)
        };
        eventually(PATIENCE, kept).await.unwrap();
    }

    async fn forks(&self) -> u64 {
        self.server.source_metric("laredo_history_forks_total").await.unwrap_or(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_put_back_under_a_running_server_is_healed_by_itself() {
    for keeps in ALL {
        // Once with less and once with more WAL than the lost history had.
        for new_bytes in [0, 3_000_000] {
            let what = format!("{keeps:?}, {new_bytes} bytes");
            let mut scene = ForkingDatabase::start(keeps).await;
            let copy = scene.cluster.copy_storage(StopMode::Fast).unwrap();
            scene.clients_have_everything().await;
            scene.write("lost", 2000, 1000);
            scene.clients_have_everything().await;
            scene.cluster.put_back(&copy, StopMode::Immediate).unwrap();
            scene.write("new", 5000, new_bytes);
            scene.clients_have_everything().await;
            if keeps != KeptServerData::NothingAndNoSlot {
                assert_eq!(scene.forks().await, 1, "{what}");
            }
            // The new history survives a restart like any other.
            scene.server.restart().await;
            scene.write("newer", 7000, 0);
            scene.clients_have_everything().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_put_back_while_no_server_runs_is_noticed_at_the_start() {
    for keeps in [KeptServerData::Journal, KeptServerData::Snapshots] {
        for new_bytes in [0, 3_000_000] {
            let mut scene = ForkingDatabase::start(keeps).await;
            let copy = scene.cluster.copy_storage(StopMode::Fast).unwrap();
            scene.clients_have_everything().await;
            scene.write("lost", 2000, 1000);
            scene.clients_have_everything().await;
            scene.is_kept(keeps).await;
            scene.server.process.kill9();
            scene.server.process.wait(PATIENCE).await.unwrap();
            scene.cluster.put_back(&copy, StopMode::Immediate).unwrap();
            scene.write("new", 5000, new_bytes);
            scene.server.restart().await;
            scene.clients_have_everything().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_followed_and_heals_what_it_lost() {
    for keeps in [KeptServerData::Journal, KeptServerData::Nothing] {
        let mut scene = ForkingDatabase::start(keeps).await;
        scene.cluster.begin_timeline(StopMode::Fast).unwrap();
        scene.clients_have_everything().await;
        let copies = scene.server.metric("laredo_copies_total", &scene.table).await;
        assert_eq!((copies, scene.forks().await), (Some(1), 0), "{keeps:?}: nothing was lost");

        let copy = scene.cluster.copy_storage(StopMode::Fast).unwrap();
        scene.write("lost", 2000, 1000);
        scene.clients_have_everything().await;
        scene.cluster.promote(&copy, StopMode::Immediate).unwrap();
        scene.write("new", 5000, 2_000_000);
        scene.clients_have_everything().await;
        assert_eq!(scene.forks().await, 1, "{keeps:?}");
        scene.server.restart().await;
        scene.clients_have_everything().await;
    }
}

/// A copy may have seen commits that the stream has not sent yet. A history without them still has
/// everything that was sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_ahead_of_the_stream_is_made_again_after_a_restore() {
    for keeps in [KeptServerData::Journal, KeptServerData::Snapshots, KeptServerData::Nothing] {
        let mut scene = ForkingDatabase::start(keeps).await;
        let copy = scene.cluster.copy_storage(StopMode::Fast).unwrap();
        scene.clients_have_everything().await;
        let sql = scene.cluster.connect().await.unwrap();
        let stream = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'laredo_histories'";
        let walsender: i32 = sql.query_one(stream, &[]).await.unwrap().get(0);
        let stopped = std::process::Command::new("kill").args(["-STOP", &walsender.to_string()]).status().unwrap();
        assert!(stopped.success());
        sql.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'in both')").await.unwrap();
        let position = oracle::flushed(&sql).await.unwrap();
        scene.write("lost", 2000, 1000);
        scene.server.reload(&scene.table).await;
        let rows: i64 = sql.query_one("SELECT count(*) FROM kept", &[]).await.unwrap().get(0);
        let has_copied = async || {
            let session = "SELECT FROM pg_stat_activity WHERE application_name = 'laredo copy'";
            scene.server.metric("laredo_copy_rows", &scene.table).await == Some(rows.cast_unsigned())
                && sql.query_opt(session, &[]).await.unwrap().is_none()
        };
        eventually(PATIENCE, has_copied).await.expect("the copy waits for the stream");
        scene.cluster.restore_to(&copy, position, StopMode::Immediate).unwrap();
        scene.write("new", 5000, 2_000_000);
        scene.clients_have_everything().await;
        assert_eq!(scene.forks().await, 0, "{keeps:?}: nothing that was sent is lost");
    }
}

/// A server that starts after the fork does not know of it. It recognizes clients of the other
/// history by their commit marks.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_moves_to_a_server_of_another_history_gets_a_snapshot() {
    let scene = ForkingDatabase::start(KeptServerData::Nothing).await;
    let mut scene = scene;
    let copy = scene.cluster.copy_storage(StopMode::Fast).unwrap();
    scene.clients_have_everything().await;
    scene.write("lost", 2000, 1_000_000);
    scene.clients_have_everything().await;
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("local");
    let saved = laredo_client::Replica::builder(scene.server.url(), scene.table.clone())
        .local_snapshot_path(&path)
        .start()
        .unwrap();
    let lost = scene.pair.replica.view().position();
    eventually(PATIENCE, async || saved.view().position() >= lost).await.unwrap();
    saved.stop().await;
    scene.server.process.kill9();
    scene.server.process.wait(PATIENCE).await.unwrap();
    scene.cluster.put_back(&copy, StopMode::Immediate).unwrap();
    // Write past the end of the other history.
    scene.write("new", 5000, 100_000);
    let other = ServerProcessConfig::new(scene.cluster.url("postgres"), [scene.table.clone()]).start().await;
    scene.write("newer", 6000, 3_000_000);
    let sql = scene.cluster.connect().await.unwrap();
    // A commit flushes the WAL before it. Without one, the message may stay in memory.
    sql.batch_execute("INSERT INTO kept VALUES (-1000, 'flushed')").await.unwrap();
    let position = oracle::flushed(&sql).await.unwrap();
    assert!(position > lost);
    let rows = oracle::rows_at_rest(&sql, &scene.table, &["n"], "true").await.unwrap();
    let moved =
        laredo_client::Replica::builder(other.url(), scene.table.clone()).local_snapshot_path(&path).start().unwrap();
    let equal = async || {
        let view = moved.view();
        view.position() >= position && crate::support::compare::view_differences(&view, &rows, &["n"]).is_empty()
    };
    eventually(PATIENCE, equal).await.expect("it has what the database has");
}

/// A change of definition leaves no commit of rows that would prove the history. In the new history
/// its transaction has the same ID, and the table has the same file.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_the_new_history_has_in_another_form_is_seen() {
    let column = |form: &str| format!("ALTER TABLE kept ALTER body TYPE text USING body || ' {form}'");
    let partition = |form: &str| {
        format!(
            "BEGIN; CREATE TABLE part (LIKE kept INCLUDING ALL); INSERT INTO part SELECT n, body || ' {form}' FROM kept;
             ALTER TABLE kept RENAME TO old; ALTER TABLE part RENAME TO kept; DROP TABLE old;
             ALTER PUBLICATION laredo_test_pub ADD TABLE kept; COMMIT"
        )
    };
    let migrations: [&dyn Fn(&str) -> String; 2] = [&column, &partition];
    for (keeps, runs, migration) in [
        (KeptServerData::Journal, false, migrations[0]),
        (KeptServerData::Snapshots, false, migrations[0]),
        (KeptServerData::Journal, true, migrations[0]),
        (KeptServerData::Journal, true, migrations[1]),
        (KeptServerData::Journal, false, migrations[1]),
    ] {
        let mut scene = ForkingDatabase::start(keeps).await;
        let copy = scene.cluster.copy_storage(StopMode::Fast).unwrap();
        scene.cluster.psql(&migration("lost")).unwrap();
        scene.clients_are_equal(Lsn::ZERO).await;
        scene.is_kept(keeps).await;
        if runs {
            scene.server.process.freeze();
        } else {
            scene.server.process.kill9();
            scene.server.process.wait(PATIENCE).await.unwrap();
        }
        scene.cluster.put_back(&copy, StopMode::Immediate).unwrap();
        scene.cluster.psql(&migration("new")).unwrap();
        // Write past the end of the lost history, without a commit.
        let fill = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 3000000)); SELECT pg_switch_wal()";
        scene.cluster.psql(fill).unwrap();
        if runs {
            scene.server.process.thaw();
        } else {
            scene.server.restart().await;
        }
        scene.clients_are_equal(Lsn::ZERO).await;
        scene.clients_have_everything().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_beyond_the_wal_is_another_history_at_once_and_stays_so() {
    let scene = ForkingDatabase::start(KeptServerData::Nothing).await;
    let end: Lsn = scene.cluster.psql("SELECT pg_current_wal_lsn()").unwrap().parse().unwrap();
    let request = SyncRequest {
        schema: scene.table.schema.clone(),
        table: scene.table.table.clone(),
        last_known_source_position: Lsn(end.0 + (1 << 20)).to_string(),
        last_snapshot_id: "deadbeef-5".to_owned(),
        last_known_sequence: 5,
        ..SyncRequest::default()
    };
    let mode = async || {
        let mut stream = simple::open(&scene.server.url(), request.clone()).await.unwrap();
        match stream.message().await.unwrap().unwrap().message {
            Some(Message::Handshake(handshake)) => handshake.mode(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(mode().await, SyncMode::FullSnapshot);
    scene.cluster.psql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 3000000))").unwrap();
    let past = async || scene.server.is_live_at(Lsn(end.0 + (2 << 20))).await;
    eventually(PATIENCE, past).await.unwrap();
    assert_eq!(mode().await, SyncMode::FullSnapshot, "the same journal's positions count no more later");
}
