//! The archive's writer, which follows two tables through a proxy of its own to the servers.

use std::path::Path;

use laredo_core::{Lsn, TableName};
use laredo_testkit::{FaultProxy, eventually};
use serde_json::{Value, json};

use super::client::FanoutPorts;
use crate::support::server::PATIENCE;
use crate::support::snapshotter::{SnapshotterProcess, table};

pub(super) struct ChaosArchiver {
    snapshotter: SnapshotterProcess,
    tables: Vec<TableName>,
    proxy: FaultProxy,
    ports: FanoutPorts,
    at: usize,
}

impl ChaosArchiver {
    pub(super) async fn start(tables: Vec<TableName>, ports: FanoutPorts, root: &Path) -> ChaosArchiver {
        let proxy = FaultProxy::start(format!("127.0.0.1:{}", ports[0])).await.unwrap();
        let keys = json!({ "diff": { "interval": "300ms" }, "snapshot": { "min_interval": "2s" } });
        let url = format!("http://{}", proxy.addr());
        let blocks: Vec<Value> = tables.iter().map(|name| table(&url, name, root, &keys)).collect();
        let snapshotter = SnapshotterProcess::launch(&blocks, &Value::Null, &[]);
        snapshotter.ready().await;
        ChaosArchiver { snapshotter, tables, proxy, ports, at: 0 }
    }

    /// Returns the tables, each with the folder of its manifest.
    pub(super) fn folders(&self, root: &Path) -> Vec<(TableName, std::path::PathBuf)> {
        self.tables.iter().map(|name| (name.clone(), root.join(&name.table))).collect()
    }

    /// Leads new connections to the other server, if they led to this one.
    pub(super) fn leave(&mut self, server: usize) {
        if self.at == server {
            self.at = 1 - server;
            self.proxy.retarget(format!("127.0.0.1:{}", self.ports[self.at]));
        }
    }

    pub(super) async fn restart_elsewhere(&mut self) {
        self.leave(self.at);
        self.snapshotter.restart().await;
    }

    /// Waits until the writer has a commit of each table after a position, and stops it. It then
    /// writes everything it has.
    pub(super) async fn finish(&self, position: Lsn) {
        let has_all = async || {
            let status = self.snapshotter.status().await;
            let reached = |table: &Value| table["position"].as_str().and_then(|text| text.parse::<Lsn>().ok());
            status.iter().all(|table| reached(table) > Some(position))
        };
        if eventually(PATIENCE, has_all).await.is_err() {
            panic!("the archive does not get beyond {position}: {:?}", self.snapshotter.status().await);
        }
        self.snapshotter.stop().await;
    }
}
