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
use crate::ddl::{self, DdlWatch};
use crate::options::Work;
use crate::publication::{self, PublicationOptions};
use crate::resume;
use crate::source::Followed;
use crate::stream::{Signals, StreamOptions, WantedLook};
use crate::transport::{Connection, TransportError};

/// How often the catalogue is read, besides whenever a table is announced on the stream.
const INTERVAL: Duration = Duration::from_secs(10);
/// The age at which the connection is replaced: settings of a role or a database, such as `lc_monetary`, reach new sessions only.
const SESSION_MAX: Duration = Duration::from_secs(60);
/// How long a failed connection is left alone.
const RECONNECT: Duration = Duration::from_secs(2);
/// A look for which the stream waits is made again after this, and given up after [`LOOK_PATIENCE`]: one table does not hold up the
/// others for ever.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LOOK_PATIENCE: Duration = Duration::from_secs(10);
/// A commit is visible microseconds after it is in the stream, or when a synchronous standby has it.
const VISIBLE_POLL: Duration = Duration::from_millis(2);
/// A look reads only the catalogue, so it does not wait. Should it have to after all, the other tables come first.
const SESSION: &str = "SET statement_timeout = '10s'; SET lock_timeout = '1s'; SET idle_session_timeout = 0";

/// Says of each table when its definition is no longer the one that was copied. Never returns: it has a connection of
/// its own, and what breaks that is left to the stream to report.
pub(crate) async fn watch(
    options: &StreamOptions,
    (publication, tables): (&PublicationOptions, &[Followed]),
    signals: &Signals,
    events: &mpsc::Sender<SourceEvent>,
) -> Infallible {
    let (told, unexplained) = (vec![Told::Nothing; tables.len()], vec![None; tables.len()]);
    let (told_of, errors) = (vec![None; tables.len()], vec![None; tables.len()]);
    let (has_trigger, unanswered, proven) = (None, None, vec![0; tables.len()]);
    let mut watcher = Watcher {
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
    publication: &'a PublicationOptions,
    tables: &'a [Followed],
    signals: &'a Signals,
    events: &'a mpsc::Sender<SourceEvent>,
    told: Vec<Told>,
    /// The copy that it was said of. A later one has not heard of it, whatever it was made under.
    told_of: Vec<Option<Arc<Definition>>>,
    /// The restart of PostgreSQL, by number, since which a table's newest change was found proven, or said.
    proven: Vec<u64>,
    /// True if the event trigger was there, where it is wanted.
    has_trigger: Option<bool>,
    /// The look that the stream waits for, and since when it could not be answered.
    unanswered: Option<(u64, Instant)>,
    /// Tables with another file, and where the WAL ended when that was seen: if they were truncated, the stream tells it before
    /// it is past that.
    unexplained: Vec<Option<(Definition, Lsn)>>,
    /// The reason why the last look at a table failed.
    errors: Vec<Option<String>>,
    /// The facts about a table that could not be added to the publication. The statement is not repeated while they stay.
    unpublished: Vec<Option<Facts>>,
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
    /// The change since.
    change: Change,
}

impl Watcher<'_> {
    async fn run(&mut self) -> Result<Infallible, TransportError> {
        let (mut connection, mut connected_at) = (self.connect().await?, Instant::now());
        loop {
            if connected_at.elapsed() >= SESSION_MAX {
                (connection, connected_at) = (self.connect().await?, Instant::now());
            }
            self.check_trigger(&mut connection).await?;
            let wanted = self.wanted_look(&mut connection).await?;
            if let Some(recent) = value(&mut connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())").await? {
                self.signals.recent.send_replace(Xid(recent));
            }
            let mut is_settled = true;
            let mut looks = Vec::with_capacity(self.tables.len());
            for index in 0..self.tables.len() {
                match self.look_and_publish(&mut connection, index).await {
                    Ok(look) => looks.push((index, look)),
                    // One table that cannot be looked at hides no other one.
                    Err(error) if connection.is_idle() => self.failed(index, &error),
                    Err(error) => return Err(error),
                }
            }
            let end = value(&mut connection, "SELECT pg_current_wal_insert_lsn()").await?.unwrap_or(Lsn::ZERO);
            for (index, look) in looks {
                let began = look.began;
                is_settled &= self.compare(index, look, end).await;
                self.errors[index] = None;
                self.signals.looks.send_modify(|looks| _ = looks.seen.insert(TableIndex(index), began));
            }
            self.report_errors();
            is_settled &= self.errors.iter().all(Option::is_none);
            if !self.answer(wanted, is_settled) {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            let next = self.unexplained.iter().flatten().map(|(_, end)| *end).min();
            // Cancelled or too late, nothing is lost: the next round sees it.
            tokio::select! {
                () = self.signals.look_is_wanted() => {}
                _ = tokio::time::timeout(INTERVAL, self.signals.announced.notified()) => {}
                () = reached(self.signals, next.unwrap_or(Lsn::ZERO)), if next.is_some() => {}
            }
        }
    }

    async fn connect(&self) -> Result<Connection, TransportError> {
        let mut connection = Connection::connect(&self.options.connection.for_work(Work::Watch)).await?;
        connection.simple_query(SESSION).await?;
        catalog::prepare(&mut connection).await?;
        Ok(connection)
    }

    /// Says whether the event trigger that is wanted is there, where that has changed.
    async fn check_trigger(&mut self, connection: &mut Connection) -> Result<(), TransportError> {
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
        self.signals.looks.send_modify(|looks| looks.is_triggered = is_installed);
        Ok(())
    }

    /// The look that the stream waits for, once the transaction that it is for is visible.
    async fn wanted_look(&self, connection: &mut Connection) -> Result<Option<u64>, TransportError> {
        loop {
            let WantedLook { number, after } = *self.signals.look_wanted.borrow();
            let Some(after) = after.filter(|_| number > *self.signals.looked.borrow()) else {
                return Ok(None);
            };
            let sql = format!("SELECT pg_visible_in_snapshot('{}', pg_current_snapshot())::int", after.0);
            if value(connection, &sql).await? != Some(0) {
                return Ok(Some(number));
            }
            tokio::time::sleep(VISIBLE_POLL).await;
        }
    }

    /// Lets the stream continue after the look that it waited for; `false` where another one is to be made at once.
    fn answer(&mut self, wanted: Option<u64>, is_settled: bool) -> bool {
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
                "a definition was changed and could not be looked at; the stream continues, and the catalogue is read again"
            );
        }
        self.signals.looked.send_replace(number);
        true
    }

    /// Looks at a table, and adds it to our publication where it is missing because it was created again, or because another table
    /// has its name now. The table that was copied is missing only after an operator took it out, and stays out.
    async fn look_and_publish(&mut self, connection: &mut Connection, index: usize) -> Result<Look, TransportError> {
        let look = self.look(connection, index).await?;
        let request = &self.tables[index].request;
        let name = &request.name;
        // Of a table without a key, PostgreSQL would refuse updates once it is published.
        let copied = self.tables[index].progress.lock().copied.as_ref().map(|copied| copied.oid);
        let is_good = |facts: &&Facts| {
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
        let look = self.look(connection, index).await?;
        self.unpublished[index] = look.facts.clone().filter(|facts| facts.definition.published.is_none());
        Ok(look)
    }

    async fn look(&mut self, connection: &mut Connection, index: usize) -> Result<Look, TransportError> {
        let (table, proven) = (&self.tables[index], &mut self.proven[index]);
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
        let (restart, mark) = *self.signals.restarts.borrow();
        if let (Some(copied), Some(facts)) = (&copied, &facts)
            && *proven != restart
        {
            *proven = restart;
            let is_unproven = !matches!(change, Change::Rows(_)) && facts.changed_after(mark);
            // It may have been copied since.
            if is_unproven && table.progress.lock().copied.as_ref().is_some_and(|now| Arc::ptr_eq(now, copied)) {
                change = Change::Rows(catalog::UNPROVEN_CHANGE.to_owned());
            }
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

    /// Takes what a look has found; `false` where a copy has ended meanwhile, so that it says nothing.
    async fn compare(&mut self, index: usize, look: Look, end: Lsn) -> bool {
        let Look { copied, facts, change, .. } = look;
        let was_truncated = self.was_truncated(index, copied.as_deref(), facts.as_ref(), end);
        let (Some(table), Some(told), Some(told_of)) =
            (self.tables.get(index), self.told.get_mut(index), self.told_of.get_mut(index))
        else {
            return true;
        };
        let failed = {
            let mut progress = table.progress.lock();
            if progress.copied.as_ref().map(Arc::as_ptr) != copied.as_ref().map(Arc::as_ptr) {
                return false;
            }
            progress.failed.take_if(|then| *then != facts).is_some()
        };
        if matches!(told, Told::Moved(_)) && told_of.as_ref().map(Arc::as_ptr) != copied.as_ref().map(Arc::as_ptr) {
            *told = Told::Nothing;
        }
        if copied.is_none() && !failed && !matches!(told, Told::Broken(_)) {
            return true;
        }
        let problem = problem(facts.as_ref(), table, &self.options.publication);
        if let (Told::Nothing, false, None, Some(facts), Some(copied)) = (&*told, failed, &problem, &facts, &copied) {
            match (was_truncated, &change) {
                (None, _) => return true,
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
            return true;
        }
        (*told, *told_of) = (now_told, copied);
        if let Some(event) = event {
            // Nobody takes events any more: the stream ends, and this with it.
            let _ = self.events.send(event).await;
        }
        true
    }

    /// Says that the definition is another one, and that the rows are what the stream has made of them.
    async fn redefine(&self, index: usize, copied: &Arc<Definition>, newer: &Definition, from: Lsn) -> bool {
        let Some(table) = self.tables.get(index) else { return true };
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
                return false;
            }
            progress.copied = Some(Arc::new(newer.clone()));
        }
        let event = SourceEvent::Redefined { table: TableIndex(index), definition, from, values: values.collect() };
        // As above.
        let _ = self.events.send(event).await;
        true
    }
}

/// Returns true if tables have no rows; those that are gone may have had some. This query waits for locks, but for a second only.
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
