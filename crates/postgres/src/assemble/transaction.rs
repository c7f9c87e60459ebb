//! A transaction that has not committed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hashbrown::HashMap;
use laredo_core::Oid;
use laredo_engine::source::TableIndex;
use laredo_engine::spool::{RawChange, Spool, SpoolOptions, SpoolWriter};

use super::PgoutputAssemblyError;
use super::relation::{AnnouncedRelation, RelationCatalog};
use crate::pgoutput::PgoutputRow;

/// The changes of a transaction, and the relations that were announced to it alone.
#[derive(Debug)]
pub(super) struct UncommittedTransaction {
    xid: u32,
    /// The relations announced inside its streamed blocks. Other transactions see them only after
    /// this one commits.
    relations: HashMap<Oid, AnnouncedRelation>,
    spool_options: Arc<SpoolOptions>,
    spools: BTreeMap<TableIndex, SpoolWriter>,
    /// The tables that the transaction truncates, each with the last (sub)transaction that does so.
    truncated: BTreeMap<Oid, u32>,
    /// True if the event trigger reported that the transaction has changed a definition.
    has_ddl: bool,
}

impl UncommittedTransaction {
    pub(super) fn new(xid: u32, spool_options: Arc<SpoolOptions>) -> UncommittedTransaction {
        UncommittedTransaction {
            xid,
            relations: HashMap::new(),
            spool_options,
            spools: BTreeMap::new(),
            truncated: BTreeMap::new(),
            has_ddl: false,
        }
    }

    /// Returns the ID of the top-level transaction.
    pub(super) fn xid(&self) -> u32 {
        self.xid
    }

    /// Adds a change of a relation by a (sub)transaction. `None` is the top-level transaction.
    /// `rows` are the rows in the change. Changes of relations that are not followed are dropped.
    ///
    /// # Errors
    /// Fails if the relation was not announced, a row does not fit the announcement, or the change
    /// cannot be stored.
    pub(super) fn push(
        &mut self,
        catalog: &RelationCatalog,
        xid: Option<u32>,
        oid: Oid,
        rows: [Option<PgoutputRow<'_>>; 2],
        change: RawChange<'_>,
    ) -> Result<(), PgoutputAssemblyError> {
        let known = self.relations.get(&oid).or_else(|| catalog.get(oid));
        let AnnouncedRelation { table, shape, .. } = known.ok_or(PgoutputAssemblyError::Unannounced(oid))?;
        let Some(table) = *table else {
            return Ok(());
        };
        let expected = shape.columns.len();
        if let Some(row) = rows.into_iter().flatten().find(|row| row.columns != expected) {
            return Err(PgoutputAssemblyError::Cells {
                table: catalog.name(table).clone(),
                found: row.columns,
                expected,
            });
        }
        let spool = self.spools.entry(table).or_insert_with(|| SpoolWriter::new(Arc::clone(&self.spool_options)));
        spool.push_shape(shape);
        spool.push(xid.unwrap_or(self.xid), change)?;
        Ok(())
    }

    /// Records that a (sub)transaction truncates these tables. `None` is the top-level transaction.
    pub(super) fn record_truncates(&mut self, xid: Option<u32>, tables: impl Iterator<Item = Oid>) {
        let by = xid.unwrap_or(self.xid);
        self.truncated.extend(tables.map(|oid| (oid, by)));
    }

    /// Records that the transaction has changed a definition.
    pub(super) fn record_ddl(&mut self) {
        self.has_ddl = true;
    }

    /// Returns true if the transaction has changed a definition.
    pub(super) fn has_ddl(&self) -> bool {
        self.has_ddl
    }

    /// Adds an announcement that applies to this transaction alone until it commits.
    pub(super) fn announce(&mut self, oid: Oid, known: AnnouncedRelation) {
        self.relations.insert(oid, known);
    }

    /// Takes the announcements, which apply to all transactions once this one commits.
    pub(super) fn take_announced(&mut self) -> HashMap<Oid, AnnouncedRelation> {
        std::mem::take(&mut self.relations)
    }

    /// Assigns the relations by the catalog's routes, which have changed for these tables.
    pub(super) fn reroute(&mut self, catalog: &RelationCatalog, changed: &[TableIndex]) {
        for (oid, known) in &mut self.relations {
            known.table = catalog.table_of(*oid);
        }
        // These changes belong to another relation. The copy waits for the transactions that wrote
        // its own relation before.
        changed.iter().for_each(|table| _ = self.spools.remove(table));
    }

    /// Drops the changes of a subtransaction that was rolled back.
    pub(super) fn abort(&mut self, subtransaction: u32) {
        self.spools.values_mut().for_each(|spool| spool.abort(subtransaction));
        self.truncated.retain(|_, by| *by != subtransaction);
    }

    /// Takes the tables that the transaction truncates, each with the last (sub)transaction that
    /// does so.
    pub(super) fn take_truncated(&mut self) -> BTreeMap<Oid, u32> {
        std::mem::take(&mut self.truncated)
    }

    /// Ends the spools, and returns those that have changes.
    pub(super) fn finish(self) -> io::Result<Vec<(TableIndex, Spool)>> {
        let mut tables = Vec::with_capacity(self.spools.len());
        for (table, spool) in self.spools {
            let mut spool = spool.finish()?;
            // PostgreSQL may send changes that were rolled back, depending on its memory use. A
            // table with no other changes must not appear in the commit.
            if !spool.is_void()? {
                tables.push((table, spool));
            }
        }
        Ok(tables)
    }
}
