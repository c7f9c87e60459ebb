//! What the stream has said about tables.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use laredo_core::{Oid, TableName};
use laredo_engine::source::{RelationShape, SourceEvent, TableIndex};

use crate::pgoutput::Relation;

/// The tables that are followed, and what is known of all that were announced.
#[derive(Debug)]
pub(super) struct Catalogue {
    names: Vec<TableName>,
    by_name: HashMap<TableName, TableIndex>,
    /// Announced on this connection, by transactions that have committed.
    relations: HashMap<Oid, Known>,
    announcements: u64,
    /// What each table was last seen as, on this connection or an earlier one.
    seen: Vec<Seen>,
    /// Whether a table that is followed was announced.
    pub(super) announced: bool,
}

/// An announced table.
#[derive(Debug)]
pub(super) struct Known {
    /// Counts the announcements: what was said later holds.
    announcement: u64,
    /// Absent where it is not one of ours: the publication may hold more tables.
    pub(super) followed: Option<Followed>,
}

#[derive(Debug)]
pub(super) struct Followed {
    pub(super) table: TableIndex,
    pub(super) shape: Arc<RelationShape>,
    identity: Identity,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    /// As it was announced.
    identity: Option<Identity>,
    /// The number that it had when it was copied.
    copied: Option<Oid>,
    /// Announced under another name since: its changes are taken for another table's.
    is_renamed: bool,
}

/// What tells a table and its rows apart from others.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    oid: Oid,
    replica_identity: u8,
    key: Vec<String>,
}

impl Catalogue {
    pub(super) fn new(tables: impl IntoIterator<Item = TableName>) -> Catalogue {
        let names: Vec<_> = tables.into_iter().collect();
        let indexed = names.iter().enumerate();
        let by_name = indexed.map(|(i, name)| (name.clone(), TableIndex(i))).collect();
        let seen = vec![Seen::default(); names.len()];
        Catalogue { names, by_name, relations: HashMap::new(), announcements: 0, seen, announced: false }
    }

    /// A new connection announces everything again.
    pub(super) fn disconnect(&mut self) {
        self.relations.clear();
    }

    /// A copy has locked the table of this number.
    pub(super) fn copied(&mut self, table: TableIndex, oid: Oid) {
        if let Some(seen) = self.seen.get_mut(table.0) {
            seen.copied = Some(oid);
        }
    }

    pub(super) fn get(&self, oid: Oid) -> Option<&Known> {
        self.relations.get(&oid)
    }

    pub(super) fn name(&self, table: TableIndex) -> &TableName {
        &self.names[table.0]
    }

    /// Notes an announcement, without believing it yet.
    pub(super) fn announce(&mut self, relation: &Relation<'_>) -> Known {
        self.announcements += 1;
        let schema = if relation.schema.is_empty() { "pg_catalog" } else { relation.schema };
        let table = self.by_name.get(&TableName::new(schema, relation.name));
        self.announced |= table.is_some();
        Known {
            announcement: self.announcements,
            followed: table.map(|table| Followed {
                table: *table,
                shape: self.shape(relation),
                identity: Identity::of(relation),
            }),
        }
    }

    /// From here on it holds for every transaction, unless something newer does.
    pub(super) fn adopt(&mut self, oid: Oid, known: Known, events: &mut VecDeque<SourceEvent>) {
        let newer = |held: &Known| held.announcement > known.announcement;
        if self.relations.get(&oid).is_some_and(newer) {
            return;
        }
        match &known.followed {
            Some(followed) => events.extend(self.identify(followed)),
            None => events.extend(self.rename(oid)),
        }
        self.relations.insert(oid, known);
    }

    /// Whether the table is another one now, or tells its rows apart by something else.
    fn identify(&mut self, followed: &Followed) -> Option<SourceEvent> {
        let Followed { table, identity, .. } = followed;
        let seen = &mut self.seen[table.0];
        let was_renamed = std::mem::take(&mut seen.is_renamed);
        if seen.identity.as_ref() == Some(identity) && !was_renamed {
            return None;
        }
        let before = seen.identity.replace(identity.clone());
        let (table, name) = (*table, &self.names[table.0]);
        if !identity.is_usable() {
            let error = broken(name, identity);
            return Some(SourceEvent::Broken { table, error });
        }
        if was_renamed {
            return Some(SourceEvent::Moved { table, reason: format!("{name} had another name for a while") });
        }
        let before = before?;
        let reason = if before.oid == identity.oid {
            format!("{name} told its rows apart by {before} and now does by {identity}")
        } else {
            format!("{name} is another table now: its number in pg_class was {} and is {}", before.oid, identity.oid)
        };
        Some(SourceEvent::Moved { table, reason })
    }

    /// Whether it is one of ours under another name. Even if it is renamed back before anybody looks, changes were missed.
    fn rename(&mut self, oid: Oid) -> Option<SourceEvent> {
        let is_it =
            |seen: &Seen| seen.copied == Some(oid) || seen.identity.as_ref().is_some_and(|known| known.oid == oid);
        let table = self.seen.iter().position(is_it)?;
        let was_renamed = std::mem::replace(&mut self.seen[table].is_renamed, true);
        let reason = format!("{} was renamed", self.names[table]);
        (!was_renamed).then_some(SourceEvent::Moved { table: TableIndex(table), reason })
    }

    /// The one already held where nothing changed, so that equal shapes mostly are the same.
    fn shape(&self, relation: &Relation<'_>) -> Arc<RelationShape> {
        let columns = relation.columns.iter();
        let columns = columns.map(|c| (c.name.to_owned(), c.type_oid, c.type_modifier));
        let shape = RelationShape { columns: columns.collect() };
        let held = self.relations.get(&relation.oid).and_then(|known| known.followed.as_ref());
        match held {
            Some(held) if *held.shape == shape => Arc::clone(&held.shape),
            _ => Arc::new(shape),
        }
    }
}

impl Identity {
    fn of(relation: &Relation<'_>) -> Identity {
        let key = relation.columns.iter().filter(|column| column.is_key);
        Identity {
            oid: relation.oid,
            replica_identity: relation.replica_identity,
            // Of FULL, every column is a part: a column more or less is no news of the identity.
            key: match relation.replica_identity {
                b'f' => Vec::new(),
                _ => key.map(|column| column.name.to_owned()).collect(),
            },
        }
    }

    fn is_usable(&self) -> bool {
        match self.replica_identity {
            b'f' => true,
            b'n' => false,
            _ => !self.key.is_empty(),
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.replica_identity {
            b'f' => f.write_str("the whole old row (REPLICA IDENTITY FULL)"),
            _ if !self.is_usable() => f.write_str("nothing"),
            b'i' => write!(f, "({}) of an index", self.key.join(", ")),
            _ => write!(f, "({}) of the primary key", self.key.join(", ")),
        }
    }
}

fn broken(name: &TableName, identity: &Identity) -> String {
    let what = match identity.replica_identity {
        b'n' => "has REPLICA IDENTITY NOTHING",
        b'i' => "has lost the index of its replica identity",
        _ => "has lost its primary key",
    };
    format!(
        "{name} {what}, so its updates and deletes no longer say which row they concern. Run ALTER TABLE {quoted} ADD \
         PRIMARY KEY (...) and ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT, or ALTER TABLE {quoted} REPLICA \
         IDENTITY FULL and name the columns in key_fields",
        quoted = name.quoted()
    )
}
