//! Random changes of simulated tables.

use std::collections::BTreeSet;

use laredo_core::Lsn;
use laredo_testkit::{SimChange, SimDatabase};

/// Returns changes that fit the rows of the table at the end of the log. Rows written by a commit
/// that is not yet visible are `locked`. PostgreSQL too keeps such locks until the commit becomes
/// visible.
pub(crate) fn changes(
    database: &SimDatabase,
    table: usize,
    seed: u64,
    count: usize,
    locked: &LockedRows,
) -> Vec<SimChange> {
    let mut rows = database.rows_at(table, Lsn(u64::MAX));
    let mut made = Vec::new();
    for i in 0..count as u64 {
        let random = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i * 1_442_695_040_888_963_407) >> 20;
        let id = (random % 12) as i64;
        let body = format!("body {random}");
        let taken = |id: &i64| rows.contains_key(id) || locked.contains(&(table, *id));
        let free = (0..).find(|id| !taken(id)).unwrap();
        if locked.contains(&(table, id)) {
            continue;
        }
        let change = match (rows.contains_key(&id), random % 7) {
            (false, _) => SimChange::Insert(id, body.clone()),
            (true, 0 | 1) => SimChange::Update(id, body.clone()),
            (true, 2) => SimChange::Rekey(id, free, body.clone()),
            (true, 3) => SimChange::Touch(id),
            (true, 4) if random.is_multiple_of(5) && locked.is_empty() => SimChange::Truncate,
            (true, _) => SimChange::Delete(id),
        };
        match &change {
            SimChange::Insert(..) | SimChange::Update(..) => drop(rows.insert(id, body)),
            SimChange::Rekey(..) => {
                rows.remove(&id);
                rows.insert(free, body);
            }
            SimChange::Touch(_) => {}
            SimChange::Delete(_) => drop(rows.remove(&id)),
            SimChange::Truncate => rows.clear(),
        }
        made.push(change);
    }
    made
}

/// The tables and IDs of locked rows.
pub(crate) type LockedRows = BTreeSet<(usize, i64)>;

/// Returns the IDs of the rows that changes write.
pub(crate) fn written(changes: &[SimChange]) -> Vec<i64> {
    let ids = |change: &SimChange| match change {
        SimChange::Insert(id, _) | SimChange::Update(id, _) | SimChange::Touch(id) | SimChange::Delete(id) => vec![*id],
        SimChange::Rekey(old, new, _) => vec![*old, *new],
        SimChange::Truncate => (0..100).collect(),
    };
    changes.iter().flat_map(ids).collect()
}
