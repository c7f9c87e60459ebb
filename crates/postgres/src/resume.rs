//! The decision about each table: follow it from the position of an earlier run, or copy it again.

use laredo_core::{Lsn, TableName};
use laredo_engine::source::{KnownTable, SourceError, TableRequest};
use serde::{Deserialize, Serialize};

use crate::catalog::{self, TableDefinition, TableFacts, TableFile};
use crate::slot::{self, SlotAvailability, SlotMode};
use crate::source_options::PostgresOptions;
use crate::transport::SqlConnection;

/// The settings and the definition that a table was copied under. The engine stores them as a text
/// and returns them in a later run.
#[derive(Debug, Serialize, Deserialize)]
struct CopyDefinition {
    key_fields: Vec<String>,
    definition: TableDefinition,
}

/// Returns the text of what a table was copied under.
///
/// The first line identifies the definition to clients. The second line holds the numbers that a
/// truncate changes; the stream reports truncates. A server that reads the catalog after two
/// truncates never sees the file in between.
pub(crate) fn text_of(request: &TableRequest, definition: &TableDefinition) -> String {
    let key_fields = request.key_fields.clone();
    let named = CopyDefinition { key_fields, definition: definition.with_file(TableFile::default()) };
    // If serialization fails, the text equals no other text, so the next start copies the table.
    match (serde_json::to_string(&named), serde_json::to_string(&definition.file)) {
        (Ok(named), Ok(file)) => format!("{named}\n{file}"),
        (Err(_), _) | (_, Err(_)) => String::new(),
    }
}

/// Parses a text that [`text_of`] wrote. Returns `None` for any other text.
fn copied_under(text: &str) -> Option<CopyDefinition> {
    let (named, file) = text.split_once('\n')?;
    let mut copied: CopyDefinition = serde_json::from_str(named).ok()?;
    copied.definition.file = serde_json::from_str(file).ok()?;
    Some(copied)
}

/// Returns true if only transactions in the stream can have changed rows between a copy made under
/// `before` and one made under `definition`.
pub(crate) fn is_reported(request: &TableRequest, before: &str, definition: &TableDefinition) -> bool {
    copied_under(before).is_some_and(|CopyDefinition { key_fields, definition: before }| {
        key_fields == request.key_fields && before.differs_in_files_only(definition)
    })
}

/// The state of a table that an earlier run has followed.
pub(crate) enum PriorTableState {
    /// The definition is unchanged, and the table can be followed from this position.
    Same(Lsn, Box<TableDefinition>),
    /// The table can be followed from this position by this definition, but has to be copied for
    /// this reason. Its definition has changed, or may have changed in another way.
    Redefined(Lsn, Box<TableDefinition>, String),
    /// The table cannot be followed from there, for this reason.
    Missing(String),
}

/// Compares the tables that an earlier run has followed with the database; `None` for tables that
/// it did not follow. Also returns the reason why the slot is unusable for some tables, if it is.
/// An invalidated slot is not reported here: the stream creates it again and reports it.
pub(crate) async fn compare(
    connection: &mut SqlConnection,
    options: &PostgresOptions,
    requests: &[TableRequest],
    known: &[Option<KnownTable>],
) -> Result<(Vec<Option<PriorTableState>>, Option<String>), SourceError> {
    if known.iter().all(Option::is_none) {
        return Ok((known.iter().map(|_| None).collect(), None));
    }
    let standing = slot::read_availability(connection, &options.slot).await?;
    let names: Vec<TableName> = requests.iter().map(|request| request.name.clone()).collect();
    let found = catalog::read_facts(connection, &options.publication.name, &names).await?;
    let is_told_later = standing.as_ref().is_some_and(|standing| standing.is_lost);
    // A table that kept up shows that no other process has moved the slot.
    let kept_up =
        |standing: &SlotAvailability| known.iter().flatten().any(|known| known.position >= standing.confirmed);
    let is_moved = !standing.as_ref().is_some_and(kept_up);
    let mut lost = None;
    let tables = requests.iter().zip(known).zip(found);
    let left = tables
        .map(|((request, known), facts)| {
            let known = known.as_ref()?;
            Some(match missing(&options.slot, standing.as_ref(), known.position) {
                Some(_) if !is_moved && !is_told_later => {
                    let position = known.position;
                    PriorTableState::Missing(format!(
                        "it was stopped while other tables were followed, so commits after {position} may be missing"
                    ))
                }
                Some(reason) => {
                    lost.get_or_insert_with(|| reason.clone());
                    PriorTableState::Missing(reason)
                }
                None => compare_definition(request, known, facts),
            })
        })
        .collect();
    Ok((left, lost.filter(|_| !is_told_later && matches!(options.slot, SlotMode::Stateful { .. }))))
}

fn compare_definition(request: &TableRequest, known: &KnownTable, found: Option<TableFacts>) -> PriorTableState {
    let Some(CopyDefinition { key_fields, definition }) = copied_under(&known.definition) else {
        return PriorTableState::Missing(
            "this version cannot read the definition that its last copy was made under".to_owned(),
        );
    };
    if key_fields != request.key_fields {
        return PriorTableState::Missing("its key_fields were changed".to_owned());
    }
    let Some(found) = found else { return PriorTableState::Missing("it does not exist".to_owned()) };
    let reason = match definition.difference(&found.definition) {
        Some(reason) => format!("{reason} while laredo was not running"),
        None if !known.is_of_same_server && found.changed_after(known.mark) => catalog::UNPROVEN_CHANGE.to_owned(),
        None => return PriorTableState::Same(known.position, Box::new(definition)),
    };
    PriorTableState::Redefined(known.position, Box::new(definition), reason)
}

/// Returns the reason why the slot does not have every commit after a position.
fn missing(mode: &SlotMode, standing: Option<&SlotAvailability>, position: Lsn) -> Option<String> {
    let SlotMode::Stateful { name } = mode else {
        return Some(format!("the slot is ephemeral, so commits after {position} were not kept"));
    };
    match standing {
        None => Some(format!("replication slot {name} is gone, so commits after {position} may be missing")),
        Some(SlotAvailability { is_lost: true, .. }) => {
            Some(format!("replication slot {name} was invalidated: PostgreSQL has removed WAL that it needed"))
        }
        // PostgreSQL would silently begin at the slot's own position.
        Some(SlotAvailability { confirmed, .. }) if position < *confirmed => {
            Some(format!("replication slot {name} was moved to {confirmed}; commits after {position} are missing"))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_must_have_everything_after_a_position() {
        let stateful = SlotMode::Stateful { name: "s".to_owned() };
        let ephemeral = SlotMode::Ephemeral { name_prefix: "s".to_owned() };
        let at = |confirmed, is_lost| Some(SlotAvailability { confirmed: Lsn(confirmed), is_lost });
        for (mode, standing, expected) in [
            (&stateful, at(100, false), None),
            (&stateful, at(50, false), None),
            (&stateful, at(101, false), Some("was moved to 0/65; commits after 0/64 are missing")),
            (&stateful, at(50, true), Some("was invalidated")),
            (&stateful, None, Some("is gone")),
            (&ephemeral, None, Some("is ephemeral")),
        ] {
            let found = missing(mode, standing.as_ref(), Lsn(100));
            match expected {
                None => assert_eq!(found, None),
                Some(expected) => assert!(found.as_ref().is_some_and(|why| why.contains(expected)), "{found:?}"),
            }
        }
    }
}
