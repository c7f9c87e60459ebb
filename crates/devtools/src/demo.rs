//! A private PostgreSQL, a table with a steady workload, the server, two client processes, and an
//! archive.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use laredo_testkit::{ChildProcess, Cluster, ClusterOptions, clean_command, free_port};
use tokio::time::Instant;

mod archive;
mod client;
mod client_process;
mod database;
mod verify;

pub use client::{DemoClientArguments, run as run_client};

use crate::percentile::percentile;
use crate::programs::program;
use archive::DemoArchiver;
use client_process::{DemoClientProcess, FinalClientReport};
use database::DemoWorkloadEnd;

/// The table of the demo.
const TABLE: &str = "public.orders";

/// The name, the filter and the same filter as SQL of each client.
const CLIENTS: [(&str, &str, &str); 2] =
    [("open-orders", "status=open", "status = 'open'"), ("europe", "region^=eu-", "region LIKE 'eu-%'")];

/// Runs the demo for some seconds, or until Ctrl-C, which ends it without a comparison.
///
/// # Errors
/// When a process could not be started or failed, or the rows of a client or of the archive differ
/// from the database's.
pub async fn run(seconds: Option<u64>, rate: u32) -> anyhow::Result<()> {
    tokio::select! {
        // The first branch, so that Ctrl-C is handled before any process is started.
        biased;
        // The other branch is dropped, which ends its processes.
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        ended = run_to_end(seconds, rate) => ended,
    }
}

async fn run_to_end(seconds: Option<u64>, rate: u32) -> anyhow::Result<()> {
    let started = async { anyhow::Ok(Cluster::start(ClusterOptions::default())?) };
    let cluster = timed("starting a private PostgreSQL", started).await?;
    timed("creating the sample table", database::create(&cluster)).await?;
    let folder = tempfile::tempdir()?;
    let started = start_server(&cluster, folder.path());
    let DemoServer { process: server, address, oam } =
        timed("starting laredo-server, which copies the table", started).await?;
    let mut clients = Vec::new();
    for (id, filter, sql) in CLIENTS {
        clients.push((DemoClientProcess::start(id, filter, &address).context("starting a client process")?, sql));
    }
    let started = DemoArchiver::start(&address, folder.path());
    let archiver = timed("starting laredo-snapshotter, which writes a snapshot", started).await?;
    print_addresses(&cluster, &server, &address, &archiver)?;
    let workload = database::DemoWorkload::start(&cluster, rate).await?;
    let deadline = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    print_progress(&mut clients, &archiver, &workload, deadline).await?;
    let DemoWorkloadEnd { before_last, position } = workload.stop(&cluster).await.context("stopping the workload")?;
    let verified = timed("laredo verify", verify::run(&oam, &address, archiver.folder())).await?;
    let mut finals = Vec::new();
    for (client, sql) in &mut clients {
        let rows_file = folder.path().join(client.id());
        let last = client.finish(position, &rows_file).await?;
        let rows = client::read_rows(&std::fs::read(&rows_file)?).context("reading a client's rows")?;
        let equal = same_rows(&cluster, &format!("orders WHERE {sql}"), rows).await?;
        finals.push((last, equal));
    }
    let archive = timed("rebuilding the table from the archive", archiver.finish(&cluster, before_last)).await?;
    server.terminate();
    let equal = archive.equal && verified.equal && finals.iter().all(|(_, equal)| *equal);
    println!("{}", verdict(finals.into_iter().map(|(last, _)| last), &archive, &verified, equal)?);
    if !equal {
        bail!("a table of the server, of a client or of the archive differs from the database's");
    }
    Ok(())
}

/// Runs a step, and prints how long it took.
async fn timed<T>(name: &str, step: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let start = Instant::now();
    let made = step.await.with_context(|| name.to_owned())?;
    println!("==> {name}: ok, {:.1} s", start.elapsed().as_secs_f64());
    Ok(made)
}

fn verdict(
    finals: impl Iterator<Item = FinalClientReport>,
    archive: &archive::DemoArchiveReport,
    verified: &verify::DemoVerification,
    equal: bool,
) -> serde_json::Result<String> {
    let (mut rows, mut changes, mut clients, mut lags) = (0, 0, 0, Vec::new());
    for last in finals {
        rows += last.rows;
        changes += last.changes;
        clients += 1;
        lags.extend(last.lags_ms);
    }
    let p50 = percentile(&mut lags, 0.5);
    let p99 = percentile(&mut lags, 0.99);
    let (archive, verified) = (serde_json::to_string(archive)?, &verified.answer);
    Ok(format!(
        r#"{{"rows":{rows},"changes":{changes},"clients":{clients},"equal":{equal},"lag_ms_p50":{p50:.2},"lag_ms_p99":{p99:.2},"archive":{archive},"verify":{verified}}}"#
    ))
}

/// The server's process, and the addresses for clients and for operators.
struct DemoServer {
    process: ChildProcess,
    address: String,
    oam: String,
}

async fn start_server(cluster: &Cluster, folder: &Path) -> anyhow::Result<DemoServer> {
    let (grpc, fanout, health, metrics) = (free_port()?, free_port()?, free_port()?, free_port()?);
    let config = format!(
        r#"sources {{ demo {{ type = postgresql, connection = "{}", slot_mode = ephemeral
                  publication {{ name = demo_pub, create = true }} }} }}
tables = [{{ source = demo, schema = public, table = orders
             targets = [{{ type = replication-fanout, grpc {{ port = {fanout}, max_clients = 500 }} }}] }}]
grpc {{ port = {grpc}, address = "127.0.0.1" }}
fanout.grpc.address = "127.0.0.1"
health {{ http_port = {health}, address = "127.0.0.1" }}
observability {{ metrics {{ port = {metrics} }} }}
"#,
        cluster.url("postgres")
    );
    let path = folder.join("laredo.conf");
    std::fs::write(&path, config)?;
    let mut command = clean_command(program("laredo-server")?);
    command.arg("--config").arg(&path);
    let server = ChildProcess::spawn(command)?;
    server.wait_for_line("table copied").await.map_err(|error| {
        anyhow::anyhow!("the server did not copy the table: {error}\n{}", server.output().join("\n"))
    })?;
    println!(
        "laredo-server: gRPC 127.0.0.1:{fanout}, http://127.0.0.1:{health}/health/ready, http://127.0.0.1:{metrics}/metrics"
    );
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    Ok(DemoServer { process: server, address: url(fanout), oam: url(grpc) })
}

fn print_addresses(
    cluster: &Cluster,
    server: &ChildProcess,
    address: &str,
    archiver: &DemoArchiver,
) -> anyhow::Result<()> {
    let laredo = program("laredo")?;
    // As short as the operator can write it.
    let here = std::env::current_dir()?;
    let laredo = laredo.strip_prefix(&here).unwrap_or(&laredo).display();
    println!("PostgreSQL:    psql '{}'   (look at {TABLE}; change a row and see it arrive)", cluster.url("postgres"));
    println!(
        "               process {} is the server; {} clients are processes of their own",
        server.id(),
        CLIENTS.len()
    );
    println!("live changes:  {laredo} tail {TABLE} --server {address}");
    println!("a replica:     cargo run --profile demo -p laredo-client --example follow -- {address}");
    println!("the archive:   {laredo} archive ls {}", archiver.folder().display());
    println!();
    Ok(())
}

/// Prints a line each second until the deadline.
async fn print_progress(
    clients: &mut [(DemoClientProcess, &str)],
    archiver: &DemoArchiver,
    workload: &database::DemoWorkload,
    deadline: Option<Instant>,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await;
    let mut commits = 0;
    loop {
        ticks.tick().await;
        let now = workload.commits();
        let mut line = format!("{:>5} commits/s", now - commits);
        commits = now;
        for (client, _) in clients.iter_mut() {
            line.push_str(&format!("   {}", client.latest()?));
        }
        line.push_str(&format!("   {}", archiver.line().await?));
        println!("{line}");
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(());
        }
    }
}

/// Compares rows byte by byte with those that the database has in a table or in a part of it.
async fn same_rows(cluster: &Cluster, from: &str, mut ours: Vec<Vec<u8>>) -> anyhow::Result<bool> {
    let mut theirs = database::rows(cluster, from).await?;
    ours.sort();
    theirs.sort();
    if ours != theirs {
        eprintln!("unequal: {} rows here, {} in the database's {from}", ours.len(), theirs.len());
    }
    Ok(ours == theirs && !theirs.is_empty())
}
