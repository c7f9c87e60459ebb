//! The seats of a table, which limit the number of its clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::access::StreamPermit;

/// The seats of one table.
pub(crate) struct ClientSeats {
    taken: Arc<AtomicUsize>,
    seats_max: AtomicUsize,
}

/// A client's seat at a table, counted against the table's `max_clients` until it is dropped.
pub(crate) struct ClientSeat {
    taken: Arc<AtomicUsize>,
    /// The stream's count against the limits of the client's identity.
    permit: Option<StreamPermit>,
}

impl ClientSeats {
    /// Returns the seats of a table without clients.
    pub(crate) fn new(seats_max: usize) -> ClientSeats {
        ClientSeats { taken: Arc::default(), seats_max: AtomicUsize::new(seats_max) }
    }

    /// Returns the number of clients.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Changes the number of seats. Clients that have one keep it.
    pub(crate) fn set_max(&self, seats_max: usize) {
        self.seats_max.store(seats_max, Ordering::Relaxed);
    }

    /// Takes a seat for a client.
    ///
    /// # Errors
    /// Returns the number of seats if all of them are taken.
    pub(crate) fn take_seat(&self) -> Result<ClientSeat, usize> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        let seat = ClientSeat { taken: self.taken.clone(), permit: None };
        let seats_max = self.seats_max.load(Ordering::Relaxed);
        if taken < seats_max { Ok(seat) } else { Err(seats_max) }
    }
}

impl ClientSeat {
    /// Returns the permit of the stream together with the seat.
    pub(crate) fn with_permit(mut self, permit: Option<StreamPermit>) -> ClientSeat {
        self.permit = permit;
        self
    }
}

impl Drop for ClientSeat {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}
