//! Sending a base to a client.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use laredo_engine::base::Base;
use laredo_engine::journal::{self, PinnedBase};
use laredo_proto::frame;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::messages::MessageContext;
use super::outlet::SessionOutlet;
use crate::access::Caller;
use crate::refusal;
use crate::server_state::ServerState;
use crate::view::{ConditionOrigins, FrameCacheKey, JournalView};

/// The time between two notes that a client whose snapshot is paced is not slow. It is shorter than
/// any time after which a slow client is cut.
const PACE_STEP: Duration = Duration::from_millis(250);

/// The snapshot of one client.
#[derive(Clone)]
pub(super) struct SnapshotSender<'a> {
    pub(super) greeting: &'a MessageContext<'a>,
    pub(super) shared: &'a ServerState,
    pub(super) caller: &'a Caller,
    pub(super) view: Option<Arc<JournalView>>,
}

/// A base that was sent to a client.
pub(super) struct SentBase {
    /// The base without its rows. A client that is not polled must not keep their file.
    pub(super) base: Base,
    /// A time that the base is not older than: its state was the head then or later.
    pub(super) shown_at: Option<Instant>,
    pub(super) rows: u64,
    pub(super) began_at: Instant,
}

/// The base to send, and the view that projects its rows.
struct BaseProjection {
    base: Arc<Base>,
    view: Option<Arc<JournalView>>,
    /// The origins of the client's conditions, for errors.
    origins: ConditionOrigins,
}

/// A part of a base.
struct BasePart {
    bytes: Bytes,
    rows: u64,
    /// The offset of the next part; `None` after the last one.
    next: Option<u64>,
}

impl SnapshotSender<'_> {
    /// Sends `out`, which begins the stream, and then all rows of a base. The base is `pinned`, or
    /// a fresh one chosen when the client's turn comes.
    ///
    /// # Errors
    /// Returns an error if the base cannot be read, or the client was cut.
    pub(super) async fn send(
        &self,
        outlet: &mut SessionOutlet,
        pinned: Option<PinnedBase>,
        mut out: Vec<u8>,
    ) -> Result<SentBase, Status> {
        let (lease, journal) = (outlet.lease().clone(), self.greeting.journal);
        let began_at = Instant::now();
        let hold = |pinned: PinnedBase| {
            let (base, shown_at) = (pinned.base().clone(), pinned.shown_at());
            lease.hold_base(pinned);
            (SentBase { base: base.without_rows(), shown_at, rows: 0, began_at }, Arc::downgrade(&base))
        };
        let mut chosen = pinned.map(&hold);
        let has_permit = self.shared.admission().request_permit(&lease);
        if has_permit && chosen.is_none() {
            chosen = journal.fresh_base_now().map(&hold);
        }
        if !has_permit || chosen.is_none() {
            // The handshake reaches the client before the wait.
            outlet.send(std::mem::take(&mut out).into()).await?;
            self.wait_for_permit(outlet).await?;
        }
        let (mut sent, base) = match chosen {
            Some(sent) => sent,
            None => hold(self.wait_for_base(outlet).await?),
        };
        if !self.greeting.is_binary()
            && let Some(view) = &self.view
        {
            let selection = view.selection(sent.base.schema()).map_err(|error| self.greeting.view_error(&error))?;
            if selection.schema().as_ref() != self.greeting.columns {
                self.greeting.schema_change(&sent.base, selection.schema(), &mut out);
            }
        }
        self.greeting.snapshot_begin(&sent.base, &mut out);
        outlet.send(out.into()).await?;
        sent.rows = self.send_rows(outlet, &base).await?;
        Ok(sent)
    }

    /// Sends all rows and returns their number. Each part requires the snapshot permit. If no rows
    /// are let through for a heartbeat's interval, a heartbeat is sent. Only the lease keeps the
    /// base, so that a client that is not polled can be made to give it up.
    async fn send_rows(&self, outlet: &mut SessionOutlet, base: &Weak<Base>) -> Result<u64, Status> {
        let mut rows = 0;
        let mut at = Some(0);
        while let Some(from) = at {
            // A client that waits for its next turn, or for what its identity was sent before, does
            // not hold a part of the base meanwhile.
            self.pace(outlet, 0).await?;
            self.wait_for_permit(outlet).await?;
            let Some(base) = base.upgrade() else { return Err(outlet.reason_of_cut()) };
            let origins = self.greeting.ask.origins.clone();
            let read = BaseProjection { base, view: self.view.clone(), origins };
            let part = if read.view.is_some() {
                self.shared.project(move || read.part(from)).await
            } else {
                let part = spawn_blocking(move || read.part(from)).await;
                part.map_err(|error| Status::internal(format!("reading the snapshot: {error}")))
            };
            let part = part??;
            rows += part.rows;
            at = part.next;
            let bytes = part.bytes.len();
            // Other streams of the identity may have read a part at the same time.
            self.pace(outlet, bytes).await?;
            // Reading the part may have taken so long that the permit was taken back.
            self.wait_for_permit(outlet).await?;
            if part.bytes.is_empty() {
                yield_now().await;
                if Instant::now() >= self.greeting.heartbeat_at(outlet) {
                    self.send_heartbeat(outlet).await?;
                }
            }
            if bytes > 0 {
                outlet.lease().note_offered(bytes);
            }
            outlet.send(part.bytes).await?;
        }
        outlet.lease().return_permit();
        Ok(rows)
    }

    /// Counts a part of the snapshot, and waits until it may be sent, if the identity has a limit.
    /// Sends heartbeats meanwhile. The permit goes to another client.
    async fn pace(&self, outlet: &mut SessionOutlet, bytes: usize) -> Result<(), Status> {
        let Some(due) = self.caller.count_snapshot_bytes(bytes) else { return Ok(()) };
        while Instant::now() < due {
            outlet.lease().return_permit();
            // It is not the client who is slow.
            outlet.lease().note_room();
            tokio::select! {
                biased;
                () = sleep_until(due.min(Instant::now() + PACE_STEP)) => {}
                () = sleep_until(self.greeting.heartbeat_at(outlet)) => self.send_heartbeat(outlet).await?,
            }
        }
        Ok(())
    }

    /// Waits for a snapshot permit, also if the client's turn is over and others wait. Sends
    /// heartbeats meanwhile.
    async fn wait_for_permit(&self, outlet: &mut SessionOutlet) -> Result<(), Status> {
        let lease = outlet.lease().clone();
        // A permit that was not used in time has been taken back, and must be requested again.
        while !self.shared.admission().request_permit(&lease) {
            tokio::select! {
                biased;
                () = lease.permit_granted() => {}
                () = sleep_until(self.greeting.heartbeat_at(outlet)) => self.send_heartbeat(outlet).await?,
            }
        }
        Ok(())
    }

    /// Waits for a fresh base, and sends heartbeats meanwhile.
    async fn wait_for_base(&self, outlet: &mut SessionOutlet) -> Result<PinnedBase, Status> {
        let mut fresh = pin!(self.greeting.journal.fresh_base());
        loop {
            tokio::select! {
                biased;
                base = &mut fresh => return Ok(base),
                () = sleep_until(self.greeting.heartbeat_at(outlet)) => self.send_heartbeat(outlet).await?,
            }
            // A table that has failed permanently makes no more bases.
            if let Some(error) = self.greeting.table.failure() {
                return Err(refusal::failed(self.greeting.table.name(), &error, self.greeting.ask.scope.is_whole()));
            }
        }
    }

    async fn send_heartbeat(&self, outlet: &mut SessionOutlet) -> Result<(), Status> {
        let now = (self.shared.clock)();
        outlet.send_heartbeat(self.greeting.heartbeat(now, None).into()).await
    }
}

impl BaseProjection {
    fn part(&self, from: u64) -> Result<BasePart, Status> {
        let failed = |error: io::Error| Status::internal(format!("reading the snapshot: {error}"));
        let Some(view) = &self.view else {
            let bytes = whole_frames(&self.base, from).map_err(failed)?;
            let next = (!bytes.is_empty()).then(|| from + bytes.len() as u64);
            // The number of all rows is known without decoding them.
            let rows = if from == 0 { self.base.rows() } else { 0 };
            return Ok(BasePart { bytes, rows, next });
        };
        let bytes = self.base.read_frame(from).map_err(failed)?;
        let next = from + bytes.len() as u64;
        let Some(frame) = journal::frames(bytes).next() else {
            return Ok(BasePart { bytes: Bytes::new(), rows: 0, next: None });
        };
        let place = FrameCacheKey::Base(self.base.sequence(), from);
        let projected = view.rows(&frame, place, self.base.schema());
        let projected = projected.map_err(|error| refusal::view(&error, &self.origins))?;
        Ok(BasePart { bytes: projected.bytes, rows: projected.count, next: Some(next) })
    }
}

/// Returns as many whole frames as one read contains, and at least one. A stream may be ended after
/// each part.
fn whole_frames(base: &Base, from: u64) -> io::Result<Bytes> {
    let mut chunk = base.read(from)?;
    let mut end = 0;
    while let Some(length) = frame::length(&chunk[end..]) {
        let next = end + frame::PREFIX_LENGTH + length;
        if next > chunk.len() {
            break;
        }
        end = next;
    }
    if end == 0 && !chunk.is_empty() {
        return base.read_frame(from);
    }
    chunk.truncate(end);
    Ok(chunk)
}
