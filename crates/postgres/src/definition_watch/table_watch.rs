//! The watch of one table's definition.

use std::sync::Arc;

use laredo_core::{Lsn, Oid, TableName};
use laredo_engine::source::{ColumnValues, SourceEvent, TableIndex};
use tokio::time::Instant;

use super::{WatchContext, value};
use crate::catalog::{self, DefinitionImpact, HarmlessConditions, TableDefinition, TableFacts};
use crate::copy::{SourceTable, WritingTransaction, open_writers, still_open};
use crate::signals::ServerRestarts;
use crate::transport::{SqlConnection, TransportError};
use crate::{publication, resume};

/// A followed table, with what the checks of its definition have found so far.
pub(super) struct TableWatch<'a> {
    context: WatchContext<'a>,
    table: Arc<SourceTable>,
    reported: DefinitionReport,
    /// The definition of the copy that the last report is about. A later copy gets its own report,
    /// even if its definition is the same.
    reported_copy: Option<Arc<TableDefinition>>,
    /// The number of the restart of PostgreSQL since which the table's newest change is proven or
    /// was reported.
    proven: u64,
    /// Set while the table's file is another one and the stream has not explained it.
    unexplained: Option<UnexplainedFile>,
    /// The writers after whose end labels are looked for again.
    awaited: Option<LabelWriters>,
    /// The error of the last check, if it failed.
    error: Option<String>,
    /// The facts of the table when it could not be added to the publication. The statement is not
    /// repeated while they are unchanged.
    unpublished: Option<TableFacts>,
}

/// The last report about a table. The same report is not repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DefinitionReport {
    Nothing,
    Moved(Arc<TableDefinition>),
    Broken(String),
}

/// A check of one table.
pub(super) struct DefinitionCheck {
    began: Instant,
    /// The definition of the copy when the check began.
    copied: Option<Arc<TableDefinition>>,
    facts: Option<TableFacts>,
    /// The change since that definition.
    change: DefinitionImpact,
    /// The open transactions that have written the table, if the change brings labels.
    writers: Vec<WritingTransaction>,
    /// True if the transactions that were waited for have ended.
    have_ended: bool,
    /// The number of restarts of PostgreSQL that the change accounts for. `None` without a copy and
    /// a table to compare.
    restarts: Option<u64>,
}

impl DefinitionCheck {
    /// Returns true if the publication does not exist.
    pub(super) fn lacks_publication(&self) -> bool {
        self.facts.as_ref().is_some_and(|facts| facts.access.publication_via_root.is_none())
    }
}

/// A change of a table's file. If the table was truncated, the stream reports it before it passes
/// `end`.
struct UnexplainedFile {
    definition: TableDefinition,
    /// The end of the WAL when the change was seen.
    end: Lsn,
}

/// The transactions that had written a table when a definition with more labels was reported.
/// PostgreSQL sends a row that one of them wrote before a label was renamed with the old label, so
/// the labels are looked for in the rows again once all of them have ended.
struct LabelWriters {
    /// The definition that was reported.
    reported: Arc<TableDefinition>,
    values: Vec<ColumnValues>,
    writers: Vec<WritingTransaction>,
}

impl<'a> TableWatch<'a> {
    pub(super) fn new(context: WatchContext<'a>, table: Arc<SourceTable>) -> TableWatch<'a> {
        TableWatch {
            context,
            table,
            reported: DefinitionReport::Nothing,
            reported_copy: None,
            proven: 0,
            unexplained: None,
            awaited: None,
            error: None,
            unpublished: None,
        }
    }

    /// Returns true if this is the watch of `table`.
    pub(super) fn is_of(&self, table: &Arc<SourceTable>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    pub(super) fn index(&self) -> TableIndex {
        self.table.index
    }

    pub(super) fn name(&self) -> &TableName {
        &self.table.request.name
    }

    /// Returns the error of the last check, if it failed.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Records that a check failed.
    pub(super) fn record_error(&mut self, error: &TransportError) {
        self.error = Some(error.to_string());
    }

    /// Returns the position up to which the stream may explain a change of the table's file.
    pub(super) fn unexplained_until(&self) -> Option<Lsn> {
        self.unexplained.as_ref().map(|unexplained| unexplained.end)
    }

    /// Returns true if labels are looked for again once transactions have ended.
    pub(super) fn awaits_writers(&self) -> bool {
        self.awaited.is_some()
    }

    /// Returns true if the transactions that are waited for have ended.
    pub(super) async fn have_writers_ended(&mut self, connection: &mut SqlConnection) -> Result<bool, TransportError> {
        let Some(awaited) = &mut self.awaited else { return Ok(false) };
        awaited.writers = still_open(connection, &awaited.writers).await?;
        Ok(awaited.writers.is_empty())
    }

    /// Checks a table, and adds it to our publication if it is missing there. It may be missing
    /// because it was created again or because another table has its name now. The table that was
    /// copied is only missing if an operator removed it, and is not added.
    pub(super) async fn check_and_publish(
        &mut self,
        connection: &mut SqlConnection,
    ) -> Result<DefinitionCheck, TransportError> {
        let check = self.check(connection).await?;
        let request = &self.table.request;
        let name = &request.name;
        // PostgreSQL would refuse updates of a published table without a key.
        let copied = self.table.copied().map(|copied| copied.oid);
        let is_good = |facts: &&TableFacts| {
            self.context.publication.create
                && copied != Some(facts.definition.oid)
                && catalog::schema_of(&facts.definition, request).is_ok()
        };
        let Some(facts) = check.facts.as_ref().filter(is_good) else { return Ok(check) };
        let Some(sql) = publication::addition(self.context.publication, name, facts) else { return Ok(check) };
        if self.unpublished.as_ref() == Some(facts) {
            return Ok(check);
        }
        tracing::info!(event = "publication_table_added", table = %name, %sql, "adding the table to the publication");
        if let Err(error) = connection.simple_query(&sql).await {
            if error.server().is_none() {
                return Err(error);
            }
            tracing::warn!(
                event = "publication_table_not_added", table = %name, %error, %sql,
                "the table cannot be added to the publication"
            );
            if !error.is_transient() {
                self.unpublished = check.facts.clone();
            }
            return Ok(check);
        }
        let check = self.check(connection).await?;
        self.unpublished = check.facts.clone().filter(|facts| facts.definition.published.is_none());
        Ok(check)
    }

    async fn check(&mut self, connection: &mut SqlConnection) -> Result<DefinitionCheck, TransportError> {
        let WatchContext { options, signals, .. } = self.context;
        let table = &self.table;
        let began = Instant::now();
        // Read before the catalog, so that a copy that ends in the meantime is not compared with
        // its predecessor's definition.
        let copied = table.copied();
        let facts = catalog::read_table_facts(connection, &options.publication, &table.request.name).await?;
        let mut change = match (&copied, &facts) {
            (Some(copied), Some(facts)) => copied.change(&facts.definition),
            _ => DefinitionImpact::Nothing,
        };
        if let DefinitionImpact::Harmless(HarmlessConditions { empty, .. }) = &change
            && !are_empty(connection, empty).await?
        {
            change = DefinitionImpact::Rows("its partitions changed".to_owned());
        }
        let writers = match (&copied, &facts) {
            (Some(copied), Some(facts)) if brings_labels(copied, &facts.definition) => {
                open_writers(connection, &[facts.definition.oid]).await?
            }
            _ => Vec::new(),
        };
        let have_ended = self.have_writers_ended(connection).await?;
        let table = &self.table;
        let ServerRestarts { count, proven: mark } = signals.restarts();
        let mut restarts = None;
        if let (Some(copied), Some(facts)) = (&copied, &facts) {
            restarts = Some(count);
            let is_unproven = self.proven != count
                && !matches!(change, DefinitionImpact::Rows(_))
                && facts.changed_after(mark)
                // The table may have been copied in the meantime, or since the restart.
                && table.is_copied_before(copied, count);
            if is_unproven {
                change = DefinitionImpact::Rows(catalog::UNPROVEN_CHANGE.to_owned());
            }
        }
        Ok(DefinitionCheck { began, copied, facts, change, writers, have_ended, restarts })
    }

    /// Returns true if the only change to a table is a truncate, which the stream reports. `None`
    /// if that is not known yet.
    fn was_truncated(
        &mut self,
        copied: Option<&TableDefinition>,
        facts: Option<&TableFacts>,
        end: Lsn,
    ) -> Option<bool> {
        let before = self.unexplained.take();
        let Some((facts, by)) = facts.and_then(|newer| Some((newer, newer.truncated_since(copied?)?))) else {
            return Some(false);
        };
        let definition = &facts.definition;
        let end = before.filter(|before| before.definition == *definition).map_or(end, |before| before.end);
        let is_past = self.context.signals.reached() >= end;
        let is_reported = self.context.signals.last_truncate(definition.oid) == Some(by);
        if is_reported || is_past {
            return Some(is_reported);
        }
        self.unexplained = Some(UnexplainedFile { definition: definition.clone(), end });
        None
    }

    /// Reports what a check has found. Returns false if a copy has ended in the meantime, so that
    /// the check is outdated.
    pub(super) async fn report(&mut self, check: DefinitionCheck, end: Lsn) -> bool {
        let began = check.began;
        let is_current = self.compare(check, end).await;
        self.error = None;
        self.context.signals.record_definition_read(self.table.index, began);
        is_current
    }

    async fn compare(&mut self, check: DefinitionCheck, end: Lsn) -> bool {
        let DefinitionCheck { copied, facts, change, writers, have_ended, restarts, .. } = check;
        if have_ended {
            self.look_for_labels_again(end).await;
        }
        let was_truncated = self.was_truncated(copied.as_deref(), facts.as_ref(), end);
        let table = self.table.clone();
        let Some(failed) = table.take_failure(copied.as_ref(), facts.as_ref()) else { return false };
        if matches!(self.reported, DefinitionReport::Moved(_))
            && self.reported_copy.as_ref().map(Arc::as_ptr) != copied.as_ref().map(Arc::as_ptr)
        {
            self.reported = DefinitionReport::Nothing;
        }
        if copied.is_none() && !failed && !matches!(self.reported, DefinitionReport::Broken(_)) {
            return true;
        }
        let problem = problem(facts.as_ref(), &table, &self.context.options.publication);
        if let (DefinitionReport::Nothing, false, None, Some(facts), Some(copied)) =
            (&self.reported, failed, &problem, &facts, &copied)
        {
            match (was_truncated, &change) {
                (None, _) => return true,
                (Some(true), _) | (Some(false), DefinitionImpact::Harmless(_)) => {
                    let is_current = self.redefine(copied, &facts.definition, end, writers).await;
                    self.note_proven(restarts.filter(|_| is_current));
                    return is_current;
                }
                (Some(false), DefinitionImpact::Nothing | DefinitionImpact::Rows(_)) => {}
            }
        }
        let index = table.index;
        let moved = |reason: String, definition: &TableDefinition| {
            let definition = Some(resume::text_of(&table.request, definition));
            Some(SourceEvent::Moved { table: index, reason, definition })
        };
        let (report, event) = match (problem, facts, change) {
            (Some(error), _, _) => {
                let event = SourceEvent::Broken { table: index, error: error.clone() };
                (DefinitionReport::Broken(error), Some(event))
            }
            (None, Some(facts), DefinitionImpact::Rows(reason)) => {
                let event = moved(reason, &facts.definition);
                (DefinitionReport::Moved(Arc::new(facts.definition)), event)
            }
            (None, Some(facts), DefinitionImpact::Nothing | DefinitionImpact::Harmless(_))
                if failed || matches!(self.reported, DefinitionReport::Broken(_)) =>
            {
                (DefinitionReport::Nothing, moved("it can be followed again".to_owned(), &facts.definition))
            }
            (None, _, _) => (DefinitionReport::Nothing, None),
        };
        if self.reported != report || failed {
            (self.reported, self.reported_copy) = (report, copied);
            if let Some(event) = event {
                // If sending fails, the consumer is gone, and the stream and this watch end.
                let _ = self.context.events.send(event).await;
            }
        }
        self.note_proven(restarts);
        true
    }

    /// Notes that the restarts of PostgreSQL up to this number are accounted for. Called after the
    /// report, because a check that is not reported has to be repeated.
    fn note_proven(&mut self, restarts: Option<u64>) {
        self.proven = restarts.unwrap_or(self.proven);
    }

    /// Reports a new definition under which the rows still match what the stream has sent. Returns
    /// false if a copy has ended in the meantime.
    async fn redefine(
        &mut self,
        copied: &Arc<TableDefinition>,
        newer: &TableDefinition,
        from: Lsn,
        writers: Vec<WritingTransaction>,
    ) -> bool {
        let values = labels_since(copied, newer).into_iter().map(|(column, labels)| ColumnValues {
            column,
            values: labels.into_iter().map(String::into_bytes).collect(),
        });
        let values: Vec<ColumnValues> = values.collect();
        let Some(reported) = self.table.redefine(copied, newer.clone()) else { return false };
        if !writers.is_empty() {
            self.awaited = Some(LabelWriters { reported: reported.clone(), values: values.clone(), writers });
        }
        self.report_redefined(&reported, from, values).await;
        true
    }

    /// Has the labels of the last report looked for in the rows of writers that were open then.
    async fn look_for_labels_again(&mut self, from: Lsn) {
        let Some(LabelWriters { reported, values, .. }) = self.awaited.take() else { return };
        // A later copy has waited for these writers itself.
        if self.table.copied().is_some_and(|copied| Arc::ptr_eq(&copied, &reported)) {
            self.report_redefined(&reported, from, values).await;
        }
    }

    async fn report_redefined(&self, definition: &TableDefinition, from: Lsn, values: Vec<ColumnValues>) {
        let definition = resume::text_of(&self.table.request, definition);
        let event = SourceEvent::Redefined { table: self.table.index, definition, from, values };
        // If sending fails, the consumer is gone, and the stream and this watch end.
        let _ = self.context.events.send(event).await;
    }
}

/// Returns the columns whose enums have gained labels, with the labels that their rows may hold.
fn labels_since(copied: &TableDefinition, newer: &TableDefinition) -> Vec<(String, Vec<String>)> {
    match copied.with_file(newer.file).change(newer) {
        DefinitionImpact::Harmless(HarmlessConditions { labels, .. }) => labels,
        DefinitionImpact::Nothing | DefinitionImpact::Rows(_) => Vec::new(),
    }
}

fn brings_labels(copied: &TableDefinition, newer: &TableDefinition) -> bool {
    !labels_since(copied, newer).is_empty()
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

/// Returns the reason why a table cannot be followed in its current state, with the fix.
fn problem(facts: Option<&TableFacts>, table: &SourceTable, publication: &str) -> Option<String> {
    let name = &table.request.name;
    let Some(facts) = facts else {
        return Some(format!("table {name} was dropped or renamed; restore it, or remove it from the configuration"));
    };
    let problem = publication::table_problem(publication, name, facts);
    problem.or_else(|| catalog::schema_of(&facts.definition, &table.request).err().map(|problems| problems.join("; ")))
}
