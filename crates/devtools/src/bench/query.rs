//! Rows looked up by key, over one connection and over many. The reference is Redis, which has the
//! same rows as hashes and is asked by its own load generator.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use laredo_testkit::{ChildProcess, Cluster, clean_command, free_port};
use serde_json::{Map, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::child::BenchmarkChild;
use super::parts::RequestTimesReport;
use super::report::{BenchmarkPair, BenchmarkReport, BetterDirection, figures};
use super::{BenchmarkSize, PATIENCE, fixture, print_progress};

/// The number of rows of the full size.
const ROWS: u64 = 500_000;
/// The numbers of connections, each with one request at a time, and the requests of all of them
/// together. The last one is the result.
const LOADS: [(u32, u64); 2] = [(1, 50_000), (64, 300_000)];
/// The interval at which a starting Redis is asked whether it answers.
const LOOK: Duration = Duration::from_millis(20);

/// The pairs of one number of connections.
#[derive(Default)]
struct LoadPairs {
    rates: Vec<BenchmarkPair>,
    p99: Vec<BenchmarkPair>,
}

pub(super) async fn run(options: BenchmarkSize) -> anyhow::Result<BenchmarkReport> {
    let rows = options.rows.unwrap_or(ROWS);
    ensure!(rows > 0, "--rows must be at least 1");
    let cluster = fixture::cluster()?;
    fixture::create_table(&cluster)?;
    print_progress(format!("filling the table and Redis with {rows} rows"));
    fixture::fill(&cluster, rows)?;
    let redis = RedisServer::start(&cluster, rows).await?;
    let server = fixture::BenchmarkServer::start(&cluster, None, "query = true")?;
    server.ready().await?;
    server.idle().await?;
    let mut loads: [LoadPairs; LOADS.len()] = Default::default();
    for number in 1..=options.pairs {
        for ((connections, requests), pairs) in LOADS.into_iter().zip(&mut loads) {
            let before = server.usage()?;
            let ours = server.run_while_alive(get_rows(&server, rows, connections, requests)).await?;
            let usage = server.usage()?;
            let reference = redis.load(rows, connections, requests).await?;
            print_progress(format!("pair {number}: {connections} connections: ours {ours}, reference {reference}"));
            let (cpu_s, peak_bytes) = (usage.cpu_s - before.cpu_s, usage.peak_bytes);
            let pair = |ours, reference| BenchmarkPair { ours, reference, cpu_s, peak_bytes };
            pairs.rates.push(pair(ours.per_second, reference.per_second));
            pairs.p99.push(pair(ours.p99_ms, reference.p99_ms));
        }
    }
    server.stop(&cluster).await?;
    let mut more = Map::new();
    more.insert("rows".to_owned(), rows.into());
    for ((connections, requests), pairs) in LOADS.into_iter().zip(&loads) {
        let (rates, p99) = (figures(&pairs.rates, BetterDirection::More), figures(&pairs.p99, BetterDirection::Less));
        let load = json!({ "requests": requests, "per_second": rates, "p99_ms": p99 });
        more.insert(format!("connections_{connections}"), load);
    }
    let [.., last] = loads;
    Ok(BenchmarkReport {
        bench: "query",
        unit: "requests/s",
        better: BetterDirection::More,
        pairs: last.rates,
        scaled: rows < ROWS,
        more,
    })
}

async fn get_rows(
    server: &fixture::BenchmarkServer,
    rows: u64,
    connections: u32,
    requests: u64,
) -> anyhow::Result<RequestTimesReport> {
    let (address, rows) = (server.grpc_address(), rows.to_string());
    let (connections, requests) = (connections.to_string(), requests.to_string());
    let arguments = ["--server", &address, "--rows", &rows, "--connections", &connections, "--requests", &requests];
    BenchmarkChild::start("get-rows", &arguments)?.next_report(PATIENCE).await
}

/// A Redis in memory alone, filled with the table's rows. The key of a row is its number minus one.
struct RedisServer {
    _process: ChildProcess,
    port: String,
    folder: TempDir,
}

impl RedisServer {
    async fn start(cluster: &Cluster, rows: u64) -> anyhow::Result<RedisServer> {
        let (folder, port) = (tempfile::tempdir()?, free_port()?.to_string());
        let mut command = clean_command("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(folder.path());
        let process = ChildProcess::spawn(command).context("starting redis-server")?;
        let redis = RedisServer { _process: process, port, folder };
        let answers = async {
            while redis.ask(&["PING"]).await.is_err() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, answers).await.context("redis-server does not answer")?;
        redis.fill(cluster).await?;
        let (size, fields) = (redis.ask(&["DBSIZE"]).await?, redis.ask(&["HLEN", "row:000000000000"]).await?);
        if size != rows.to_string() || fields != "8" {
            bail!("Redis has {size} rows of {fields} fields, not {rows} of 8");
        }
        Ok(redis)
    }

    /// Copies every row of the table, with each cell as PostgreSQL's text.
    async fn fill(&self, cluster: &Cluster) -> anyhow::Result<()> {
        // The load generator writes numbers from 0 on, with twelve digits.
        let commands = cluster.psql(
            r#"SELECT format('HSET row:%s id %s customer %s status %s amount %s quantity %s discount %s placed_at "%s" note "%s"',
                lpad((id - 1)::text, 12, '0'), id, customer, status, amount, quantity, discount, placed_at, note) FROM bench"#,
        )?;
        let file = self.folder.path().join("commands");
        tokio::fs::write(&file, format!("{}\n", commands.trim_end()).replace('\n', "\r\n")).await?;
        let input = std::fs::File::open(&file)?;
        let output = self.cli().arg("--pipe").stdin(input).output().await?;
        ensure!(output.status.success(), "filling Redis: {}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    /// Asks for random rows.
    async fn load(&self, rows: u64, connections: u32, requests: u64) -> anyhow::Result<RequestTimesReport> {
        let output = Command::new("redis-benchmark")
            .args(["-p", &self.port, "-c", &connections.to_string(), "-n", &requests.to_string()])
            .args(["-r", &rows.to_string(), "--csv", "HGETALL", "row:__rand_int__"])
            .stdin(Stdio::null())
            .output()
            .await
            .context("starting redis-benchmark")?;
        ensure!(output.status.success(), "redis-benchmark: {}", String::from_utf8_lossy(&output.stderr));
        times_of_csv(&String::from_utf8_lossy(&output.stdout))
    }

    /// Returns Redis's answer to a command.
    async fn ask(&self, command: &[&str]) -> anyhow::Result<String> {
        let output = self.cli().args(command).stdin(Stdio::null()).output().await.context("starting redis-cli")?;
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(output.status.success(), "redis-cli: {answer}");
        Ok(answer)
    }

    fn cli(&self) -> Command {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port]);
        command
    }
}

/// Reads the two lines that `redis-benchmark --csv` writes: the names of the columns, and a row.
fn times_of_csv(csv: &str) -> anyhow::Result<RequestTimesReport> {
    let mut lines = csv.lines().map(|line| line.split(',').map(|field| field.trim_matches('"')));
    let (names, values) = (lines.next().context("no header")?, lines.next().context("no figures")?);
    let columns: Vec<(&str, &str)> = names.zip(values).collect();
    let value = |wanted: &str| -> anyhow::Result<f64> {
        let found = columns.iter().find(|(name, _)| *name == wanted);
        let (_, value) = found.with_context(|| format!("redis-benchmark has no column {wanted}: {csv}"))?;
        value.parse().with_context(|| format!("{wanted} of redis-benchmark is {value:?}"))
    };
    Ok(RequestTimesReport {
        per_second: value("rps")?,
        p50_ms: value("p50_latency_ms")?,
        p99_ms: value("p99_latency_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_redis_are_found_by_the_names_of_their_columns() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\
            \"p99_latency_ms\",\"max_latency_ms\"\n\
            \"HGETALL row:__rand_int__\",\"68027.21\",\"0.375\",\"0.112\",\"0.367\",\"0.503\",\"0.607\",\"1.135\"\n";
        let times = times_of_csv(csv).unwrap();
        assert_eq!((times.per_second, times.p50_ms, times.p99_ms), (68027.21, 0.367, 0.607));
        assert!(times_of_csv("ERROR: no server\n").is_err());
        let error = times_of_csv("\"test\",\"rps\"\n\"HGETALL\",\"fast\"\n").unwrap_err();
        assert_eq!(error.to_string(), "rps of redis-benchmark is \"fast\"");
    }
}
