//! A PostgreSQL database as a source of the engine.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Lsn, Schema};
use laredo_engine::retention::WalRetention;
use laredo_engine::source::{
    AcknowledgedPosition, CopyEvent, DefinitionReads, KnownTable, ResumeDecision, SnapshotCheck, Source, SourceClock,
    SourceError, SourceEvent, SourceServer, SourceStateReporter, TableIndex, TablePartEvent, TablePartOrder,
    TableRequest,
};
use parking_lot::Mutex;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};

use crate::catalog::{self, TableDefinition};
use crate::copy::{CompletedCopy, SourceTable, TableReadError};
use crate::history_proof::KeptTable;
use crate::options::SessionWork;
use crate::resume::{self, PriorTableState};
use crate::signals::SourceSignals;
use crate::source_options::PostgresOptions;
use crate::stream::{self, StreamOptions};
use crate::transport::SqlConnection;
use crate::{copy, definition_watch, identity, inspect, reset, slot, slot_monitor, validate};

/// The maximum number of connections in addition to those of copies. They are the stream, the watch
/// of definitions and its replacement, the watch of the slot, and two for each of two
/// verifications. Three more are short, for questions and for creating something again.
const OTHER_CONNECTIONS_MAX: usize = 11;

/// A PostgreSQL database that is followed through one replication slot.
#[derive(Debug)]
pub struct PostgresSource {
    options: PostgresOptions,
    /// The followed tables. None before the first run.
    tables: watch::Sender<Arc<[Arc<SourceTable>]>>,
    run: Mutex<PreparedRun>,
    random: Mutex<StdRng>,
    signals: SourceSignals,
    /// True if the other tables are followed even though some tables cannot be.
    tolerates_broken_tables: bool,
}

/// The state that a run was prepared with. The next run replaces it.
#[derive(Debug, Default)]
struct PreparedRun {
    /// True once there was a run.
    is_prepared: bool,
    /// The position that an earlier run has received.
    from: Option<Lsn>,
    /// The tables that the earlier run kept.
    kept: Vec<KeptTable>,
    /// The server of the database at the start.
    server: Option<SourceServer>,
}

impl PostgresSource {
    /// Creates a source that does nothing until it is prepared.
    #[must_use]
    pub fn new(options: PostgresOptions) -> PostgresSource {
        let random = Mutex::new(StdRng::seed_from_u64(options.seed));
        let (run, signals) = (Mutex::default(), SourceSignals::default());
        let tables = watch::Sender::new(Arc::from([]));
        PostgresSource { options, tables, run, random, signals, tolerates_broken_tables: false }
    }

    /// Lets [`Source::prepare`] succeed although some tables cannot be followed. Those are reported
    /// as failed, and the others are followed.
    #[must_use]
    pub fn tolerating_broken_tables(self) -> PostgresSource {
        PostgresSource { tolerates_broken_tables: true, ..self }
    }

    /// Makes the checks of [`Source::prepare`] without changing anything. So no database is changed
    /// while another one of the same configuration has a problem. Returns the tables' schemas, in
    /// their order.
    ///
    /// # Errors
    /// The same errors as [`Source::prepare`].
    pub async fn check(&self, tables: &[TableRequest]) -> Result<Vec<Arc<Schema>>, SourceError> {
        let mut connection = SqlConnection::connect(&self.options.connection.for_work(SessionWork::Check)).await?;
        let schemas = validate::check(&mut connection, &self.options, tables).await?;
        // A pooler may accept SQL but no replication connection.
        identity::read_server(&self.options.connection).await?;
        Ok(schemas)
    }

    fn tables(&self) -> Result<Arc<[Arc<SourceTable>]>, SourceError> {
        match self.run.lock().is_prepared {
            true => Ok(self.tables.borrow().clone()),
            false => Err(SourceError::Definite(vec!["the source was not prepared".to_owned()])),
        }
    }

    /// Forgets the definitions that tables were copied under whenever the database's history forks.
    /// The tables are then copied again.
    async fn forget_copies(&self) -> Infallible {
        let mut forks = self.signals.forks();
        while forks.changed().await.is_ok() {
            self.tables.borrow().iter().for_each(|table| table.forget_copy());
        }
        std::future::pending().await
    }

    /// Copies a table in one session.
    async fn copy_in(
        &self,
        connection: &mut SqlConnection,
        table: &SourceTable,
        before: Option<&str>,
        slot: u64,
        admits: &SnapshotCheck,
        rows: &mpsc::Sender<CopyEvent>,
    ) -> Result<(), SourceError> {
        let restarts = self.signals.restarts().count;
        let route = |definition: &TableDefinition| self.signals.route(table.index, definition.relation_identity());
        let name = std::slice::from_ref(&table.request.name);
        let found = catalog::read_facts(connection, &self.options.publication.name, name).await;
        let found = found.map_err(TableReadError::from)?.into_iter().flatten().next();
        let copied = copy::copy_table(connection, &self.options, table, slot, route, admits, rows).await;
        let copied = copied.map_err(SourceError::from);
        if let Err(SourceError::Definite(_)) = &copied {
            table.record_failure(found);
        }
        let CompletedCopy { definition, inserted } = copied?;
        let end = CopyEvent::End {
            inserted,
            definition: resume::text_of(&table.request, &definition),
            is_streamed: before.is_some_and(|before| resume::is_reported(&table.request, before, &definition)),
        };
        table.record_copy(definition, restarts);
        self.signals.complete_table(table.index, inserted);
        rows.send(end).await.map_err(|_| copy::given_up())
    }
}

fn find(tables: &[Arc<SourceTable>], index: TableIndex) -> Result<&SourceTable, SourceError> {
    let no_such_table = || SourceError::Definite(vec![format!("there is no table number {}", index.0)]);
    tables.iter().find(|table| table.index == index).map(Arc::as_ref).ok_or_else(no_such_table)
}

impl Source for PostgresSource {
    async fn prepare(&self, tables: &[TableRequest]) -> Result<SourceServer, SourceError> {
        let mut connection = SqlConnection::connect(&self.options.connection.for_work(SessionWork::Check)).await?;
        // This check comes first. A standby server must not report problems with objects that the
        // active server uses.
        if let Some(holder) = slot::holder(&mut connection, &self.options.slot).await? {
            return Err(SourceError::Held(holder));
        }
        match self.tolerates_broken_tables {
            true => validate::prepare_what_can_be(&mut connection, &self.options, tables).await?,
            false => validate::prepare(&mut connection, &self.options, tables).await?,
        }
        slot_monitor::read_clock(&mut connection, self.signals.clock()).await?;
        let server = identity::read_server(&self.options.connection).await?;
        let indexed = tables.iter().enumerate();
        let followed = indexed.map(|(index, request)| Arc::new(SourceTable::new(TableIndex(index), request.clone())));
        self.tables.send_replace(followed.collect());
        self.signals.begin_tables(tables.iter().map(|request| &request.name));
        *self.run.lock() = PreparedRun { is_prepared: true, server: Some(server.clone()), ..PreparedRun::default() };
        self.signals.begin_run();
        Ok(server)
    }

    async fn resume(&self, known: &[Option<KnownTable>]) -> Result<Vec<ResumeDecision>, SourceError> {
        let tables = self.tables()?;
        let requests: Vec<TableRequest> = tables.iter().map(|table| table.request.clone()).collect();
        let mut connection = SqlConnection::connect(&self.options.connection.for_work(SessionWork::Check)).await?;
        let (left, lost) = resume::compare(&mut connection, &self.options, &requests, known).await?;
        if let Some(reason) = lost {
            self.signals.record_loss(&reason);
        }
        // The lowest position that a table is followed from.
        let mut from: Option<Lsn> = None;
        let mut follow = |position: Lsn| from = Some(from.map_or(position, |from| from.min(position)));
        let resumes = tables.iter().zip(left).map(|(table, left)| match left {
            None => ResumeDecision::Follow,
            Some(PriorTableState::Same(position, definition)) => {
                follow(position);
                self.signals.route(table.index, definition.relation_identity());
                table.record_copy(*definition, 0);
                ResumeDecision::Follow
            }
            // Without a definition, the table is not watched before it is copied.
            Some(PriorTableState::Redefined(position, definition, reason)) => {
                follow(position);
                self.signals.route(table.index, definition.relation_identity());
                ResumeDecision::FollowThenCopy(reason)
            }
            Some(PriorTableState::Missing(reason)) => ResumeDecision::Copy(reason),
        });
        let resumes: Vec<ResumeDecision> = resumes.collect();
        let kept = known.iter().zip(&resumes).enumerate().filter_map(|(index, (known, resume))| match resume {
            ResumeDecision::Follow | ResumeDecision::FollowThenCopy(_) => {
                let KnownTable { position, mark, .. } = *known.as_ref()?;
                Some(KeptTable { table: TableIndex(index), position, mark })
            }
            ResumeDecision::Copy(_) => None,
        });
        let mut run = self.run.lock();
        (run.from, run.kept) = (from, kept.collect());
        Ok(resumes)
    }

    fn retry_delay(&self, failed: u32) -> Option<Duration> {
        self.options.reconnect.delay(failed, &mut *self.random.lock())
    }

    async fn stream(
        &self,
        events: mpsc::Sender<SourceEvent>,
        acknowledged: AcknowledgedPosition,
        reporter: SourceStateReporter,
    ) -> Result<(), SourceError> {
        let tables = self.tables()?;
        let (from, kept, server) = {
            let run = self.run.lock();
            (run.from, run.kept.clone(), run.server.clone())
        };
        let options = StreamOptions {
            connection: self.options.connection.clone(),
            slot: self.options.slot.clone(),
            publication: self.options.publication.name.clone(),
            creates_publication: self.options.publication.create,
            tables: tables.iter().map(|table| table.request.name.clone()).collect(),
            reconnect: self.options.reconnect.clone(),
            spool: self.options.spool.clone(),
            seed: self.options.seed,
            from,
            kept,
            server,
            ddl: self.options.ddl,
        };
        tokio::select! {
            result = stream::follow(&options, &self.signals, events.clone(), acknowledged, &reporter) => result,
            never = definition_watch::watch(&options, &self.options.publication, self.tables.subscribe(), &self.signals, &events) => match never {},
            never = slot_monitor::watch(&options.connection, &self.signals) => match never {},
            never = self.forget_copies() => match never {},
        }
    }

    async fn check_more(
        &self,
        more: &[TableRequest],
        others: &[TableRequest],
        publishes: bool,
    ) -> Result<Vec<Arc<Schema>>, SourceError> {
        let mut connection = SqlConnection::connect(&self.options.connection.for_work(SessionWork::Check)).await?;
        validate::check_more(&mut connection, &self.options, more, others, publishes).await
    }

    async fn read_server(&self) -> Result<SourceServer, SourceError> {
        Ok(identity::read_server(&self.options.connection).await?)
    }

    fn add_table(&self, request: TableRequest) -> TableIndex {
        let index = self.signals.add_table(request.name.clone());
        let added = Arc::new(SourceTable::new(index, request));
        self.tables.send_modify(|tables| *tables = tables.iter().cloned().chain([added]).collect());
        index
    }

    fn remove_table(&self, index: TableIndex) {
        self.tables.send_modify(|tables| *tables = tables.iter().filter(|t| t.index != index).cloned().collect());
        self.signals.remove_table(index);
    }

    async fn written(&self) -> Result<Lsn, SourceError> {
        let mut connection = SqlConnection::connect(&self.options.connection.for_work(SessionWork::Check)).await?;
        let rows = connection.simple_query("SELECT pg_current_wal_lsn()").await?;
        let end = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
        end.ok_or_else(|| SourceError::Transient("PostgreSQL returned no end of its WAL".to_owned()))
    }

    async fn copy(
        &self,
        index: TableIndex,
        before: Option<&str>,
        admits: SnapshotCheck,
        rows: mpsc::Sender<CopyEvent>,
    ) -> Result<(), SourceError> {
        let tables = self.tables()?;
        // The index is checked before the wait: without a stream there never is a slot.
        let table = find(&tables, index)?;
        let slot = tokio::select! {
            slot = self.signals.wait_for_slot() => slot,
            () = rows.closed() => return Err(copy::given_up()),
        };
        let options = self.options.connection.for_work(SessionWork::Copy);
        let mut connection = SqlConnection::connect(&options).await.map_err(TableReadError::from)?;
        let copied = tokio::select! {
            copied = self.copy_in(&mut connection, table, before, slot, &admits, &rows) => copied,
            () = rows.closed() => Err(copy::given_up()),
        };
        connection.close(&options).await;
        copied
    }

    fn copies_max(&self) -> usize {
        self.options.copies_max
    }

    fn connections_max(&self) -> usize {
        self.options.copies_max + OTHER_CONNECTIONS_MAX
    }

    async fn inspect(
        &self,
        table: TableIndex,
        orders: mpsc::Receiver<TablePartOrder>,
        parts: mpsc::Sender<TablePartEvent>,
    ) -> Result<(), SourceError> {
        let tables = self.tables()?;
        let table = find(&tables, table)?;
        inspect::read_parts(&self.options, table, &self.signals, orders, &parts).await
    }

    fn retention(&self) -> watch::Receiver<WalRetention> {
        self.signals.retention()
    }

    fn looks(&self) -> watch::Receiver<DefinitionReads> {
        self.signals.definition_reads()
    }

    fn clock(&self) -> SourceClock {
        self.signals.clock().clone()
    }

    async fn reset(&self, drop_publication: bool) -> Result<(), SourceError> {
        let tables = self.tables()?;
        if drop_publication {
            reset::reset_publication(&self.options, &tables).await?;
        }
        // Until the tables are copied again, the catalog is not compared with their old
        // definitions.
        tables.iter().for_each(|table| table.forget_copy());
        self.signals.request_reset();
        Ok(())
    }
}
