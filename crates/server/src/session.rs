//! The stream of one client, from the first byte to the final status. A session is independent of
//! HTTP. It yields encoded frames, each after its five-byte prefix, and ends with a status.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use laredo_core::{CommitTime, DefinitionVersion, Lsn, Sequence};
use laredo_engine::base::Base;
use laredo_engine::journal::{
    BY_POSITION, DEFINITION_DIFFERS, InstanceId, Journal, PinnedBase, ReaderOptions, ResumeOutcome, ResumeRequest,
};
use laredo_proto::replication::SyncMode;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Status;

use crate::access::Caller;
use crate::lease::{ClientLease, ClientSeat, PermitShare};
use crate::log_limits::{ClientEvent, shown_name};
use crate::refusal;
use crate::request::SessionRequest;
use crate::response_task::ResponseTask;
use crate::server_state::ServerState;
use crate::table::ServedTable;
use crate::view::{EntryMode, PositionMarker, StreamFormat};

mod journal_follower;
mod messages;
mod outlet;
mod snapshot;

#[cfg(test)]
mod tests;

pub(crate) use outlet::{SessionStream, SessionStreamItem};

use journal_follower::JournalFollower;
use messages::MessageContext;
use outlet::SessionOutlet;
use snapshot::SnapshotSender;

/// A stream that was accepted.
pub(crate) struct Session {
    pub(crate) shared: Arc<ServerState>,
    pub(crate) table: Arc<ServedTable>,
    pub(crate) caller: Caller,
    pub(crate) ask: SessionRequest,
    pub(crate) seat: ClientSeat,
    /// The task that sends the stream.
    pub(crate) task: ResponseTask,
}

/// The place where a stream begins.
struct SessionStart {
    after: Sequence,
    position: Lsn,
    committed_at: CommitTime,
    schema: Arc<laredo_core::Schema>,
    /// The definition version of the rows at the position.
    definition: DefinitionVersion,
    reason: &'static str,
    /// The ID that names this journal, and the snapshot if there is one, in the client's next
    /// request.
    snapshot_id: String,
    mode: SyncMode,
    /// True if the client's rows are of another history of the database.
    is_another_history: bool,
    /// The newest position up to which the client's history is known to be the same as this one.
    shared_position: Lsn,
}

/// The reason for a full snapshot to a client that found its rows to be wrong.
const CONTENTS_DIFFERED: &str = "the client's rows differed from the checksum";
/// The reason for a full snapshot to a client whose rows another grant may have selected.
const ANOTHER_SCOPE: &str = "the client's rows are not known to be those of its grant";
/// The reason for what a subscriber is sent.
const SUBSCRIPTION: &str = "subscription";
/// The time for which a server waits to notice a change of the definition that the client already
/// knows of. A server that has just started may be behind.
const DEFINITION_WAIT: Duration = Duration::from_secs(3);
/// The time between two checks of the definition in that wait.
const DEFINITION_CHECKS: Duration = Duration::from_millis(100);

/// The number of times that a wait for a table checks if the table has failed.
const FAILURE_CHECKS: u32 = 20;

impl Session {
    /// Returns the stream. It runs only while it is polled, and only as far as the next frames.
    pub(crate) fn into_stream(self) -> SessionStream {
        SessionStream::new(|slot| self.run(slot))
    }

    async fn run(self, slot: outlet::FrameSlot) -> Status {
        let (shared, table, caller) = (self.shared.clone(), self.table.clone(), self.caller.clone());
        let client_id = shown_name(&self.ask.client_id).to_owned();
        let status = tokio::select! {
            biased;
            () = shared.streams_ended() => refusal::stopping(),
            () = table.ended() => table.end_refusal(),
            () = table.drain().over() => refusal::drained(),
            ended = self.serve(slot) => match ended {
                Err(status) => status,
            },
        };
        if shared.log_limits.allows(ClientEvent::StreamEnded, caller.group()) {
            let (identity, peer) = (caller.identity_name(), caller.peer_text());
            let (code, reason) = (status.code(), status.message());
            tracing::info!(
                event = "stream_ended", source = table.source_id(), table = %table.name(), client_id, identity, peer,
                ?code, reason,
                "stream ended"
            );
        }
        status
    }

    async fn serve(self, slot: outlet::FrameSlot) -> Result<Infallible, Status> {
        let journal = self.journal().await?;
        tokio::select! {
            // First, because a closed journal has nothing to serve from.
            biased;
            () = journal.closed() => Err(refusal::journal_replaced()),
            // The journal may have been closed since the look at it.
            ended = self.serve_from(journal.clone(), slot) => match journal.is_closed() {
                true => Err(refusal::journal_replaced()),
                false => ended,
            },
        }
    }

    async fn serve_from(mut self, journal: Journal, slot: outlet::FrameSlot) -> Result<Infallible, Status> {
        let (start, pinned) = self.start(&journal).await?;
        self.ask.check_filters(&start.schema)?;
        let SessionRequest { format, predicates, scope, .. } = &self.ask;
        let view = self.table.views().get(*format, predicates, &scope.columns);
        if let Some(view) = &view {
            self.ask.share_conditions(view.predicates());
        }
        let selection = view.as_ref().map(|view| view.selection(&start.schema)).transpose();
        let selection = selection.map_err(|error| refusal::view(&error, &self.ask.origins))?;
        let columns = selection.as_ref().map_or(&start.schema, |selection| selection.schema()).clone();
        let Session { shared, table, caller, ask, seat, task } = self;
        count_start(&table, &start);
        if shared.log_limits.allows(ClientEvent::StreamBegins, caller.group()) {
            self::log(&table, &caller, &ask, &start);
        }
        let options = ReaderOptions {
            client_id: ask.client_id.clone(),
            owner: caller.identity_name().to_owned(),
            behind_max: table.buffer().behind_max,
            policy: table.buffer().policy,
        };
        let reader = journal.register(options, start.after);
        let share = PermitShare { group: caller.group(), table: table.name().clone() };
        let lease = Arc::new(ClientLease::new(reader, seat, share, table.buffer(), task));
        table.watch(&lease);
        let mut outlet = SessionOutlet::new(slot, table.clone(), lease, shared.waits.stalled);
        let membership = table.roster().join(&ask);
        let is_filtered = view.as_ref().is_some_and(|view| view.is_filtered());
        let greeting = MessageContext {
            table: &table,
            journal: &journal,
            ask: &ask,
            membership: &membership,
            start: &start,
            columns: &columns,
            is_filtered,
        };
        let mut out = Vec::new();
        greeting.handshake(&mut out);
        if start.mode == SyncMode::Delta {
            greeting.marker(start.place(), &mut out);
            outlet.send(out.into()).await?;
            let mode = if start.reason == BY_POSITION { EntryMode::Repeat } else { EntryMode::Ordinary };
            return JournalFollower::new(&greeting, &shared, view, mode, outlet).run().await;
        }
        let snapshot = SnapshotSender { greeting: &greeting, shared: &shared, caller: &caller, view: view.clone() };
        let sent = snapshot.send(&mut outlet, pinned, out).await?;
        let start = SessionStart::at(&sent.base, &journal, &ask, start.reason);
        let greeting = MessageContext { start: &start, ..greeting };
        let mode = if greeting.is_structs() { EntryMode::Snapshot } else { EntryMode::Ordinary };
        let mut follow = JournalFollower::new(&greeting, &shared, view, mode, outlet);
        // The base was moved into this call, so it is released before the client follows, possibly
        // for months.
        follow.end_snapshot(sent).await?;
        follow.run().await
    }

    /// Waits for the table's journal and returns it.
    async fn journal(&self) -> Result<Journal, Status> {
        let (name, handle) = (self.table.name(), self.table.handle());
        for _ in 0..FAILURE_CHECKS {
            if let Some(error) = self.table.failure() {
                return Err(refusal::failed(name, &error, self.ask.scope.is_whole()));
            }
            match timeout(self.shared.waits.ready / FAILURE_CHECKS, handle.wait_journal()).await {
                Ok(Some(journal)) => return Ok(journal),
                Ok(None) => return Err(refusal::stopping()),
                Err(_) => {}
            }
        }
        Err(refusal::not_ready(handle, self.ask.scope.is_whole()))
    }

    /// Decides where the stream begins, and waits if the client is ahead of the server.
    async fn start(&self, journal: &Journal) -> Result<(SessionStart, Option<PinnedBase>), Status> {
        if self.ask.format == StreamFormat::Events {
            return self.start_events(journal).await;
        }
        if !self.ask.continues_scope {
            return Ok(self.full(journal, ANOTHER_SCOPE));
        }
        if self.ask.contents_differed {
            if self.shared.log_limits.allows(ClientEvent::ContentsDiffered, self.caller.group()) {
                let (source, table, client_id) =
                    (self.table.source_id(), self.table.name(), shown_name(&self.ask.client_id));
                let (identity, peer) = (self.caller.identity_name(), self.caller.peer_text());
                tracing::error!(
                    event = "client_rows_reported",
                    source, %table, client_id, identity, peer,
                    "a client's rows differed from the checksum; the client is sent all rows again"
                );
            }
            return Ok(self.full(journal, CONTENTS_DIFFERED));
        }
        let history = self.table.handle().history();
        let mut request = self.ask.resume.clone();
        let issuer = InstanceId::parse_snapshot_id(&self.ask.resume.snapshot_id).map_or("", |(instance, _)| instance);
        let named = [self.ask.resume.instance.as_str(), issuer];
        let waits = self.shared.waits.ready;
        let deadline = Instant::now() + waits;
        let unnoticed_until = Instant::now() + waits.min(DEFINITION_WAIT);
        loop {
            request.own_source = history.identity();
            request.verdict = self.table.handle().judge(request.mark);
            request.is_stranger = named.iter().any(|instance| history.is_stranger(instance));
            let (resolution, shared_position) = resolve(journal, &request).await?;
            match resolution {
                ResumeOutcome::Full(DEFINITION_DIFFERS) if Instant::now() < unnoticed_until => {
                    let mut heads = journal.watch_head();
                    heads.mark_unchanged();
                    // The new head itself does not matter; the definition may have changed by then.
                    let _ = timeout(DEFINITION_CHECKS, heads.changed()).await;
                }
                ResumeOutcome::Full(reason) => {
                    let (start, pinned) = self.full(journal, reason);
                    return Ok((SessionStart { shared_position, ..start }, pinned));
                }
                ResumeOutcome::AnotherHistory(reason) => {
                    let (start, pinned) = self.full_of_another(journal, reason);
                    return Ok((SessionStart { shared_position, ..start }, pinned));
                }
                ResumeOutcome::Wait(position) => {
                    if let Ok(Some(true)) = timeout_at(deadline, history.is_beyond_wal(position)).await {
                        named.iter().for_each(|instance| history.note_stranger(instance));
                        let reason = "source position beyond the end of the database's WAL";
                        return Ok(self.full_of_another(journal, reason));
                    }
                    let mut heads = journal.watch_head();
                    let reached = timeout_at(deadline, heads.wait_for(|head| head.position >= position)).await;
                    if !matches!(reached, Ok(Ok(_))) {
                        return Err(refusal::ahead(position, journal.head().position, waits));
                    }
                }
                ResumeOutcome::Delta(after, reason) => {
                    let own = self.ask.scope.name_instance(journal.instance());
                    if let Some(start) = delta(journal, &own, &request, after, reason).await? {
                        return Ok((start, None));
                    }
                }
            }
        }
    }

    /// Returns the start of a subscriber's stream: the rows that exist, or the next transaction.
    async fn start_events(&self, journal: &Journal) -> Result<(SessionStart, Option<PinnedBase>), Status> {
        if !self.ask.skips_rows {
            return Ok(self.full(journal, SUBSCRIPTION));
        }
        let own = self.ask.scope.name_instance(journal.instance());
        loop {
            let head = journal.head().sequence;
            if let Some(start) = delta(journal, &own, &self.ask.resume, head, SUBSCRIPTION).await? {
                return Ok((start, None));
            }
        }
    }

    /// Returns the start of a full snapshot. A laredo client is sent the newest base, which its
    /// handshake describes, and later notices when it reaches the head. For any other client a
    /// fresh base is chosen when its turn comes.
    fn full(&self, journal: &Journal, reason: &'static str) -> (SessionStart, Option<PinnedBase>) {
        match self.ask.format {
            StreamFormat::Batches | StreamFormat::Events => {
                let pinned = journal.pin_base();
                (SessionStart::at(pinned.base(), journal, &self.ask, reason), Some(pinned))
            }
            StreamFormat::Structs => (SessionStart::at(&journal.base(), journal, &self.ask, reason), None),
        }
    }

    /// Returns the start of a full snapshot for a client whose rows are of another history of the
    /// database.
    fn full_of_another(&self, journal: &Journal, reason: &'static str) -> (SessionStart, Option<PinnedBase>) {
        let (start, pinned) = self.full(journal, reason);
        (SessionStart { is_another_history: true, ..start }, pinned)
    }
}

/// Resolves a request on another thread, because the entries it needs may be in a file.
async fn resolve(journal: &Journal, request: &ResumeRequest) -> Result<(ResumeOutcome, Lsn), Status> {
    let (journal, request) = (journal.clone(), request.clone());
    let resolved = tokio::task::spawn_blocking(move || {
        let resolution = journal.resolve(&request);
        let shared = match resolution {
            ResumeOutcome::Full(_) | ResumeOutcome::AnotherHistory(_) => journal.shared_position(&request),
            ResumeOutcome::Delta(..) | ResumeOutcome::Wait(_) => Lsn::ZERO,
        };
        (resolution, shared)
    });
    let resolved = resolved.await;
    resolved.map_err(|e| Status::internal(format!("reading the journal: {e}")))
}

/// Returns the start of a delta, or `None` if its place has been pruned since it was found.
async fn delta(
    journal: &Journal,
    own: &InstanceId,
    request: &ResumeRequest,
    after: Sequence,
    reason: &'static str,
) -> Result<Option<SessionStart>, Status> {
    let cursor = journal.cursor(after);
    let origin = tokio::task::spawn_blocking(move || cursor.origin()).await;
    let origin = match origin.map_err(|e| Status::internal(format!("reading the journal: {e}")))? {
        Ok(origin) => origin,
        Err(laredo_engine::journal::CursorError::Pruned(_)) => return Ok(None),
        Err(error) => return Err(refusal::cursor(&error)),
    };
    let definition = journal.definition_at(origin.position);
    // The ID names this journal in the client's next request. The sequence is that of the client's
    // own ID if this journal issued it, otherwise the one where the client resumes. With another
    // journal's ID, the client could later receive that journal's changes after a sequence of this
    // one. The definition in the ID is that of the rows where the stream begins.
    let issued = journal.instance().issued_sequence(&request.snapshot_id);
    Ok(Some(SessionStart {
        after,
        position: origin.position,
        committed_at: journal.head().committed_at,
        schema: origin.schema,
        definition,
        reason,
        snapshot_id: own.snapshot_id_under(issued.unwrap_or(after), definition),
        mode: SyncMode::Delta,
        is_another_history: false,
        shared_position: Lsn::ZERO,
    }))
}

fn count_start(table: &ServedTable, start: &SessionStart) {
    match start.mode == SyncMode::Delta {
        true => table.counters().count_delta(),
        false => table.counters().count_snapshot(start.reason),
    }
}

fn log(table: &ServedTable, caller: &Caller, ask: &SessionRequest, start: &SessionStart) {
    let (client_id, reason) = (shown_name(&ask.client_id), start.reason);
    let (identity, peer) = (caller.identity_name(), caller.peer_text());
    let mode = if start.mode == SyncMode::Delta { "changes" } else { "snapshot" };
    let (source, table, position) = (table.source_id(), table.name(), start.position);
    tracing::info!(
        event = "stream_begun", source, %table, client_id, identity, peer, mode, reason, %position,
        "stream begins"
    );
}

impl SessionStart {
    /// Returns a start with a snapshot of this base.
    fn at(base: &Base, journal: &Journal, ask: &SessionRequest, reason: &'static str) -> SessionStart {
        let definition = journal.definition_at(base.position());
        SessionStart {
            after: base.sequence(),
            position: base.position(),
            committed_at: base.committed_at(),
            schema: base.schema().clone(),
            reason,
            definition,
            snapshot_id: ask.scope.name_instance(journal.instance()).snapshot_id_under(base.sequence(), definition),
            mode: SyncMode::FullSnapshot,
            is_another_history: false,
            shared_position: Lsn::ZERO,
        }
    }

    fn place(&self) -> PositionMarker {
        PositionMarker { sequence: self.after, position: self.position, committed_at: self.committed_at }
    }
}

/// Joins several small messages into one buffer.
fn joined(write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = Vec::new();
    write(&mut out);
    out.into()
}
