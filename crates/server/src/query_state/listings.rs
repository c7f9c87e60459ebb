//! The states that are kept for listings of several pages. Each page of a listing shows the rows of
//! the same position, and so no row twice or never.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::QueryState;
use crate::access::RowScope;
use crate::peer::ClientGroup;

/// The time after its last page for which a listing can be continued.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// The time for which a listing can be continued at most. Rows that were replaced are kept for it.
const AGE_MAX: Duration = Duration::from_secs(600);
/// The maximum number of listings of one group of callers. A further one ends the one that was not
/// continued for the longest time.
const GROUP_MAX: usize = 16;
/// The maximum number of listings of a table.
const TABLE_MAX: usize = 256;

/// The name of a listing, which cannot be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ListingId(pub(crate) [u8; 16]);

/// The caller of a listing, with the part of the table that it may read.
#[derive(Clone, Debug)]
pub(crate) struct ListingOwner {
    pub(crate) group: ClientGroup,
    pub(crate) scope: RowScope,
}

/// A state that is kept for the next pages.
#[derive(Debug)]
pub(super) struct PinnedListing {
    pub(super) owner: ListingOwner,
    pub(super) state: Arc<QueryState>,
    /// The number of rows of the whole listing.
    pub(super) total: u64,
    pub(super) began_at: Instant,
    pub(super) used_at: Instant,
}

/// The listings of a table.
#[derive(Debug, Default)]
pub(super) struct RowListings {
    listings: HashMap<ListingId, PinnedListing>,
    begun: u64,
    /// The key of the hash that generates the names, from the operating system's randomness.
    secret: RandomState,
}

impl RowListings {
    /// Adds a listing. Ends others if there are too many.
    pub(super) fn begin(&mut self, listing: PinnedListing) -> ListingId {
        let group = listing.owner.group.clone();
        while self.listings.values().filter(|other| other.owner.group == group).count() >= GROUP_MAX {
            self.end_oldest(|other| other.owner.group == group);
        }
        while self.listings.len() >= TABLE_MAX {
            self.end_oldest(|_| true);
        }
        let id = self.next_id();
        self.listings.insert(id, listing);
        id
    }

    /// Returns the state and the number of rows of a listing. Listings of other callers are
    /// unknown, and so are those of the same caller before it was granted another part.
    pub(super) fn find(&mut self, id: ListingId, owner: &ListingOwner, now: Instant) -> Option<(Arc<QueryState>, u64)> {
        let listing = self.listings.get_mut(&id)?;
        let is_own = listing.owner.group == owner.group && listing.owner.scope.selects_same(&owner.scope);
        if !is_own || listing.is_over(now) {
            return None;
        }
        listing.used_at = now;
        Some((listing.state.clone(), listing.total))
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        self.listings.retain(|_, listing| !listing.is_over(now));
    }

    pub(super) fn len(&self) -> usize {
        self.listings.len()
    }

    fn next_id(&mut self) -> ListingId {
        self.begun += 1;
        let mut id = [0; 16];
        for (half, bytes) in id.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.secret.hash_one((self.begun, half)).to_be_bytes());
        }
        ListingId(id)
    }

    fn end_oldest(&mut self, may_end: impl Fn(&PinnedListing) -> bool) {
        let oldest =
            self.listings.iter().filter(|(_, listing)| may_end(listing)).min_by_key(|(_, listing)| listing.used_at);
        if let Some(id) = oldest.map(|(id, _)| *id) {
            self.listings.remove(&id);
        }
    }
}

impl PinnedListing {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used_at) > IDLE_MAX || now.saturating_duration_since(self.began_at) > AGE_MAX
    }
}
