//! Faults of every kind, in an order that a seed decides, under the random workload: in the end every client has what the database
//! has, and none was ever sent a second full snapshot. `./dev chaos --seeds N` runs more of them.

mod client;

use std::fmt::Write as _;
use std::time::Duration;

use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions};
use laredo_testkit::{Cluster, StopMode, is_full};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::fleet::{cluster, more, restart, serve_all};
use crate::support::server::{PATIENCE, Server};
use client::Client;

/// A run at full size takes at least this long.
const FULL: Duration = Duration::from_secs(60);
/// The rows of each table that are always there when it is compared, besides those of the workload.
const FILL: u32 = 1500;
/// Clients are compared with the database after this many faults, and at the end.
const COMPARE_EVERY: usize = 6;

/// What happens to whom.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// `kill -9`, and started again; its clients go to the other one, or wait for it.
    KillServer,
    KillBothServers,
    /// SIGTERM with a grace: its clients are asked to leave, for the other one.
    Drain,
    /// The connections of one client are cut.
    Cut,
    /// One client finds itself connected to the other server.
    Move,
    Postgres(StopMode),
    /// A client's process ends, in good order or not, and starts again with what it kept.
    RestartClient,
}

/// One run's faults but for their order: a small run has the first eight.
const FAULTS: [Fault; 24] = {
    use Fault::{Cut, Drain, KillBothServers, KillServer, Move, Postgres, RestartClient};
    let (fast, immediate) = (Postgres(StopMode::Fast), Postgres(StopMode::Immediate));
    [
        KillServer,
        Drain,
        Cut,
        Move,
        RestartClient,
        immediate,
        fast,
        KillBothServers, //
        KillServer,
        Drain,
        Cut,
        Move,
        RestartClient,
        immediate,
        fast,
        KillServer, //
        KillServer,
        Drain,
        Cut,
        Move,
        RestartClient,
        RestartClient,
        Drain,
        KillServer,
    ]
};

/// What came of it, over all seeds.
#[derive(Debug, Default, Serialize)]
struct Tally {
    seeds: u64,
    faults: u64,
    clients: u64,
    /// Streams that went on where the client was.
    deltas: u64,
    /// Streams that began with a full snapshot, without each client's first one.
    full_snapshots: u64,
    rows_compared: u64,
    /// Comparisons in which something differed, or that a client never came to.
    unequal: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_clients_are_equal_and_never_load_twice() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let (seeds, first) = (number("LAREDO_CHAOS_SEEDS"), number("LAREDO_CHAOS_FIRST").unwrap_or(1));
    let is_full = is_full() || seeds.is_some();
    let mut tally = Tally::default();
    for seed in first..first + seeds.unwrap_or(1) {
        let mut chaos = Chaos::start(seed).await;
        chaos.run(if is_full { &FAULTS } else { &FAULTS[..8] }, if is_full { FULL } else { Duration::ZERO }).await;
        chaos.end(&mut tally).await;
    }
    let result = serde_json::to_string(&tally).unwrap();
    if let Some(path) = std::env::var_os("LAREDO_CHAOS_RESULT") {
        std::fs::write(path, format!("{result}\n")).unwrap();
    }
    eprintln!("{result}");
    assert_eq!((tally.unequal, tally.full_snapshots), (0, 0), "{result}");
    if is_full {
        let least = (tally.faults / seeds.unwrap_or(1), tally.deltas, tally.rows_compared);
        assert!(least.0 >= 20 && least.1 >= 20 * tally.seeds && least.2 >= 10_000 * tally.seeds, "{result}");
    }
}

struct Chaos {
    seed: u64,
    random: StdRng,
    cluster: Cluster,
    workload: Workload,
    servers: [Server; 2],
    clients: Vec<Client>,
    faults: u64,
    rows_compared: u64,
    comparisons: i32,
    unequal: u64,
    started: Instant,
    /// What the servers keep, and the clients.
    _folders: TempDir,
}

impl Chaos {
    async fn start(seed: u64) -> Chaos {
        let (cluster, folders) = (cluster(), tempfile::tempdir().unwrap());
        let workload = Workload::start(&cluster.url("postgres"), seed, WorkloadOptions::default());
        let server = |number: usize| {
            let path = serde_json::Value::from(folders.path().join(format!("server-{number}")).to_string_lossy());
            let journal =
                format!("journal {{ max_entries = 1000000, store = local, store_config {{ path = {path} }} }}");
            let mut config =
                serve_all(cluster.url("postgres")).slot(&format!("laredo_chaos_{number}")).target(&journal);
            config.arguments = ["--drain-grace", "600s"].map(str::to_owned).to_vec();
            async move { config.start().await }
        };
        let servers = [server(0).await, server(1).await];
        let ports = servers.each_ref().map(|server| server.ports.fanout);
        let mut random = StdRng::seed_from_u64(seed);
        let clients = client::all(random.random_range(0..TABLES.len()), ports, folders.path()).await;
        let mut chaos = Chaos {
            seed,
            random,
            cluster,
            workload,
            servers,
            clients,
            faults: 0,
            rows_compared: 0,
            comparisons: 0,
            unequal: 0,
            started: Instant::now(),
            _folders: folders,
        };
        // Whoever leaves has a position that both servers know: it is not older than their first copies.
        chaos.compare().await;
        chaos.started = Instant::now();
        chaos
    }

    /// Lets each fault happen, in a random order, with work between them, evenly over the time.
    async fn run(&mut self, faults: &[Fault], time: Duration) {
        let mut faults = faults.to_vec();
        faults.shuffle(&mut self.random);
        let count = u32::try_from(faults.len()).unwrap();
        for (number, fault) in (1..=count).zip(faults) {
            more(&self.workload, 20).await;
            tokio::time::sleep_until(self.started + time * number / count).await;
            self.inflict(fault).await;
            self.faults += 1;
            if (number as usize).is_multiple_of(COMPARE_EVERY) {
                self.compare().await;
            }
        }
        more(&self.workload, 20).await;
        self.compare().await;
    }

    fn say(&self, what: &str) {
        let at = self.started.elapsed().as_secs_f32();
        eprintln!("seed {}, {at:.1} s, fault {}: {what}", self.seed, self.faults + 1);
    }

    async fn inflict(&mut self, fault: Fault) {
        let server = self.random.random_range(0..2);
        let client = self.random.random_range(0..self.clients.len());
        match fault {
            Fault::KillServer => {
                let moves = self.random.random_bool(0.5);
                self.say(&format!(
                    "kill -9 of server {server}{}",
                    if moves { ", clients go to the other" } else { "" }
                ));
                self.kill(server, moves).await;
            }
            Fault::KillBothServers => {
                self.say("kill -9 of both servers");
                self.kill(0, true).await;
                self.kill(1, false).await;
            }
            Fault::Drain => self.drain(server).await,
            Fault::Cut => {
                self.say(&format!("connections of client {client} are cut"));
                self.clients[client].cut();
            }
            Fault::Move => {
                let to = 1 - self.clients[client].at();
                self.say(&format!("client {client} goes to server {to}"));
                self.clients[client].go_to(to);
                self.clients[client].cut();
            }
            Fault::Postgres(mode) => {
                self.say(&format!("PostgreSQL is stopped ({mode:?}) and started"));
                restart(&mut self.cluster, mode);
            }
            Fault::RestartClient => {
                let orderly = self.random.random_bool(0.5);
                // The one that is not ours keeps nothing.
                let client = client % (self.clients.len() - 1);
                self.say(&format!("client {client} {} and starts again", if orderly { "stops" } else { "is killed" }));
                self.clients[client].restart(orderly).await;
            }
        }
    }

    async fn kill(&mut self, server: usize, moves: bool) {
        self.servers[server].process.kill9();
        if moves {
            self.send_away(server);
        }
        self.start_again(server).await;
    }

    async fn drain(&mut self, server: usize) {
        self.say(&format!("server {server} is drained"));
        self.send_away(server);
        self.servers[server].process.terminate();
        let ended = self.servers[server].process.wait(PATIENCE).await;
        if ended.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return self.start_again(server).await;
        }
        let clients = self.clients.iter().map(Client::describe).collect::<Vec<_>>().join("\n");
        panic!("server {server} does not end: {ended:?}\n{clients}");
    }

    async fn start_again(&mut self, server: usize) {
        let was = self.servers[server].relaunch().await;
        let log = format!("{}/chaos-{}-server-{server}-{}.log", env!("CARGO_TARGET_TMPDIR"), self.seed, was.id());
        std::fs::write(log, was.output().join("\n")).unwrap();
    }

    /// New connections of a server's clients will lead to the other one.
    fn send_away(&mut self, server: usize) {
        self.clients.iter_mut().filter(|client| client.at() == server).for_each(|client| client.go_to(1 - server));
    }

    /// Compares every client with the database, in which nobody writes meanwhile.
    async fn compare(&mut self) {
        self.comparisons += 1;
        let mark = -10_000 - self.comparisons;
        let paused = self.workload.pause().await;
        let sql = self.cluster.connect().await.unwrap();
        let statements = TABLES.iter().flat_map(|table| [table.fill(FILL), table.mark(mark)]);
        let transaction = format!("BEGIN; {}; COMMIT", statements.collect::<Vec<_>>().join("; "));
        sql.batch_execute(&transaction).await.unwrap();
        let position = flushed(&sql).await.unwrap();
        let mut found = String::new();
        for (number, client) in self.clients.iter().enumerate() {
            let rows = rows_at_rest(&sql, &client.table.name(), client.table.key, client.only.sql()).await.unwrap();
            self.rows_compared += rows.rows.len() as u64;
            let differences = client.differences(position, mark, &rows, &self.clients[0]).await;
            if !differences.is_empty() {
                self.unequal += 1;
                let _ = writeln!(found, "client {number}: {differences}\n{}", client.describe());
            }
        }
        if !found.is_empty() {
            eprintln!("seed {}, after {} faults, at {position}:\n{found}", self.seed, self.faults);
        }
        self.workload.resume(paused);
    }

    async fn end(self, tally: &mut Tally) {
        tally.seeds += 1;
        tally.faults += self.faults;
        tally.clients += self.clients.len() as u64;
        tally.rows_compared += self.rows_compared;
        tally.unequal += self.unequal;
        for client in &self.clients {
            let (full_snapshots, deltas) = client.streams();
            if full_snapshots > 1 {
                eprintln!("seed {}: {} snapshots: {}", self.seed, full_snapshots, client.describe());
            }
            tally.full_snapshots += full_snapshots.saturating_sub(1);
            tally.deltas += deltas;
        }
        self.workload.stop().await.unwrap();
        for server in [0, 1] {
            let log = format!("{}/chaos-{}-server-{server}-last.log", env!("CARGO_TARGET_TMPDIR"), self.seed);
            std::fs::write(log, self.servers[server].process.output().join("\n")).unwrap();
        }
    }
}
