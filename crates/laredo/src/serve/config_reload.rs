//! The configuration while the server runs: it is read again, compared and applied, on SIGHUP and
//! when an operator orders it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use laredo_core::TableName;
use laredo_engine::source::{SourceError, TableRequest};
use laredo_engine::{EngineHandle, TableOptions, TableSetChange};
use laredo_server::{ConfigOrder, ConfigOrderKind, ConfigOutcome, ListenAddress, ServerHandle};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::access_reload::ConfigReload;
use super::compose::{served_table_options, table_limits};
use super::config_plan::ConfigPlan;
use super::options;
use crate::config::ServerConfig;
use crate::config::server::ServedTableConfig;
use crate::program::set_log_level;

/// The maximum time for which a source is asked about its tables.
const CHECK_MAX: Duration = Duration::from_secs(30);
/// The number of orders that may wait.
const ORDERS_MAX: usize = 8;

/// The parts of a running server that its configuration changes.
pub(crate) struct LiveServer {
    /// The folder for temporary files.
    pub(super) folder: PathBuf,
    pub(super) engines: BTreeMap<String, EngineHandle>,
    pub(super) server: ServerHandle,
}

/// The channels of a server to its [`ConfigReloader`].
pub(crate) struct ConfigChannels {
    /// The sender of operators' orders.
    pub(super) orders: mpsc::Sender<ConfigOrder>,
    /// The sender of the server, once it runs.
    pub(super) live: oneshot::Sender<LiveServer>,
}

/// The running configuration of the server, and its changes.
pub(super) struct ConfigReloader {
    reload: ConfigReload,
    running: watch::Sender<Arc<ServerConfig>>,
    /// The ports of rows that the server has opened.
    ports: Vec<(ListenAddress, u16)>,
    orders: mpsc::Receiver<ConfigOrder>,
    live: oneshot::Receiver<LiveServer>,
    /// Notifies that access rules are to be read again.
    access: Arc<Notify>,
}

/// A source's part of a plan.
#[derive(Default)]
struct SourcePart<'a> {
    removed: Vec<&'a ServedTableConfig>,
    added: Vec<(&'a ServedTableConfig, TableOptions)>,
    /// The tables that remain as they are.
    others: Vec<TableRequest>,
}

impl ConfigReloader {
    /// Returns the reloader of a server that starts with a configuration, and the channels for the
    /// server. `access` is notified whenever access rules are to be read again.
    pub(super) fn new(
        config: &ServerConfig,
        reload: ConfigReload,
        access: Arc<Notify>,
    ) -> (ConfigReloader, ConfigChannels) {
        let (order_sender, orders) = mpsc::channel(ORDERS_MAX);
        let (live_sender, live) = oneshot::channel();
        let ports = config.row_ports().into_iter().map(|port| (port.address.clone(), port.port)).collect();
        let running = watch::Sender::new(Arc::new(config.clone()));
        let reloader = ConfigReloader { reload, running, ports, orders, live, access };
        (reloader, ConfigChannels { orders: order_sender, live: live_sender })
    }

    /// Returns the running configuration.
    pub(super) fn running(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.running.subscribe()
    }

    /// Carries out orders, one after the other. It never returns without an error.
    ///
    /// # Errors
    /// Returns an error if the signal cannot be waited for.
    pub(super) async fn keep_current(mut self) -> anyhow::Result<()> {
        let mut hangups = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
        let (mut live, mut is_begun) = (None, false);
        loop {
            tokio::select! {
                begun = &mut self.live, if !is_begun => (live, is_begun) = (begun.ok(), true),
                Some(ConfigOrder { kind, answer }) = self.orders.recv(), if live.is_some() => {
                    let outcome = self.carry_out(kind, live.as_ref()).await;
                    // The caller may have left.
                    let _ = answer.send(outcome);
                }
                _ = hangups.recv() => {
                    self.carry_out(ConfigOrderKind::Reload { skips_restart: false }, live.as_ref()).await;
                }
            }
        }
    }

    async fn carry_out(&self, kind: ConfigOrderKind, live: Option<&LiveServer>) -> ConfigOutcome {
        let outcome = match (self.read().await, live) {
            (Err(problems), _) => ConfigOutcome { problems, ..ConfigOutcome::default() },
            // The start waits for a database, and continues with the configuration that it has.
            (Ok(_), None) => return self.refresh_access(ConfigOutcome::default()),
            (Ok(read), Some(live)) => self.compare_and_apply(&read, kind, live).await,
        };
        match kind {
            ConfigOrderKind::Diff => outcome,
            ConfigOrderKind::Reload { .. } => {
                log(&outcome);
                self.refresh_access(outcome)
            }
        }
    }

    /// Has the access rules read again. They have rules of their own: a right that is withdrawn
    /// does not wait for other keys.
    fn refresh_access(&self, outcome: ConfigOutcome) -> ConfigOutcome {
        self.access.notify_one();
        outcome
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// Returns all of its problems, each with its file and line.
    async fn read(&self) -> Result<ServerConfig, Vec<String>> {
        let reload = self.reload.clone();
        // Files may be on a slow or a remote disk.
        let read = tokio::task::spawn_blocking(move || reload()).await;
        let read = read.map_err(|panic| vec![format!("reading the configuration: {panic}; report this")])?;
        read.map_err(|report| report.to_string().lines().map(str::to_owned).collect())
    }

    async fn compare_and_apply(&self, read: &ServerConfig, kind: ConfigOrderKind, live: &LiveServer) -> ConfigOutcome {
        let running = self.running.borrow().clone();
        let is_open =
            |address: &ListenAddress, port| self.ports.iter().any(|(known, open)| known.is_same(*open, address, port));
        let plan = ConfigPlan::new(&running, read, is_open);
        let mut problems = Vec::new();
        let keys = plan.restart_keys();
        if !keys.is_empty() && kind != (ConfigOrderKind::Reload { skips_restart: true }) {
            problems.push(format!(
                "nothing is applied, because these keys need a restart: {}; restart the server, or apply the rest \
                 with `laredo config reload --skip-restart`",
                keys.join(", ")
            ));
        }
        let parts = match source_parts(&plan, live) {
            Ok(parts) => parts,
            Err(unreadable) => {
                problems.extend(unreadable);
                BTreeMap::new()
            }
        };
        // A publication is changed only if there is no other obstacle.
        let publishes = problems.is_empty() && matches!(kind, ConfigOrderKind::Reload { .. });
        for (source, part) in &parts {
            problems.extend(check(source, part, live, false).await);
        }
        if publishes && problems.is_empty() {
            for (source, part) in &parts {
                problems.extend(check(source, part, live, true).await);
            }
        }
        let changes = plan.changes.clone();
        if !problems.is_empty() || kind == ConfigOrderKind::Diff {
            return ConfigOutcome { is_applied: false, changes, problems };
        }
        let problems = self.apply(plan.next.clone(), &plan, parts, live).await;
        ConfigOutcome { is_applied: problems.is_empty(), changes, problems }
    }

    /// Applies a plan whose tables were checked. Returns the sources whose tables could not be
    /// changed, each with the reason.
    async fn apply(
        &self,
        mut next: ServerConfig,
        plan: &ConfigPlan,
        parts: BTreeMap<String, SourcePart<'_>>,
        live: &LiveServer,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let begins_again = |old: &&ServedTableConfig| plan.added.iter().any(|new| new.name() == old.name());
        for (source, part) in parts {
            let Some(engine) = live.engines.get(&source) else { continue };
            let SourcePart { removed, added, .. } = part;
            let ended: Vec<TableName> =
                removed.iter().copied().filter(|old| !begins_again(old)).map(ServedTableConfig::name).collect();
            live.server.remove_tables(&ended);
            let (configs, options): (Vec<_>, Vec<_>) = added.into_iter().unzip();
            let change = TableSetChange {
                removed: removed.iter().copied().map(ServedTableConfig::name).collect(),
                added: options,
            };
            let served = match engine.change_tables(change).await {
                Ok(()) => configs,
                Err(error) => {
                    problems.push(format!("source {source}: {error}; its tables were not changed, repeat the reload"));
                    keep_tables(&mut next, &source, &self.running.borrow());
                    removed
                }
            };
            let options = served.into_iter().filter_map(|table| served_table_options(table, engine));
            live.server.put_tables(options.collect());
        }
        for table in &plan.limited {
            live.server.set_limits(&table.name(), table_limits(&table.fanout));
        }
        set_log_level(next.observability.logging.level);
        self.running.send_replace(Arc::new(next));
        problems
    }
}

/// Returns the part of each source in a plan.
///
/// # Errors
/// Returns the problems of tables whose options cannot be made, such as an unreadable key.
fn source_parts<'a>(plan: &'a ConfigPlan, live: &LiveServer) -> Result<BTreeMap<String, SourcePart<'a>>, Vec<String>> {
    let (mut parts, mut problems): (BTreeMap<String, SourcePart<'a>>, _) = (BTreeMap::new(), Vec::new());
    let mut random = StdRng::from_os_rng();
    for table in &plan.removed {
        parts.entry(table.source.clone()).or_default().removed.push(table);
    }
    for table in &plan.added {
        match options::table(table, &live.folder, &mut random) {
            Ok(options) => parts.entry(table.source.clone()).or_default().added.push((table, options)),
            Err(problem) => problems.push(problem),
        }
    }
    let begins: BTreeSet<TableName> = plan.added.iter().map(ServedTableConfig::name).collect();
    for table in plan.next.tables.iter().filter(|table| !begins.contains(&table.name())) {
        if let Some(part) = parts.get_mut(&table.source) {
            let key_fields = table.key_fields.clone();
            part.others.push(TableRequest { name: table.name(), key_fields });
        }
    }
    if problems.is_empty() { Ok(parts) } else { Err(problems) }
}

/// Asks a source if its tables can be changed. With `publishes`, the source then has what following
/// the new ones needs. Returns the problems.
async fn check(source: &str, part: &SourcePart<'_>, live: &LiveServer, publishes: bool) -> Vec<String> {
    let Some(engine) = live.engines.get(source) else {
        return vec![format!("source {source} is not running; restart the server")];
    };
    let more: Vec<TableRequest> = part.added.iter().map(|(_, options)| options.request.clone()).collect();
    let asked = timeout(CHECK_MAX, engine.check_tables(more, part.others.clone(), publishes)).await;
    let unasked = |reason: String| {
        vec![format!("source {source} cannot be asked, so nothing is applied: {reason}; repeat the reload then")]
    };
    let schemas = match asked {
        Ok(Ok(schemas)) => schemas,
        Ok(Err(SourceError::Definite(problems))) => {
            return problems.into_iter().map(|problem| format!("source {source}: {problem}")).collect();
        }
        Ok(Err(SourceError::Transient(reason) | SourceError::Held(reason))) => return unasked(reason),
        Err(_) => return unasked(format!("no answer within {} s", CHECK_MAX.as_secs())),
    };
    let checked = part.added.iter().zip(schemas);
    let problem = |((_, options), schema): (&(_, TableOptions), Arc<laredo_core::Schema>)| {
        let error = options.pipeline.check(&schema).err()?;
        Some(format!("source {source}: table {}: {error}", options.request.name))
    };
    checked.filter_map(problem).collect()
}

/// Gives a configuration the tables of a source that are running.
fn keep_tables(next: &mut ServerConfig, source: &str, running: &ServerConfig) {
    next.tables.retain(|table| table.source != source);
    next.tables.extend(running.tables.iter().filter(|table| table.source == source).cloned());
}

/// Logs the outcome of a reload.
fn log(outcome: &ConfigOutcome) {
    let ConfigOutcome { is_applied, changes, problems } = outcome;
    for problem in problems {
        tracing::error!(event = "config_not_reloaded", "{problem}; the configuration remains as it was");
    }
    if *is_applied {
        for change in changes {
            let (table, key, before, after) = (change.table.as_deref(), &change.key, &change.before, &change.after);
            tracing::info!(event = "config_changed", effect = ?change.effect, table, key, before, after, "the configuration has changed");
        }
        tracing::info!(
            event = "config_reloaded",
            changes = changes.len(),
            "the configuration was read again and applied"
        );
    }
}
