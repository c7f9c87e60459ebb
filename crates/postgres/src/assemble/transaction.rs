//! A transaction that has not committed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hashbrown::HashMap;
use laredo_core::Oid;
use laredo_engine::source::TableIndex;
use laredo_engine::spool::{Spool, SpoolOptions, SpoolWriter};

use super::relation::Known;

/// Its changes, and what it alone was told of the tables.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) xid: u32,
    /// Announced inside its streamed blocks: others see these tables as they were until it commits.
    pub(super) relations: HashMap<Oid, Known>,
    pub(super) spools: BTreeMap<TableIndex, SpoolWriter>,
    /// Tables that it truncates, and the (sub)transaction that does it last.
    pub(super) truncated: BTreeMap<Oid, u32>,
    /// An event trigger says that the transaction has changed a definition.
    pub(super) has_ddl: bool,
}

impl Transaction {
    pub(super) fn new(xid: u32) -> Transaction {
        Transaction {
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
            // What was rolled back is sent or not as PostgreSQL's memory has it: it must not make a commit one of the table.
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
