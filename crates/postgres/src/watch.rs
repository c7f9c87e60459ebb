//! Watches the tables' definitions: much that changes them is told by the stream late, or never.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{TableName, Xid};
use laredo_engine::source::{SourceEvent, TableIndex};
use tokio::sync::mpsc;

use crate::catalog::{self, Definition, Facts};
use crate::publication;
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
    let mut watcher = Watcher { options, tables, signals, events, told: vec![Told::Nothing; tables.len()] };
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
            let sql = "SELECT pg_snapshot_xmax(pg_current_snapshot())";
            let recent = connection.simple_query(sql).await?;
            if let Some(recent) = recent.into_iter().flatten().flatten().next().and_then(|text| text.parse().ok()) {
                self.signals.recent.send_replace(Xid(recent));
            }
            let found = catalog::read(&mut connection, &self.options.publication, &names).await?;
            for (index, (copied, facts)) in copied.into_iter().zip(found).enumerate() {
                self.compare(index, copied.as_ref(), facts).await;
            }
            // Cancelled or too late, nothing is lost: the next round sees it.
            let _ = tokio::time::timeout(INTERVAL, self.signals.announced.notified()).await;
        }
    }

    async fn compare(&mut self, index: usize, copied: Option<&Arc<Definition>>, facts: Option<Facts>) {
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
