//! Transactions whose changes interleave, and that commit in another order than they began. A
//! client is cut after any frame. It resumes by sequence on the same server, or by position on
//! another server with its own slot. It ends with the database's rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use laredo_client::Replica;
use laredo_core::{Lsn, TableName};
use laredo_proto::replication::{SyncRequest, SyncResponse};
use laredo_testkit::oracle::{OracleRows, flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::Client;

use crate::support::binary::BinaryState;
use crate::support::compare::{json_differences, view_differences};
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use crate::support::simple::{JsonRow, SimpleState, key_of, open};

const KEY: &[&str] = &["id"];
/// The number of places at which the replica is cut.
const REPLICA_CUTS: u64 = 40;

/// The protocol of a client, and the place that it resumes at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResumeProtocol {
    StructBySequence,
    StructByPosition,
    BinaryBySequence,
    BinaryByPosition,
}

const KINDS: [ResumeProtocol; 4] = [
    ResumeProtocol::StructBySequence,
    ResumeProtocol::StructByPosition,
    ResumeProtocol::BinaryBySequence,
    ResumeProtocol::BinaryByPosition,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cut_after_any_frame_ends_equal() {
    let mut setting = InterleavedServers::start().await;
    setting.interleave(1).await;
    setting.large_transaction().await;
    setting.interleave(2).await;
    setting.finish().await;
    setting.cut_everywhere(SpanPresence::None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cut_around_a_new_copy_ends_equal() {
    let mut setting = InterleavedServers::start().await;
    setting.interleave(1).await;
    // Each server copies the table by itself, so their spans differ.
    for statement in ["ALTER TABLE t ADD note text DEFAULT 'x'", "UPDATE t SET note = 'y' WHERE id % 2 = 0"] {
        setting.one.batch_execute(statement).await.unwrap();
        setting.interleave(2).await;
    }
    setting.interleave(3).await;
    setting.finish().await;
    setting.cut_everywhere(SpanPresence::Some).await;
}

/// The presence of positions that another server cannot resume from, because a table was copied
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpanPresence {
    None,
    Some,
}

/// A database, and two servers with a slot each.
struct InterleavedServers {
    // Before the cluster: when the server is dropped, it is verified.
    servers: [ServerProcess; 2],
    _cluster: Cluster,
    one: Client,
    other: Client,
    /// A Struct client that loaded the table before any change. A new client receives no past
    /// changes.
    early: SimpleState,
    /// The position from which both servers know each commit.
    both_ready: Lsn,
    /// The first ID that no round has used yet.
    next: i32,
    mark: i32,
}

impl InterleavedServers {
    async fn start() -> InterleavedServers {
        let cluster = Cluster::start(ClusterOptions::default().set("logical_decoding_work_mem", "64kB")).unwrap();
        let sql = "CREATE TABLE t (id int PRIMARY KEY, v text, n int); INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, 10) i";
        cluster.psql(sql).unwrap();
        let config = ServerProcessConfig::new(cluster.url("postgres"), [TableName::new("public", "t")]);
        let servers = [config.clone().slot("laredo_one").start().await, config.slot("laredo_two").start().await];
        let (one, other) = (cluster.connect().await.unwrap(), cluster.connect().await.unwrap());
        let both_ready = flushed(&one).await.unwrap();
        let early = load(&servers[0]).await;
        InterleavedServers { _cluster: cluster, one, other, servers, early, both_ready, next: 100, mark: 0 }
    }

    /// Runs transactions that interleave. The first one begins first, writes first, and commits
    /// last. Then they change the same rows, one after another.
    async fn interleave(&mut self, times: i32) {
        for _ in 0..times {
            let id = self.next;
            self.next += 10;
            let (one, other) = (&self.one, &self.other);
            let run = async |session: &Client, sql: String| session.batch_execute(&sql).await.unwrap();
            run(
                one,
                format!("BEGIN; INSERT INTO t (id, v, n) VALUES ({id}, 'one', 0); UPDATE t SET n = n + 1 WHERE id = 1"),
            )
            .await;
            run(other, format!("BEGIN; INSERT INTO t (id, v, n) VALUES ({}, 'other', 0)", id + 1)).await;
            run(other, "UPDATE t SET n = n - 1 WHERE id = 2; DELETE FROM t WHERE id = 3".to_owned()).await;
            run(one, format!("INSERT INTO t (id, v, n) VALUES ({}, 'one again', 0)", id + 2)).await;
            run(other, format!("UPDATE t SET id = {} WHERE id = {}; COMMIT", id + 3, id + 1)).await;
            // This undoes the other transaction. A client that orders transactions by their first
            // changes ends with wrong rows.
            run(one, "INSERT INTO t (id, v, n) VALUES (3, 'back', 3); UPDATE t SET v = 'one' WHERE id = 2".to_owned())
                .await;
            run(other, format!("BEGIN; INSERT INTO t (id, v, n) VALUES ({}, 'third', 0)", id + 4)).await;
            run(one, format!("UPDATE t SET id = {} WHERE id = {id}; COMMIT", id + 1)).await;
            run(other, "UPDATE t SET v = v || '+' WHERE id IN (2, 3); COMMIT".to_owned()).await;
        }
    }

    /// Runs a transaction of several batches around a smaller one.
    async fn large_transaction(&self) {
        let large = "BEGIN; INSERT INTO t SELECT i, repeat(md5(i::text), 400), i FROM generate_series(1000, 1060) i";
        self.one.batch_execute(large).await.unwrap();
        self.other.batch_execute("UPDATE t SET n = -1 WHERE id = 4").await.unwrap();
        self.one.batch_execute("DELETE FROM t WHERE id > 1005 AND id < 2000; COMMIT").await.unwrap();
    }

    /// Commits the last row when both servers have all others.
    async fn finish(&mut self) {
        let position = flushed(&self.one).await.unwrap();
        for server in &self.servers {
            eventually(PATIENCE, async || server.is_live_at(position).await).await.unwrap();
        }
        self.mark = self.next;
        self.one.batch_execute(&format!("INSERT INTO t (id, v, n) VALUES ({}, 'last', 0)", self.mark)).await.unwrap();
    }

    async fn cut_everywhere(&self, spans: SpanPresence) {
        let table = TableName::new("public", "t");
        let oracle = rows_at_rest(&self.one, &table, KEY, "true").await.unwrap();
        let early = Some(&self.early);
        let newcomers = KINDS.map(|kind| (kind, None, 3));
        let early = [(ResumeProtocol::StructBySequence, early, 6), (ResumeProtocol::StructByPosition, early, 6)];
        // A new client receives the present rows, and few of the changes that led to them.
        for (kind, early, least) in newcomers.into_iter().chain(early) {
            let by_sequence = matches!(kind, ResumeProtocol::StructBySequence | ResumeProtocol::BinaryBySequence);
            let delta_from = match spans {
                _ if by_sequence => Some(Lsn::ZERO),
                SpanPresence::None => Some(self.both_ready),
                SpanPresence::Some => None,
            };
            let goal = ExpectedClientEnd {
                kind,
                early,
                oracle: &oracle,
                mark: self.mark,
                json: self.json().await,
                delta_from,
            };
            let frames = goal.cut_after(&self.servers, usize::MAX).await;
            assert!(frames > least, "{kind:?}: only {frames} frames");
            for cut in 1..frames {
                goal.cut_after(&self.servers, cut).await;
            }
        }
        let total = self.replica_cut_after(u64::MAX, &oracle).await;
        for place in 1..REPLICA_CUTS {
            self.replica_cut_after(total * place / REPLICA_CUTS, &oracle).await;
        }
    }

    /// Cuts a replica's stream from the first server after `bytes` bytes, and lets it resume at the
    /// other server. Returns the bytes that the first server sent.
    async fn replica_cut_after(&self, bytes: u64, oracle: &OracleRows) -> u64 {
        let relay = CuttingRelay::start(self.servers.each_ref().map(ServerProcess::url), bytes).await;
        let replica = Replica::builder(&relay.url, TableName::new("public", "t")).seed(bytes).start().unwrap();
        let mut transactions = replica.transactions();
        if eventually(PATIENCE, async || replica.get(self.mark).unwrap().is_some()).await.is_err() {
            panic!("cut after {bytes} bytes, it never gets there: {:?}", replica.status());
        }
        let total = relay.sent.load(Ordering::Relaxed);
        let differences = view_differences(&replica.view(), oracle, KEY);
        assert!(differences.is_empty(), "cut after {bytes} bytes:\n{differences}");
        replica.stop().await;
        let mut last = Lsn::ZERO;
        while let Some(told) = transactions.next().await {
            let position = told.unwrap().position;
            assert!(position >= last, "cut after {bytes} bytes: from {last} back to {position}");
            last = position;
        }
        total
    }

    async fn json(&self) -> BTreeMap<String, JsonRow> {
        let rows = self.one.query("SELECT to_jsonb(t)::text FROM t", &[]).await.unwrap();
        let rows = rows.iter().map(|row| serde_json::from_str::<JsonRow>(row.get(0)).unwrap());
        rows.map(|row| (key_of(KEY, &row), row)).collect()
    }
}

/// Loads the table with a client that reads Structs.
async fn load(server: &ServerProcess) -> SimpleState {
    let mut state = SimpleState::new(KEY);
    let request = SyncRequest { schema: "public".to_owned(), table: "t".to_owned(), ..SyncRequest::default() };
    let mut stream = open(&server.url(), request).await.unwrap();
    while state.position.is_empty() {
        state.apply(stream.message().await.unwrap().unwrap());
    }
    state
}

/// A relay that forwards its first connection to one server, up to a number of bytes, and all
/// others to the other server.
struct CuttingRelay {
    url: String,
    sent: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl CuttingRelay {
    async fn start(servers: [String; 2], bytes_max: u64) -> CuttingRelay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let task = tokio::spawn(async move {
            let [one, other] = servers.map(|url| url.trim_start_matches("http://").to_owned());
            forward(&listener, &one, bytes_max, &counter).await;
            loop {
                forward(&listener, &other, u64::MAX, &counter).await;
            }
        });
        CuttingRelay { url, sent, task }
    }
}

impl Drop for CuttingRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts one connection and forwards it until one side ends, or the server has sent `bytes_max`
/// bytes.
async fn forward(listener: &TcpListener, server: &str, bytes_max: u64, sent: &AtomicU64) {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut server = TcpStream::connect(server).await.unwrap();
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let down = async {
        let (mut left, mut buffer) = (bytes_max, vec![0; 16 * 1024]);
        while left > 0 {
            let Ok(read @ 1..) = from_server.read(&mut buffer).await else { break };
            let part = usize::try_from(left).map_or(read, |left| left.min(read));
            left -= part as u64;
            sent.fetch_add(part as u64, Ordering::Relaxed);
            if to_client.write_all(&buffer[..part]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = down => {}
        // A connection may end in any way on the client's side.
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
    }
}

/// The expected end of a client.
struct ExpectedClientEnd<'a> {
    kind: ResumeProtocol,
    /// The state of the client before the stream that is cut.
    early: Option<&'a SimpleState>,
    oracle: &'a OracleRows,
    /// The ID of the row that was committed last.
    mark: i32,
    json: BTreeMap<String, JsonRow>,
    /// The position from which a client must resume without a second snapshot. `None` if there is
    /// no such position.
    delta_from: Option<Lsn>,
}

enum RawClientState {
    Struct(SimpleState),
    Binary(BinaryState),
}

impl RawClientState {
    /// Returns the position that a client with a complete table may resume from.
    fn place(&self) -> Option<Lsn> {
        match self {
            RawClientState::Struct(state) => state.is_loaded.then(|| state.position.parse().unwrap_or(Lsn::ZERO)),
            RawClientState::Binary(state) => (state.position > Lsn::ZERO).then_some(state.position),
        }
    }

    fn snapshots(&self) -> u32 {
        match self {
            RawClientState::Struct(state) => state.snapshots,
            RawClientState::Binary(state) => state.snapshots,
        }
    }
}

impl ExpectedClientEnd<'_> {
    /// Cuts a new client after `cut` frames, and lets it resume to the end. Returns the total
    /// number of frames that it read.
    async fn cut_after(&self, servers: &[ServerProcess; 2], cut: usize) -> usize {
        let mut client = match self.kind {
            ResumeProtocol::StructBySequence | ResumeProtocol::StructByPosition => {
                RawClientState::Struct(self.early.cloned().unwrap_or_else(|| SimpleState::new(KEY)))
            }
            ResumeProtocol::BinaryBySequence | ResumeProtocol::BinaryByPosition => {
                RawClientState::Binary(BinaryState::default())
            }
        };
        if let RawClientState::Struct(state) = &mut client {
            state.resumes_exactly = self.kind == ResumeProtocol::StructBySequence;
        }
        let by_position = matches!(self.kind, ResumeProtocol::StructByPosition | ResumeProtocol::BinaryByPosition);
        let fresh = match client {
            RawClientState::Struct(_) => self.early.map(SimpleState::resume_by_sequence).unwrap_or_default(),
            RawClientState::Binary(_) => BinaryState::fresh(),
        };
        let mut frames = self.read(&servers[0], fresh, &mut client, cut).await;
        if frames == cut {
            let continues = self.delta_from.is_some_and(|from| client.place().is_some_and(|place| place >= from));
            let request = match (&client, by_position) {
                (RawClientState::Struct(state), true) => state.resume_by_position(),
                (RawClientState::Struct(state), false) => state.resume_by_sequence(),
                (RawClientState::Binary(state), true) => state.resume_by_position(),
                (RawClientState::Binary(state), false) => state.resume_by_sequence(),
            };
            let server = &servers[usize::from(by_position)];
            frames += self.read(server, request, &mut client, usize::MAX).await;
            if let RawClientState::Binary(state) = &mut client
                && state.starts_over
            {
                assert!(by_position, "a server whose own sequence goes on with another schema, cut after {cut} frames");
                *state = BinaryState::default();
                frames += self.read(server, BinaryState::fresh(), &mut client, usize::MAX).await;
            }
            let again = client.snapshots() > 1;
            assert!(!(continues && again), "{:?}, cut after {cut} frames: a snapshot instead of the rest", self.kind);
        }
        let differences = match &client {
            RawClientState::Struct(state) => json_differences(&state.rows, &self.json) + &state.violations.concat(),
            RawClientState::Binary(state) => {
                let (ours, theirs): (BTreeSet<_>, BTreeSet<_>) =
                    (state.rows.keys().collect(), self.oracle.rows.keys().collect());
                match state.rows == self.oracle.rows {
                    true => String::new(),
                    false => format!("{:?}", ours.symmetric_difference(&theirs)),
                }
            }
        };
        assert!(differences.is_empty(), "{:?}, cut after {cut} of {frames} frames:\n{differences}", self.kind);
        frames
    }

    /// Reads a stream until the client has everything and at least two frames, or until it has
    /// `max` frames. Returns the number of frames.
    async fn read(
        &self,
        server: &ServerProcess,
        request: SyncRequest,
        client: &mut RawClientState,
        max: usize,
    ) -> usize {
        let request = SyncRequest { schema: "public".to_owned(), table: "t".to_owned(), ..request };
        let mut stream = open(&server.url(), request).await.unwrap();
        for frames in 1.. {
            let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("the stream goes on");
            let message: SyncResponse = message.unwrap().expect("the stream does not end");
            let is_over = match client {
                RawClientState::Struct(state) => {
                    state.apply(message);
                    state.rows.contains_key(&format!("[{}]", self.mark))
                }
                RawClientState::Binary(state) => {
                    state.apply(message);
                    if state.starts_over {
                        return frames;
                    }
                    state.rows.contains_key(&[4_i32.to_be_bytes(), self.mark.to_be_bytes()].concat())
                }
            };
            if (is_over && frames >= 2) || frames == max {
                return frames;
            }
        }
        unreachable!("a stream has fewer frames than that")
    }
}
