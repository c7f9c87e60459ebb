//! Following the journal: first the transactions that committed while the client was away, then new
//! ones.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use laredo_core::{CommitMark, CommitTime, DefinitionVersion, Lsn, Sequence};
use laredo_engine::Clock;
use laredo_engine::journal::{Head, JournalCursor, JournalPiece};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::joined;
use super::messages::MessageContext;
use super::outlet::SessionOutlet;
use super::snapshot::SentBase;
use crate::drain::ClientDrain;
use crate::refusal;
use crate::server_state::ServerState;
use crate::view::{
    EntryMode, JournalView, PositionMarker, ProjectedChunk, TransactionEnd, ViewCursor, empty_batch, marker,
};

/// The minimum time between two messages that report progress alone.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// The size in bytes above which a piece is projected on another thread, so that other streams do
/// not wait for it.
const INLINE_BYTES: usize = 16 * 1024;

/// The maximum age of the head that a snapshot ends at.
const HEAD_AGE_MAX: Duration = Duration::from_secs(1);
/// The time for which a client receives newer commits before its snapshot ends, unless sending the
/// rows took longer. A client that reads more slowly than the database is written would never reach
/// the head.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

pub(super) struct JournalFollower<'a> {
    greeting: &'a MessageContext<'a>,
    shared: &'a ServerState,
    clock: Clock,
    cursor: JournalCursor,
    /// `None` while another thread uses it, and if the journal's own frames are sent.
    walk: Option<ViewCursor>,
    outlet: SessionOutlet,
    /// The place that a reader of batches knows it has reached; `None` before the first notice.
    told: Option<(Sequence, Lsn)>,
    /// The definition that the client knows its rows to be of, apart from definitions in the
    /// transactions themselves.
    definition: DefinitionVersion,
    /// True if entries were sent since a reader of batches was last notified that it is at the
    /// head.
    has_sent: bool,
    progress_at: Option<Instant>,
    guest: ClientDrain,
}

/// A head and the time when it was seen. A client with everything up to the head has the state of
/// that time.
#[derive(Clone, Copy)]
struct ObservedHead {
    head: Head,
    at: CommitTime,
    /// The time at which the table was known to equal the database's. It is read before the head.
    current_at: CommitTime,
}

impl<'a> JournalFollower<'a> {
    pub(super) fn new(
        greeting: &'a MessageContext<'a>,
        shared: &'a ServerState,
        view: Option<Arc<JournalView>>,
        mode: EntryMode,
        outlet: SessionOutlet,
    ) -> JournalFollower<'a> {
        let start = greeting.start;
        let walk = view.map(|view| ViewCursor::new(view, start.schema.clone(), start.after, mode));
        JournalFollower {
            greeting,
            shared,
            clock: shared.clock.clone(),
            cursor: greeting.journal.cursor(start.after),
            walk,
            outlet,
            told: None,
            definition: start.definition,
            has_sent: false,
            progress_at: None,
            guest: greeting.table.drain().guest(),
        }
    }

    /// Ends the client's snapshot. For a reader of Structs it ends at the head, or at one of the
    /// last second if the client keeps up.
    pub(super) async fn end_snapshot(&mut self, sent: SentBase) -> Result<(), Status> {
        let Head { mark, checksum, .. } = sent.base.head();
        let (at, mark, checksum) = match self.greeting.is_structs() {
            false => (self.greeting.start.place(), mark, checksum),
            // The place may be beyond the base.
            true => (self.catch_up(&sent).await?, CommitMark::default(), None),
        };
        if let Some(walk) = &mut self.walk {
            walk.end_snapshot();
        }
        let greeting = self.greeting;
        let end = joined(|out| {
            greeting.snapshot_end(at, mark, checksum, sent.rows, out);
            greeting.marker(at, out);
        });
        self.outlet.send(end).await
    }

    /// Sends whole transactions that committed since the base, and returns the place reached.
    async fn catch_up(&mut self, sent: &SentBase) -> Result<PositionMarker, Status> {
        let deadline = Instant::now() + CATCH_UP_MAX.max(sent.began_at.elapsed());
        let mut at = self.greeting.start.place();
        // A head, and a time at which no commit was newer than that head.
        let (mut goal, mut seen_at) = (at.sequence, sent.shown_at);
        loop {
            let head = self.greeting.journal.head();
            if at.sequence >= head.sequence {
                return Ok(PositionMarker { position: head.position, committed_at: head.committed_at, ..at });
            }
            let is_there = at.sequence >= goal;
            let is_recent = seen_at.is_some_and(|seen_at| seen_at.elapsed() <= HEAD_AGE_MAX);
            if (is_there && is_recent) || Instant::now() >= deadline {
                return Ok(at);
            }
            if is_there {
                (goal, seen_at) = (head.sequence, Some(Instant::now()));
            }
            let Some(end) = self.transactions().await? else { return Ok(at) };
            at = end;
        }
    }

    /// Sends pieces up to the end of a transaction. Returns the place reached, or `None` at the
    /// head.
    async fn transactions(&mut self) -> Result<Option<PositionMarker>, Status> {
        while let Some(piece) = self.cursor.next_piece_async().await.map_err(|e| refusal::cursor(&e))? {
            let (ends, sequence, position) = (piece.ends, piece.last, piece.position);
            self.send_piece(piece).await?;
            if ends {
                let reached = self.walk.as_ref().and_then(ViewCursor::reached);
                let committed_at = reached.map_or(self.greeting.start.committed_at, |reached| reached.committed_at);
                return Ok(Some(PositionMarker { sequence, position, committed_at }));
            }
        }
        Ok(None)
    }

    pub(super) async fn run(mut self) -> Result<Infallible, Status> {
        let mut heads = self.greeting.journal.watch_head();
        loop {
            // Everything up to this head will have been sent. Later commits end the wait below.
            let mut seen = self.observe(|| *heads.borrow_and_update());
            while let Some(piece) = self.cursor.next_piece_async().await.map_err(|e| refusal::cursor(&e))? {
                let ends = piece.ends;
                self.send_piece(piece).await?;
                if ends {
                    self.end_if_redefined().await?;
                    self.say_goodbye().await?;
                }
                // Under a constant load the loop may never see the end of the journal.
                let is_past = ends && self.cursor.after() >= seen.head.sequence;
                if is_past && self.progress_due(seen.head).is_some_and(|at| at <= Instant::now()) {
                    // Only a head beyond which nothing was sent has the checksum of the client's
                    // rows.
                    let newest = self.observe(|| *heads.borrow_and_update());
                    let is_newest = self.cursor.after() == newest.head.sequence;
                    self.send_progress(if is_newest { newest } else { seen }).await?;
                    seen = newest;
                }
            }
            let head = seen.head;
            self.outlet.lease().note_head(self.cursor.after());
            if self.progress_due(head).is_some_and(|at| at <= Instant::now()) {
                self.send_progress(self.observe(|| head)).await?;
            }
            loop {
                self.say_goodbye().await?;
                let progress_at = self.progress_due(head);
                let heartbeat_at = self.heartbeat_at();
                tokio::select! {
                    biased;
                    // This comes first, so that the branches below use the newest head.
                    _ = heads.changed() => break,
                    () = self.guest.due() => {}
                    () = self.greeting.membership.wanted() => {}
                    () = sleep_until(progress_at.unwrap_or(heartbeat_at)), if progress_at.is_some() => {
                        self.send_progress(self.observe(|| head)).await?;
                    }
                    () = sleep_until(heartbeat_at) => self.heartbeat(head).await?,
                }
            }
        }
    }

    fn observe(&self, head: impl FnOnce() -> Head) -> ObservedHead {
        let current_at = self.greeting.current_at();
        ObservedHead { head: head(), at: (self.clock)(), current_at }
    }

    /// Asks the client to leave, if it is time. Called between transactions.
    ///
    /// A laredo client still receives new commits until it has another stream. Any other client may
    /// apply both streams at the same time, so it receives only heartbeats.
    async fn say_goodbye(&mut self) -> Result<(), Status> {
        let Some(farewell) = self.guest.take_due(Instant::now()) else { return Ok(()) };
        if self.greeting.is_subscription() {
            return Err(refusal::draining(self.greeting.table.name()));
        }
        let follows = self.greeting.is_binary();
        self.outlet.lease().note_drain(follows);
        let message = self.greeting.go_away((self.clock)(), farewell.left(Instant::now()));
        self.outlet.send(message.into()).await?;
        if follows {
            return Ok(());
        }
        loop {
            sleep_until(self.heartbeat_at()).await;
            // No position is sent, because the client has not been sent everything.
            let heartbeat = self.greeting.heartbeat((self.clock)(), None);
            self.outlet.send(heartbeat.into()).await?;
        }
    }

    /// Ends the stream of a client that knows no definitions, after the first transaction under
    /// another definition. The client reconnects and receives an ID that names the new definition.
    /// With the old ID, a server that has not noticed the change would treat the client's rows as
    /// older ones.
    async fn end_if_redefined(&mut self) -> Result<(), Status> {
        let begun = self.walk.as_ref().map_or(DefinitionVersion::UNKNOWN, ViewCursor::begun_definition);
        if !self.greeting.is_structs() || !begun.is_known() || begun == self.definition {
            return Ok(());
        }
        if let Some(reached) = self.walk.as_ref().and_then(ViewCursor::reached).filter(|reached| !reached.is_reported) {
            // A client that was sent nothing of the transaction must at least know that it is past
            // it.
            let TransactionEnd { sequence, position, committed_at, .. } = reached;
            let place = joined(|out| marker(PositionMarker { sequence, position, committed_at }, out));
            self.outlet.send(place).await?;
        }
        Err(refusal::redefined(self.greeting.table.name()))
    }

    async fn send_piece(&mut self, piece: JournalPiece) -> Result<(), Status> {
        self.has_sent = true;
        let Some(walk) = &mut self.walk else {
            self.outlet.lease().note_sent(piece.last);
            if piece.ends {
                self.told = Some((piece.last, piece.position));
            }
            return self.outlet.send(piece.frames).await;
        };
        walk.load(piece);
        while let Some(ProjectedChunk { bytes, last }) = self.next_chunk().await? {
            self.outlet.lease().note_sent(last);
            if bytes.is_empty() {
                yield_now().await;
                if Instant::now() >= self.heartbeat_at() {
                    let heartbeat = self.greeting.heartbeat((self.clock)(), None);
                    self.outlet.send_heartbeat(heartbeat.into()).await?;
                }
            }
            self.outlet.send(bytes).await?;
            if let Some(reached) = self.walk.as_ref().and_then(ViewCursor::reached)
                && reached.is_reported
            {
                self.told = Some((reached.sequence, reached.position));
            }
        }
        Ok(())
    }

    async fn next_chunk(&mut self) -> Result<Option<ProjectedChunk>, Status> {
        let Some(mut walk) = self.walk.take() else { return Ok(None) };
        let chunk = if walk.remaining() <= INLINE_BYTES {
            let chunk = walk.next_chunk();
            self.walk = Some(walk);
            chunk
        } else {
            let (chunk, walk) = self.shared.project(move || (walk.next_chunk(), walk)).await?;
            self.walk = Some(walk);
            chunk
        };
        chunk.map_err(|error| self.greeting.view_error(&error))
    }

    /// Returns the time at which a reader of batches must be notified that it is at the head. The
    /// notice includes the position and time of its rows. Returns `None` if the reader knows. The
    /// time is now if the client is to be asked for the checksum of its rows.
    fn progress_due(&self, head: Head) -> Option<Instant> {
        if self.greeting.membership.is_wanted() && self.has_exactly(head) {
            return Some(Instant::now());
        }
        let is_owed = self.has_sent || self.told.is_none_or(|(_, position)| position < head.position);
        let last = self.progress_at.map_or_else(Instant::now, |at| at + PROGRESS_INTERVAL);
        (self.greeting.is_binary() && is_owed).then_some(last)
    }

    /// Notifies a reader of batches of its place: with an empty transaction for entries that were
    /// not let through, and with a heartbeat.
    async fn send_progress(&mut self, seen: ObservedHead) -> Result<(), Status> {
        let ObservedHead { head, at, current_at } = seen;
        let reached = self.walk.as_ref().and_then(ViewCursor::reached);
        let unknown = reached.filter(|reached| self.told.is_none_or(|(told, _)| told < reached.sequence));
        let check = if self.has_exactly(head) { self.greeting.membership.take_check(head) } else { None };
        let heartbeat = self.greeting.asking_heartbeat(at, Some((head, current_at)), check);
        let unsent = unknown.filter(|reached| !reached.is_reported);
        let position = self.sent_position(head);
        let definition = self.news_of_definition(position);
        let message: Bytes = joined(|out| {
            let here = || (self.cursor.after(), place_at(position, head));
            let place = unsent.map(|reached| (reached.sequence, reached.mark()));
            if let Some((sequence, mark)) = place.or_else(|| definition.is_known().then(here)) {
                empty_batch(sequence, mark, definition, out);
            }
            out.extend_from_slice(&heartbeat);
        });
        self.progress_at = Some(Instant::now());
        self.has_sent = false;
        self.told = Some((self.cursor.after(), position));
        self.outlet.send(message).await
    }

    /// Returns true if nothing beyond a head was sent. Called after everything up to the head was
    /// sent.
    fn has_exactly(&self, head: Head) -> bool {
        self.cursor.after() <= head.sequence
    }

    /// Returns the position up to which everything was sent. This may be beyond the head that was
    /// seen, and the client's position never moves back.
    fn sent_position(&self, head: Head) -> Lsn {
        self.told.map_or(head.position, |(_, told)| told.max(head.position))
    }

    /// Returns the definition at a position up to which everything was sent, if the client may not
    /// know it yet. A change without a transaction, such as that of a truncated table, is reported
    /// alone.
    fn news_of_definition(&mut self, position: Lsn) -> DefinitionVersion {
        let newest = self.greeting.journal.definition_at(position);
        if !self.greeting.is_binary() || newest == self.definition {
            return DefinitionVersion::UNKNOWN;
        }
        self.definition = newest;
        newest
    }

    /// Returns the time of the next heartbeat, if nothing else is sent before.
    fn heartbeat_at(&self) -> Instant {
        self.greeting.heartbeat_at(&self.outlet)
    }

    async fn heartbeat(&mut self, head: Head) -> Result<(), Status> {
        // The table may have failed permanently. A client that receives only heartbeats would
        // believe that it is current.
        if let Some(error) = self.greeting.table.failure() {
            return Err(refusal::failed(self.greeting.table.name(), &error, self.greeting.ask.scope.is_whole()));
        }
        let heartbeat = self.greeting.heartbeat((self.clock)(), Some(head));
        let position = self.sent_position(head);
        let definition = self.news_of_definition(position);
        let message = joined(|out| {
            if definition.is_known() {
                empty_batch(self.cursor.after(), place_at(position, head), definition, out);
            }
            out.extend_from_slice(&heartbeat);
        });
        self.outlet.send_heartbeat(message).await
    }
}

/// Returns a position as a mark without a transaction, because the newest commit may be a different
/// one.
fn place_at(position: Lsn, head: Head) -> CommitMark {
    CommitMark { end: position, committed_at: head.committed_at, ..CommitMark::default() }
}
