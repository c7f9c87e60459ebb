//! What a client holds of a journal, and how it is taken back: a client that reads nothing is not polled, so somebody else has to.

use std::sync::OnceLock;
use std::time::Duration;

use laredo_core::Sequence;
use laredo_engine::journal::{PinnedBase, Reader};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use crate::options::BufferOptions;
use crate::refusal;
use crate::table::Seat;

/// A client's registration, its seat, and the pin of the base that it is being sent.
pub(crate) struct Lease {
    held: Mutex<Held>,
    buffer: BufferOptions,
    cut: OnceLock<Cut>,
}

struct Held {
    reader: Option<Reader>,
    seat: Option<Seat>,
    pin: Option<PinnedBase>,
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
    pub(crate) fn new(reader: Reader, seat: Seat, pin: Option<PinnedBase>, buffer: BufferOptions) -> Lease {
        let held = Held { reader: Some(reader), seat: Some(seat), pin, progressed_at: Instant::now() };
        Lease { held: Mutex::new(held), buffer, cut: OnceLock::new() }
    }

    /// The client has room for more.
    pub(crate) fn progressed(&self) {
        self.held.lock().progressed_at = Instant::now();
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
        let freed = (held.reader.take(), held.seat.take(), held.pin.take());
        drop(held);
        drop(freed);
    }
}
