//! Outages: a resource of a server is unavailable for a moment and then returns. No server is
//! restarted. The time from the end of an outage until both servers show the newest commit in every
//! table is measured.

use std::time::Duration;

use laredo_core::Lsn;
use laredo_testkit::oracle::flushed;
use laredo_testkit::{StopMode, eventually};
use rand::Rng as _;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::time::Instant;

use super::ChaosRun;
use crate::support::server::PATIENCE;

/// The longest time from the end of an outage until everything is served again.
pub(super) const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// The duration of an outage.
const OUTAGE: Duration = Duration::from_secs(2);
/// The role that the servers connect as, and its password.
pub(super) const ROLE: &str = "laredo";
pub(super) const PASSWORD: &str = "first";

/// A resource that is unavailable for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResourceOutage {
    /// The role has another password.
    Password,
    /// The role may not log in.
    Login,
    /// The role carries settings that break sessions which do not override them.
    RoleSettings,
    /// PostgreSQL is stopped.
    Postgres(StopMode),
    /// The proxy from one server to PostgreSQL is closed.
    RouteClosed,
    /// The proxy from one server to PostgreSQL swallows every byte.
    RouteStalled,
    /// The publication has another name.
    Publication,
    /// A table of the workload is locked.
    Lock,
    /// The slot of one server is dropped, and does not return by itself.
    Slot,
    /// The limit of open files of one server is zero.
    Descriptors,
    /// The process of one server is frozen.
    Frozen,
    /// The disk of one server's folder is full.
    Disk,
}

/// All outages.
pub(super) const OUTAGES: [ResourceOutage; 12] = [
    ResourceOutage::Password,
    ResourceOutage::Login,
    ResourceOutage::RoleSettings,
    ResourceOutage::Postgres(StopMode::Fast),
    ResourceOutage::RouteClosed,
    ResourceOutage::RouteStalled,
    ResourceOutage::Publication,
    ResourceOutage::Lock,
    ResourceOutage::Slot,
    ResourceOutage::Descriptors,
    ResourceOutage::Frozen,
    ResourceOutage::Disk,
];

impl ChaosRun {
    /// Begins and ends an outage, and measures the recovery.
    pub(super) async fn suffer(&mut self, outage: ResourceOutage) {
        let server = self.random.random_range(0..2);
        self.log_event(&format!("outage {outage:?}, of server {server} where it concerns one"));
        match outage {
            ResourceOutage::Password => {
                self.with_role("PASSWORD 'another'", &format!("PASSWORD '{PASSWORD}'")).await;
            }
            ResourceOutage::Login => self.with_role("NOLOGIN", "LOGIN").await,
            ResourceOutage::RoleSettings => self.with_role_settings().await,
            ResourceOutage::Postgres(mode) => {
                self.cluster.stop(mode).unwrap();
                tokio::time::sleep(OUTAGE).await;
                self.cluster.restart().unwrap();
            }
            ResourceOutage::RouteClosed => {
                self.routes[server].refuse(true);
                self.routes[server].cut_all();
                self.endure().await;
                self.routes[server].refuse(false);
            }
            ResourceOutage::RouteStalled => {
                self.routes[server].stall(true);
                self.endure().await;
                self.routes[server].stall(false);
            }
            ResourceOutage::Publication => {
                self.cluster.psql("ALTER PUBLICATION laredo_test_pub RENAME TO laredo_test_away").unwrap();
                self.endure().await;
                self.return_publication();
            }
            ResourceOutage::Lock => {
                let session = self.cluster.connect().await.unwrap();
                session.batch_execute("BEGIN; LOCK TABLE work.by_index IN ACCESS EXCLUSIVE MODE").await.unwrap();
                // The workload waits for the lock as well.
                tokio::time::sleep(OUTAGE).await;
                session.batch_execute("COMMIT").await.unwrap();
            }
            ResourceOutage::Slot => self.drop_slot(server).await,
            ResourceOutage::Descriptors => self.without_descriptors(server).await,
            ResourceOutage::Frozen => {
                self.servers[server].process.freeze();
                self.endure().await;
                self.servers[server].process.thaw();
            }
            ResourceOutage::Disk => self.with_full_disk(server).await,
        }
        self.recover(outage).await;
    }

    /// Lets the workload and the other tables continue during an outage.
    async fn endure(&mut self) {
        self.work().await;
        tokio::time::sleep(OUTAGE).await;
    }

    async fn with_role(&mut self, change: &str, back: &str) {
        self.cluster.psql(&format!("ALTER ROLE {ROLE} {change}")).unwrap();
        self.end_sessions();
        self.endure().await;
        self.cluster.psql(&format!("ALTER ROLE {ROLE} {back}")).unwrap();
    }

    async fn with_role_settings(&mut self) {
        const SETTINGS: [(&str, &str); 5] = [
            ("statement_timeout", "'1ms'"),
            ("lock_timeout", "'1ms'"),
            ("idle_in_transaction_session_timeout", "'1ms'"),
            ("default_transaction_read_only", "on"),
            ("search_path", "'nowhere'"),
        ];
        for (name, value) in SETTINGS {
            self.cluster.psql(&format!("ALTER ROLE {ROLE} SET {name} = {value}")).unwrap();
        }
        self.end_sessions();
        self.endure().await;
        self.cluster.psql(&format!("ALTER ROLE {ROLE} RESET ALL")).unwrap();
    }

    fn end_sessions(&self) {
        let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'");
        self.cluster.psql(&end).unwrap();
    }

    /// Gives the publication its name back, unless a server has created it again meanwhile.
    fn return_publication(&self) {
        if self.cluster.psql("ALTER PUBLICATION laredo_test_away RENAME TO laredo_test_pub").is_err() {
            self.cluster.psql("DROP PUBLICATION laredo_test_away").unwrap();
        }
    }

    /// Drops the slot between two uses of it.
    async fn drop_slot(&mut self, server: usize) {
        let slot = super::slot_of(server);
        let end =
            format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'");
        let drop =
            format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'");
        let dropped = async || self.cluster.psql(&end).is_ok() && self.cluster.psql(&drop).is_ok();
        eventually(PATIENCE, dropped).await.unwrap();
        self.endure().await;
    }

    async fn without_descriptors(&mut self, server: usize) {
        let process = Pid::from_raw(self.servers[server].process.id().try_into().unwrap());
        // The test started the server, so both have the same hard limit.
        let none = Rlimit { current: Some(0), maximum: getrlimit(Resource::Nofile).maximum };
        let before = prlimit(process, Resource::Nofile, none);
        let before = before.unwrap_or_else(|error| panic!("the limit of server {server} cannot be changed: {error}"));
        self.endure().await;
        prlimit(process, Resource::Nofile, before).unwrap();
    }

    async fn with_full_disk(&mut self, server: usize) {
        let Some(disk) = &self.disks[server] else {
            return self.log_event("left out: no disk of its own could be mounted (run the test as root)");
        };
        let filler = disk.fill().unwrap();
        self.endure().await;
        drop(filler);
    }

    /// Waits until both servers show a commit after the outage in every table. Counts a recovery
    /// that took too long.
    async fn recover(&mut self, outage: ResourceOutage) {
        let (began, position) = (Instant::now(), self.commit_everywhere().await);
        let recovered = async || {
            for server in &self.servers {
                if !server.is_live_at(position).await {
                    return false;
                }
            }
            true
        };
        if eventually(PATIENCE, recovered).await.is_err() {
            for server in &self.servers {
                eprintln!("{:#?}", server.get(server.ports.health, "/health/ready").await);
            }
            panic!("seed {}: no recovery from {outage:?} within {} s", self.seed, PATIENCE.as_secs());
        }
        let took = began.elapsed();
        self.slowest_recovery = self.slowest_recovery.max(took);
        if took > RECOVERY_LIMIT {
            self.late += 1;
            self.log_event(&format!("the recovery from {outage:?} took {:.1} s", took.as_secs_f32()));
        }
    }

    /// Commits a change of every table, and returns a position after it.
    async fn commit_everywhere(&mut self) -> Lsn {
        self.work().await;
        let sql = self.cluster.connect().await.unwrap();
        flushed(&sql).await.unwrap()
    }
}
