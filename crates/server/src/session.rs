//! One client's stream, from the first byte to the status that ends it. It knows nothing of HTTP: it hands out ready frames, each
//! after its five-byte prefix, and ends with a status.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use laredo_core::{CommitTime, Lsn, Sequence};
use laredo_engine::journal::{BY_POSITION, Journal, PinnedBase, ReaderOptions, Resolution, ResumeRequest};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Status;

use crate::refusal;
use crate::request::Ask;
use crate::shared::Shared;
use crate::table::{Seat, Served};

mod admission;
mod follow;
mod lease;
mod messages;
mod outlet;
mod snapshot;

#[cfg(test)]
mod tests;

pub(crate) use admission::Admission;
pub(crate) use lease::Lease;
pub(crate) use outlet::{Pulled, SyncStream};

use follow::Follow;
use messages::Greeting;
use outlet::Outlet;
use snapshot::{Snapshot, takes_place, wait_for_place};

/// A stream that was granted.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) table: Arc<Served>,
    pub(crate) ask: Ask,
    pub(crate) seat: Seat,
}

/// Where a stream begins.
struct Start {
    after: Sequence,
    position: Lsn,
    committed_at: CommitTime,
    schema: Arc<laredo_core::Schema>,
    reason: &'static str,
    /// Set where the client's rows are of another history of the database.
    is_another_history: bool,
    /// Sent first, where the client has to start anew.
    base: Option<PinnedBase>,
}

/// How often a table that is being waited for is asked whether it has failed.
const FAILURE_CHECKS: u32 = 20;

impl Session {
    /// The stream. Nothing happens before it is polled, and then only as far as the next frames.
    pub(crate) fn into_stream(self) -> SyncStream {
        SyncStream::new(|slot| self.run(slot))
    }

    async fn run(self, slot: outlet::Slot) -> Status {
        let (shared, table, client_id) = (self.shared.clone(), self.table.clone(), self.ask.client_id.clone());
        let status = tokio::select! {
            biased;
            () = shared.stop.cancelled() => refusal::stopping(),
            () = table.drain.over() => refusal::drained(),
            ended = self.serve(slot) => match ended {
                Err(status) => status,
            },
        };
        tracing::info!(table = %table.name(), client_id, code = ?status.code(), reason = status.message(), "stream ended");
        status
    }

    async fn serve(self, slot: outlet::Slot) -> Result<Infallible, Status> {
        let journal = self.journal().await?;
        tokio::select! {
            ended = self.serve_from(journal.clone(), slot) => ended,
            () = journal.closed() => Err(refusal::forked()),
        }
    }

    async fn serve_from(self, journal: Journal, slot: outlet::Slot) -> Result<Infallible, Status> {
        let mut start = self.start(&journal).await?;
        let Session { shared, table, ask, seat } = self;
        self::log(&table, &ask, &start);
        let base = start.base.as_ref().map(|pinned| pinned.base().clone());
        let options = ReaderOptions {
            client_id: ask.client_id.clone(),
            behind_max: table.options.buffer.behind_max,
            policy: table.options.buffer.policy,
        };
        let reader = journal.register(options, start.after);
        let lease = Arc::new(Lease::new(reader, seat, start.base.take(), table.options.buffer));
        table.watch(&lease);
        let mut outlet = Outlet::new(slot, table.clone(), lease, shared.waits.stalled);
        let view = table.views.get(ask.encoding, &ask.predicates);
        let greeting = Greeting {
            table: &table,
            journal: &journal,
            ask: &ask,
            start: &start,
            is_filtered: view.as_ref().is_some_and(|view| view.is_filtered()),
        };
        let mut out = Vec::new();
        greeting.handshake(base.as_deref(), &mut out);
        match base {
            None => {
                greeting.marker(&mut out);
                outlet.send(out.into()).await?;
            }
            Some(base) => {
                let snapshot = Snapshot::new(base.clone(), view.clone());
                let (admission, silence_max) = (&shared.admission, table.options.heartbeat_interval);
                let heartbeat = || greeting.heartbeat(shared.clock.as_ref()(), None);
                if !takes_place(outlet.lease(), admission) {
                    // Whoever waits in line knows at once what it waits for.
                    outlet.send(std::mem::take(&mut out).into()).await?;
                    wait_for_place(&mut outlet, admission, silence_max, heartbeat).await?;
                }
                greeting.snapshot_begin(&base, &mut out);
                outlet.send(out.into()).await?;
                let rows = snapshot.send(&mut outlet, admission, silence_max, heartbeat).await?;
                let mut out = Vec::new();
                greeting.snapshot_end(&base, rows, &mut out);
                greeting.marker(&mut out);
                outlet.send(out.into()).await?;
            }
        }
        Follow::new(&greeting, &shared, view, outlet).run().await
    }

    /// The table's journal, once there is one.
    async fn journal(&self) -> Result<Journal, Status> {
        let (name, handle) = (self.table.name(), self.table.handle());
        for _ in 0..FAILURE_CHECKS {
            if let Some(error) = self.table.failure() {
                return Err(refusal::failed(name, &error));
            }
            match timeout(self.shared.waits.ready / FAILURE_CHECKS, handle.wait_journal()).await {
                Ok(Some(journal)) => return Ok(journal),
                Ok(None) => return Err(refusal::stopping()),
                Err(_) => {}
            }
        }
        Err(refusal::not_ready(name))
    }

    /// Decides where the stream begins, and waits where the client is ahead.
    async fn start(&self, journal: &Journal) -> Result<Start, Status> {
        let history = self.table.handle().history();
        let mut request = self.ask.resume.clone();
        let named =
            [request.instance.as_str(), request.snapshot_id.rsplit_once('-').map_or("", |(instance, _)| instance)];
        let waits = self.shared.waits.ready;
        let deadline = Instant::now() + waits;
        loop {
            request.own_source = history.identity();
            request.verdict = history.judge(request.mark.mark, request.mark.scope);
            request.is_stranger = named.iter().any(|instance| history.is_stranger(instance));
            match resolve(journal, &request).await? {
                Resolution::Full(reason) => return Ok(full(journal, reason)),
                Resolution::AnotherHistory(reason) => {
                    return Ok(Start { is_another_history: true, ..full(journal, reason) });
                }
                Resolution::Wait(position) => {
                    if let Ok(Some(true)) = timeout_at(deadline, history.is_beyond_wal(position)).await {
                        named.iter().for_each(|instance| history.note_stranger(instance));
                        let reason = "source position beyond the end of the database's WAL";
                        return Ok(Start { is_another_history: true, ..full(journal, reason) });
                    }
                    let mut heads = journal.watch_head();
                    let reached = timeout_at(deadline, heads.wait_for(|head| head.position >= position)).await;
                    if !matches!(reached, Ok(Ok(_))) {
                        return Err(refusal::ahead(position, journal.head().position, waits));
                    }
                }
                Resolution::Delta(after, reason) => {
                    if let Some(start) = delta(journal, after, reason).await? {
                        return Ok(start);
                    }
                }
            }
        }
    }
}

fn full(journal: &Journal, reason: &'static str) -> Start {
    let pinned = journal.pin_base();
    let base = pinned.base();
    Start {
        after: base.sequence(),
        position: base.position(),
        committed_at: base.committed_at(),
        schema: base.schema().clone(),
        reason,
        is_another_history: false,
        base: Some(pinned),
    }
}

/// On a thread of its own: what the request asks for may be in a file.
async fn resolve(journal: &Journal, request: &ResumeRequest) -> Result<Resolution, Status> {
    let (journal, request) = (journal.clone(), request.clone());
    let resolved = tokio::task::spawn_blocking(move || journal.resolve(&request)).await;
    resolved.map_err(|e| Status::internal(format!("reading the journal: {e}")))
}

/// `None` where the place was pruned since it was found.
async fn delta(journal: &Journal, after: Sequence, reason: &'static str) -> Result<Option<Start>, Status> {
    let cursor = journal.cursor(after);
    let origin = tokio::task::spawn_blocking(move || cursor.origin()).await;
    let origin = match origin.map_err(|e| Status::internal(format!("reading the journal: {e}")))? {
        Ok(origin) => origin,
        Err(laredo_engine::journal::CursorError::Pruned(_)) => return Ok(None),
        Err(error) => return Err(refusal::cursor(&error)),
    };
    Ok(Some(Start {
        after,
        position: origin.position,
        committed_at: journal.head().committed_at,
        schema: origin.schema,
        reason,
        is_another_history: false,
        base: None,
    }))
}

fn log(table: &Served, ask: &Ask, start: &Start) {
    let (client_id, reason) = (&ask.client_id, start.reason);
    match &start.base {
        Some(_) => table.counters.count_snapshot(reason),
        None => {
            table.counters.deltas.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let mode = if start.base.is_some() { "snapshot" } else { "changes" };
    tracing::info!(table = %table.name(), client_id, mode, reason, position = %start.position, "stream begins");
}

impl Start {
    /// Whether the client may have the first transaction, or a part of it, already.
    fn may_repeat(&self) -> bool {
        self.reason == BY_POSITION
    }
}

/// Small messages as one.
fn joined(write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = Vec::new();
    write(&mut out);
    out.into()
}
