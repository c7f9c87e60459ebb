//! The memory of requests while they arrive, and its limits.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tonic::Status;

use crate::peer::ClientGroup;
use crate::refusal;

/// The maximum size in bytes of all requests that are being received. One connection can have
/// hundreds of them.
const ARRIVING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The maximum size in bytes of those of one group, so that no caller uses all of it.
const GROUP_BYTES_MAX: usize = ARRIVING_BYTES_MAX / 4;

/// The memory that a server's requests use while they are received. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestMemory(Arc<Mutex<UsedMemory>>);

#[derive(Debug, Default)]
struct UsedMemory {
    bytes: usize,
    /// Only groups that use some of it.
    by_group: HashMap<ClientGroup, usize>,
}

/// The memory of one request, which is released when this is dropped.
#[derive(Debug)]
pub(super) struct RequestMemoryShare {
    memory: RequestMemory,
    group: ClientGroup,
    bytes: usize,
}

impl RequestMemory {
    /// Returns the share of a request that a caller of a group sends. It is empty.
    pub(super) fn share(&self, group: ClientGroup) -> RequestMemoryShare {
        RequestMemoryShare { memory: self.clone(), group, bytes: 0 }
    }
}

impl RequestMemoryShare {
    /// Reserves more bytes.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the requests of the group, or of all groups, use too much.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Status> {
        let mut used = self.memory.0.lock();
        let of_group = used.by_group.get(&self.group).copied().unwrap_or_default();
        if of_group.saturating_add(bytes) > GROUP_BYTES_MAX {
            return Err(refusal::caller_busy_with_requests());
        }
        if used.bytes.saturating_add(bytes) > ARRIVING_BYTES_MAX {
            return Err(refusal::busy_with_requests());
        }
        if bytes > 0 {
            used.bytes += bytes;
            used.by_group.insert(self.group.clone(), of_group + bytes);
            self.bytes += bytes;
        }
        Ok(())
    }
}

impl Drop for RequestMemoryShare {
    fn drop(&mut self) {
        let mut used = self.memory.0.lock();
        used.bytes -= self.bytes;
        if let Some(of_group) = used.by_group.get_mut(&self.group) {
            *of_group -= self.bytes;
            if *of_group == 0 {
                used.by_group.remove(&self.group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str) -> ClientGroup {
        ClientGroup::Identity(name.into())
    }

    #[test]
    fn a_group_uses_at_most_a_quarter_and_all_groups_the_whole() {
        let memory = RequestMemory::default();
        let mut shares: Vec<_> = ["a", "b", "c", "d"].map(|name| memory.share(group(name))).into();
        for share in &mut shares {
            share.grow(GROUP_BYTES_MAX).unwrap();
            let refused = share.grow(1).unwrap_err();
            assert!(refused.message().contains("this caller"), "{refused}");
        }
        let mut another = memory.share(group("e"));
        let refused = another.grow(1).unwrap_err();
        assert!(refused.message().contains("the server is receiving"), "{refused}");
        shares.remove(0);
        another.grow(GROUP_BYTES_MAX).expect("a request of another group has ended");
    }

    #[test]
    fn the_requests_of_a_group_share_its_part_until_they_end() {
        let memory = RequestMemory::default();
        let (mut one, mut two) = (memory.share(group("a")), memory.share(group("a")));
        one.grow(GROUP_BYTES_MAX - 10).unwrap();
        two.grow(10).unwrap();
        assert!(two.grow(1).is_err());
        drop(one);
        two.grow(1).unwrap();
        drop(two);
        let used = memory.0.lock();
        assert!(used.bytes == 0 && used.by_group.is_empty(), "{used:?}");
    }
}
