//! The watch of the tables' definitions. The stream reports many changes of them late, or never.

mod overdue;

use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Lsn, Oid, Xid};
use laredo_engine::source::{ColumnValues, SourceEvent, TableIndex};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::catalog::{self, DefinitionImpact, HarmlessConditions, TableDefinition, TableFacts};
use crate::copy::SourceTable;
use crate::ddl::{self, DdlWatch};
use crate::options::SessionWork;
use crate::publication::{self, PublicationOptions};
use crate::resume;
use crate::signals::{ServerRestarts, SourceSignals};
use crate::stream::StreamOptions;
use crate::transport::{SqlConnection, TransportError};

/// The interval between checks of the catalog. A table's announcement on the stream also causes
/// one.
const INTERVAL: Duration = Duration::from_secs(10);
/// The age at which the connection is replaced. Settings of a role or a database, such as
/// `lc_monetary`, only apply to new sessions.
const SESSION_MAX: Duration = Duration::from_secs(60);
/// The wait before a failed connection is made again.
const RECONNECT: Duration = Duration::from_secs(2);
/// The wait before a check that the stream waits for is repeated. It is given up after
/// [`LOOK_PATIENCE`], so that one table does not hold up the others forever.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LOOK_PATIENCE: Duration = Duration::from_secs(10);
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
    tables: &[SourceTable],
    signals: &SourceSignals,
    events: &mpsc::Sender<SourceEvent>,
) -> Infallible {
    let (told, unexplained) = (vec![DefinitionReport::Nothing; tables.len()], vec![None; tables.len()]);
    let (told_of, errors) = (vec![None; tables.len()], vec![None; tables.len()]);
    let (has_trigger, unanswered, proven) = (None, None, vec![0; tables.len()]);
    let mut watcher = DefinitionWatcher {
        options,
        publication,
        tables,
        signals,
        events,
        told,
        told_of,
        proven,
        has_trigger,
        unanswered,
        unexplained,
        errors,
        unpublished: vec![None; tables.len()],
    };
    let looks = async {
        loop {
            let Err(error) = watcher.run().await;
            tracing::debug!(%error, "cannot read the catalog");
            watcher.errors.fill(Some(error.to_string()));
            watcher.report_errors();
            tokio::time::sleep(RECONNECT).await;
        }
    };
    tokio::select! {
        never = looks => never,
        never = overdue::warn(tables, signals) => never,
    }
}

struct DefinitionWatcher<'a> {
    options: &'a StreamOptions,
    publication: &'a PublicationOptions,
    tables: &'a [SourceTable],
    signals: &'a SourceSignals,
    events: &'a mpsc::Sender<SourceEvent>,
    told: Vec<DefinitionReport>,
    /// The definition of the copy that each last report is about. A later copy gets its own report,
    /// even if its definition is the same.
    told_of: Vec<Option<Arc<TableDefinition>>>,
    /// For each table, the number of the restart of PostgreSQL since which its newest change is
    /// proven or was reported.
    proven: Vec<u64>,
    /// True if the event trigger was installed at the last check. `None` before the first check, or
    /// if the trigger is not wanted.
    has_trigger: Option<bool>,
    /// The check that the stream waits for, and the time since which it could not be completed.
    unanswered: Option<(u64, Instant)>,
    /// For each table whose file has changed, the new definition and the end of the WAL when that
    /// was seen. If the table was truncated, the stream reports it before it passes that position.
    unexplained: Vec<Option<(TableDefinition, Lsn)>>,
    /// The error of the last check of each table, if it failed.
    errors: Vec<Option<String>>,
    /// The facts of a table that could not be added to the publication. The statement is not
    /// repeated while they are unchanged.
    unpublished: Vec<Option<TableFacts>>,
}

/// The last report about a table. The same report is not repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DefinitionReport {
    Nothing,
    Moved(Arc<TableDefinition>),
    Broken(String),
}

/// A check of one table.
struct DefinitionCheck {
    began: Instant,
    /// The definition of the copy when the check began.
    copied: Option<Arc<TableDefinition>>,
    facts: Option<TableFacts>,
    /// The change since that definition.
    change: DefinitionImpact,
}

impl DefinitionWatcher<'_> {
    async fn run(&mut self) -> Result<Infallible, TransportError> {
        let (mut connection, mut connected_at) = (self.connect().await?, Instant::now());
        loop {
            if connected_at.elapsed() >= SESSION_MAX {
                (connection, connected_at) = (self.connect().await?, Instant::now());
            }
            self.check_trigger(&mut connection).await?;
            let wanted = self.wanted_look(&mut connection).await?;
            if let Some(recent) = value(&mut connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())").await? {
                self.signals.set_recent(Xid(recent));
            }
            let mut is_settled = true;
            let mut looks = Vec::with_capacity(self.tables.len());
            for index in 0..self.tables.len() {
                match self.look_and_publish(&mut connection, index).await {
                    Ok(look) => looks.push((index, look)),
                    // An error with one table does not prevent the checks of the others.
                    Err(error) if connection.is_idle() => self.failed(index, &error),
                    Err(error) => return Err(error),
                }
            }
            let end = value(&mut connection, "SELECT pg_current_wal_insert_lsn()").await?.unwrap_or(Lsn::ZERO);
            for (index, look) in looks {
                let began = look.began;
                is_settled &= self.compare(index, look, end).await;
                self.errors[index] = None;
                self.signals.record_definition_read(TableIndex(index), began);
            }
            self.report_errors();
            is_settled &= self.errors.iter().all(Option::is_none);
            if !self.answer_check_request(wanted, is_settled) {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            let next = self.unexplained.iter().flatten().map(|(_, end)| *end).min();
            // A notification that is missed is no loss: the next round sees the change.
            tokio::select! {
                () = self.signals.wait_for_check_request() => {}
                _ = tokio::time::timeout(INTERVAL, self.signals.wait_for_change()) => {}
                () = self.signals.wait_for_position(next.unwrap_or(Lsn::ZERO)), if next.is_some() => {}
            }
        }
    }

    async fn connect(&self) -> Result<SqlConnection, TransportError> {
        let mut connection = SqlConnection::connect(&self.options.connection.for_work(SessionWork::Watch)).await?;
        connection.simple_query(SESSION).await?;
        catalog::prepare_session(&mut connection).await?;
        Ok(connection)
    }

    /// Logs and reports whether the wanted event trigger is installed, whenever that has changed.
    async fn check_trigger(&mut self, connection: &mut SqlConnection) -> Result<(), TransportError> {
        if self.options.ddl == DdlWatch::Poll {
            return Ok(());
        }
        let is_installed = ddl::is_installed(connection).await?;
        if self.has_trigger.replace(is_installed) == Some(is_installed) {
            return Ok(());
        }
        match is_installed {
            true => tracing::info!("an event trigger writes changes of definitions into the stream"),
            false => tracing::warn!(
                "the event trigger for ddl.watch = trigger is missing or disabled, and definitions are read every 10 s; as a superuser run \
                 laredo ddl install --postgres URL, or the statements of laredo ddl install --print"
            ),
        }
        self.signals.record_trigger(is_installed);
        Ok(())
    }

    /// Waits until the transaction of a wanted check is visible. Returns the number of the check,
    /// or `None` if the stream waits for none.
    async fn wanted_look(&self, connection: &mut SqlConnection) -> Result<Option<u64>, TransportError> {
        loop {
            let Some((number, after)) = self.signals.requested_check() else { return Ok(None) };
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
        let since = match self.unanswered {
            Some((of, since)) if of == number => since,
            _ => Instant::now(),
        };
        if !is_settled && since.elapsed() < LOOK_PATIENCE {
            self.unanswered = Some((number, since));
            return false;
        }
        if !is_settled {
            tracing::warn!(
                "a changed definition could not be checked; the stream continues, and the catalog is read again"
            );
        }
        self.signals.complete_check(number);
        true
    }

    /// Checks a table, and adds it to our publication if it is missing there. It may be missing
    /// because it was created again or because another table has its name now. The table that was
    /// copied is only missing if an operator removed it, and is not added.
    async fn look_and_publish(
        &mut self,
        connection: &mut SqlConnection,
        index: usize,
    ) -> Result<DefinitionCheck, TransportError> {
        let look = self.check_definition(connection, index).await?;
        let request = &self.tables[index].request;
        let name = &request.name;
        // PostgreSQL would refuse updates of a published table without a key.
        let copied = self.tables[index].copied().map(|copied| copied.oid);
        let is_good = |facts: &&TableFacts| {
            self.publication.create
                && copied != Some(facts.definition.oid)
                && catalog::schema_of(&facts.definition, request).is_ok()
        };
        let Some(facts) = look.facts.as_ref().filter(is_good) else { return Ok(look) };
        let Some(sql) = publication::addition(self.publication, name, facts) else { return Ok(look) };
        if self.unpublished[index].as_ref() == Some(facts) {
            return Ok(look);
        }
        tracing::info!(table = %name, %sql, "adding the table to the publication");
        if let Err(error) = connection.simple_query(&sql).await {
            if error.server().is_none() {
                return Err(error);
            }
            tracing::warn!(table = %name, %error, %sql, "the table cannot be added to the publication");
            if !error.is_transient() {
                self.unpublished[index] = look.facts.clone();
            }
            return Ok(look);
        }
        let look = self.check_definition(connection, index).await?;
        self.unpublished[index] = look.facts.clone().filter(|facts| facts.definition.published.is_none());
        Ok(look)
    }

    async fn check_definition(
        &mut self,
        connection: &mut SqlConnection,
        index: usize,
    ) -> Result<DefinitionCheck, TransportError> {
        let (table, proven) = (&self.tables[index], &mut self.proven[index]);
        let began = Instant::now();
        // Read before the catalog, so that a copy that ends in the meantime is not compared with
        // its predecessor's definition.
        let copied = table.copied();
        let facts = catalog::read_table_facts(connection, &self.options.publication, &table.request.name).await?;
        let mut change = match (&copied, &facts) {
            (Some(copied), Some(facts)) => copied.change(&facts.definition),
            _ => DefinitionImpact::Nothing,
        };
        if let DefinitionImpact::Harmless(HarmlessConditions { empty, .. }) = &change
            && !are_empty(connection, empty).await?
        {
            change = DefinitionImpact::Rows("its partitions changed".to_owned());
        }
        let ServerRestarts { count: restart, proven: mark } = self.signals.restarts();
        if let (Some(copied), Some(facts)) = (&copied, &facts)
            && *proven != restart
        {
            *proven = restart;
            let is_unproven = !matches!(change, DefinitionImpact::Rows(_)) && facts.changed_after(mark);
            // The table may have been copied in the meantime.
            if is_unproven && table.is_last_copy(copied) {
                change = DefinitionImpact::Rows(catalog::UNPROVEN_CHANGE.to_owned());
            }
        }
        Ok(DefinitionCheck { began, copied, facts, change })
    }

    fn failed(&mut self, index: usize, error: &TransportError) {
        let name = self.tables.get(index).map(|table| &table.request.name);
        tracing::debug!(table = ?name, %error, "cannot check the table's definition");
        self.errors[index] = Some(error.to_string());
    }

    fn report_errors(&self) {
        let errors = self.errors.iter().enumerate();
        let errors = errors.filter_map(|(i, error)| Some((TableIndex(i), error.clone()?))).collect();
        self.signals.record_definition_errors(errors);
    }

    /// Returns true if the only change to a table is a truncate, which the stream reports. `None`
    /// if that is not known yet.
    fn was_truncated(
        &mut self,
        index: usize,
        copied: Option<&TableDefinition>,
        facts: Option<&TableFacts>,
        end: Lsn,
    ) -> Option<bool> {
        let unexplained = self.unexplained.get_mut(index)?;
        let before = unexplained.take();
        let Some((facts, by)) = facts.and_then(|newer| Some((newer, newer.truncated_since(copied?)?))) else {
            return Some(false);
        };
        let definition = &facts.definition;
        let end = before.filter(|(then, _)| then == definition).map_or(end, |(_, end)| end);
        let is_past = self.signals.reached() >= end;
        let is_told = self.signals.last_truncate(definition.oid) == Some(by);
        if is_told || is_past {
            return Some(is_told);
        }
        *unexplained = Some((definition.clone(), end));
        None
    }

    /// Reports what a check has found. Returns false if a copy has ended in the meantime, so that
    /// the check is outdated.
    async fn compare(&mut self, index: usize, look: DefinitionCheck, end: Lsn) -> bool {
        let DefinitionCheck { copied, facts, change, .. } = look;
        let was_truncated = self.was_truncated(index, copied.as_deref(), facts.as_ref(), end);
        let (Some(table), Some(told), Some(told_of)) =
            (self.tables.get(index), self.told.get_mut(index), self.told_of.get_mut(index))
        else {
            return true;
        };
        let Some(failed) = table.take_failure(copied.as_ref(), facts.as_ref()) else { return false };
        if matches!(told, DefinitionReport::Moved(_))
            && told_of.as_ref().map(Arc::as_ptr) != copied.as_ref().map(Arc::as_ptr)
        {
            *told = DefinitionReport::Nothing;
        }
        if copied.is_none() && !failed && !matches!(told, DefinitionReport::Broken(_)) {
            return true;
        }
        let problem = problem(facts.as_ref(), table, &self.options.publication);
        if let (DefinitionReport::Nothing, false, None, Some(facts), Some(copied)) =
            (&*told, failed, &problem, &facts, &copied)
        {
            match (was_truncated, &change) {
                (None, _) => return true,
                (Some(true), _) | (Some(false), DefinitionImpact::Harmless(_)) => {
                    return self.redefine(index, copied, &facts.definition, end).await;
                }
                (Some(false), DefinitionImpact::Nothing | DefinitionImpact::Rows(_)) => {}
            }
        }
        let index = TableIndex(index);
        let moved = |reason: String, definition: &TableDefinition| {
            let definition = Some(resume::text_of(&table.request, definition));
            Some(SourceEvent::Moved { table: index, reason, definition })
        };
        let (now_told, event) = match (problem, facts, change) {
            (Some(error), _, _) => {
                let event = SourceEvent::Broken { table: index, error: error.clone() };
                (DefinitionReport::Broken(error), Some(event))
            }
            (None, Some(facts), DefinitionImpact::Rows(reason)) => {
                let event = moved(reason, &facts.definition);
                (DefinitionReport::Moved(Arc::new(facts.definition)), event)
            }
            (None, Some(facts), DefinitionImpact::Nothing | DefinitionImpact::Harmless(_))
                if failed || matches!(told, DefinitionReport::Broken(_)) =>
            {
                (DefinitionReport::Nothing, moved("it can be followed again".to_owned(), &facts.definition))
            }
            (None, _, _) => (DefinitionReport::Nothing, None),
        };
        if *told == now_told && !failed {
            return true;
        }
        (*told, *told_of) = (now_told, copied);
        if let Some(event) = event {
            // If sending fails, the consumer is gone, and the stream and this watch end.
            let _ = self.events.send(event).await;
        }
        true
    }

    /// Reports a new definition under which the rows still match what the stream has sent. Returns
    /// false if a copy has ended in the meantime.
    async fn redefine(&self, index: usize, copied: &Arc<TableDefinition>, newer: &TableDefinition, from: Lsn) -> bool {
        let Some(table) = self.tables.get(index) else { return true };
        let definition = resume::text_of(&table.request, newer);
        let values = match copied.with_file(newer.file).change(newer) {
            DefinitionImpact::Harmless(HarmlessConditions { labels, .. }) => labels,
            DefinitionImpact::Nothing | DefinitionImpact::Rows(_) => Vec::new(),
        };
        let values = values.into_iter().map(|(column, labels)| ColumnValues {
            column,
            values: labels.into_iter().map(String::into_bytes).collect(),
        });
        if !table.redefine(copied, newer.clone()) {
            return false;
        }
        let event = SourceEvent::Redefined { table: TableIndex(index), definition, from, values: values.collect() };
        // If sending fails, the consumer is gone, and the stream and this watch end.
        let _ = self.events.send(event).await;
        true
    }
}

/// Returns true if none of the tables has rows. A table that no longer exists counts as having
/// some. The query may wait for locks, but for at most a second.
async fn are_empty(connection: &mut SqlConnection, tables: &[Oid]) -> Result<bool, TransportError> {
    if tables.is_empty() {
        return Ok(true);
    }
    let oids: Vec<String> = tables.iter().map(Oid::to_string).collect();
    let sql = format!(
        "SELECT coalesce(sum(coalesce(pg_relation_size(oid), 1)), 0) FROM unnest(ARRAY[{}]::oid[]) AS oid",
        oids.join(", ")
    );
    Ok(value(connection, &sql).await? == Some(0))
}

/// Returns the single value of a query's result.
async fn value<T: FromStr>(connection: &mut SqlConnection, sql: &str) -> Result<Option<T>, TransportError> {
    let rows = connection.simple_query(sql).await?;
    Ok(rows.into_iter().flatten().flatten().next().and_then(|text| text.parse().ok()))
}

/// Returns the reason why a table cannot be followed in its current state, with the fix.
fn problem(facts: Option<&TableFacts>, table: &SourceTable, publication: &str) -> Option<String> {
    let name = &table.request.name;
    let Some(facts) = facts else {
        return Some(format!("table {name} was dropped or renamed; restore it, or remove it from the configuration"));
    };
    let problem = publication::table_problem(publication, name, facts);
    problem.or_else(|| catalog::schema_of(&facts.definition, &table.request).err().map(|problems| problems.join("; ")))
}
