//! A journal sent to many clients at full rate. The reference is raw sockets that send the same
//! bytes from memory to as many readers.

use anyhow::{Context, bail};
use laredo_testkit::Cluster;
use serde_json::Map;
use tempfile::TempDir;

use super::child::BenchmarkChild;
use super::parts::{SenderPortReport, ThroughputReport};
use super::report::{BenchmarkPair, BenchmarkReport, BetterDirection, figures};
use super::{BenchmarkSize, PATIENCE, fixture, print_progress};

/// The number of changes of the full size: about 400 MB.
const CHANGES: u64 = 1_750_000;
/// The numbers of concurrent clients. The last one is the result.
const CLIENTS: [u32; 3] = [1, 10, 100];
/// The journal's settings. Everything stays in memory, because the disk is not measured.
const JOURNAL: &str = "journal { max_entries = 100000000, max_bytes = 16GiB, memory_max_bytes = 8GiB }";

pub(super) async fn run(options: BenchmarkSize) -> anyhow::Result<BenchmarkReport> {
    let changes = fixture::whole_thousands(options.changes.unwrap_or(CHANGES))?;
    let cluster = fixture::cluster()?;
    let fan = FanoutBenchmark::fill(&cluster, changes).await?;
    let mut pairs: [Vec<BenchmarkPair>; CLIENTS.len()] = Default::default();
    for number in 1..=options.pairs {
        for (clients, pairs) in CLIENTS.into_iter().zip(&mut pairs) {
            let pair = fan.pair(clients).await?;
            let (ours, reference) = (pair.ours, pair.reference);
            print_progress(format!(
                "pair {number}: {clients} clients: ours {ours:.0} MB/s, reference {reference:.0} MB/s"
            ));
            pairs.push(pair);
        }
    }
    // Checked again after all clients were served.
    fan.check_encoded(changes).await?;
    fan.server.stop(&cluster).await?;
    let mut more = Map::new();
    more.insert("changes".to_owned(), changes.into());
    more.insert("encoded".to_owned(), changes.into());
    more.insert("bytes".to_owned(), fan.bytes.into());
    for (clients, pairs) in CLIENTS.into_iter().zip(&pairs) {
        more.insert(format!("clients_{clients}"), figures(pairs, BetterDirection::More));
    }
    let [.., pairs] = pairs;
    Ok(BenchmarkReport {
        bench: "fanout",
        unit: "MB/s",
        better: BetterDirection::More,
        pairs,
        scaled: changes < CHANGES,
        more,
    })
}

/// A server with a filled journal, and the bytes that it sends to one client.
struct FanoutBenchmark {
    server: fixture::BenchmarkServer,
    position: String,
    /// The file with the bytes of a stream.
    stream: std::path::PathBuf,
    bytes: u64,
    _folder: TempDir,
}

impl FanoutBenchmark {
    async fn fill(cluster: &Cluster, changes: u64) -> anyhow::Result<FanoutBenchmark> {
        fixture::create_churn(cluster)?;
        let server = fixture::BenchmarkServer::start(cluster, None, JOURNAL)?;
        server.ready().await?;
        let position = cluster.psql("SELECT pg_current_wal_insert_lsn()")?;
        print_progress(format!("filling the journal with {changes} changes"));
        fixture::churn(cluster, changes)?;
        let folder = tempfile::tempdir()?;
        let stream = folder.path().join("stream");
        let mut fan = FanoutBenchmark { server, position, stream, bytes: 0, _folder: folder };
        while fan.server.metric("laredo_encoded_entries_total").await? < changes as f64 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        fan.server.idle().await?;
        fan.check_encoded(changes).await?;
        fan.bytes = fan.probe().await?;
        print_progress(format!("a client is sent {:.0} MB", fan.bytes as f64 / 1e6));
        Ok(fan)
    }

    /// Checks that every change was encoded once, however many clients there are.
    async fn check_encoded(&self, changes: u64) -> anyhow::Result<()> {
        let encoded = self.server.metric("laredo_encoded_entries_total").await?;
        if encoded != changes as f64 {
            bail!("{encoded} entries were encoded for {changes} changes");
        }
        Ok(())
    }

    /// Saves the bytes that one client receives.
    async fn probe(&self) -> anyhow::Result<u64> {
        let file = self.stream.to_str().context("a path in Unicode")?;
        let port = self.server.port().to_string();
        let arguments = ["--port", &port, "--position", &self.position, "--file", file];
        let mut client = BenchmarkChild::start("save-stream", &arguments)?;
        let saved: ThroughputReport = self.server.run_while_alive(client.next_report(PATIENCE)).await?;
        Ok(saved.bytes)
    }

    async fn pair(&self, clients: u32) -> anyhow::Result<BenchmarkPair> {
        let before = self.server.usage()?;
        let ours = self.server.run_while_alive(self.ours(clients)).await?;
        let usage = self.server.usage()?;
        let reference = self.reference(clients).await?;
        Ok(BenchmarkPair {
            ours: ours.bytes as f64 / 1e6 / ours.seconds,
            reference: reference.bytes as f64 / 1e6 / reference.seconds,
            cpu_s: usage.cpu_s - before.cpu_s,
            peak_bytes: usage.peak_bytes,
        })
    }

    async fn ours(&self, clients: u32) -> anyhow::Result<ThroughputReport> {
        let (port, clients, bytes) = (self.server.port().to_string(), clients.to_string(), self.bytes.to_string());
        let arguments = ["--port", &port, "--position", &self.position, "--clients", &clients, "--bytes", &bytes];
        BenchmarkChild::start("read-streams", &arguments)?.next_report(PATIENCE).await
    }

    async fn reference(&self, clients: u32) -> anyhow::Result<ThroughputReport> {
        let file = self.stream.to_str().context("a path in Unicode")?;
        let mut sender = BenchmarkChild::start("send-bytes", &["--file", file])?;
        let SenderPortReport { port } = sender.next_report(PATIENCE).await?;
        let (port, clients, bytes) = (port.to_string(), clients.to_string(), self.bytes.to_string());
        let arguments = ["--port", &port, "--clients", &clients, "--bytes", &bytes];
        BenchmarkChild::start("read-bytes", &arguments)?.next_report(PATIENCE).await
    }
}
