//! Following the journal: what was committed while the client was away, then what commits.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use laredo_core::{CommitTime, Lsn, Sequence};
use laredo_engine::Clock;
use laredo_engine::journal::{Cursor, Head, Piece};
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::joined;
use super::messages::Greeting;
use super::outlet::Outlet;
use crate::drain::Guest;
use crate::refusal;
use crate::shared::Shared;
use crate::view::{Chunk, View, Walk, empty_batch};

/// News of mere progress comes no more often than this.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// More than this is projected on a thread of its own, so that other streams do not wait for it.
const INLINE_BYTES: usize = 16 * 1024;

pub(super) struct Follow<'a> {
    greeting: &'a Greeting<'a>,
    clock: Clock,
    cursor: Cursor,
    /// `None` while another thread has it, and where the journal's own frames are sent.
    walk: Option<Walk>,
    outlet: Outlet,
    /// What a reader of batches knows of where it is; nothing before it was told the first time.
    told: Option<(Sequence, Lsn)>,
    /// Entries were sent since a reader of batches was last told that it is at the head.
    has_sent: bool,
    progress_at: Option<Instant>,
    guest: Guest,
}

/// A head, and when it was seen: who has everything up to it has what there was then.
#[derive(Clone, Copy)]
struct Seen {
    head: Head,
    at: CommitTime,
}

impl<'a> Follow<'a> {
    pub(super) fn new(
        greeting: &'a Greeting<'a>,
        shared: &Shared,
        view: Option<Arc<View>>,
        outlet: Outlet,
    ) -> Follow<'a> {
        let start = greeting.start;
        let walk = view.map(|view| Walk::new(view, start.schema.clone(), start.after, start.may_repeat()));
        Follow {
            greeting,
            clock: shared.clock.clone(),
            cursor: greeting.journal.cursor(start.after),
            walk,
            outlet,
            told: None,
            has_sent: false,
            progress_at: None,
            guest: greeting.table.drain.guest(),
        }
    }

    pub(super) async fn run(mut self) -> Result<Infallible, Status> {
        let mut heads = self.greeting.journal.watch_head();
        loop {
            // Everything up to this head will have been sent: what comes later wakes the wait below.
            let mut seen = Seen { head: *heads.borrow_and_update(), at: (self.clock)() };
            while let Some(piece) = self.cursor.next_piece_async().await.map_err(|e| refusal::cursor(&e))? {
                let ends = piece.ends;
                self.piece(piece).await?;
                if ends {
                    self.say_goodbye().await?;
                }
                // Where more comes all the time, the end of it may never be seen.
                let is_past = ends && self.cursor.after() >= seen.head.sequence;
                if is_past && self.progress_due(seen.head).is_some_and(|at| at <= Instant::now()) {
                    // Only a head beyond which nothing was sent has the checksum of what the client has.
                    let newest = Seen { head: *heads.borrow_and_update(), at: (self.clock)() };
                    let is_newest = self.cursor.after() == newest.head.sequence;
                    self.progress(if is_newest { newest } else { seen }).await?;
                    seen = newest;
                }
            }
            let head = seen.head;
            self.outlet.lease().at_head(self.cursor.after());
            if self.progress_due(head).is_some_and(|at| at <= Instant::now()) {
                self.progress(Seen { head, at: (self.clock)() }).await?;
            }
            loop {
                self.say_goodbye().await?;
                let progress_at = self.progress_due(head);
                let heartbeat_at = self.outlet.sent_at() + self.greeting.table.options.heartbeat_interval;
                tokio::select! {
                    biased;
                    // First: what is told below is told of the newest head.
                    _ = heads.changed() => break,
                    () = self.guest.due() => {}
                    () = sleep_until(progress_at.unwrap_or(heartbeat_at)), if progress_at.is_some() => {
                        self.progress(Seen { head, at: (self.clock)() }).await?;
                    }
                    () = sleep_until(heartbeat_at) => self.heartbeat(head).await?,
                }
            }
        }
    }

    /// Asks the client to leave, if it is time. Called between transactions.
    ///
    /// A client of ours is sent on what commits, until it has another stream. Any other one may apply both streams side by side, so
    /// it is sent nothing more than heartbeats.
    async fn say_goodbye(&mut self) -> Result<(), Status> {
        let Some(farewell) = self.guest.take_due(Instant::now()) else { return Ok(()) };
        let follows = self.greeting.is_binary();
        self.outlet.lease().drain(follows);
        let message = self.greeting.go_away((self.clock)(), farewell.left(Instant::now()));
        self.outlet.send(message.into()).await?;
        if follows {
            return Ok(());
        }
        loop {
            sleep_until(self.outlet.sent_at() + self.greeting.table.options.heartbeat_interval).await;
            // Without a position: the client has not been sent all that there is.
            let heartbeat = self.greeting.heartbeat((self.clock)(), None);
            self.outlet.send(heartbeat.into()).await?;
        }
    }

    async fn piece(&mut self, piece: Piece) -> Result<(), Status> {
        self.has_sent = true;
        let Some(walk) = &mut self.walk else {
            self.outlet.lease().moved(piece.last);
            if piece.ends {
                self.told = Some((piece.last, piece.position));
            }
            return self.outlet.send(piece.frames).await;
        };
        walk.load(piece);
        while let Some(Chunk { bytes, last }) = self.next_chunk().await? {
            self.outlet.lease().moved(last);
            if bytes.is_empty() {
                yield_now().await;
                if Instant::now() >= self.outlet.sent_at() + self.greeting.table.options.heartbeat_interval {
                    let heartbeat = self.greeting.heartbeat((self.clock)(), None);
                    self.outlet.send(heartbeat.into()).await?;
                }
            }
            self.outlet.send(bytes).await?;
            if let Some(reached) = self.walk.as_ref().and_then(Walk::reached)
                && reached.is_told
            {
                self.told = Some((reached.sequence, reached.position));
            }
        }
        Ok(())
    }

    async fn next_chunk(&mut self) -> Result<Option<Chunk>, Status> {
        let Some(mut walk) = self.walk.take() else { return Ok(None) };
        let chunk = if walk.remaining() <= INLINE_BYTES {
            let chunk = walk.next_chunk();
            self.walk = Some(walk);
            chunk
        } else {
            let task = spawn_blocking(move || (walk.next_chunk(), walk)).await;
            let (chunk, walk) = task.map_err(|e| Status::internal(format!("showing changes: {e}")))?;
            self.walk = Some(walk);
            chunk
        };
        chunk.map_err(|error| Status::internal(error.to_string()))
    }

    /// When a reader of batches is to be told that it is at the head, and with it how far and how fresh what it has is; `None` where it
    /// knows.
    fn progress_due(&self, head: Head) -> Option<Instant> {
        let is_owed = self.has_sent || self.told.is_none_or(|(_, position)| position < head.position);
        let last = self.progress_at.map_or_else(Instant::now, |at| at + PROGRESS_INTERVAL);
        (self.greeting.is_binary() && is_owed).then_some(last)
    }

    /// Tells a reader of batches where it is: by an empty transaction where it lacks entries, and by a heartbeat.
    async fn progress(&mut self, Seen { head, at }: Seen) -> Result<(), Status> {
        let reached = self.walk.as_ref().and_then(Walk::reached);
        let unknown = reached.filter(|reached| self.told.is_none_or(|(told, _)| told < reached.sequence));
        let heartbeat = self.greeting.heartbeat(at, Some(head));
        let message: Bytes = joined(|out| {
            if let Some(reached) = unknown.filter(|reached| !reached.is_told) {
                empty_batch(reached.sequence, reached.position, reached.committed_at, out);
            }
            out.extend_from_slice(&heartbeat);
        });
        self.progress_at = Some(Instant::now());
        self.has_sent = false;
        let position = self.told.map_or(head.position, |(_, told)| told.max(head.position));
        self.told = Some((self.cursor.after(), position));
        self.outlet.send(message).await
    }

    async fn heartbeat(&mut self, head: Head) -> Result<(), Status> {
        // The table may have stopped for good; who merely hears that nothing changes would take it for alive.
        if let Some(error) = self.greeting.table.failure() {
            return Err(refusal::failed(self.greeting.table.name(), &error));
        }
        let heartbeat = self.greeting.heartbeat((self.clock)(), Some(head));
        self.outlet.send(heartbeat.into()).await
    }
}
