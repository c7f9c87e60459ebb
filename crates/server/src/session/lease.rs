//! The resources that a client holds, and their release. A client that reads nothing is not polled,
//! so a periodic sweep must release them.

use std::sync::OnceLock;
use std::time::Duration;

use laredo_core::Sequence;
use laredo_engine::journal::{JournalReader, PinnedBase};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use super::admission::SnapshotPermit;
use crate::options::BufferOptions;
use crate::refusal;
use crate::table::ClientSeat;

/// The time after which a client that reads nothing of its snapshot gives its permit to the next
/// client. It queues again when it continues to read.
const UNUSED: Duration = Duration::from_secs(1);

/// A client's registration with the journal, its seat, the pin of the base that it is being sent,
/// and its snapshot permit.
pub(crate) struct ClientLease {
    held: Mutex<LeaseState>,
    /// Notified when a snapshot permit was granted.
    given: Notify,
    buffer: BufferOptions,
    cut: OnceLock<DisconnectReason>,
}

struct LeaseState {
    reader: Option<JournalReader>,
    seat: Option<ClientSeat>,
    pin: Option<PinnedBase>,
    /// The permit, while the client is sent a snapshot.
    place: Option<SnapshotPermit>,
    /// True while the client is queued for a permit.
    is_in_line: bool,
    /// True if nothing more is sent under this lease.
    has_ended: bool,
    progressed_at: Instant,
}

/// The reason why a client was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DisconnectReason {
    Behind,
    Stalled,
    /// The journal was kept for the client, far beyond its limits.
    Costly,
    /// Another journal has replaced the one that the client reads.
    Abandoned,
}

impl ClientLease {
    pub(crate) fn new(reader: JournalReader, seat: ClientSeat, buffer: BufferOptions) -> ClientLease {
        let (pin, place, is_in_line, has_ended, progressed_at) = (None, None, false, false, Instant::now());
        let held =
            LeaseState { reader: Some(reader), seat: Some(seat), pin, place, is_in_line, has_ended, progressed_at };
        ClientLease { held: Mutex::new(held), given: Notify::new(), buffer, cut: OnceLock::new() }
    }

    /// Stores the pin of the base that the client is sent from now on.
    pub(super) fn hold(&self, pin: PinnedBase) {
        let mut held = self.held.lock();
        if let Some(reader) = &held.reader {
            reader.note_progress(pin.base().sequence(), false);
        }
        let unwanted = if held.has_ended { Some(pin) } else { held.pin.replace(pin) };
        held.progressed_at = Instant::now();
        drop(held);
        drop(unwanted);
    }

    /// Notes that the client has room for more.
    pub(crate) fn progressed(&self) {
        self.held.lock().progressed_at = Instant::now();
    }

    /// Grants the client a permit to be sent its snapshot.
    pub(super) fn grant_permit(&self, place: SnapshotPermit) {
        let mut held = self.held.lock();
        let unwanted = if held.has_ended { Some(place) } else { held.place.replace(place) };
        (held.is_in_line, held.progressed_at) = (false, Instant::now());
        drop(held);
        drop(unwanted);
        self.given.notify_one();
    }

    /// Returns true if the client still has its permit.
    pub(super) fn has_permit(&self) -> bool {
        self.held.lock().place.is_some()
    }

    /// Waits until [`ClientLease::has_place`] may have changed.
    pub(super) async fn given(&self) {
        self.given.notified().await;
    }

    /// Queues for a snapshot permit. Returns true if the client was not already queued.
    pub(super) fn queue_for_permit(&self) -> bool {
        !std::mem::replace(&mut self.held.lock().is_in_line, true)
    }

    /// Returns true if nothing more is sent under this lease.
    pub(super) fn has_ended(&self) -> bool {
        self.held.lock().has_ended
    }

    /// Returns the permit, after the client was sent its snapshot.
    pub(super) fn return_permit(&self) {
        let place = self.held.lock().place.take();
        drop(place);
    }

    /// Notes that the client was sent everything up to this sequence.
    pub(crate) fn moved(&self, sequence: Sequence) {
        if let Some(reader) = &self.held.lock().reader {
            reader.note_progress(sequence, false);
        }
    }

    /// Notes that the client was asked to leave. Unless it `follows`, it is sent no more entries.
    pub(crate) fn drain(&self, follows: bool) {
        if let Some(reader) = &self.held.lock().reader {
            reader.drain(follows);
        }
    }

    /// Notes that the client has everything up to the head. Its base is released, and the buffer
    /// limits apply from now on.
    pub(crate) fn at_head(&self, sequence: Sequence) {
        let mut held = self.held.lock();
        held.pin = None;
        if let Some(reader) = &held.reader {
            reader.note_progress(sequence, true);
        }
    }

    /// Checks that the client may be sent more.
    ///
    /// # Errors
    /// Returns an error if the client was cut.
    pub(crate) fn check(&self, stalled: Duration) -> Result<(), Status> {
        if self.held.lock().reader.as_ref().is_some_and(JournalReader::is_cut) {
            self.cut.get_or_init(|| DisconnectReason::Behind);
        }
        match self.cut.get() {
            None => Ok(()),
            Some(DisconnectReason::Behind) => Err(refusal::too_far_behind(self.buffer.behind_max, self.buffer.policy)),
            Some(DisconnectReason::Stalled) => Err(refusal::stalled(stalled)),
            Some(DisconnectReason::Costly) => Err(refusal::costly()),
            Some(DisconnectReason::Abandoned) => Err(refusal::journal_replaced()),
        }
    }

    /// Releases the resources of a client that is too far behind, that reads nothing of its
    /// snapshot, or whose journal was replaced. Returns true if the client still holds resources.
    pub(crate) fn sweep(&self, now: Instant, stalled: Duration) -> bool {
        let (mut unused, mut held) = (None, self.held.lock());
        if now.saturating_duration_since(held.progressed_at) > UNUSED {
            unused = held.place.take();
        }
        drop(held);
        drop(unused);
        let cut = {
            let held = self.held.lock();
            if held.reader.as_ref().is_some_and(JournalReader::is_abandoned) {
                DisconnectReason::Abandoned
            } else if held.reader.as_ref().is_some_and(JournalReader::is_cut) {
                DisconnectReason::Behind
            } else if held.pin.is_some() && now.saturating_duration_since(held.progressed_at) > stalled {
                DisconnectReason::Stalled
            } else {
                return true;
            }
        };
        self.cut(cut);
        false
    }

    /// Cuts the client if it is being sent the base of this sequence. Returns true if it was.
    pub(crate) fn release(&self, pinned: Sequence) -> bool {
        let holds = self.held.lock().pin.as_ref().is_some_and(|pin| pin.base().sequence() == pinned);
        if holds {
            self.cut(DisconnectReason::Costly);
        }
        holds
    }

    /// Releases all resources at once. A client that reads nothing is not polled, and would hold
    /// them until its connection ends.
    fn cut(&self, why: DisconnectReason) {
        self.cut.get_or_init(|| why);
        let mut held = self.held.lock();
        held.has_ended = true;
        let freed = (held.reader.take(), held.seat.take(), held.pin.take(), held.place.take());
        drop(held);
        drop(freed);
    }
}
