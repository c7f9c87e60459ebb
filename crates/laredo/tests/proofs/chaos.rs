//! Faults of every kind under the random workload, in an order that a seed decides.
//!
//! The first half has faults after which no client may receive a second full snapshot. In the
//! second half, definitions change, histories fork, folders are exchanged, and resources of a
//! server are briefly unavailable. In the end the database, servers, clients and archives hold the
//! same rows.
//!
//! `./dev chaos --seeds N` runs more seeds, and `--rounds N` repeats the second half.

mod archive;
mod client;
mod fault;
mod inflict;
mod loads;
mod outage;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use laredo_core::Lsn;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions};
use laredo_testkit::{Cluster, ClusterOptions, FaultProxy, SmallDisk, StopMode, StorageCopy, is_full};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use crate::support::definitions::{create_tables, tables};
use crate::support::fleet::{cluster_with, serve_all};
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use archive::ChaosArchiver;
use client::ChaosClient;
use fault::{CONTINUITY, ChaosFault, everything, handful};
use loads::LoggedLoads;
use outage::{PASSWORD, ROLE};

/// The least time of each half of a run at full size.
const CONTINUITY_TIME: Duration = Duration::from_secs(30);
const EVERYTHING_TIME: Duration = Duration::from_secs(50);
/// The number of rows that each comparison adds to a table of the workload if they are missing.
const FILL: u32 = 1500;
/// The number of faults between two comparisons of the clients with the database.
const COMPARE_EVERY: usize = 8;

/// The result, over all seeds.
#[derive(Debug, Default, Serialize)]
struct ChaosTally {
    seeds: u64,
    faults: u64,
    /// Faults that changed definitions, and faults that lost commits.
    changes: u64,
    forks: u64,
    /// Outages after which the servers took longer than [`outage::RECOVERY_LIMIT`], and the seconds
    /// of the longest recovery.
    late: u64,
    slowest_recovery_s: f64,
    /// Servers that ended by themselves.
    ended: u64,
    clients: u64,
    /// Streams that resumed at the client's position.
    deltas: u64,
    /// Streams that began with a full snapshot before definitions and histories changed. Each
    /// client's first stream is not counted.
    full_snapshots: u64,
    /// Those of them that [`LoggedLoads::forced`] explains. They are not failures.
    full_snapshots_forced: u64,
    /// Streams that began with a full snapshot afterwards, when it is allowed.
    full_snapshots_allowed: u64,
    rows_compared: u64,
    /// Comparisons in which rows differed, or whose position a client did not reach.
    unequal: u64,
    /// Tables that `laredo verify` compared with each server, and their rows.
    verified: u64,
    rows_verified: u64,
    /// Clients that `laredo verify` found to have the server's checksum.
    clients_verified: u64,
    /// Tables that `laredo verify` did not find equal.
    unverified: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_clients_are_equal_and_never_load_twice() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let (seeds, first) = (number("LAREDO_CHAOS_SEEDS"), number("LAREDO_CHAOS_FIRST").unwrap_or(1));
    let rounds = number("LAREDO_CHAOS_ROUNDS").unwrap_or(1);
    let is_full = is_full() || seeds.is_some();
    let mut tally = ChaosTally::default();
    for seed in first..first + seeds.unwrap_or(1) {
        let failing = SeedFailureGuard { seed, is_full };
        let before = tally.failures();
        let mut chaos = ChaosRun::start(seed).await;
        match is_full {
            true => chaos.run(CONTINUITY.to_vec(), CONTINUITY_TIME).await,
            false => chaos.run(CONTINUITY[..8].to_vec(), Duration::ZERO).await,
        }
        chaos.tally_continuity(&mut tally);
        match is_full {
            true => {
                for _ in 0..rounds {
                    chaos.run(everything(), EVERYTHING_TIME).await;
                }
            }
            false => chaos.run(handful(seed), Duration::ZERO).await,
        }
        chaos.end(&mut tally).await;
        match before == tally.failures() {
            true => std::mem::forget(failing),
            false => drop(failing),
        }
    }
    let result = serde_json::to_string(&tally).unwrap();
    if let Some(path) = std::env::var_os("LAREDO_CHAOS_RESULT") {
        std::fs::write(path, format!("{result}\n")).unwrap();
    }
    eprintln!("{result}");
    assert_eq!(tally.failures(), 0, "{result}");
    if is_full {
        let least = (tally.faults / seeds.unwrap_or(1), tally.deltas, tally.rows_compared);
        assert!(least.0 >= 60 && least.1 >= 20 * tally.seeds && least.2 >= 10_000 * tally.seeds, "{result}");
    }
}

impl ChaosTally {
    /// Returns the number of broken promises.
    fn failures(&self) -> u64 {
        let loads = self.full_snapshots - self.full_snapshots_forced;
        self.unequal + self.unverified + loads + self.late + self.ended
    }
}

/// A guard that prints how to run a seed again, if it is dropped before the end.
struct SeedFailureGuard {
    seed: u64,
    is_full: bool,
}

impl Drop for SeedFailureGuard {
    fn drop(&mut self) {
        let variable = |name: &str| std::env::var(name).map(|value| format!("{name}={value} ")).unwrap_or_default();
        let (seed, bin, logs) = (self.seed, variable("LAREDO_TEST_PG_BIN"), env!("CARGO_TARGET_TMPDIR"));
        let again = match self.is_full {
            true => format!("{bin}./dev chaos --seeds 1 --first {seed}"),
            false => format!("{bin}LAREDO_CHAOS_FIRST={seed} cargo test --workspace --test proofs -- chaos"),
        };
        eprintln!("seed {seed} failed. To run it again: {again}\nThe servers' logs: {logs}/chaos-{seed}-*.log");
    }
}

struct ChaosRun {
    seed: u64,
    random: StdRng,
    workload: Workload,
    archive: ChaosArchiver,
    servers: [ServerProcess; 2],
    /// The proxy between each server and PostgreSQL.
    routes: [FaultProxy; 2],
    /// The file system of each server's folder, if one could be mounted.
    disks: [Option<SmallDisk>; 2],
    clients: Vec<ChaosClient>,
    copy: StorageCopy,
    cluster: Cluster,
    faults: u64,
    changes: u64,
    forks: u64,
    /// Recoveries that took too long, the longest recovery, and servers that ended by themselves.
    late: u64,
    slowest_recovery: Duration,
    ended: u64,
    /// True if the history has forked since the last comparison.
    has_forked: bool,
    /// True if changes need time to be noticed, after a change of a definition, of a history or of
    /// a folder.
    waits: bool,
    /// Streams of the first half that began with a full snapshot.
    loads_before: u64,
    /// Full snapshots by the logs of servers that have ended.
    logged_loads: LoggedLoads,
    rows_compared: u64,
    comparisons: i32,
    unequal: u64,
    started: Instant,
    /// The files of servers, clients and the archive's writer.
    folders: TempDir,
}

impl ChaosRun {
    async fn start(seed: u64) -> ChaosRun {
        let mut options = ClusterOptions::default().set("restore_command", "false").set("wal_keep_size", "512MB");
        options.hba.push(format!("host all {ROLE} 127.0.0.1/32 scram-sha-256"));
        let (mut cluster, folders) = (cluster_with(options), tempfile::tempdir().unwrap());
        create_tables(&cluster);
        cluster.psql(&format!("CREATE ROLE {ROLE} SUPERUSER REPLICATION LOGIN PASSWORD '{PASSWORD}'")).unwrap();
        let postgres = format!("127.0.0.1:{}", cluster.port());
        let routes = [FaultProxy::start(&postgres).await.unwrap(), FaultProxy::start(&postgres).await.unwrap()];
        let disks =
            [0, 1].map(|number| SmallDisk::mount(&folders.path().join(format!("disk-{number}")), "1500m").unwrap());
        let mut random = StdRng::seed_from_u64(seed);
        // In some runs, one server or both notice changes of definitions at once.
        let watch = [random.random_bool(0.3), random.random_bool(0.3)];
        if watch.contains(&true) {
            cluster.psql(laredo_postgres::ddl::INSTALL).unwrap();
        }
        let copy = cluster.copy_storage(StopMode::Fast).unwrap();
        let workload = Workload::start(&cluster.url("postgres"), seed, options_of_workload());
        let server = |number: usize| {
            let url = format!("postgresql://{ROLE}:{PASSWORD}@{}/postgres", routes[number].addr());
            let config = server_config(url, &folder_of(folders.path(), number), number, watch[number]);
            async move { config.start().await }
        };
        let mut servers = [server(0).await, server(1).await];
        let ports = servers.each_ref().map(|server| server.ports.fanout);
        let first = random.random_range(0..TABLES.len());
        let clients = client::start_clients(first, ports, folders.path()).await;
        let archived = vec![TABLES[1 + first % 4].name(), tables()[random.random_range(0..tables().len())].clone()];
        let root = folders.path().join("archive");
        let archive = ChaosArchiver::start(archived, ports, &root).await;
        for (table, folder) in archive.folders(&root) {
            servers.iter_mut().for_each(|server| server.has_archive(&table, &folder));
        }
        let mut chaos = ChaosRun {
            seed,
            random,
            workload,
            archive,
            servers,
            routes,
            disks,
            clients,
            copy,
            cluster,
            faults: 0,
            changes: 0,
            forks: 0,
            late: 0,
            slowest_recovery: Duration::ZERO,
            ended: 0,
            has_forked: false,
            waits: false,
            loads_before: 0,
            logged_loads: LoggedLoads::default(),
            rows_compared: 0,
            comparisons: 0,
            unequal: 0,
            started: Instant::now(),
            folders,
        };
        // After this, every client has a position that both servers know, because it is not older
        // than their first copies.
        chaos.compare().await;
        chaos.copy = chaos.cluster.copy_storage(StopMode::Fast).unwrap();
        chaos
    }

    /// Inflicts each fault, in a random order, with work in between, evenly over the time.
    async fn run(&mut self, mut faults: Vec<ChaosFault>, time: Duration) {
        let started = Instant::now();
        faults.shuffle(&mut self.random);
        let count = u32::try_from(faults.len()).unwrap();
        for (number, fault) in (1..=count).zip(faults) {
            if self.unequal > 0 {
                return;
            }
            self.work().await;
            tokio::time::sleep_until(started + time * number / count).await;
            self.inflict(fault).await;
            self.faults += 1;
            self.count_ended().await;
            if (number as usize).is_multiple_of(COMPARE_EVERY) {
                self.compare().await;
            }
        }
        self.work().await;
        self.compare().await;
    }

    /// Counts servers that ended by themselves, and starts them again.
    async fn count_ended(&mut self) {
        for server in [0, 1] {
            if self.servers[server].process.wait(Duration::ZERO).await.is_ok() {
                self.ended += 1;
                self.log_event(&format!("server {server} has ended by itself"));
                self.start_again(server).await;
            }
        }
    }

    fn log_event(&self, what: &str) {
        let at = self.started.elapsed().as_secs_f32();
        eprintln!("seed {}, {at:.1} s, fault {}: {what}", self.seed, self.faults + 1);
    }

    fn write_log(&self, server: usize, name: &str, lines: &[String]) {
        let log = format!("{}/chaos-{}-server-{server}-{name}.log", env!("CARGO_TARGET_TMPDIR"), self.seed);
        std::fs::write(log, lines.join("\n")).unwrap();
    }

    /// Compares every client with the database while no session writes. Returns a position before
    /// the last commit of each table.
    async fn compare(&mut self) -> Lsn {
        self.comparisons += 1;
        self.has_forked = false;
        let mark = -10_000 - self.comparisons;
        let paused = self.workload.pause().await;
        let sql = self.cluster.connect().await.unwrap();
        let before: String = sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0);
        let statements = TABLES.iter().flat_map(|table| [table.fill(FILL), table.mark(mark)]);
        let touch = |name: &str| format!("UPDATE {name} SET v = v + 1 WHERE id = (SELECT min(id) FROM {name})");
        let statements = statements.chain(tables().into_iter().map(|table| touch(&table.quoted())));
        let transaction = format!("BEGIN; {}; COMMIT", statements.collect::<Vec<_>>().join("; "));
        sql.batch_execute(&transaction).await.unwrap();
        let position = flushed(&sql).await.unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        let (mut found, mut compared) = (String::new(), Vec::new());
        for (number, client) in self.clients.iter().enumerate() {
            let rows = rows_at_rest(&sql, &client.table, client.key, client.only.sql()).await.unwrap();
            self.rows_compared += rows.rows.len() as u64;
            let differences = client.differences(position, &rows, &self.clients, (self.waits, deadline)).await;
            if !differences.is_empty() {
                self.unequal += 1;
                let _ = writeln!(found, "client {number}: {differences}\n{}", client.describe());
            }
            compared.push(rows);
        }
        // Nothing has changed since then, so clients that were equal must stay equal.
        let again = if found.is_empty() { compared.as_slice() } else { &[] };
        for (number, (client, rows)) in self.clients.iter().zip(again).enumerate() {
            let differences = client.differences_now(rows, &self.clients);
            if !differences.is_empty() {
                self.unequal += 1;
                let _ = writeln!(found, "client {number} no longer: {differences}\n{}", client.describe());
            }
        }
        if !found.is_empty() {
            eprintln!("seed {}, after {} faults, at {position}:\n{found}", self.seed, self.faults);
            for server in &self.servers {
                eprintln!("{:?}", server.get(server.ports.health, "/health/ready").await);
            }
        }
        self.workload.resume(paused);
        before.parse().unwrap()
    }

    /// Ends the half in which no client may receive a second full snapshot. Struct clients that
    /// name their snapshot are excepted. A truncate creates another definition, which they learn
    /// only with the next snapshot.
    fn tally_continuity(&mut self, tally: &mut ChaosTally) {
        let last = self.clients.len() - 1;
        self.servers.iter().for_each(|server| self.logged_loads.read(&server.process.output()));
        for (number, client) in self.clients.iter().enumerate() {
            let (full_snapshots, _) = client.streams();
            self.loads_before += full_snapshots;
            if full_snapshots > 1 && (client.is_ours() || number == last) {
                let again = full_snapshots - 1;
                let forced = if client.is_ours() { self.logged_loads.forced(&client.table).min(again) } else { 0 };
                let (seed, who) = (self.seed, client.describe());
                eprintln!("seed {seed}: loaded again {again} times, {forced} of them forced: {who}");
                tally.full_snapshots += again;
                tally.full_snapshots_forced += forced;
            }
            client.keep_copy();
        }
        // The last client resumes by position alone. A position says nothing about definitions, and
        // the servers would trust it after a change.
        let (loads, deltas) = self.clients.pop().map_or((0, 0), |client| client.streams());
        self.loads_before -= loads;
        tally.deltas += deltas;
        self.waits = true;
    }

    /// Verifies both servers and the archive, and ends everything.
    async fn end(mut self, tally: &mut ChaosTally) {
        // The servers have noticed everything by now. The archive still needs a commit after all of
        // it.
        let position = self.compare().await;
        self.archive.finish(position).await;
        for server in [0, 1] {
            let verified = self.servers[server].verify();
            tally.verified += verified.tables;
            tally.rows_verified += verified.rows;
            tally.clients_verified += verified.clients;
            tally.unverified += verified.failures.len() as u64;
            verified.failures.iter().for_each(|failure| eprintln!("seed {}: {failure}", self.seed));
            self.write_log(server, "last", &self.servers[server].process.output());
        }
        tally.seeds += 1;
        tally.faults += self.faults;
        tally.changes += self.changes;
        tally.forks += self.forks;
        tally.late += self.late;
        tally.slowest_recovery_s = tally.slowest_recovery_s.max(self.slowest_recovery.as_secs_f64());
        tally.ended += self.ended;
        tally.clients += self.clients.len() as u64;
        tally.rows_compared += self.rows_compared;
        tally.unequal += self.unequal;
        let streams: Vec<(u64, u64)> = self.clients.iter().map(ChaosClient::streams).collect();
        tally.full_snapshots_allowed += streams.iter().map(|(loads, _)| loads).sum::<u64>() - self.loads_before;
        tally.deltas += streams.iter().map(|(_, deltas)| deltas).sum::<u64>();
        self.workload.stop().await.unwrap();
    }
}

/// Returns the folder of a server, on the server's own disk.
fn folder_of(folders: &Path, number: usize) -> PathBuf {
    folders.join(format!("disk-{number}")).join("server")
}

fn slot_of(number: usize) -> String {
    format!("laredo_chaos_{number}")
}

/// Returns the configuration of a server with a journal and snapshots in a folder of its own.
fn server_config(url: String, folder: &Path, number: usize, has_trigger: bool) -> ServerProcessConfig {
    let path = |what: &str| serde_json::Value::from(folder.join(what).to_string_lossy());
    let keys = format!(
        "journal {{ max_entries = 1000000, max_bytes = 128MiB, store = local, store_config {{ path = {} }} }}
         snapshot {{ interval = 3s, store = local, retention {{ keep_count = 2 }}, store_config {{ path = {} }} }}",
        path("journal"),
        path("snapshots")
    );
    let mut config = serve_all(url).slot(&slot_of(number)).target(&keys);
    config.tables.extend(tables().into_iter().map(|table| (table, Vec::new())));
    config.arguments = ["--drain-grace", "600s"].map(str::to_owned).to_vec();
    if has_trigger {
        config.source += "\nddl.watch = trigger";
    }
    config
}

/// Returns options that tolerate missing tables and a database in recovery, which rejects writes.
fn options_of_workload() -> WorkloadOptions {
    let tolerated = vec![SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME, SqlState::READ_ONLY_SQL_TRANSACTION];
    WorkloadOptions { tolerated, ..WorkloadOptions::default() }
}
