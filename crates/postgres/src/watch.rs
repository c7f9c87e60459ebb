//! Watches the tables' definitions: much that changes them is told by the stream late, or never.

use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Lsn, TableName, Xid};
use laredo_engine::source::{SourceEvent, TableIndex};
use tokio::sync::mpsc;

use crate::catalog::{self, Definition, Facts};
use crate::publication;
use crate::resume;
use crate::source::Followed;
use crate::stream::{Signals, StreamOptions};
use crate::transport::{Connection, TransportError};

/// How often the catalogue is read, besides whenever a table is announced on the stream.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a failed connection is left alone.
const RECONNECT: Duration = Duration::from_secs(2);

/// Says of each table when its definition is no longer the one that was copied. Never returns: it has a connection of
/// its own, and what breaks that is left to the stream to report.
pub(crate) async fn watch(
    options: &StreamOptions,
    tables: &[Followed],
    signals: &Signals,
    events: &mpsc::Sender<SourceEvent>,
) -> Infallible {
    let (told, unexplained) = (vec![Told::Nothing; tables.len()], vec![None; tables.len()]);
    let mut watcher = Watcher { options, tables, signals, events, told, unexplained };
    loop {
        let Err(error) = watcher.run().await;
        tracing::debug!(%error, "cannot read the catalogue");
        tokio::time::sleep(RECONNECT).await;
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
}

/// What was said last about a table. It is not said again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Moved(Arc<Definition>),
    Broken(String),
}

impl Watcher<'_> {
    async fn run(&mut self) -> Result<Infallible, TransportError> {
        let mut connection = Connection::connect(&self.options.connection).await?;
        let names: Vec<TableName> = self.tables.iter().map(|table| table.request.name.clone()).collect();
        loop {
            // Before the catalogue is read, so that a copy that ends meanwhile is not compared with what it replaces.
            let copied: Vec<_> = self.tables.iter().map(|table| table.progress.lock().copied.clone()).collect();
            if let Some(recent) = value(&mut connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())").await? {
                self.signals.recent.send_replace(Xid(recent));
            }
            let found = catalog::read(&mut connection, &self.options.publication, &names).await?;
            let end = value(&mut connection, "SELECT pg_current_wal_insert_lsn()").await?.unwrap_or(Lsn::ZERO);
            for (index, (copied, facts)) in copied.into_iter().zip(found).enumerate() {
                self.compare(index, copied.as_ref(), facts, end).await;
            }
            let next = self.unexplained.iter().flatten().map(|(_, end)| *end).min();
            // Cancelled or too late, nothing is lost: the next round sees it.
            tokio::select! {
                _ = tokio::time::timeout(INTERVAL, self.signals.announced.notified()) => {}
                () = reached(self.signals, next.unwrap_or(Lsn::ZERO)), if next.is_some() => {}
            }
        }
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
        let definition = facts.map(|facts| &facts.definition);
        let Some((definition, by)) = definition.and_then(|newer| Some((newer, copied?.truncated_by(newer)?))) else {
            return Some(false);
        };
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

    async fn compare(&mut self, index: usize, copied: Option<&Arc<Definition>>, mut facts: Option<Facts>, end: Lsn) {
        let was_truncated = self.was_truncated(index, copied.map(Arc::as_ref), facts.as_ref(), end);
        let (Some(table), Some(told)) = (self.tables.get(index), self.told.get_mut(index)) else {
            return;
        };
        let failed = {
            let mut progress = table.progress.lock();
            if progress.copied.as_ref().map(Arc::as_ptr) != copied.map(Arc::as_ptr) {
                return;
            }
            progress.failed.take_if(|then| *then != facts).is_some()
        };
        if copied.is_none() && !failed {
            return;
        }
        if *told == Told::Nothing && !failed {
            match (was_truncated, facts) {
                (Some(true), Some(facts)) => {
                    let definition = resume::text_of(&table.request, &facts.definition);
                    {
                        let mut progress = table.progress.lock();
                        // A copy has ended meanwhile, and knows better.
                        if progress.copied.as_ref().map(Arc::as_ptr) != copied.map(Arc::as_ptr) {
                            return;
                        }
                        progress.copied = Some(Arc::new(facts.definition));
                    }
                    let event = SourceEvent::Redefined { table: TableIndex(index), definition, from: end };
                    // As below.
                    let _ = self.events.send(event).await;
                    return;
                }
                (None, _) => return,
                (_, back) => facts = back,
            }
        }
        let index = TableIndex(index);
        let moved = |reason: String| Some(SourceEvent::Moved { table: index, reason });
        let (now_told, event) = match verdict(copied.map(Arc::as_ref), facts, table, &self.options.publication) {
            Verdict::Same if failed || matches!(told, Told::Broken(_)) => {
                (Told::Nothing, moved("it can be followed again".to_owned()))
            }
            Verdict::Same => (Told::Nothing, None),
            Verdict::Moved(definition, reason) => (Told::Moved(definition), moved(reason)),
            Verdict::Broken(error) => {
                let event = SourceEvent::Broken { table: index, error: error.clone() };
                (Told::Broken(error), Some(event))
            }
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

enum Verdict {
    Same,
    Moved(Arc<Definition>, String),
    Broken(String),
}

/// Without a copy so far, nothing can have moved.
fn verdict(copied: Option<&Definition>, facts: Option<Facts>, table: &Followed, publication: &str) -> Verdict {
    let name = &table.request.name;
    let Some(facts) = facts else {
        return Verdict::Broken(format!(
            "table {name} was dropped or renamed; restore it, or take it out of the configuration"
        ));
    };
    if let Some(problem) = publication::table_problem(publication, name, &facts) {
        return Verdict::Broken(problem);
    }
    if let Err(problems) = catalog::schema_of(&facts.definition, &table.request) {
        return Verdict::Broken(problems.join("; "));
    }
    match copied.and_then(|copied| copied.difference(&facts.definition)) {
        None => Verdict::Same,
        Some(reason) => Verdict::Moved(Arc::new(facts.definition), reason),
    }
}
