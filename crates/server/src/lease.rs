//! The resources that a client holds, and their release. A client that reads nothing is not polled,
//! so a periodic sweep must release them.

use std::time::Duration;

use laredo_core::Sequence;
use laredo_engine::journal::{JournalReader, PinnedBase};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use crate::options::{BufferOptions, ServerTimeLimits};
use crate::refusal;
use crate::response_task::ResponseTask;

mod admission;
mod download;
mod seats;

pub(crate) use admission::{PermitShare, SnapshotAdmission};
pub(crate) use download::SnapshotDownload;
pub(crate) use seats::{ClientSeat, ClientSeats};

use admission::SnapshotPermit;

/// The time after which a client that reads nothing of its snapshot gives its permit to the next
/// client. It queues again when it continues to read.
const UNUSED: Duration = Duration::from_secs(1);
/// The same time while other clients wait for a permit.
const UNUSED_WHILE_OTHERS_WAIT: Duration = Duration::from_millis(250);
/// The time for which a client has its permit while others wait. At the speed of a local network
/// that is some hundred megabytes; a slow client gets little, and no longer.
const TURN: Duration = Duration::from_secs(1);
/// The minimum speed in bytes per second at which a client takes its snapshot. The base and the
/// journal after it are kept for such a client.
const SPEED_MIN: u64 = 16 << 10;
/// The size in bytes that a part of a snapshot counts at least. A part is also small because a
/// filter lets little of it through.
const PART_BYTES_MIN: u64 = 4 << 10;

/// The resources of one client, which can be released at any time.
pub(crate) struct ClientLease {
    state: Mutex<LeaseState>,
    /// Notified when a snapshot permit was granted.
    permit_granted: Notify,
    share: PermitShare,
    buffer: BufferOptions,
    /// The task that sends the stream.
    task: ResponseTask,
}

enum LeaseState {
    Active(Box<LeasedResources>),
    /// All resources were released, and nothing more is sent under this lease. The time is that of
    /// the end.
    Ended(DisconnectReason, Instant),
}

struct LeasedResources {
    /// The client's registration with the journal.
    reader: JournalReader,
    _seat: ClientSeat,
    /// The pin of the base that the client is sent, until the client has everything up to the head.
    pin: Option<PinnedBase>,
    permit: PermitState,
    progressed_at: Instant,
    /// The part of the snapshot that the client has not taken yet: since when, and its size.
    offered: Option<(Instant, u64)>,
    speed: SnapshotSpeed,
}

/// The speed at which a client takes its snapshot: the bytes taken, and the time for which parts
/// were ready for it.
#[derive(Clone, Copy, Debug, Default)]
struct SnapshotSpeed {
    time: Duration,
    bytes: u64,
}

/// The permit to be sent a snapshot.
enum PermitState {
    /// The client has no permit, and is not queued for one.
    NotRequested,
    Queued,
    /// The permit, and the time when it was granted.
    Granted(SnapshotPermit, Instant),
}

/// The reason why a client was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DisconnectReason {
    Behind,
    Stalled,
    /// The client took its snapshot more slowly than [`SPEED_MIN`].
    Slow,
    /// The journal was kept for the client, far beyond its limits.
    Costly,
    /// Another journal has replaced the one that the client reads.
    Abandoned,
}

impl ClientLease {
    pub(crate) fn new(
        reader: JournalReader,
        seat: ClientSeat,
        share: PermitShare,
        buffer: BufferOptions,
        task: ResponseTask,
    ) -> ClientLease {
        let (permit, progressed_at) = (PermitState::NotRequested, Instant::now());
        let (offered, speed) = (None, SnapshotSpeed::default());
        let resources = LeasedResources { reader, _seat: seat, pin: None, permit, progressed_at, offered, speed };
        let state = Mutex::new(LeaseState::Active(Box::new(resources)));
        ClientLease { state, permit_granted: Notify::new(), share, buffer, task }
    }

    /// Returns the client's group and table.
    fn share(&self) -> &PermitShare {
        &self.share
    }

    /// Stores the pin of the base that the client is sent from now on.
    pub(crate) fn hold_base(&self, pin: PinnedBase) {
        let unused = match &mut *self.state.lock() {
            LeaseState::Active(resources) => {
                resources.reader.note_progress(pin.base().sequence(), false);
                resources.progressed_at = Instant::now();
                resources.pin.replace(pin)
            }
            LeaseState::Ended(..) => Some(pin),
        };
        drop(unused);
    }

    /// Notes that the client has room for more.
    pub(crate) fn note_room(&self) {
        if let LeaseState::Active(resources) = &mut *self.state.lock() {
            resources.progressed_at = Instant::now();
            if let Some((since, bytes)) = resources.offered.take() {
                resources.speed.time += resources.progressed_at.saturating_duration_since(since);
                resources.speed.bytes += bytes.max(PART_BYTES_MIN);
            }
        }
    }

    /// Notes that a part of the snapshot, of so many bytes, is ready for the client to take.
    pub(crate) fn note_offered(&self, bytes: usize) {
        if let LeaseState::Active(resources) = &mut *self.state.lock() {
            resources.offered = Some((Instant::now(), bytes as u64));
        }
    }

    /// Grants the client a permit to be sent its snapshot.
    fn grant_permit(&self, permit: SnapshotPermit) {
        let granted = PermitState::Granted(permit, Instant::now());
        let unused = match &mut *self.state.lock() {
            LeaseState::Active(resources) => {
                resources.progressed_at = Instant::now();
                std::mem::replace(&mut resources.permit, granted)
            }
            LeaseState::Ended(..) => granted,
        };
        // A permit is dropped without the lock, because it goes to the next client.
        drop(unused);
        self.permit_granted.notify_one();
    }

    /// Returns true if the client still has its permit.
    fn has_permit(&self) -> bool {
        match &*self.state.lock() {
            LeaseState::Active(resources) => matches!(resources.permit, PermitState::Granted(..)),
            LeaseState::Ended(..) => false,
        }
    }

    /// Waits until the client may have got a permit.
    pub(crate) async fn permit_granted(&self) {
        self.permit_granted.notified().await;
    }

    /// Notes that the client is queued for a snapshot permit. Returns false if it already is, or
    /// has a permit.
    fn queue_for_permit(&self) -> bool {
        let mut state = self.state.lock();
        let LeaseState::Active(resources) = &mut *state else { return false };
        match resources.permit {
            PermitState::NotRequested => {
                resources.permit = PermitState::Queued;
                true
            }
            PermitState::Queued | PermitState::Granted(..) => false,
        }
    }

    /// Takes the permit of a client whose turn is over. The client is then queued.
    fn end_turn(&self) -> Option<SnapshotPermit> {
        let mut state = self.state.lock();
        let LeaseState::Active(resources) = &mut *state else { return None };
        match &resources.permit {
            PermitState::Granted(_, since) if since.elapsed() >= TURN => {
                let permit = resources.take_permit();
                resources.permit = PermitState::Queued;
                permit
            }
            PermitState::NotRequested | PermitState::Queued | PermitState::Granted(..) => None,
        }
    }

    fn has_ended(&self) -> bool {
        match &*self.state.lock() {
            LeaseState::Active(_) => false,
            LeaseState::Ended(..) => true,
        }
    }

    /// Returns the permit, after the client was sent its snapshot.
    pub(crate) fn return_permit(&self) {
        let returned = match &mut *self.state.lock() {
            LeaseState::Active(resources) => resources.take_permit(),
            LeaseState::Ended(..) => None,
        };
        drop(returned);
    }

    /// Notes that the client was sent everything up to this sequence.
    pub(crate) fn note_sent(&self, sequence: Sequence) {
        if let LeaseState::Active(resources) = &*self.state.lock() {
            resources.reader.note_progress(sequence, false);
        }
    }

    /// Notes that the client was asked to leave. Unless it `follows`, it is sent no more entries.
    pub(crate) fn note_drain(&self, follows: bool) {
        if let LeaseState::Active(resources) = &*self.state.lock() {
            resources.reader.drain(follows);
        }
    }

    /// Notes that the client has everything up to the head. Its base is released, and the buffer
    /// limits apply from now on.
    pub(crate) fn note_head(&self, sequence: Sequence) {
        if let LeaseState::Active(resources) = &mut *self.state.lock() {
            resources.pin = None;
            resources.reader.note_progress(sequence, true);
        }
    }

    /// Checks that the client may be sent more.
    ///
    /// # Errors
    /// Returns an error if the client was cut.
    pub(crate) fn check(&self, stalled: Duration) -> Result<(), Status> {
        let reason = match &*self.state.lock() {
            LeaseState::Active(resources) if resources.reader.is_cut() => DisconnectReason::Behind,
            LeaseState::Active(_) => return Ok(()),
            LeaseState::Ended(reason, _) => *reason,
        };
        Err(match reason {
            DisconnectReason::Behind => refusal::too_far_behind(self.buffer.behind_max, self.buffer.policy),
            DisconnectReason::Stalled => refusal::stalled(stalled),
            DisconnectReason::Slow => refusal::slow(SPEED_MIN),
            DisconnectReason::Costly => refusal::costly(),
            DisconnectReason::Abandoned => refusal::journal_replaced(),
        })
    }

    /// Releases the resources of a client that is too far behind, that reads nothing of its
    /// snapshot or too little, or whose journal was replaced. A client that takes nothing of its
    /// snapshot gives back its permit, sooner if `others_wait`.
    ///
    /// The stream of a client that was cut keeps what waits to be sent. If the client has not taken
    /// that in [`ServerTimeLimits::stop`], the stream is reset. Returns true if the lease must be
    /// swept again.
    pub(crate) fn sweep(&self, now: Instant, waits: &ServerTimeLimits, others_wait: bool) -> bool {
        let (unused, reason) = match &mut *self.state.lock() {
            LeaseState::Active(resources) => {
                let unused = resources.idle_time(now) > UNUSED
                    || (others_wait && resources.offered_time(now) > UNUSED_WHILE_OTHERS_WAIT);
                let unused = if unused { resources.take_permit() } else { None };
                (unused, resources.disconnect_reason(now, waits.stalled))
            }
            LeaseState::Ended(_, ended_at) => {
                let waits_for_client = now.saturating_duration_since(*ended_at) < waits.stop;
                if !waits_for_client {
                    self.task.abort();
                }
                return waits_for_client;
            }
        };
        drop(unused);
        if let Some(reason) = reason {
            self.cut(reason);
        }
        true
    }

    /// Cuts the client if it is being sent the base of this sequence. Returns true if it was.
    pub(crate) fn release_base(&self, pinned: Sequence) -> bool {
        let is_sent = match &*self.state.lock() {
            LeaseState::Active(resources) => resources.pin.as_ref().is_some_and(|pin| pin.base().sequence() == pinned),
            LeaseState::Ended(..) => false,
        };
        if is_sent {
            self.cut(DisconnectReason::Costly);
        }
        is_sent
    }

    /// Releases all resources at once. A client that reads nothing is not polled, and would hold
    /// them until its stream is reset. The first reason stays.
    fn cut(&self, reason: DisconnectReason) {
        let mut state = self.state.lock();
        let released = match &*state {
            LeaseState::Active(_) => Some(std::mem::replace(&mut *state, LeaseState::Ended(reason, Instant::now()))),
            LeaseState::Ended(..) => None,
        };
        drop(state);
        drop(released);
    }
}

impl LeasedResources {
    /// Takes back the permit, if the client has one.
    fn take_permit(&mut self) -> Option<SnapshotPermit> {
        match std::mem::replace(&mut self.permit, PermitState::NotRequested) {
            PermitState::Granted(permit, _) => Some(permit),
            unchanged @ (PermitState::NotRequested | PermitState::Queued) => {
                self.permit = unchanged;
                None
            }
        }
    }

    /// Returns the time since the client last had room for more.
    fn idle_time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.progressed_at)
    }

    /// Returns the time for which a part of the snapshot has been ready for the client.
    fn offered_time(&self, now: Instant) -> Duration {
        self.offered.map_or(Duration::ZERO, |(since, _)| now.saturating_duration_since(since))
    }

    /// Returns true if the client was too slow for `time` in which parts were ready for it. Then
    /// begins another measurement.
    fn is_too_slow(&mut self, time: Duration) -> bool {
        if self.speed.time < time {
            return false;
        }
        let SnapshotSpeed { time, bytes } = std::mem::take(&mut self.speed);
        bytes < SPEED_MIN * time.as_secs()
    }

    /// Returns the reason to cut the client, if there is one.
    fn disconnect_reason(&mut self, now: Instant, stalled: Duration) -> Option<DisconnectReason> {
        if self.reader.is_abandoned() {
            Some(DisconnectReason::Abandoned)
        } else if self.reader.is_cut() {
            Some(DisconnectReason::Behind)
        } else if self.pin.is_some() && self.idle_time(now) > stalled {
            Some(DisconnectReason::Stalled)
        } else if self.is_too_slow(stalled) && self.pin.is_some() {
            Some(DisconnectReason::Slow)
        } else {
            None
        }
    }
}
