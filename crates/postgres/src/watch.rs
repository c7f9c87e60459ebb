//! Watches the tables' definitions: much that changes them is told by the stream late, or never.

mod overdue;

use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Lsn, Oid, Xid};
use laredo_engine::source::{ColumnValues, SourceEvent, TableIndex};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::catalog::{self, Change, Conditions, Definition, Facts};
use crate::publication;
use crate::resume;
use crate::source::Followed;
use crate::stream::{Signals, StreamOptions};
use crate::transport::{Connection, TransportError};

/// How often the catalogue is read, besides whenever a table is announced on the stream.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a failed connection is left alone.
const RECONNECT: Duration = Duration::from_secs(2);
/// A look reads only the catalogue, so it waits for nobody. Should it have to after all, the other tables come first.
const SESSION: &str = "SET statement_timeout = '10s'; SET lock_timeout = '1s'; SET idle_session_timeout = 0";

/// Says of each table when its definition is no longer the one that was copied. Never returns: it has a connection of
/// its own, and what breaks that is left to the stream to report.
pub(crate) async fn watch(
    options: &StreamOptions,
    tables: &[Followed],
    signals: &Signals,
    events: &mpsc::Sender<SourceEvent>,
) -> Infallible {
    let (told, unexplained) = (vec![Told::Nothing; tables.len()], vec![None; tables.len()]);
    let errors = vec![None; tables.len()];
    let mut watcher = Watcher { options, tables, signals, events, told, unexplained, errors };
    let looks = async {
        loop {
            let Err(error) = watcher.run().await;
            tracing::debug!(%error, "cannot read the catalogue");
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

struct Watcher<'a> {
    options: &'a StreamOptions,
    tables: &'a [Followed],
    signals: &'a Signals,
    events: &'a mpsc::Sender<SourceEvent>,
    told: Vec<Told>,
    /// Tables with another file, and where the WAL ended when that was seen: if they were truncated, the stream tells it before
    /// it is past that.
    unexplained: Vec<Option<(Definition, Lsn)>>,
    /// The reason why the last look at a table failed.
    errors: Vec<Option<String>>,
}

/// What was said last about a table. It is not said again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Moved(Arc<Definition>),
    Broken(String),
}

/// A look at one table.
struct Look {
    began: Instant,
    /// The definition of the copy when it began.
    copied: Option<Arc<Definition>>,
    facts: Option<Facts>,
    /// What has become of the one since.
    change: Change,
}

impl Watcher<'_> {
    async fn run(&mut self) -> Result<Infallible, TransportError> {
        let mut connection = Connection::connect(&self.options.connection).await?;
        connection.simple_query(SESSION).await?;
        catalog::prepare(&mut connection).await?;
        loop {
            if let Some(recent) = value(&mut connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())").await? {
                self.signals.recent.send_replace(Xid(recent));
            }
            let mut looks = Vec::with_capacity(self.tables.len());
            for (index, table) in self.tables.iter().enumerate() {
                match self.look(&mut connection, table).await {
                    Ok(look) => looks.push((index, look)),
                    // One table that cannot be looked at hides no other one.
                    Err(error) if connection.is_idle() => self.failed(index, &error),
                    Err(error) => return Err(error),
                }
            }
            let end = value(&mut connection, "SELECT pg_current_wal_insert_lsn()").await?.unwrap_or(Lsn::ZERO);
            for (index, look) in looks {
                let began = look.began;
                self.compare(index, look, end).await;
                self.errors[index] = None;
                self.signals.looks.send_modify(|looks| _ = looks.seen.insert(TableIndex(index), began));
            }
            self.report_errors();
            let next = self.unexplained.iter().flatten().map(|(_, end)| *end).min();
            // Cancelled or too late, nothing is lost: the next round sees it.
            tokio::select! {
                _ = tokio::time::timeout(INTERVAL, self.signals.announced.notified()) => {}
                () = reached(self.signals, next.unwrap_or(Lsn::ZERO)), if next.is_some() => {}
            }
        }
    }

    async fn look(&self, connection: &mut Connection, table: &Followed) -> Result<Look, TransportError> {
        let began = Instant::now();
        // Before the catalogue is read, so that a copy that ends meanwhile is not compared with what it replaces.
        let copied = table.progress.lock().copied.clone();
        let facts = catalog::look(connection, &self.options.publication, &table.request.name).await?;
        let mut change = match (&copied, &facts) {
            (Some(copied), Some(facts)) => copied.change(&facts.definition),
            _ => Change::Nothing,
        };
        if let Change::Harmless(Conditions { empty, .. }) = &change
            && !are_empty(connection, empty).await?
        {
            change = Change::Rows("its partitions changed".to_owned());
        }
        Ok(Look { began, copied, facts, change })
    }

    fn failed(&mut self, index: usize, error: &TransportError) {
        let name = self.tables.get(index).map(|table| &table.request.name);
        tracing::debug!(table = ?name, %error, "cannot look at the table's definition");
        self.errors[index] = Some(error.to_string());
    }

    fn report_errors(&self) {
        let errors = self.errors.iter().enumerate();
        let errors = errors.filter_map(|(i, error)| Some((TableIndex(i), error.clone()?))).collect();
        self.signals.looks.send_if_modified(|looks| {
            let is_other = looks.errors != errors;
            looks.errors = errors;
            is_other
        });
    }

    /// Whether all that happened to a table is that it was truncated, which the stream tells; `None` where it is not known yet.
    fn was_truncated(
        &mut self,
        index: usize,
        copied: Option<&Definition>,
        facts: Option<&Facts>,
        end: Lsn,
    ) -> Option<bool> {
        let unexplained = self.unexplained.get_mut(index)?;
        let before = unexplained.take();
        let Some((facts, by)) = facts.and_then(|newer| Some((newer, copied?.truncated_by(newer)?))) else {
            return Some(false);
        };
        let definition = &facts.definition;
        let end = before.filter(|(then, _)| then == definition).map_or(end, |(_, end)| end);
        // Before what it has told, which it tells first.
        let is_past = *self.signals.reached.borrow() >= end;
        let is_told = self.signals.truncated.borrow().get(&definition.oid) == Some(&by);
        if is_told || is_past {
            return Some(is_told);
        }
        *unexplained = Some((definition.clone(), end));
        None
    }

    async fn compare(&mut self, index: usize, look: Look, end: Lsn) {
        let Look { copied, facts, change, .. } = look;
        let was_truncated = self.was_truncated(index, copied.as_deref(), facts.as_ref(), end);
        let (Some(table), Some(told)) = (self.tables.get(index), self.told.get_mut(index)) else {
            return;
        };
        let failed = {
            let mut progress = table.progress.lock();
            if progress.copied.as_ref().map(Arc::as_ptr) != copied.as_ref().map(Arc::as_ptr) {
                return;
            }
            progress.failed.take_if(|then| *then != facts).is_some()
        };
        if copied.is_none() && !failed {
            return;
        }
        let problem = problem(facts.as_ref(), table, &self.options.publication);
        if let (Told::Nothing, false, None, Some(facts), Some(copied)) = (&*told, failed, &problem, &facts, &copied) {
            match (was_truncated, &change) {
                (None, _) => return,
                (Some(true), _) | (Some(false), Change::Harmless(_)) => {
                    return self.redefine(index, copied, &facts.definition, end).await;
                }
                (Some(false), Change::Nothing | Change::Rows(_)) => {}
            }
        }
        let index = TableIndex(index);
        let moved = |reason: String, definition: &Definition| {
            let definition = Some(resume::text_of(&table.request, definition));
            Some(SourceEvent::Moved { table: index, reason, definition })
        };
        let (now_told, event) = match (problem, facts, change) {
            (Some(error), _, _) => {
                let event = SourceEvent::Broken { table: index, error: error.clone() };
                (Told::Broken(error), Some(event))
            }
            (None, Some(facts), Change::Rows(reason)) => {
                let event = moved(reason, &facts.definition);
                (Told::Moved(Arc::new(facts.definition)), event)
            }
            (None, Some(facts), Change::Nothing | Change::Harmless(_)) if failed || matches!(told, Told::Broken(_)) => {
                (Told::Nothing, moved("it can be followed again".to_owned(), &facts.definition))
            }
            (None, _, _) => (Told::Nothing, None),
        };
        if *told == now_told && !failed {
            return;
        }
        *told = now_told;
        if let Some(event) = event {
            // Nobody takes events any more: the stream ends, and this with it.
            let _ = self.events.send(event).await;
        }
    }

    /// Says that the definition is another one, and that the rows are what the stream has made of them.
    async fn redefine(&self, index: usize, copied: &Arc<Definition>, newer: &Definition, from: Lsn) {
        let Some(table) = self.tables.get(index) else { return };
        let definition = resume::text_of(&table.request, newer);
        let values = match copied.with_file(newer.file).change(newer) {
            Change::Harmless(Conditions { labels, .. }) => labels,
            Change::Nothing | Change::Rows(_) => Vec::new(),
        };
        let values = values.into_iter().map(|(column, labels)| ColumnValues {
            column,
            values: labels.into_iter().map(String::into_bytes).collect(),
        });
        {
            let mut progress = table.progress.lock();
            // A copy has ended meanwhile, and knows better.
            if progress.copied.as_ref().map(Arc::as_ptr) != Some(Arc::as_ptr(copied)) {
                return;
            }
            progress.copied = Some(Arc::new(newer.clone()));
        }
        let event = SourceEvent::Redefined { table: TableIndex(index), definition, from, values: values.collect() };
        // As above.
        let _ = self.events.send(event).await;
    }
}

/// Whether tables have no rows; those that are gone may have had some. This one waits for locks, but for a second only.
async fn are_empty(connection: &mut Connection, tables: &[Oid]) -> Result<bool, TransportError> {
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

/// The one value that a query has.
async fn value<T: FromStr>(connection: &mut Connection, sql: &str) -> Result<Option<T>, TransportError> {
    let rows = connection.simple_query(sql).await?;
    Ok(rows.into_iter().flatten().flatten().next().and_then(|text| text.parse().ok()))
}

/// Waits until the stream is past a position.
async fn reached(signals: &Signals, position: Lsn) {
    // The sender is there as long as we are.
    let _ = signals.reached.subscribe().wait_for(|reached| *reached >= position).await;
}

/// Why a table cannot be followed as it is, with what to do.
fn problem(facts: Option<&Facts>, table: &Followed, publication: &str) -> Option<String> {
    let name = &table.request.name;
    let Some(facts) = facts else {
        return Some(format!("table {name} was dropped or renamed; restore it, or take it out of the configuration"));
    };
    let problem = publication::table_problem(publication, name, facts);
    problem.or_else(|| catalog::schema_of(&facts.definition, &table.request).err().map(|problems| problems.join("; ")))
}
