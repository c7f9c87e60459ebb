//! The projections of a view that are kept for other clients, within a budget that all views of a
//! table share.
//!
//! The oldest projection of all views is dropped first. So a view whose client reads nothing keeps
//! none of the budget from the views of other clients.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::{FrameCacheKey, ProjectedFrame, ViewError};

/// The estimated overhead of one cached projection, in addition to its bytes.
const SLOT_BYTES: u64 = 256;

/// The projections of one view.
#[derive(Debug)]
pub(super) struct ProjectionCache {
    slots: Arc<ProjectionSlots>,
    budget: Arc<CacheBudget>,
}

type ProjectionSlots = Mutex<HashMap<FrameCacheKey, ProjectionSlot>>;

type ProjectionSlot = Arc<OnceLock<Result<ProjectedFrame, ViewError>>>;

/// The budget of all views of a table.
#[derive(Debug)]
pub(super) struct CacheBudget {
    bytes_max: u64,
    kept: Mutex<KeptProjections>,
}

#[derive(Debug, Default)]
struct KeptProjections {
    /// Oldest first. Clients move forward, so the oldest projections are needed least.
    order: VecDeque<KeptProjection>,
    bytes: u64,
}

#[derive(Debug)]
struct KeptProjection {
    /// The projections of its view.
    slots: Arc<ProjectionSlots>,
    place: FrameCacheKey,
    bytes: u64,
}

impl CacheBudget {
    pub(super) fn new(bytes_max: u64) -> CacheBudget {
        CacheBudget { bytes_max, kept: Mutex::default() }
    }

    /// Returns the size in bytes of the cached projections.
    pub(super) fn bytes(&self) -> u64 {
        self.kept.lock().bytes
    }

    /// Adds a projection, and drops the oldest ones of all views that exceed the budget.
    fn add(&self, added: KeptProjection) {
        let mut dropped = Vec::new();
        let mut kept = self.kept.lock();
        kept.bytes += added.bytes;
        kept.order.push_back(added);
        while kept.bytes > self.bytes_max
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.bytes -= oldest.bytes;
            dropped.push(oldest);
        }
        // The locks of views are not taken under this one.
        drop(kept);
        for KeptProjection { slots, place, .. } in dropped {
            let slot = slots.lock().remove(&place);
            drop(slot);
        }
    }

    /// Forgets all projections of a view.
    fn forget(&self, view: &Arc<ProjectionSlots>) {
        let mut kept = self.kept.lock();
        let KeptProjections { order, bytes } = &mut *kept;
        order.retain(|projection| {
            let stays = !Arc::ptr_eq(&projection.slots, view);
            *bytes -= if stays { 0 } else { projection.bytes };
            stays
        });
    }
}

impl ProjectionCache {
    pub(super) fn new(budget: Arc<CacheBudget>) -> ProjectionCache {
        ProjectionCache { slots: Arc::default(), budget }
    }

    /// Returns the cached projection, or makes it with `make`. Concurrent callers for the same
    /// place wait for the first one.
    pub(super) fn get_or_make(
        &self,
        place: FrameCacheKey,
        make: impl FnOnce() -> Result<ProjectedFrame, ViewError>,
    ) -> Result<ProjectedFrame, ViewError> {
        let slot = self.slots.lock().entry(place).or_default().clone();
        let mut is_new = false;
        let projected = slot.get_or_init(|| {
            is_new = true;
            make()
        });
        if is_new {
            let bytes = SLOT_BYTES + projected.as_ref().map_or(0, |p| p.bytes.len() as u64);
            self.budget.add(KeptProjection { slots: self.slots.clone(), place, bytes });
        }
        projected.clone()
    }
}

impl Drop for ProjectionCache {
    fn drop(&mut self) {
        self.budget.forget(&self.slots);
    }
}

#[cfg(test)]
mod tests {
    use laredo_core::Sequence;

    use super::*;

    const BYTES: usize = 100;

    /// Returns true if the projection had to be made.
    fn is_made(cache: &ProjectionCache, place: u64) -> bool {
        let mut is_made = false;
        let make = || {
            is_made = true;
            Ok(ProjectedFrame { bytes: vec![0; BYTES].into(), count: 1, carries_end: false })
        };
        let projected = cache.get_or_make(FrameCacheKey::Journal(Sequence(place)), make).unwrap();
        assert_eq!(projected.bytes.len(), BYTES);
        is_made
    }

    #[test]
    fn a_view_that_nothing_reads_keeps_no_room_from_other_views() {
        let each = SLOT_BYTES + BYTES as u64;
        let budget = Arc::new(CacheBudget::new(3 * each));
        let (stalled, other) = (ProjectionCache::new(budget.clone()), ProjectionCache::new(budget.clone()));
        for place in 0..3 {
            assert!(is_made(&stalled, place) && !is_made(&stalled, place));
        }
        for place in 0..2 {
            assert!(is_made(&other, place) && !is_made(&other, place), "it is kept, and the oldest one is dropped");
        }
        assert_eq!(budget.bytes(), 3 * each);
        assert!(!is_made(&stalled, 2), "the newest one of the other view is still there");
        assert!(is_made(&stalled, 0), "the oldest one is not");
        drop(stalled);
        assert_eq!(budget.bytes(), 2 * each, "a view that ends gives back its own alone");
        assert!(!is_made(&other, 0) && !is_made(&other, 1));
        drop(other);
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn a_projection_that_exceeds_the_budget_is_made_and_not_kept() {
        let budget = Arc::new(CacheBudget::new(10));
        let cache = ProjectionCache::new(budget.clone());
        assert!(is_made(&cache, 0) && is_made(&cache, 0));
        assert_eq!((budget.bytes(), cache.slots.lock().len()), (0, 0));
    }
}
