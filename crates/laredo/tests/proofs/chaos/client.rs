//! A client of the chaos test, with its own proxy to the servers.

use std::path::{Path, PathBuf};
use std::time::Instant;

use laredo_client::{Replica, ReplicaStatus};
use laredo_core::{Lsn, TableName};
use laredo_testkit::oracle::OracleRows;
use laredo_testkit::workload::TABLES;
use laredo_testkit::{FaultProxy, eventually};

use crate::support::compare::{struct_differences, view_differences};
use crate::support::definitions::{KEY, tables};
use crate::support::fleet::CategoryFilter;
use crate::support::simple::SimpleClient;

/// The fan-out ports of the two servers.
pub(super) type FanoutPorts = [u16; 2];

pub(super) struct ChaosClient {
    pub(super) table: TableName,
    pub(super) key: &'static [&'static str],
    pub(super) only: CategoryFilter,
    proxy: FaultProxy,
    ports: FanoutPorts,
    at: usize,
    kind: ChaosClientKind,
}

enum ChaosClientKind {
    /// A replica that keeps a local snapshot.
    Ours {
        replica: Option<Replica>,
        snapshot: PathBuf,
        ended: ClientStreamCounts,
    },
    Simple(SimpleClient),
}

/// The numbers of streams that began with a full snapshot, and of streams that resumed.
#[derive(Clone, Debug, Default)]
struct ClientStreamCounts {
    full_snapshots: u64,
    deltas: u64,
    reasons: Vec<String>,
}

/// Starts the clients. Four replicas with different filters follow four tables of the workload,
/// from the `first` on. One follows each table whose definition changes. Struct clients follow the
/// first table of the workload and two of the others. The last client, also on the first table,
/// resumes with its position alone.
pub(super) async fn start_clients(first: usize, ports: FanoutPorts, folder: &Path) -> Vec<ChaosClient> {
    let workload = [CategoryFilter::All, CategoryFilter::Category, CategoryFilter::Prefix, CategoryFilter::OneOf]
        .into_iter()
        .enumerate()
        .map(|(number, only)| {
            let table = &TABLES[(first + number) % TABLES.len()];
            (table.name(), table.key, only)
        });
    let others = tables();
    let ours = workload.chain(others.iter().map(|table| (table.clone(), KEY, CategoryFilter::All)));
    let mut clients = Vec::new();
    for (number, (table, key, only)) in ours.enumerate() {
        let proxy = proxy(ports, number % 2).await;
        let snapshot = folder.join(format!("client-{number}"));
        let replica = start(&proxy, &table, only, &snapshot);
        let kind = ChaosClientKind::Ours { replica: Some(replica), snapshot, ended: ClientStreamCounts::default() };
        clients.push(ChaosClient { table, key, only, proxy, ports, at: number % 2, kind });
    }
    let simple = [
        (TABLES[first].name(), TABLES[first].key),
        (others[first].clone(), KEY),
        (others[others.len() - 1 - first].clone(), KEY),
    ];
    for (number, (table, key)) in simple.into_iter().enumerate() {
        let (only, proxy) = (CategoryFilter::All, proxy(ports, number % 2).await);
        let simple = SimpleClient::start_naming_snapshots(&url(&proxy), &table, key, only.wire());
        clients.push(ChaosClient {
            table,
            key,
            only,
            proxy,
            ports,
            at: number % 2,
            kind: ChaosClientKind::Simple(simple),
        });
    }
    let (table, key, only, proxy) =
        (TABLES[first].name(), TABLES[first].key, CategoryFilter::All, proxy(ports, 0).await);
    let simple = SimpleClient::start(&url(&proxy), &table, key, only.wire());
    clients.push(ChaosClient { table, key, only, proxy, ports, at: 0, kind: ChaosClientKind::Simple(simple) });
    clients
}

async fn proxy(ports: FanoutPorts, at: usize) -> FaultProxy {
    FaultProxy::start(format!("127.0.0.1:{}", ports[at])).await.unwrap()
}

fn url(proxy: &FaultProxy) -> String {
    format!("http://{}", proxy.addr())
}

fn start(proxy: &FaultProxy, table: &TableName, only: CategoryFilter, snapshot: &Path) -> Replica {
    let builder = Replica::builder(url(proxy), table.clone()).client_id("chaos").seed(1);
    let builder = only.predicate().into_iter().fold(builder, laredo_client::ReplicaBuilder::filter);
    let interval = std::time::Duration::from_millis(500);
    builder.local_snapshot_path(snapshot).local_snapshot_interval(interval).start().unwrap()
}

impl ChaosClient {
    /// Returns the server that new connections lead to.
    pub(super) fn current_server(&self) -> usize {
        self.at
    }

    /// Leads new connections to this server from now on.
    pub(super) fn go_to(&mut self, server: usize) {
        self.at = server;
        self.proxy.retarget(format!("127.0.0.1:{}", self.ports[server]));
    }

    pub(super) fn cut(&self) {
        self.proxy.cut_all();
    }

    /// Returns true if the client is a replica, which keeps a local snapshot.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self.kind, ChaosClientKind::Ours { .. })
    }

    /// Copies the local snapshot for [`ChaosClient::restart_with_older`].
    pub(super) fn keep_copy(&self) {
        if let ChaosClientKind::Ours { snapshot, .. } = &self.kind
            && snapshot.exists()
        {
            std::fs::copy(snapshot, snapshot.with_extension("older")).unwrap();
        }
    }

    /// Stops the replica and starts it again with the copied local snapshot. Copies the present
    /// one.
    pub(super) async fn restart_with_older(&mut self) {
        if let ChaosClientKind::Ours { replica, snapshot, ended } = &mut self.kind {
            let was = replica.take().expect("it is there between two restarts");
            was.stop().await;
            ended.add(&was.status());
            drop(was);
            let (older, newer) = (snapshot.with_extension("older"), snapshot.with_extension("newer"));
            std::fs::rename(&*snapshot, &newer).unwrap();
            if older.exists() {
                std::fs::rename(&older, &*snapshot).unwrap();
            }
            std::fs::rename(&newer, &older).unwrap();
            *replica = Some(start(&self.proxy, &self.table, self.only, snapshot));
        }
    }

    /// Ends the replica and starts it again with its local snapshot. A replica without one is not
    /// killed.
    pub(super) async fn restart(&mut self, orderly: bool) {
        let ChaosClientKind::Ours { replica, snapshot, ended } = &mut self.kind else { return };
        let was = replica.take().expect("it is there between two restarts");
        if orderly || !snapshot.exists() {
            was.stop().await;
        }
        ended.add(&was.status());
        drop(was);
        *replica = Some(start(&self.proxy, &self.table, self.only, snapshot));
    }

    /// Returns the differences from the database's rows once the client has reached `position`. If
    /// changes or forks may still have to be noticed, waits until nothing differs.
    pub(super) async fn differences(
        &self,
        position: Lsn,
        rows: &OracleRows,
        all: &[ChaosClient],
        (waits, deadline): (bool, Instant),
    ) -> String {
        let reached = || match &self.kind {
            ChaosClientKind::Ours { replica: Some(replica), .. } => replica.view().position() >= position,
            ChaosClientKind::Ours { .. } | ChaosClientKind::Simple(_) => true,
        };
        // A Struct client knows nothing of transactions. CategoryFilter its rows show its progress.
        let waits = waits || !self.is_ours();
        let done = async || reached() && (!waits || self.differences_now(rows, all).is_empty());
        let _ = eventually(deadline.saturating_duration_since(Instant::now()), done).await;
        let place = if reached() { String::new() } else { format!("does not reach {position}\n") };
        place + &self.differences_now(rows, all)
    }

    /// Returns the differences from the database's rows now.
    pub(super) fn differences_now(&self, rows: &OracleRows, all: &[ChaosClient]) -> String {
        match &self.kind {
            ChaosClientKind::Ours { replica, .. } => {
                let replica = replica.as_ref().expect("it is there between two restarts");
                view_differences(&replica.view(), rows, self.key)
            }
            ChaosClientKind::Simple(simple) => {
                let of_table = all.iter().filter(|client| client.table == self.table);
                let replica = { of_table }.find_map(|client| match &client.kind {
                    ChaosClientKind::Ours { replica, .. } => replica.as_ref(),
                    ChaosClientKind::Simple(_) => None,
                });
                let Some(replica) = replica else { return "there is no other client of its table".to_owned() };
                let state = simple.state();
                let violations = state.violations.first().cloned().unwrap_or_default();
                struct_differences(&state.rows, rows, replica.view().schema(), self.key) + &violations
            }
        }
    }

    /// Returns the number of streams that began with a full snapshot, and of streams that resumed.
    pub(super) fn streams(&self) -> (u64, u64) {
        match &self.kind {
            ChaosClientKind::Ours { replica, ended, .. } => {
                let mut streams = ended.clone();
                replica.iter().for_each(|replica| streams.add(&replica.status()));
                (streams.full_snapshots, streams.deltas)
            }
            ChaosClientKind::Simple(simple) => {
                let state = simple.state();
                (state.snapshots.into(), state.deltas.into())
            }
        }
    }

    pub(super) fn describe(&self) -> String {
        let who = format!("{} ({:?}) at server {}", self.table, self.only, self.at);
        match &self.kind {
            ChaosClientKind::Ours { replica, ended, .. } => {
                format!("{who}: {:?}, before: {ended:?}", replica.as_ref().map(Replica::status))
            }
            ChaosClientKind::Simple(simple) => {
                let state = simple.state();
                format!(
                    "{who}, simple: at {} with {} rows, {} snapshots, {} deltas",
                    state.position,
                    state.rows.len(),
                    state.snapshots,
                    state.deltas
                )
            }
        }
    }
}

impl ClientStreamCounts {
    fn add(&mut self, status: &ReplicaStatus) {
        self.full_snapshots += status.full_snapshots;
        self.deltas += status.connects - status.full_snapshots;
        self.reasons.push(status.reason.clone());
    }
}
