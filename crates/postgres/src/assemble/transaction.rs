//! A transaction that has not committed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hashbrown::HashMap;
use laredo_core::Oid;
use laredo_engine::source::TableIndex;
use laredo_engine::spool::{Spool, SpoolOptions, SpoolWriter};

use super::relation::AnnouncedRelation;

/// The changes of a transaction, and the relations that were announced to it alone.
#[derive(Debug)]
pub(super) struct UncommittedTransaction {
    pub(super) xid: u32,
    /// The relations announced inside its streamed blocks. Other transactions see them only after
    /// this one commits.
    pub(super) relations: HashMap<Oid, AnnouncedRelation>,
    pub(super) spools: BTreeMap<TableIndex, SpoolWriter>,
    /// The tables that the transaction truncates, each with the last (sub)transaction that does so.
    pub(super) truncated: BTreeMap<Oid, u32>,
    /// True if the event trigger reported that the transaction has changed a definition.
    pub(super) has_ddl: bool,
}

impl UncommittedTransaction {
    pub(super) fn new(xid: u32) -> UncommittedTransaction {
        UncommittedTransaction {
            xid,
            relations: HashMap::new(),
            spools: BTreeMap::new(),
            truncated: BTreeMap::new(),
            has_ddl: false,
        }
    }

    pub(super) fn abort(&mut self, subtransaction: u32) {
        self.spools.values_mut().for_each(|spool| spool.abort(subtransaction));
        self.truncated.retain(|_, by| *by != subtransaction);
    }

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

pub(super) fn spool(options: &Arc<SpoolOptions>) -> SpoolWriter {
    SpoolWriter::new(Arc::clone(options))
}
