//! The watch of the tables' definitions. The stream reports many changes of them late, or never.

mod overdue;
mod table_watch;

use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Lsn, Xid};
use laredo_engine::source::SourceEvent;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::catalog;
use crate::copy::SourceTable;
use crate::ddl::{self, DdlWatch};
use crate::options::SessionWork;
use crate::publication::PublicationOptions;
use crate::signals::SourceSignals;
use crate::stream::StreamOptions;
use crate::transport::{SqlConnection, TransportError};
use table_watch::TableWatch;

/// The interval between checks of the catalog. A table's announcement on the stream also causes
/// one.
const INTERVAL: Duration = Duration::from_secs(10);
/// The age at which the connection is replaced. Settings of a role or a database, such as
/// `lc_monetary`, only apply to new sessions.
const SESSION_MAX: Duration = Duration::from_secs(60);
/// The wait before a failed connection is made again.
const RECONNECT: Duration = Duration::from_secs(2);
/// The interval of looks at the transactions after whose end labels are looked for again.
const WRITERS_AGAIN: Duration = Duration::from_secs(1);
/// The wait before a check that the stream waits for is repeated. It is given up after
/// [`CHECK_PATIENCE`], so that one table does not hold up the others forever.
const CHECK_AGAIN: Duration = Duration::from_millis(100);
const CHECK_PATIENCE: Duration = Duration::from_secs(10);
/// The interval for checking whether a commit is visible. It is visible microseconds after it is in
/// the stream, or once a synchronous standby has it.
const VISIBLE_POLL: Duration = Duration::from_millis(2);
/// The settings of the session. A check only reads the catalog, so it should not wait. If it does,
/// the limits let the other tables be checked.
const SESSION: &str = "SET statement_timeout = '10s'; SET lock_timeout = '1s'; SET idle_session_timeout = 0";

/// Reports each table whose definition is no longer the one that was copied. Never returns. It has
/// a connection of its own, and the stream reports the errors that break the connection.
pub(crate) async fn watch(
    options: &StreamOptions,
    publication: &PublicationOptions,
    tables: watch::Receiver<Arc<[Arc<SourceTable>]>>,
    signals: &SourceSignals,
    events: &mpsc::Sender<SourceEvent>,
) -> Infallible {
    let context = WatchContext { options, publication, signals, events };
    let followed = tables.clone();
    let mut watcher = DefinitionWatcher { context, followed, tables: Vec::new(), has_trigger: None, unanswered: None };
    let checks = async {
        loop {
            let Err(error) = watcher.run().await;
            tracing::debug!(event = "catalog_not_read", %error, "cannot read the catalog");
            watcher.tables.iter_mut().for_each(|table| table.record_error(&error));
            watcher.report_errors();
            tokio::time::sleep(RECONNECT).await;
        }
    };
    tokio::select! {
        never = checks => never,
        never = overdue::warn(&tables, signals) => never,
    }
}

/// The parts of the source that a watch uses.
#[derive(Clone, Copy)]
struct WatchContext<'a> {
    options: &'a StreamOptions,
    publication: &'a PublicationOptions,
    signals: &'a SourceSignals,
    events: &'a mpsc::Sender<SourceEvent>,
}

struct DefinitionWatcher<'a> {
    context: WatchContext<'a>,
    /// The tables that are followed now.
    followed: watch::Receiver<Arc<[Arc<SourceTable>]>>,
    tables: Vec<TableWatch<'a>>,
    /// True if the event trigger was installed at the last check. `None` before the first check, or
    /// if the trigger is not wanted.
    has_trigger: Option<bool>,
    /// The check that the stream waits for, while it cannot be completed.
    unanswered: Option<UnansweredCheck>,
}

/// A check that the stream waits for and that could not be completed.
#[derive(Clone, Copy)]
struct UnansweredCheck {
    number: u64,
    since: Instant,
}

impl DefinitionWatcher<'_> {
    async fn run(&mut self) -> Result<Infallible, TransportError> {
        let (mut connection, mut connected_at) = (self.connect().await?, Instant::now());
        loop {
            if connected_at.elapsed() >= SESSION_MAX {
                (connection, connected_at) = (self.connect().await?, Instant::now());
            }
            self.check_trigger(&mut connection).await?;
            let wanted = self.wait_until_visible(&mut connection).await?;
            if let Some(recent) = value(&mut connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())").await? {
                self.context.signals.set_recent(Xid(recent));
            }
            self.watch_followed();
            let mut is_settled = true;
            let mut checks = Vec::with_capacity(self.tables.len());
            for table in &mut self.tables {
                match table.check_and_publish(&mut connection).await {
                    Ok(check) => checks.push((table, check)),
                    // An error with one table does not prevent the checks of the others.
                    Err(error) if connection.is_idle() => {
                        tracing::debug!(
                            event = "definition_not_read", table = %table.name(), %error,
                            "cannot check the table's definition"
                        );
                        table.record_error(&error);
                    }
                    Err(error) => return Err(error),
                }
            }
            let end = value(&mut connection, "SELECT pg_current_wal_insert_lsn()").await?.unwrap_or(Lsn::ZERO);
            if checks.iter().any(|(_, check)| check.lacks_publication()) {
                self.context.signals.record_publication_loss();
            }
            for (table, check) in checks {
                is_settled &= table.report(check, end).await;
            }
            self.report_errors();
            is_settled &= self.tables.iter().all(|table| table.error().is_none());
            if !self.answer_check_request(wanted, is_settled) {
                tokio::time::sleep(CHECK_AGAIN).await;
                continue;
            }
            self.wait_for_round(&mut connection).await?;
        }
    }

    /// Waits until the catalog has to be read again.
    async fn wait_for_round(&mut self, connection: &mut SqlConnection) -> Result<(), TransportError> {
        let next = self.tables.iter().filter_map(TableWatch::unexplained_until).min();
        let signals = self.context.signals;
        let until = Instant::now() + INTERVAL;
        loop {
            let awaits_writers = self.tables.iter().any(TableWatch::awaits_writers);
            let look_at = if awaits_writers { until.min(Instant::now() + WRITERS_AGAIN) } else { until };
            // A notification that is missed is no loss: the next round sees the change.
            tokio::select! {
                () = signals.wait_for_check_request() => return Ok(()),
                () = signals.wait_for_change() => return Ok(()),
                () = signals.wait_for_position(next.unwrap_or(Lsn::ZERO)), if next.is_some() => return Ok(()),
                () = tokio::time::sleep_until(look_at) => {}
            }
            if Instant::now() >= until {
                return Ok(());
            }
            for table in &mut self.tables {
                if table.have_writers_ended(connection).await? {
                    return Ok(());
                }
            }
        }
    }

    /// Watches exactly the tables that are followed now.
    fn watch_followed(&mut self) {
        let followed = self.followed.borrow_and_update().clone();
        self.tables.retain(|watch| followed.iter().any(|table| watch.is_of(table)));
        for table in followed.iter() {
            if !self.tables.iter().any(|watch| watch.is_of(table)) {
                self.tables.push(TableWatch::new(self.context, table.clone()));
            }
        }
    }

    async fn connect(&self) -> Result<SqlConnection, TransportError> {
        let mut connection =
            SqlConnection::connect(&self.context.options.connection.for_work(SessionWork::Watch)).await?;
        connection.simple_query(SESSION).await?;
        catalog::prepare_session(&mut connection).await?;
        Ok(connection)
    }

    /// Logs and reports whether the wanted event trigger is installed, whenever that has changed.
    async fn check_trigger(&mut self, connection: &mut SqlConnection) -> Result<(), TransportError> {
        if self.context.options.ddl == DdlWatch::Poll {
            return Ok(());
        }
        let is_installed = ddl::is_installed(connection).await?;
        if self.has_trigger.replace(is_installed) == Some(is_installed) {
            return Ok(());
        }
        match is_installed {
            true => tracing::info!(
                event = "ddl_trigger_active",
                "an event trigger writes changes of definitions into the stream"
            ),
            false => tracing::warn!(
                event = "ddl_trigger_missing",
                "the event trigger for ddl.watch = trigger is missing or disabled, and definitions are read every 10 s; as a superuser, or \
                 the role that the provider has for event triggers, run laredo ddl install --postgres URL, or the statements of laredo ddl install --print"
            ),
        }
        self.context.signals.record_trigger(is_installed);
        Ok(())
    }

    /// Waits until the transaction of a requested check is visible. Returns the number of the
    /// check, or `None` if the stream waits for none.
    async fn wait_until_visible(&self, connection: &mut SqlConnection) -> Result<Option<u64>, TransportError> {
        loop {
            let Some((number, after)) = self.context.signals.requested_check() else { return Ok(None) };
            let sql = format!("SELECT pg_visible_in_snapshot('{}', pg_current_snapshot())::int", after.0);
            if value(connection, &sql).await? != Some(0) {
                return Ok(Some(number));
            }
            tokio::time::sleep(VISIBLE_POLL).await;
        }
    }

    /// Lets the stream continue after the check that it waited for. Returns false if the check has
    /// to be repeated soon.
    fn answer_check_request(&mut self, wanted: Option<u64>, is_settled: bool) -> bool {
        let Some(number) = wanted else { return true };
        let before = self.unanswered.filter(|before| before.number == number);
        let unanswered = before.unwrap_or_else(|| UnansweredCheck { number, since: Instant::now() });
        if !is_settled && unanswered.since.elapsed() < CHECK_PATIENCE {
            self.unanswered = Some(unanswered);
            return false;
        }
        if !is_settled {
            tracing::warn!(
                event = "definition_not_checked",
                "a changed definition could not be checked; the stream continues, and the catalog is read again"
            );
        }
        self.context.signals.complete_check(number);
        true
    }

    fn report_errors(&self) {
        let errors = self.tables.iter().filter_map(|table| Some((table.index(), table.error()?.to_owned())));
        self.context.signals.record_definition_errors(errors.collect());
    }
}

/// Returns the single value of a query's result.
async fn value<T: FromStr>(connection: &mut SqlConnection, sql: &str) -> Result<Option<T>, TransportError> {
    let rows = connection.simple_query(sql).await?;
    Ok(rows.into_iter().flatten().flatten().next().and_then(|text| text.parse().ok()))
}
