//! Sending a base.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use laredo_engine::base::Base;
use laredo_engine::journal;
use laredo_proto::frame;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::admission::Admission;
use super::lease::Lease;
use super::outlet::Outlet;
use crate::refusal;
use crate::view::{Place, View};

/// A base on its way to a client.
#[derive(Clone)]
pub(super) struct Snapshot {
    base: Arc<Base>,
    view: Option<Arc<View>>,
}

/// A part of it.
struct Part {
    bytes: Bytes,
    rows: u64,
    /// Where the next one begins; `None` after the last.
    next: Option<u64>,
}

impl Snapshot {
    pub(super) fn new(base: Arc<Base>, view: Option<Arc<View>>) -> Snapshot {
        Snapshot { base, view }
    }

    /// Sends all rows and returns their number, as long as the client has a place among those who are sent one. Where nothing is sent
    /// for `silence_max`, a heartbeat says that the stream lives.
    ///
    /// # Errors
    /// When it cannot be read, or the client was cut.
    pub(super) async fn send(
        self,
        outlet: &mut Outlet,
        admission: &Arc<Admission>,
        silence_max: Duration,
        heartbeat: impl Fn() -> Vec<u8>,
    ) -> Result<u64, Status> {
        let mut rows = 0;
        let mut at = Some(0);
        while let Some(from) = at {
            let snapshot = self.clone();
            let part = spawn_blocking(move || snapshot.part(from)).await;
            let part = part.map_err(|e| Status::internal(format!("reading the snapshot: {e}")))??;
            rows += part.rows;
            at = part.next;
            // It may have taken so long that the place went to another one.
            wait_for_place(outlet, admission, silence_max, &heartbeat).await?;
            if part.bytes.is_empty() {
                yield_now().await;
                if Instant::now() >= outlet.sent_at() + silence_max {
                    outlet.send(heartbeat().into()).await?;
                }
            }
            outlet.send(part.bytes).await?;
        }
        outlet.lease().leave_place();
        Ok(if self.view.is_none() { self.base.rows() } else { rows })
    }

    fn part(&self, from: u64) -> Result<Part, Status> {
        let failed = |error: io::Error| Status::internal(format!("reading the snapshot: {error}"));
        let Some(view) = &self.view else {
            let bytes = whole_frames(&self.base, from).map_err(failed)?;
            let next = (!bytes.is_empty()).then(|| from + bytes.len() as u64);
            return Ok(Part { bytes, rows: 0, next });
        };
        let bytes = self.base.read_frame(from).map_err(failed)?;
        let next = from + bytes.len() as u64;
        let Some(frame) = journal::frames(bytes).next() else {
            return Ok(Part { bytes: Bytes::new(), rows: 0, next: None });
        };
        let place = Place::Base(self.base.sequence(), from);
        let projected = view.rows(&frame, place, self.base.schema());
        let projected = projected.map_err(|error| refusal::view(&error))?;
        Ok(Part { bytes: projected.bytes, rows: projected.count, next: Some(next) })
    }
}

/// Waits until the client has a place, and says meanwhile that the stream lives.
///
/// # Errors
/// When the client was cut.
pub(super) async fn wait_for_place(
    outlet: &mut Outlet,
    admission: &Arc<Admission>,
    silence_max: Duration,
    heartbeat: impl Fn() -> Vec<u8>,
) -> Result<(), Status> {
    let lease = outlet.lease().clone();
    // A place that was not used in time is gone again, and is asked for anew.
    while !takes_place(&lease, admission) {
        tokio::select! {
            biased;
            () = lease.given() => {}
            () = sleep_until(outlet.sent_at() + silence_max) => outlet.send(heartbeat().into()).await?,
        }
    }
    Ok(())
}

/// Whether the client has a place; if not, it stands in line for one.
pub(super) fn takes_place(lease: &Arc<Lease>, admission: &Arc<Admission>) -> bool {
    if !lease.has_place() && lease.wants_place() {
        admission.ask(lease);
    }
    lease.has_place()
}

/// As many whole frames as one read gives, and at least one: a stream may be ended after each part.
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
