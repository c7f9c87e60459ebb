//! The parts of the server: made from the configuration, run together, and stopped together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use laredo_core::CommitTime;
use laredo_engine::{Clock, Engine, EngineHandle};
use laredo_postgres::PostgresSource;
use laredo_server::{
    AccessRules, AwaitedSources, HttpOptions, ServedSource, ServedTableOptions, Server, ServerListeners, ServerOptions,
    ServerTimeLimits, TableLimits,
};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::access_reload::{AccessReloader, ConfigReload};
use super::config_reload::{ConfigChannels, ConfigReloader, LiveServer};
use super::jwt_keys::JwtKeySources;
use super::prepare::{prepare, unprepared};
use super::{access, listen, options};
use crate::config::ServerConfig;
use crate::config::server::{FanoutConfig, ServedTableConfig, SlotConfig};
use crate::program::{
    ProgramFailure, allowed_hosts, dropped_log_lines, now, report_ready, reserve_descriptors, temporary_folder,
    wait_for_flag,
};

/// The maximum size, in bytes, of a table's projections that are kept for other clients who ask for
/// the same rows.
const PROJECTION_BYTES_MAX: u64 = 64 << 20;
/// The status that the service manager shows of a running server.
const READY: &str = "the ports are open; laredo status shows the tables";

/// The consequence of a refused source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartMode {
    /// A start that serves the other sources, and tries the refused source again.
    Lenient,
    /// A start that fails.
    Strict,
    /// A start that fails. A refusal after the start ends the server.
    Once,
}

/// Serves until `stop` is true, and then while clients are connected, but no longer than `drain`.
/// The configuration is taken from `reload` while the server runs.
pub(super) async fn serve(
    config: &ServerConfig,
    (mode, drain): (StartMode, Duration),
    stop: watch::Receiver<bool>,
    reload: ConfigReload,
) -> Result<(), ProgramFailure> {
    reserve_descriptors();
    config.warnings().iter().for_each(|warning| tracing::warn!(event = "config_warning", "{warning}"));
    log_inactive_settings(config);
    access::log_plain_text_tokens(config);
    let (tls, files) = listen::read_tls_files(config)?;
    let (key_sources, key_reader) = JwtKeySources::new();
    let options = access::read_access(config, &key_sources).map_err(ProgramFailure::Misconfigured)?;
    let rules = options.clone().map(|options| AccessRules::new(options, system_clock()));
    let access_due = Arc::new(Notify::new());
    let (reloader, channels) = ConfigReloader::new(config, reload.clone(), access_due.clone());
    let rule_reloader = AccessReloader::new(reloader.running(), rules.clone().zip(options), reload, key_sources);
    let listeners = listen::bind_all(config, &tls).await?;
    tokio::select! {
        ended = serve_at(config, listeners, rules, (mode, drain), stop, Some(channels), || report_ready(READY)) => ended,
        failed = files.keep_current() => failed.map_err(ProgramFailure::Failed),
        failed = reloader.keep_current() => failed.map_err(ProgramFailure::Failed),
        never = rule_reloader.keep_current(access_due) => match never {},
        failed = key_reader.keep_current() => failed.map_err(ProgramFailure::Failed),
    }
}

fn system_clock() -> Clock {
    Arc::new(|| CommitTime::from(now()))
}

/// Serves as `serve` does, at ports that are bound already. Calls `ready` once the configuration is
/// accepted, and everything that a start waits for is there. First copies are not.
pub(crate) async fn serve_at(
    config: &ServerConfig,
    listeners: ServerListeners,
    access: Option<AccessRules>,
    (mode, drain): (StartMode, Duration),
    stop: watch::Receiver<bool>,
    reloads: Option<ConfigChannels>,
    ready: impl FnOnce(),
) -> Result<(), ProgramFailure> {
    let clock = system_clock();
    let folder = temporary_folder("temp_dir", config.temp_dir.as_deref())?;
    let allowed_origins = listen::allowed_origins(config)?;
    let allowed_hosts = allowed_hosts(&config.allowed_hosts);
    let http = HttpOptions {
        liveness_path: config.health.liveness_path.clone(),
        readiness_path: config.health.readiness_path.clone(),
        metrics_path: config.observability.metrics.path.clone(),
        strict_readiness: config.health.strict_readiness,
        ..HttpOptions::default()
    };
    let engines = match mode {
        StartMode::Lenient => unprepared(config, &folder, &clock)?,
        StartMode::Strict | StartMode::Once => {
            let (waiting_sender, waiting) = watch::channel(AwaitedSources::new());
            // The reasons name sources and their errors, which are not for callers that are not
            // known.
            let waiting = if access.is_some() { watch::channel(AwaitedSources::new()).1 } else { waiting };
            // Meanwhile, the health endpoint reports the reasons for the wait. A stop takes effect
            // at any time.
            tokio::select! {
                prepared = prepare(config, &folder, &clock, &waiting_sender) => prepared?,
                answering = laredo_server::serve_startup(&listeners, &http, allowed_hosts.clone(), waiting) => {
                    return answering.context("serving health").map_err(ProgramFailure::Failed);
                }
                () = wait_for_flag(stop.clone()) => return Ok(()),
            }
        }
    };
    let tables = config.tables.iter().filter_map(|table| {
        let engine = engines.get(&table.source)?;
        served_table_options(table, &engine.handle())
    });
    let sources = engines.iter().map(|(id, engine)| ServedSource {
        id: id.clone(),
        kind: "postgresql".to_owned(),
        resumes: config.sources.get(id).is_some_and(|source| matches!(source.slot, SlotConfig::Stateful { .. })),
        engine: engine.handle(),
    });
    let waits = ServerTimeLimits { drain, ..ServerTimeLimits::default() };
    let (sources, tables) = (sources.collect(), tables.collect());
    let (config_orders, live) = reloads.map(|channels| (channels.orders, channels.live)).unzip();
    let connections_max = config.grpc.max_connections as usize;
    let options = ServerOptions {
        sources,
        tables,
        connections_max,
        allowed_origins,
        allowed_hosts,
        access,
        http,
        waits,
        clock,
        config_orders,
        dropped_log_lines,
    };
    let server = Server::new(options);
    if let Some(live) = live {
        let handles = engines.iter().map(|(id, engine)| (id.clone(), engine.handle()));
        // The reloader runs as long as the server.
        let _ = live.send(LiveServer { folder, engines: handles.collect(), server: server.handle() });
    }
    ready();
    run(engines, server, listeners, mode, stop).await
}

async fn run(
    engines: BTreeMap<String, Engine<PostgresSource>>,
    server: Server,
    listeners: ServerListeners,
    mode: StartMode,
    stop: watch::Receiver<bool>,
) -> Result<(), ProgramFailure> {
    let mut parts: JoinSet<anyhow::Result<()>> = JoinSet::new();
    // The engines outlive the server, so that the server itself ends its streams before their
    // journals disappear.
    let (served, server_ended) = watch::channel(false);
    for (name, engine) in engines {
        let (ended, handle) = (server_ended.clone(), engine.handle());
        parts.spawn(async move {
            tokio::select! {
                () = engine.run(wait_for_flag(ended)) => Ok(()),
                reason = handle.wait_refused(), if mode == StartMode::Once => {
                    Err(anyhow::anyhow!("source {name} cannot be followed any more: {reason}"))
                }
            }
        });
    }
    parts.spawn(async move {
        let result = server.serve(listeners, wait_for_flag(stop)).await.context("serving");
        served.send_replace(true);
        result
    });
    while let Some(part) = parts.join_next().await {
        part.context("a part of the server")??;
    }
    Ok(())
}

/// Returns the options with which a table of an engine is served.
pub(super) fn served_table_options(table: &ServedTableConfig, engine: &EngineHandle) -> Option<ServedTableOptions> {
    let handle = engine.table(&table.name())?;
    Some(ServedTableOptions {
        handle,
        source_id: table.source.clone(),
        limits: table_limits(&table.fanout),
        projection_bytes_max: PROJECTION_BYTES_MAX,
        query: table.fanout.query.then(|| options::query(&table.fanout)),
    })
}

/// Returns the limits of a table's clients.
pub(super) fn table_limits(fanout: &FanoutConfig) -> TableLimits {
    TableLimits {
        clients_max: fanout.grpc.max_clients as usize,
        buffer: options::buffer(fanout),
        heartbeat_interval: fanout.heartbeat_interval,
    }
}

fn log_inactive_settings(config: &ServerConfig) {
    for table in &config.tables {
        let (name, fanout) = (format!("{}.{}", table.schema, table.table), &table.fanout);
        let is_ephemeral =
            config.sources.get(&table.source).is_some_and(|source| matches!(source.slot, SlotConfig::Ephemeral { .. }));
        if fanout.snapshot.is_some() && is_ephemeral {
            tracing::warn!(
                event = "snapshot_ineffective",
                source = table.source,
                table = name,
                "snapshot: a restart cannot resume from a snapshot, because no slot keeps the later changes (slot_mode = ephemeral)"
            );
        }
        if fanout.archive.is_some() {
            tracing::warn!(
                event = "archive_not_read",
                source = table.source,
                table = name,
                "archive: this version does not read archives"
            );
        }
    }
}
