//! The code that inflicts each fault.

use std::path::Path;
use std::process::Command;

use laredo_testkit::StopMode;
use laredo_testkit::oracle::flushed;
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use tokio_postgres::error::SqlState;

use super::ChaosRun;
use super::client::ChaosClient;
use super::fault::{ChaosFault, ChaosFork, FolderReplacement};
use crate::support::definitions::{ReversibleChange, tables};
use crate::support::fleet::{await_transactions, restart};
use crate::support::server::PATIENCE;

impl ChaosRun {
    pub(super) async fn inflict(&mut self, fault: ChaosFault) {
        match fault {
            ChaosFault::KillServer => {
                let (server, moves) = (self.random.random_range(0..2), self.random.random_bool(0.5));
                let clients = if moves { ", clients go to the other" } else { "" };
                self.log_event(&format!("kill -9 of server {server}{clients}"));
                self.kill(server, moves).await;
            }
            ChaosFault::KillBothServers => {
                self.log_event("kill -9 of both servers");
                self.kill(0, true).await;
                self.kill(1, false).await;
            }
            ChaosFault::Drain => self.drain().await,
            ChaosFault::Cut => {
                let client = self.any_client();
                self.log_event(&format!("connections of client {client} are cut"));
                self.clients[client].cut();
            }
            ChaosFault::Move => {
                let client = self.any_client();
                let to = 1 - self.clients[client].current_server();
                self.log_event(&format!("client {client} goes to server {to}"));
                self.clients[client].go_to(to);
                self.clients[client].cut();
            }
            ChaosFault::Postgres(mode) => {
                self.log_event(&format!("PostgreSQL is stopped ({mode:?}) and started"));
                restart(&mut self.cluster, mode);
            }
            ChaosFault::RestartClient => {
                let (client, orderly) = (self.any_of_ours(), self.random.random_bool(0.5));
                self.log_event(&format!(
                    "client {client} {} and starts again",
                    if orderly { "stops" } else { "is killed" }
                ));
                self.clients[client].restart(orderly).await;
            }
            ChaosFault::Redefine(change) => Box::pin(self.redefine(change)).await,
            ChaosFault::CopyStorage => {
                let mode = self.any_mode();
                self.log_event(&format!("PostgreSQL's storage is copied ({mode:?})"));
                self.copy = self.cluster.copy_storage(mode).unwrap();
            }
            ChaosFault::Fork(fork) => self.fork(fork).await,
            ChaosFault::ServerFolder(folder) => self.exchange_folder(folder).await,
            ChaosFault::ClientFolder => {
                let client = self.any_of_ours();
                self.log_event(&format!("client {client} starts again with an older local snapshot"));
                self.clients[client].restart_with_older().await;
            }
            ChaosFault::KillSnapshotter => {
                self.log_event("kill -9 of the archive's writer, which goes to the other server");
                self.archive.restart_elsewhere().await;
            }
            ChaosFault::Outage(outage) => Box::pin(self.suffer(outage)).await,
        }
    }

    fn any_client(&mut self) -> usize {
        self.random.random_range(0..self.clients.len())
    }

    /// Returns a client that keeps a local snapshot.
    fn any_of_ours(&mut self) -> usize {
        let ours: Vec<usize> = (0..self.clients.len()).filter(|number| self.clients[*number].is_ours()).collect();
        *ours.choose(&mut self.random).unwrap()
    }

    async fn kill(&mut self, server: usize, moves: bool) {
        self.servers[server].process.kill9();
        if moves {
            self.send_away(server);
        }
        self.start_again(server).await;
    }

    async fn drain(&mut self) {
        let server = self.random.random_range(0..2);
        self.log_event(&format!("server {server} is drained"));
        self.send_away(server);
        self.servers[server].process.terminate();
        let ended = self.servers[server].process.wait(PATIENCE).await;
        if ended.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return self.start_again(server).await;
        }
        let clients = self.clients.iter().map(ChaosClient::describe).collect::<Vec<_>>().join("\n");
        panic!("server {server} does not end: {ended:?}\n{clients}");
    }

    pub(super) async fn start_again(&mut self, server: usize) {
        let was = self.servers[server].relaunch().await;
        self.logged_loads.read(&was.output());
        self.write_log(server, &was.id().to_string(), &was.output());
    }

    /// Leads the new connections of a server's clients to the other server.
    fn send_away(&mut self, server: usize) {
        self.clients
            .iter_mut()
            .filter(|client| client.current_server() == server)
            .for_each(|client| client.go_to(1 - server));
        self.archive.leave(server);
    }

    /// Runs a change of definitions step by step, with rows written in between, and in some runs
    /// with another fault.
    async fn redefine(&mut self, change: &ReversibleChange) {
        const INTERRUPTIONS: [ChaosFault; 5] = [
            ChaosFault::KillServer,
            ChaosFault::Move,
            ChaosFault::Cut,
            ChaosFault::RestartClient,
            ChaosFault::Postgres(StopMode::Immediate),
        ];
        let steps = change.steps();
        let interrupted = self.random.random_bool(0.5).then(|| self.random.random_range(0..steps.len()));
        self.log_event(&format!("{} is changed and changed back in {} steps", change.tables.join(", "), steps.len()));
        for (number, step) in steps.iter().enumerate() {
            self.run_step(step);
            self.scribble(3).await;
            if interrupted == Some(number) {
                let fault = *INTERRUPTIONS.choose(&mut self.random).unwrap();
                eprint!("after step {}: ", number + 1);
                Box::pin(self.inflict(fault)).await;
            }
        }
        self.changes += 1;
    }

    /// Runs one step, and repeats it if it was the victim of a deadlock with the workload.
    fn run_step(&self, step: &str) {
        loop {
            match self.cluster.psql(step) {
                Ok(_) => return,
                Err(error) if error.to_string().contains("deadlock detected") => {}
                // A server that started in the middle has put the table back into the publication.
                Err(error) if error.to_string().contains("is already member of publication") => return,
                Err(error) => panic!("seed {}: {step}: {error}", self.seed),
            }
        }
    }

    /// Writes some rows of the tables whose definitions change, under their present names.
    pub(super) async fn scribble(&mut self, statements: usize) {
        let sql = self.cluster.connect().await.unwrap();
        for _ in 0..statements {
            let (table, number) = (tables().choose(&mut self.random).unwrap().quoted(), self.random.random_range(0..7));
            let statement = match self.random.random_range(0..3) {
                0 => format!("UPDATE {table} SET v = v + 1 WHERE id % 7 = {number}"),
                1 => format!("DELETE FROM {table} WHERE id = 90 + {number}"),
                _ => format!(
                    "INSERT INTO {table} (id, v) VALUES (90 + {number}, 0) ON CONFLICT (id) DO UPDATE SET v = -{number}"
                ),
            };
            // A table may be missing, or have no partition for the row.
            let tolerated = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME, SqlState::CHECK_VIOLATION];
            if let Err(error) = sql.batch_execute(&statement).await {
                assert!(error.code().is_some_and(|code| tolerated.contains(code)), "{statement}: {error:?}");
            }
        }
    }

    fn any_mode(&mut self) -> StopMode {
        if self.random.random_bool(0.5) { StopMode::Fast } else { StopMode::Immediate }
    }

    async fn fork(&mut self, fork: ChaosFork) {
        // A server without files that starts after a fork cannot know the abandoned history. A
        // client without commit marks cannot prove its own.
        for server in &self.servers {
            server.ready().await;
        }
        let mode = self.any_mode();
        match fork {
            ChaosFork::PutBack => {
                self.log_event(&format!("PostgreSQL's storage is put back ({mode:?})"));
                self.cluster.put_back(&self.copy, mode).unwrap();
            }
            ChaosFork::PromoteWhole => {
                self.log_event(&format!("a standby that has everything is promoted ({mode:?})"));
                self.cluster.begin_timeline(mode).unwrap();
            }
            ChaosFork::PromoteLacking => {
                self.log_event(&format!("a standby that lacks WAL is promoted ({mode:?})"));
                self.cluster.promote(&self.copy, mode).unwrap();
            }
            ChaosFork::RestoreToPoint => {
                self.copy = self.cluster.copy_storage(StopMode::Fast).unwrap();
                self.work().await;
                let sql = self.cluster.connect().await.unwrap();
                let point = flushed(&sql).await.unwrap();
                self.work().await;
                self.log_event(&format!("PostgreSQL is restored to {point} ({mode:?})"));
                self.cluster.restore_to(&self.copy, point, mode).unwrap();
            }
        }
        self.forks += u64::from(!matches!(fork, ChaosFork::PromoteWhole));
        self.has_forked = true;
    }

    async fn exchange_folder(&mut self, folder: FolderReplacement) {
        if std::mem::take(&mut self.has_forked) {
            // For the same reason: connected clients learn of the fork from a server that has seen
            // it.
            self.compare().await;
        }
        let server = self.random.random_range(0..2);
        let path = super::folder_of(self.folders.path(), server);
        if let FolderReplacement::Older = folder {
            // A server that has only just started has no folder yet.
            self.servers[server].ready().await;
            let older = path.with_extension("older");
            if !older.exists() {
                self.log_event(&format!("the folder of server {server} is copied while it is down"));
                self.stop_for_good(server).await;
                copy_folder(&path, &older);
                self.start_again(server).await;
                self.work().await;
            }
            self.log_event(&format!("server {server} starts again with an older copy of its folder"));
            self.stop_for_good(server).await;
            std::fs::remove_dir_all(&path).unwrap();
            std::fs::rename(&older, &path).unwrap();
        } else {
            self.log_event(&format!("server {server} starts again with its folder {folder:?}"));
            self.stop_for_good(server).await;
            let lost = if let FolderReplacement::Empty = folder { path } else { path.join("journal") };
            std::fs::remove_dir_all(lost).unwrap();
        }
        if self.random.random_bool(0.5) {
            self.send_away(server);
        }
        self.start_again(server).await;
    }

    async fn stop_for_good(&self, server: usize) {
        self.servers[server].process.kill9();
        self.servers[server].process.wait(PATIENCE).await.unwrap();
    }

    /// Lets the workload and the other tables continue for a moment.
    pub(super) async fn work(&mut self) {
        self.scribble(5).await;
        await_transactions(&self.workload, 20).await;
    }
}

fn copy_folder(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}
