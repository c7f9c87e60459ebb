//! The setting of every benchmark: a private PostgreSQL, the table, and the server.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use laredo_testkit::{ChildProcess, Cluster, ClusterOptions, clean_command, free_port};
use tempfile::TempDir;

use super::PATIENCE;
use crate::programs::{program, send_request};

/// The table of every benchmark.
pub(super) const TABLE: &str = "public.bench";
/// The publication that laredo and the references read.
pub(super) const PUBLICATION: &str = "bench_pub";

/// A table with 8 columns of mixed types. The cells of a row have about 210 bytes. The row's number
/// determines its columns.
const SCHEMA: &str = "
    CREATE TABLE bench (id bigint PRIMARY KEY, customer uuid NOT NULL, status text NOT NULL, amount numeric(12,2) NOT NULL,
        quantity int NOT NULL, discount float8, placed_at timestamptz NOT NULL, note text NOT NULL);
    CREATE OR REPLACE FUNCTION bench_row(i bigint, round bigint) RETURNS SETOF bench LANGUAGE sql STABLE AS $$
        SELECT i, md5(i::text)::uuid, (ARRAY['open','paid','shipped'])[(1 + (i + round) % 3)::int],
            ((i % 1000000) / 100.0)::numeric(12,2), (round % 1000)::int, ((i % 7) / 7.0)::float8,
            timestamptz '2026-01-01' + i * interval '1 ms', repeat(md5(i::text), 4) || 'in transit, say 5d'
    $$;
    CREATE PUBLICATION bench_pub FOR TABLE bench";

/// A procedure that runs transactions of 1,000 changes: 500 inserts, 400 updates and 100 deletes.
/// The updates and deletes change the rows that the previous transaction inserted; the first 500
/// rows exist at the beginning. The last insert has the largest number.
const CHURN: &str = "
    CREATE PROCEDURE bench_churn(transactions bigint) LANGUAGE plpgsql AS $$ BEGIN
        FOR t IN 1..transactions LOOP
            DELETE FROM bench WHERE id > t * 500 - 500 AND id <= t * 500 - 400;
            UPDATE bench SET (status, quantity, placed_at) = ('returned', t % 1000, placed_at + interval '1 day')
                WHERE id > t * 500 - 400 AND id <= t * 500;
            INSERT INTO bench SELECT r.* FROM generate_series(t * 500 + 1, t * 500 + 500) i, bench_row(i, t) r;
            COMMIT;
        END LOOP;
    END $$";
/// The number of changes in each of those transactions.
pub(super) const CHURN_CHANGES: u64 = 1000;

/// Starts a PostgreSQL on disk that does not sync, so that the disk is not measured.
pub(super) fn cluster() -> anyhow::Result<Cluster> {
    let options = ClusterOptions { on_disk: true, ..ClusterOptions::default() };
    let settings = [
        ("shared_buffers", "2GB"),
        ("max_wal_size", "32GB"),
        ("checkpoint_timeout", "1h"),
        ("wal_sender_timeout", "0"),
        ("autovacuum", "off"),
    ];
    let options = settings.iter().fold(options, |options, (name, value)| options.set(name, value));
    Cluster::start(options).context("starting a private PostgreSQL")
}

/// Creates the table, new and empty.
pub(super) fn create_table(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.psql("DROP TABLE IF EXISTS bench CASCADE; DROP PUBLICATION IF EXISTS bench_pub")?;
    cluster.psql(SCHEMA)?;
    Ok(())
}

/// Inserts rows into the table.
pub(super) fn fill(cluster: &Cluster, rows: u64) -> anyhow::Result<()> {
    cluster.psql(&format!("INSERT INTO bench SELECT r.* FROM generate_series(1, {rows}) i, bench_row(i, 0) r"))?;
    cluster.psql("VACUUM (FREEZE, ANALYZE) bench; CHECKPOINT")?;
    Ok(())
}

/// Creates the table with its first rows, ready for [`churn`].
pub(super) fn create_churn(cluster: &Cluster) -> anyhow::Result<()> {
    create_table(cluster)?;
    cluster.psql(&format!("DROP PROCEDURE IF EXISTS bench_churn; {CHURN}"))?;
    fill(cluster, CHURN_CHANGES / 2)
}

/// The state after [`churn`].
pub(super) struct ChurnOutcome {
    /// The end of the WAL after the last transaction.
    pub(super) end: String,
    /// The last row of the last transaction.
    pub(super) last_id: i64,
    pub(super) rows: u64,
}

/// Makes the changes.
pub(super) fn churn(cluster: &Cluster, changes: u64) -> anyhow::Result<ChurnOutcome> {
    let transactions = changes / CHURN_CHANGES;
    let sql = format!("CALL bench_churn({transactions}); SELECT pg_current_wal_insert_lsn()");
    let end = cluster.psql(&sql).context("making changes")?;
    let count = cluster.psql("SELECT count(*), max(id) FROM bench")?;
    let (rows, last_id) = count.split_once('|').context("PostgreSQL did not answer two numbers")?;
    Ok(ChurnOutcome { end, last_id: last_id.parse()?, rows: rows.parse()? })
}

/// Returns `changes`, if it is a positive multiple of a thousand, the size of a transaction.
pub(super) fn whole_thousands(changes: u64) -> anyhow::Result<u64> {
    if changes == 0 || !changes.is_multiple_of(CHURN_CHANGES) {
        bail!("--changes must be whole thousands, not {changes}");
    }
    Ok(changes)
}

/// A running `laredo-server`.
pub(super) struct BenchmarkServer {
    process: ChildProcess,
    grpc: u16,
    fanout: u16,
    health: u16,
    folder: TempDir,
}

/// Starts the server with the configuration in a folder.
fn launch(folder: &Path) -> anyhow::Result<ChildProcess> {
    let mut command = clean_command(program("laredo-server")?);
    command.arg("--config").arg(folder.join(CONFIG));
    Ok(ChildProcess::spawn(command)?)
}

const CONFIG: &str = "laredo.conf";

/// The resources that a server has used so far.
pub(super) struct ServerResourceUsage {
    pub(super) cpu_s: f64,
    pub(super) peak_bytes: u64,
}

impl BenchmarkServer {
    /// Starts a server, which copies the table at once. `slot` names a permanent slot, and `target`
    /// has further keys of the fan-out.
    pub(super) fn start(cluster: &Cluster, slot: Option<&str>, target: &str) -> anyhow::Result<BenchmarkServer> {
        let (grpc, fanout, health, metrics) = (free_port()?, free_port()?, free_port()?, free_port()?);
        let slot =
            slot.map_or("slot_mode = ephemeral".to_owned(), |slot| format!("slot_mode = stateful, slot_name = {slot}"));
        let config = format!(
            r#"sources {{ bench {{ type = postgresql, connection = "{}", {slot}, publication {{ name = {PUBLICATION} }} }} }}
tables = [{{ source = bench, schema = public, table = bench
             targets = [{{ type = replication-fanout, grpc {{ port = {fanout} }}
             {target} }}] }}]
grpc {{ port = {grpc} }}
health {{ http_port = {health} }}
observability {{ metrics {{ port = {metrics} }}, logging {{ level = info }} }}
"#,
            cluster.url("postgres")
        );
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join(CONFIG), config)?;
        let process = launch(folder.path())?;
        Ok(BenchmarkServer { process, grpc, fanout, health, folder })
    }

    /// Kills the server and starts it again with the same configuration.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill9();
        self.process.wait(PATIENCE).await?;
        self.process = launch(self.folder.path())?;
        Ok(())
    }

    /// Returns the address for clients.
    pub(super) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.fanout)
    }

    /// Returns the address of the Query service.
    pub(super) fn grpc_address(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc)
    }

    /// Runs `work` while the server runs. An error, including the end of the server, has the end of
    /// its log.
    pub(super) async fn run_while_alive<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let done = tokio::select! {
            done = work => done,
            ended = self.process.wait(PATIENCE) => Err(anyhow::anyhow!("the server has ended: {ended:?}")),
        };
        done.with_context(|| self.log())
    }

    /// Returns the port of the fan-out.
    pub(super) fn port(&self) -> u16 {
        self.fanout
    }

    /// Returns the process, so that it can be frozen and thawed.
    pub(super) fn process(&self) -> &ChildProcess {
        &self.process
    }

    /// Waits until the server serves the table.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        self.run_while_alive(async {
            while !matches!(send_request(self.health, "GET /health/ready").await, Ok((200, _))) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })
        .await
    }

    /// Waits until the server is idle.
    pub(super) async fn idle(&self) -> anyhow::Result<()> {
        loop {
            let before = self.process.cpu_time()?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            if self.process.cpu_time()? - before <= Duration::from_millis(20) {
                return Ok(());
            }
        }
    }

    /// Returns the value of a Prometheus metric, summed over its labels.
    pub(super) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let (_, text) = send_request(self.health, "GET /metrics").await.context("asking the server for its metrics")?;
        let values = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
        let values: Vec<f64> = values.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        if values.is_empty() {
            bail!("the server has no metric {name}");
        }
        Ok(values.iter().sum())
    }

    /// Returns the resources that the server has used so far.
    pub(super) fn usage(&self) -> anyhow::Result<ServerResourceUsage> {
        let cpu_s = self.process.cpu_time()?.as_secs_f64();
        Ok(ServerResourceUsage { cpu_s, peak_bytes: self.process.peak_rss_bytes()? })
    }

    /// Returns the end of the server's log.
    fn log(&self) -> String {
        let lines = self.process.output();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Stops the server. Returns when it has ended and its replication connections are closed.
    pub(super) async fn stop(self, cluster: &Cluster) -> anyhow::Result<()> {
        self.process.terminate();
        if self.process.wait(Duration::from_secs(20)).await.is_err() {
            self.process.kill9();
        }
        drop(self);
        while cluster.psql("SELECT count(*) FROM pg_stat_replication")? != "0" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
