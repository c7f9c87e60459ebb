//! What a client holds of a journal, and how it is taken back: a client that reads nothing is not polled, so somebody else has to.

use std::sync::OnceLock;
use std::time::Duration;

use laredo_core::Sequence;
use laredo_engine::journal::{PinnedBase, Reader};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use super::admission::Place;
use crate::options::BufferOptions;
use crate::refusal;
use crate::table::Seat;

/// A client that takes nothing of its snapshot for so long gives its place to the next, and waits in line again when it reads on.
const UNUSED: Duration = Duration::from_secs(1);

/// A client's registration, its seat, the pin of the base that it is being sent, and its place among those who are.
pub(crate) struct Lease {
    held: Mutex<Held>,
    /// A place was given.
    given: Notify,
    buffer: BufferOptions,
    cut: OnceLock<Cut>,
}

struct Held {
    reader: Option<Reader>,
    seat: Option<Seat>,
    pin: Option<PinnedBase>,
    /// While it is sent a snapshot.
    place: Option<Place>,
    /// It waits for a place.
    is_in_line: bool,
    /// Nobody is sent anything by it any more.
    has_ended: bool,
    progressed_at: Instant,
}

/// Why a client is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Behind,
    Stalled,
    /// The journal was kept for it, far beyond its limits.
    Costly,
}

impl Lease {
    pub(crate) fn new(reader: Reader, seat: Seat, buffer: BufferOptions) -> Lease {
        let (pin, place, is_in_line, has_ended, progressed_at) = (None, None, false, false, Instant::now());
        let held = Held { reader: Some(reader), seat: Some(seat), pin, place, is_in_line, has_ended, progressed_at };
        Lease { held: Mutex::new(held), given: Notify::new(), buffer, cut: OnceLock::new() }
    }

    /// Keeps the base that the client is sent from now on, and what follows it.
    pub(super) fn hold(&self, pin: PinnedBase) {
        let mut held = self.held.lock();
        if let Some(reader) = &held.reader {
            reader.moved(pin.base().sequence(), false);
        }
        let unwanted = if held.has_ended { Some(pin) } else { held.pin.replace(pin) };
        held.progressed_at = Instant::now();
        drop(held);
        drop(unwanted);
    }

    /// The client has room for more.
    pub(crate) fn progressed(&self) {
        self.held.lock().progressed_at = Instant::now();
    }

    /// It is the client's turn to be sent a snapshot.
    pub(super) fn give(&self, place: Place) {
        let mut held = self.held.lock();
        let unwanted = if held.has_ended { Some(place) } else { held.place.replace(place) };
        (held.is_in_line, held.progressed_at) = (false, Instant::now());
        drop(held);
        drop(unwanted);
        self.given.notify_one();
    }

    /// Whether it still is.
    pub(super) fn has_place(&self) -> bool {
        self.held.lock().place.is_some()
    }

    /// Waits until that may be another answer.
    pub(super) async fn given(&self) {
        self.given.notified().await;
    }

    /// It wants a place; whether that is new.
    pub(super) fn wants_place(&self) -> bool {
        !std::mem::replace(&mut self.held.lock().is_in_line, true)
    }

    /// Whether nothing is sent by it any more.
    pub(super) fn has_ended(&self) -> bool {
        self.held.lock().has_ended
    }

    /// The client was sent its snapshot.
    pub(super) fn leave_place(&self) {
        let place = self.held.lock().place.take();
        drop(place);
    }

    /// The client is given everything up to here.
    pub(crate) fn moved(&self, sequence: Sequence) {
        if let Some(reader) = &self.held.lock().reader {
            reader.moved(sequence, false);
        }
    }

    /// The client was asked to leave; unless it `follows` on, it is sent no more entries.
    pub(crate) fn drain(&self, follows: bool) {
        if let Some(reader) = &self.held.lock().reader {
            reader.drain(follows);
        }
    }

    /// The client has everything there is: what came after its base may go, and it is held to its buffer from now on.
    pub(crate) fn at_head(&self, sequence: Sequence) {
        let mut held = self.held.lock();
        held.pin = None;
        if let Some(reader) = &held.reader {
            reader.moved(sequence, true);
        }
    }

    /// # Errors
    /// When the client was cut.
    pub(crate) fn check(&self, stalled: Duration) -> Result<(), Status> {
        if self.held.lock().reader.as_ref().is_some_and(Reader::is_cut) {
            self.cut.get_or_init(|| Cut::Behind);
        }
        match self.cut.get() {
            None => Ok(()),
            Some(Cut::Behind) => Err(refusal::too_far_behind(self.buffer.behind_max, self.buffer.policy)),
            Some(Cut::Stalled) => Err(refusal::stalled(stalled)),
            Some(Cut::Costly) => Err(refusal::costly()),
        }
    }

    /// Takes back what a client holds that is too far behind, or that takes nothing of its snapshot; whether it holds on.
    pub(crate) fn sweep(&self, now: Instant, stalled: Duration) -> bool {
        let (mut unused, mut held) = (None, self.held.lock());
        if now.saturating_duration_since(held.progressed_at) > UNUSED {
            unused = held.place.take();
        }
        drop(held);
        drop(unused);
        let cut = {
            let held = self.held.lock();
            if held.reader.as_ref().is_some_and(Reader::is_cut) {
                Cut::Behind
            } else if held.pin.is_some() && now.saturating_duration_since(held.progressed_at) > stalled {
                Cut::Stalled
            } else {
                return true;
            }
        };
        self.cut(cut);
        false
    }

    /// Takes back what a client holds that is being sent the base of this sequence; whether it was.
    pub(crate) fn release(&self, pinned: Sequence) -> bool {
        let holds = self.held.lock().pin.as_ref().is_some_and(|pin| pin.base().sequence() == pinned);
        if holds {
            self.cut(Cut::Costly);
        }
        holds
    }

    /// What it holds is free at once: whoever reads nothing is not polled, and would hold it until its connection ends.
    fn cut(&self, why: Cut) {
        self.cut.get_or_init(|| why);
        let mut held = self.held.lock();
        held.has_ended = true;
        let freed = (held.reader.take(), held.seat.take(), held.pin.take(), held.place.take());
        drop(held);
        drop(freed);
    }
}
