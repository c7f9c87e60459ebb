//! Parts made from the configuration, run together, and stopped together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use laredo_core::CommitTime;
use laredo_engine::source::SourceError;
use laredo_engine::{Clock, Engine, EngineHandle};
use laredo_postgres::PostgresSource;
use laredo_server::{HttpOptions, Listeners, ServedTableOptions, Server, ServerOptions, TlsOptions, Waits};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::options;
use crate::config::ServerConfig;
use crate::config::server::{JournalStore, TableConfig};

/// Projections of one table that are kept for other clients who want the same rows.
const PROJECTION_BYTES_MAX: u64 = 64 << 20;

/// Why the server ended.
pub(super) enum Failure {
    /// What a person has to mend before it can start, each a sentence.
    Misconfigured(Vec<String>),
    /// What went wrong.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Failed(error)
    }
}

/// Runs until SIGTERM or SIGINT.
pub(super) async fn serve(config: &ServerConfig) -> Result<(), Failure> {
    let stop = stop_signal()?;
    let folder = std::env::temp_dir();
    let mut random = StdRng::from_os_rng();
    let clock: Clock = Arc::new(now);
    say_what_is_not_active(config);
    let tls = tls(config)?;
    let listeners = listen(config).await?;
    let engines = prepare(config, &folder, &mut random, &clock, stop.clone()).await?;
    let tables = config.tables.iter().filter_map(|table| {
        let engine = engines.get(&table.source)?;
        served(table, &engine.handle())
    });
    let options = ServerOptions {
        tables: tables.collect(),
        tls,
        http: HttpOptions {
            liveness_path: config.health.liveness_path.clone(),
            readiness_path: config.health.readiness_path.clone(),
            metrics_path: config.observability.metrics.path.clone(),
            ..HttpOptions::default()
        },
        waits: Waits::default(),
        clock,
    };
    run(engines, Server::new(options), listeners, stop).await
}

async fn run(
    engines: BTreeMap<String, Engine<PostgresSource>>,
    server: Server,
    listeners: Listeners,
    stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let mut parts: JoinSet<anyhow::Result<()>> = JoinSet::new();
    // The engines outlive the server, so that its streams end by its own word and not because their journals are gone.
    let (served, server_ended) = watch::channel(false);
    for (name, engine) in engines {
        let ended = server_ended.clone();
        parts.spawn(async move {
            engine.run(until(ended)).await.with_context(|| format!("source {name} cannot be followed any more"))
        });
    }
    parts.spawn(async move {
        let result = server.serve(listeners, until(stop)).await.context("serving");
        served.send_replace(true);
        result
    });
    while let Some(part) = parts.join_next().await {
        part.context("a part of the server")??;
    }
    Ok(())
}

/// Waits until it is true; a sender that is gone means the same.
async fn until(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}

/// Checks every source and its tables, and tells everything that is wrong at once.
async fn prepare(
    config: &ServerConfig,
    folder: &Path,
    random: &mut StdRng,
    clock: &Clock,
    stop: watch::Receiver<bool>,
) -> Result<BTreeMap<String, Engine<PostgresSource>>, Failure> {
    let (mut engines, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, source) in &config.sources {
        let tables: Vec<_> = config.tables.iter().filter(|table| table.source == *name).collect();
        let tables: Vec<_> = tables.into_iter().map(|table| options::table(table, folder, random)).collect();
        let postgres = match options::postgres(name, source, folder, random) {
            Ok(postgres) => postgres,
            Err(error) => {
                problems.push(format!("sources.{name}.connection: {error}"));
                continue;
            }
        };
        let mut backoff = postgres.reconnect.backoff_initial;
        loop {
            let source = PostgresSource::new(postgres.clone());
            match Engine::prepare(source, tables.clone(), clock.clone()).await {
                Ok(engine) => drop(engines.insert(name.clone(), engine)),
                Err(SourceError::Definite(sentences)) => {
                    problems.extend(sentences.into_iter().map(|sentence| format!("source {name}: {sentence}")));
                }
                Err(SourceError::Transient(error)) => {
                    tracing::warn!(source = name, error, wait_s = backoff.as_secs_f64(), "cannot reach the source yet");
                    tokio::select! {
                        () = tokio::time::sleep(backoff) => {}
                        () = until(stop.clone()) => return Err(Failure::Misconfigured(problems)),
                    }
                    backoff = backoff.mul_f64(postgres.reconnect.multiplier).min(postgres.reconnect.backoff_max);
                    continue;
                }
            }
            break;
        }
    }
    if problems.is_empty() { Ok(engines) } else { Err(Failure::Misconfigured(problems)) }
}

fn served(table: &TableConfig, engine: &EngineHandle) -> Option<ServedTableOptions> {
    let name = laredo_core::TableName::new(&table.schema, &table.table);
    let handle = engine.table(&name)?.clone();
    Some(ServedTableOptions {
        handle,
        source: engine.identity().clone(),
        clients_max: table.fanout.grpc.max_clients.map(|max| max as usize),
        buffer: options::buffer(&table.fanout),
        heartbeat_interval: table.fanout.heartbeat_interval,
        projection_bytes_max: PROJECTION_BYTES_MAX,
    })
}

fn say_what_is_not_active(config: &ServerConfig) {
    for table in &config.tables {
        let (name, fanout) = (format!("{}.{}", table.schema, table.table), &table.fanout);
        if matches!(fanout.journal.store, JournalStore::Durable(_)) {
            tracing::warn!(
                table = name,
                "journal.store: this version keeps the journal in memory and copies at each start"
            );
        }
        if fanout.snapshot.is_some() {
            tracing::warn!(table = name, "snapshot: this version does not write fan-out snapshots");
        }
        if fanout.archive.is_some() {
            tracing::warn!(table = name, "archive: this version does not write archives");
        }
        if fanout.grpc.max_clients.is_none() {
            tracing::info!(table = name, "clients without limit; set max_clients to have one");
        }
    }
}

async fn listen(config: &ServerConfig) -> Result<Listeners, Failure> {
    let mut ports: BTreeSet<u16> = config.tables.iter().map(|table| table.fanout.grpc.port).collect();
    ports.insert(config.grpc.port);
    let (mut grpc, mut problems) = (Vec::new(), Vec::new());
    for port in ports {
        bind(port, "gRPC").await.map(|listener| grpc.push(listener)).unwrap_or_else(|problem| problems.push(problem));
    }
    let health = bind(config.health.http_port, "health.http_port").await;
    let metrics = bind(config.observability.metrics.port, "observability.metrics.port").await;
    let mut keep = |bound: Result<TcpListener, String>| bound.map_err(|problem| problems.push(problem)).ok();
    let (health, metrics) = (keep(health), keep(metrics));
    if problems.is_empty() { Ok(Listeners { grpc, health, metrics }) } else { Err(Failure::Misconfigured(problems)) }
}

/// Listens on every address, IPv4 and IPv6 where the machine has both.
async fn bind(port: u16, what: &str) -> Result<TcpListener, String> {
    let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let bound = match TcpListener::bind(all).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        // A machine without IPv6.
        Err(_) => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
    };
    bound
        .map_err(|error| format!("cannot listen on port {port} ({what}): {error}; choose another one or stop its user"))
}

fn tls(config: &ServerConfig) -> Result<Option<TlsOptions>, Failure> {
    let Some(tls) = &config.grpc.tls else { return Ok(None) };
    let mut problems = Vec::new();
    let mut read = |key: &str, path: &Path| {
        std::fs::read(path).unwrap_or_else(|error| {
            problems.push(format!("grpc.tls.{key}: cannot read {}: {error}", path.display()));
            Vec::new()
        })
    };
    let certificate = read("cert_path", &tls.cert_path);
    let key = read("key_path", &tls.key_path);
    let client_ca = tls.client_ca_path.as_ref().map(|path| read("client_ca_path", path));
    if problems.is_empty() {
        Ok(Some(TlsOptions { certificate, key, client_ca }))
    } else {
        Err(Failure::Misconfigured(problems))
    }
}

/// True once SIGTERM or SIGINT has come.
fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let (sender, stop) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        sender.send_replace(true);
        // A second signal ends the process at once.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("second signal: ending at once");
        std::process::exit(1);
    });
    Ok(stop)
}

#[expect(clippy::disallowed_methods, reason = "the program's edge: here the clock is handed in")]
fn now() -> CommitTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    CommitTime::from_unix_us(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
