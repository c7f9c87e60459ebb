//! A client of the chaos, and its own way to the servers.

use std::path::{Path, PathBuf};

use laredo_client::{Replica, Status};
use laredo_core::Lsn;
use laredo_testkit::oracle::Rows;
use laredo_testkit::workload::{TABLES, WorkloadTable};
use laredo_testkit::{Proxy, eventually};

use crate::support::compare::{struct_differences, view_differences};
use crate::support::fleet::Only;
use crate::support::server::PATIENCE;
use crate::support::simple::SimpleClient;

/// Where the two servers serve.
pub(super) type Ports = [u16; 2];

pub(super) struct Client {
    pub(super) table: &'static WorkloadTable,
    pub(super) only: Only,
    proxy: Proxy,
    ports: Ports,
    at: usize,
    kind: Kind,
}

enum Kind {
    /// One of ours, which keeps a local snapshot.
    Ours {
        replica: Option<Replica>,
        snapshot: PathBuf,
        ended: Streams,
    },
    Simple(SimpleClient),
}

/// Streams that began with a full snapshot, and that went on.
#[derive(Clone, Debug, Default)]
struct Streams {
    full_snapshots: u64,
    deltas: u64,
    reasons: Vec<String>,
}

/// Four of ours with different filters on four tables from the `first` on, and one that knows Structs only, on the first of them.
pub(super) async fn all(first: usize, ports: Ports, folder: &Path) -> Vec<Client> {
    let mut clients = Vec::new();
    for (number, only) in [Only::All, Only::Category, Only::Prefix, Only::OneOf].into_iter().enumerate() {
        let table = &TABLES[(first + number) % TABLES.len()];
        let proxy = proxy(ports, number % 2).await;
        let snapshot = folder.join(format!("client-{number}"));
        let replica = start(&proxy, table, only, &snapshot);
        let kind = Kind::Ours { replica: Some(replica), snapshot, ended: Streams::default() };
        clients.push(Client { table, only, proxy, ports, at: number % 2, kind });
    }
    let (table, only, proxy) = (&TABLES[first], Only::All, proxy(ports, 0).await);
    let simple = SimpleClient::start(&url(&proxy), &table.name(), table.key, only.wire());
    clients.push(Client { table, only, proxy, ports, at: 0, kind: Kind::Simple(simple) });
    clients
}

async fn proxy(ports: Ports, at: usize) -> Proxy {
    Proxy::start(format!("127.0.0.1:{}", ports[at])).await.unwrap()
}

fn url(proxy: &Proxy) -> String {
    format!("http://{}", proxy.addr())
}

fn start(proxy: &Proxy, table: &WorkloadTable, only: Only, snapshot: &Path) -> Replica {
    let builder = Replica::builder(url(proxy), table.name()).client_id("chaos").seed(1);
    let builder = only.predicate().into_iter().fold(builder, laredo_client::ReplicaBuilder::filter);
    let interval = std::time::Duration::from_millis(500);
    builder.local_snapshot_path(snapshot).local_snapshot_interval(interval).start().unwrap()
}

impl Client {
    /// The server that new connections lead to.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// From now on new connections lead there.
    pub(super) fn go_to(&mut self, server: usize) {
        self.at = server;
        self.proxy.retarget(format!("127.0.0.1:{}", self.ports[server]));
    }

    pub(super) fn cut(&self) {
        self.proxy.cut_all();
    }

    /// Ends it and starts it again with what it has kept. One that has kept nothing yet is not killed.
    pub(super) async fn restart(&mut self, orderly: bool) {
        let Kind::Ours { replica, snapshot, ended } = &mut self.kind else { return };
        let was = replica.take().expect("it is there between two restarts");
        if orderly || !snapshot.exists() {
            was.stop().await;
        }
        ended.add(&was.status());
        drop(was);
        *replica = Some(start(&self.proxy, self.table, self.only, snapshot));
    }

    /// What differs from the database's rows once it has come to `position`, where the marked row is.
    pub(super) async fn differences(&self, position: Lsn, mark: i32, rows: &Rows, of_same_table: &Client) -> String {
        match &self.kind {
            Kind::Ours { replica, .. } => {
                let replica = replica.as_ref().expect("it is there between two restarts");
                let reached = eventually(PATIENCE, async || replica.view().position() >= position).await;
                match reached {
                    Ok(()) => view_differences(&replica.view(), rows, self.table.key),
                    Err(_) => format!("does not reach {position}"),
                }
            }
            Kind::Simple(simple) => {
                let Kind::Ours { replica: Some(replica), .. } = &of_same_table.kind else {
                    return "there is no other client of its table".to_owned();
                };
                let differences = || {
                    let state = simple.state();
                    match state.rows.values().any(|row| row.get("n") == Some(&mark.into())) {
                        true => struct_differences(&state.rows, rows, replica.view().schema(), self.table.key),
                        false => format!("does not see the mark {mark}"),
                    }
                };
                // It knows nothing of transactions: the mark may come before other rows.
                let _ = eventually(PATIENCE, async || differences().is_empty()).await;
                let violations = simple.state().violations.first().cloned().unwrap_or_default();
                differences() + &violations
            }
        }
    }

    /// Streams that began with a full snapshot, and that went on where it was.
    pub(super) fn streams(&self) -> (u64, u64) {
        match &self.kind {
            Kind::Ours { replica, ended, .. } => {
                let mut streams = ended.clone();
                replica.iter().for_each(|replica| streams.add(&replica.status()));
                (streams.full_snapshots, streams.deltas)
            }
            Kind::Simple(simple) => {
                let state = simple.state();
                (state.snapshots.into(), state.deltas.into())
            }
        }
    }

    pub(super) fn describe(&self) -> String {
        let who = format!("{} ({:?}) at server {}", self.table.name(), self.only, self.at);
        match &self.kind {
            Kind::Ours { replica, ended, .. } => {
                format!("{who}: {:?}, before: {ended:?}", replica.as_ref().map(Replica::status))
            }
            Kind::Simple(simple) => {
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

impl Streams {
    fn add(&mut self, status: &Status) {
        self.full_snapshots += status.full_snapshots;
        self.deltas += status.connects - status.full_snapshots;
        self.reasons.push(status.reason.clone());
    }
}
