//! A source whose copies wait until they are let go.

use laredo_core::Lsn;
use laredo_engine::retention::Retention;
use laredo_engine::source::{
    Acknowledged, Admission, CopyEvent, KnownTable, PartEvent, PartOrder, Resume, Source, SourceError, SourceEvent,
    SourceIdentity, StateReporter, TableIndex, TableRequest,
};
use laredo_testkit::SimDatabase;
use tokio::sync::{mpsc, watch};

pub(crate) struct Held {
    pub(crate) database: SimDatabase,
    pub(crate) may_copy: watch::Receiver<bool>,
}

impl Source for Held {
    async fn prepare(&self, tables: &[TableRequest]) -> Result<SourceIdentity, SourceError> {
        self.database.prepare(tables).await
    }

    async fn resume(&self, tables: &[Option<KnownTable>]) -> Result<Vec<Resume>, SourceError> {
        self.database.resume(tables).await
    }

    async fn stream(
        &self,
        events: mpsc::Sender<SourceEvent>,
        acknowledged: Acknowledged,
        reporter: StateReporter,
    ) -> Result<(), SourceError> {
        self.database.stream(events, acknowledged, reporter).await
    }

    async fn written(&self) -> Result<Lsn, SourceError> {
        self.database.written().await
    }

    async fn copy(
        &self,
        table: TableIndex,
        before: Option<&str>,
        admits: Admission,
        rows: mpsc::Sender<CopyEvent>,
    ) -> Result<(), SourceError> {
        let mut may_copy = self.may_copy.clone();
        tokio::select! {
            _ = may_copy.wait_for(|may| *may) => {}
            () = rows.closed() => return Ok(()),
        }
        self.database.copy(table, before, admits, rows).await
    }

    async fn inspect(
        &self,
        table: TableIndex,
        orders: mpsc::Receiver<PartOrder>,
        parts: mpsc::Sender<PartEvent>,
    ) -> Result<(), SourceError> {
        self.database.inspect(table, orders, parts).await
    }

    fn retention(&self) -> watch::Receiver<Retention> {
        self.database.retention()
    }

    async fn reset(&self, drop_publication: bool) -> Result<(), SourceError> {
        self.database.reset(drop_publication).await
    }
}
