//! The relations that the stream has announced, and the followed table that each belongs to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use laredo_core::{Lsn, Oid, TableName};
use laredo_engine::source::{SourceEvent, TableIndex};
use laredo_engine::spool::RelationShape;

use crate::pgoutput::Relation;
use crate::relation_identity::{RelationIdentity, ReplicaIdentity};

/// The followed tables, and every relation that was announced.
///
/// A table is followed by its OID. That is the OID it was copied under, or, before the first copy,
/// the OID of its first announcement. Changes of that OID belong to the table even while it has
/// another name. Changes of another relation that has taken the name do not.
#[derive(Debug)]
pub(super) struct RelationCatalog {
    tables: Vec<FollowedTable>,
    by_name: HashMap<TableName, TableIndex>,
    by_oid: HashMap<Oid, TableIndex>,
    /// The relations announced on this connection by transactions that have committed.
    relations: HashMap<Oid, AnnouncedRelation>,
    announcements: u64,
    /// True if an announcement since the last check named a followed table.
    announced: bool,
}

/// A relation that the stream has announced.
#[derive(Debug)]
pub(super) struct AnnouncedRelation {
    /// The ordinal of the announcement. A later announcement of the same relation replaces this
    /// one.
    announcement: u64,
    /// The followed table that the relation's changes belong to. `None` for other relations of the
    /// publication.
    pub(super) table: Option<TableIndex>,
    /// The followed table that has the relation's name.
    named: Option<TableIndex>,
    pub(super) shape: Arc<RelationShape>,
    identity: RelationIdentity,
}

#[derive(Debug)]
struct FollowedTable {
    name: TableName,
    route: Option<TableRoute>,
    /// The identity in the last announcement.
    announced: Option<RelationIdentity>,
    /// The OID of another relation that was announced under the table's name and has been reported.
    stranger: Option<Oid>,
}

/// The relation that a followed table's rows come from, and the copy that chose it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRoute {
    /// The number of copies of the table in this run.
    pub copies: u64,
    /// The OID and the replica identity of the relation.
    pub identity: RelationIdentity,
}

/// The routes of the tables that were copied, in this run or an earlier one.
pub type TableRoutes = BTreeMap<TableIndex, TableRoute>;

/// The tables that a stream follows, by their index. Tables are added and removed while the stream
/// runs, and no index is used twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamedTables(Vec<Option<StreamedTable>>);

/// A table that a stream follows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct StreamedTable {
    name: TableName,
    /// The position after which every commit of the table was sent. The maximum if it is not known
    /// yet.
    complete_after: Lsn,
}

impl StreamedTables {
    /// Returns the tables that a stream follows from its beginning on.
    pub(crate) fn from_the_beginning(names: impl IntoIterator<Item = TableName>) -> StreamedTables {
        let streamed = |name| Some(StreamedTable { name, complete_after: Lsn::ZERO });
        StreamedTables(names.into_iter().map(streamed).collect())
    }

    /// Adds a table, and returns its index.
    pub(crate) fn add(&mut self, name: TableName) -> TableIndex {
        self.0.push(Some(StreamedTable { name, complete_after: Lsn(u64::MAX) }));
        TableIndex(self.0.len() - 1)
    }

    pub(crate) fn remove(&mut self, table: TableIndex) {
        if let Some(removed) = self.0.get_mut(table.0) {
            *removed = None;
        }
    }

    pub(crate) fn was_removed(&self, table: TableIndex) -> bool {
        self.0.get(table.0).is_some_and(Option::is_none)
    }

    /// Records a copy. Every commit of the table after `position` is sent.
    pub(crate) fn complete(&mut self, table: TableIndex, position: Lsn) {
        if let Some(Some(streamed)) = self.0.get_mut(table.0) {
            streamed.complete_after = streamed.complete_after.min(position);
        }
    }

    /// Returns the names of the tables.
    pub(crate) fn names(&self) -> Vec<TableName> {
        self.0.iter().flatten().map(|streamed| streamed.name.clone()).collect()
    }

    /// Returns the tables, each with the position after which every commit of it was sent.
    pub(crate) fn complete_after(&self) -> impl Iterator<Item = (TableIndex, Lsn)> {
        let numbered = self.0.iter().enumerate();
        numbered.filter_map(|(index, streamed)| Some((TableIndex(index), streamed.as_ref()?.complete_after)))
    }
}

impl RelationCatalog {
    pub(super) fn new(tables: impl IntoIterator<Item = TableName>) -> RelationCatalog {
        let followed = |name| FollowedTable { name, route: None, announced: None, stranger: None };
        let tables: Vec<_> = tables.into_iter().map(followed).collect();
        let by_name = tables.iter().enumerate().map(|(i, table)| (table.name.clone(), TableIndex(i))).collect();
        RelationCatalog {
            tables,
            by_name,
            by_oid: HashMap::new(),
            relations: HashMap::new(),
            announcements: 0,
            announced: false,
        }
    }

    /// Follows exactly these tables from here on. Returns the tables that were removed.
    pub(super) fn follow(&mut self, streamed: &StreamedTables) -> Vec<TableIndex> {
        let mut removed = Vec::new();
        for (index, streamed) in streamed.0.iter().enumerate() {
            match (self.tables.get_mut(index), streamed) {
                (None, streamed) => {
                    let name = streamed.as_ref().map_or_else(|| TableName::new("", ""), |table| table.name.clone());
                    if streamed.is_some() {
                        self.by_name.insert(name.clone(), TableIndex(index));
                    }
                    self.tables.push(FollowedTable { name, route: None, announced: None, stranger: None });
                }
                (Some(known), None) => {
                    known.route = None;
                    self.by_name.retain(|_, named| named.0 != index);
                    self.by_oid.retain(|_, routed| routed.0 != index);
                    removed.push(TableIndex(index));
                }
                (Some(_), Some(_)) => {}
            }
        }
        let RelationCatalog { relations, by_oid, .. } = self;
        relations.iter_mut().for_each(|(oid, known)| known.table = by_oid.get(oid).copied());
        removed
    }

    /// Forgets the announcements: a new connection announces every relation again.
    pub(super) fn disconnect(&mut self) {
        self.relations.clear();
    }

    /// Follows the tables by the OIDs of these routes from here on. Returns the tables whose OID
    /// has changed.
    ///
    /// A table whose OID is now routed to another table has moved. Its changes are not sent until
    /// the table is copied again.
    pub(super) fn reroute(&mut self, routes: &TableRoutes, events: &mut VecDeque<SourceEvent>) -> Vec<TableIndex> {
        let mut changed = Vec::new();
        for (index, table) in self.tables.iter_mut().enumerate() {
            let (index, route) = (TableIndex(index), routes.get(&TableIndex(index)));
            let oid = |route: Option<&TableRoute>| route.map(|route| route.identity.oid);
            let before = oid(table.route.as_ref());
            let is_taken = || before.is_some_and(|before| routes.values().any(|route| route.identity.oid == before));
            match route {
                Some(route) if table.route.as_ref() == Some(route) => continue,
                Some(route) => {
                    (table.route, table.stranger) = (Some(route.clone()), None);
                    if before != Some(route.identity.oid) {
                        table.announced = None;
                    }
                }
                None if is_taken() => {
                    table.route = None;
                    let reason = format!("the table that was followed as {} has another name now", table.name);
                    events.push_back(SourceEvent::Moved { table: index, reason, definition: None });
                }
                None => continue,
            }
            if before != oid(route) {
                changed.push(index);
            }
        }
        let numbered = self.tables.iter().enumerate();
        self.by_oid =
            numbered.filter_map(|(i, table)| Some((table.route.as_ref()?.identity.oid, TableIndex(i)))).collect();
        let RelationCatalog { relations, by_oid, .. } = self;
        relations.iter_mut().for_each(|(oid, known)| known.table = by_oid.get(oid).copied());
        changed
    }

    /// Returns the followed table that a relation's changes belong to.
    pub(super) fn table_of(&self, oid: Oid) -> Option<TableIndex> {
        self.by_oid.get(&oid).copied()
    }

    /// Returns true if an announcement since the last call named a followed table.
    pub(super) fn take_announced(&mut self) -> bool {
        std::mem::take(&mut self.announced)
    }

    pub(super) fn get(&self, oid: Oid) -> Option<&AnnouncedRelation> {
        self.relations.get(&oid)
    }

    pub(super) fn name(&self, table: TableIndex) -> &TableName {
        &self.tables[table.0].name
    }

    /// Records an announcement. It applies to all transactions only once it is adopted.
    pub(super) fn announce(&mut self, relation: &Relation<'_>) -> AnnouncedRelation {
        self.announcements += 1;
        let schema = if relation.schema.is_empty() { "pg_catalog" } else { relation.schema };
        let named = self.by_name.get(&TableName::new(schema, relation.name)).copied();
        let identity = relation.identity();
        if let Some(table) = named
            && self.tables[table.0].route.is_none()
            && !self.by_oid.contains_key(&relation.oid)
        {
            self.tables[table.0].route = Some(TableRoute { copies: 0, identity: identity.clone() });
            self.by_oid.insert(relation.oid, table);
        }
        let table = self.table_of(relation.oid);
        // A table that was renamed away may get its name back soon. The next catalog check decides.
        self.announced |= named.is_some();
        AnnouncedRelation { announcement: self.announcements, table, named, shape: self.shape(relation), identity }
    }

    /// Makes an announcement valid for every transaction, unless a newer one is already valid.
    pub(super) fn adopt(&mut self, oid: Oid, known: AnnouncedRelation, events: &mut VecDeque<SourceEvent>) {
        let newer = |held: &AnnouncedRelation| held.announcement > known.announcement;
        if self.relations.get(&oid).is_some_and(newer) {
            return;
        }
        if let Some(table) = known.table {
            events.extend(self.identify(table, &known.identity));
        }
        if let Some(table) = known.named.filter(|named| known.table != Some(*named)) {
            events.extend(self.meet(table, oid));
        }
        self.relations.insert(oid, known);
    }

    /// Returns an event if the table's identity is unusable, or differs from the identity that was
    /// copied or announced last.
    fn identify(&mut self, table: TableIndex, identity: &RelationIdentity) -> Option<SourceEvent> {
        let FollowedTable { name, route, announced, .. } = &mut self.tables[table.0];
        let before = announced.replace(identity.clone());
        if before.as_ref() == Some(identity) {
            return None;
        }
        if !identity.is_usable() {
            let error = broken(name, identity);
            return Some(SourceEvent::Broken { table, error });
        }
        let copied = route.as_ref().map(|route| &route.identity);
        if copied == Some(identity) && before.as_ref().is_none_or(RelationIdentity::is_usable) {
            return None;
        }
        let before = before.as_ref().or(copied)?;
        let reason = format!("the rows of {name} were identified by {before}, and are now identified by {identity}");
        Some(SourceEvent::Moved { table, reason, definition: None })
    }

    /// Returns an event if another relation now has a followed table's name. The changes of that
    /// relation are not sent until it is copied.
    fn meet(&mut self, table: TableIndex, oid: Oid) -> Option<SourceEvent> {
        let FollowedTable { name, route, stranger, .. } = &mut self.tables[table.0];
        if stranger.replace(oid) == Some(oid) {
            return None;
        }
        let before = route.as_ref()?.identity.oid;
        let reason = format!("{name} is another table now: its OID was {before} and is {oid}");
        Some(SourceEvent::Moved { table, reason, definition: None })
    }

    /// Returns the shape of a relation. An unchanged shape is shared with the earlier announcement,
    /// so equal shapes mostly share their memory.
    fn shape(&self, relation: &Relation<'_>) -> Arc<RelationShape> {
        let columns = relation.columns.iter();
        let columns = columns.map(|c| (c.name.to_owned(), c.type_oid, c.type_modifier));
        let shape = RelationShape { columns: columns.collect() };
        match self.relations.get(&relation.oid) {
            Some(held) if *held.shape == shape => Arc::clone(&held.shape),
            _ => Arc::new(shape),
        }
    }
}

fn broken(name: &TableName, identity: &RelationIdentity) -> String {
    let what = match identity.replica_identity {
        ReplicaIdentity::Nothing => "has REPLICA IDENTITY NOTHING",
        ReplicaIdentity::Index => "has lost the index of its replica identity",
        ReplicaIdentity::Default | ReplicaIdentity::Full => "has lost its primary key",
    };
    format!(
        "{name} {what}, so its updates and deletes no longer identify their row; run ALTER TABLE {quoted} ADD \
         PRIMARY KEY (...) and ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT, or ALTER TABLE {quoted} REPLICA \
         IDENTITY FULL and name the columns in key_fields",
        quoted = name.quoted()
    )
}
