//! The faults, and the number of each in a run.

use laredo_testkit::StopMode;

use super::outage::{OUTAGES, ResourceOutage};
use crate::support::definitions::{KINDS, ReversibleChange, UNDER_LOAD};

/// A fault, and its target.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChaosFault {
    /// A server is killed with `kill -9` and started again. Its clients go to the other server, or
    /// wait for it.
    KillServer,
    KillBothServers,
    /// A server receives SIGTERM with a grace. Its clients are asked to leave for the other server.
    Drain,
    /// The connections of one client are cut.
    Cut,
    /// The connections of one client lead to the other server.
    Move,
    Postgres(StopMode),
    /// A client's process ends, in good order or not, and starts again with its files.
    RestartClient,
    /// Definitions change and change back, partitions come and go, or schemas are swapped. Another
    /// fault may come in the middle.
    Redefine(&'static ReversibleChange),
    /// PostgreSQL's storage is copied for a later fault.
    CopyStorage,
    /// PostgreSQL's history changes.
    Fork(ChaosFork),
    /// A server starts again with another folder than it left.
    ServerFolder(FolderReplacement),
    /// A client starts again with an older local snapshot.
    ClientFolder,
    /// The archive's writer is killed with `kill -9`, and starts again at the other server.
    KillSnapshotter,
    /// A resource is unavailable for a moment.
    Outage(ResourceOutage),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ChaosFork {
    /// The storage is put back to the newest copy.
    PutBack,
    /// A standby with all WAL takes over, so nothing is lost.
    PromoteWhole,
    /// A standby takes over that lacks the WAL since the newest copy.
    PromoteLacking,
    /// PostgreSQL is restored to a point between a copy and now.
    RestoreToPoint,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum FolderReplacement {
    /// An older copy, made while the server was down.
    Older,
    /// The journal is lost, but the snapshots are not.
    WithoutJournal,
    Empty,
}

/// Faults after which no client may receive a second full snapshot, before shuffling. A small run
/// has the first eight.
pub(super) const CONTINUITY: [ChaosFault; 24] = {
    use ChaosFault::{Cut, Drain, KillBothServers, KillServer, Move, Postgres, RestartClient};
    let (fast, immediate) = (Postgres(StopMode::Fast), Postgres(StopMode::Immediate));
    [
        KillServer,
        Drain,
        Cut,
        Move,
        RestartClient,
        immediate,
        fast,
        KillBothServers, //
        KillServer,
        Drain,
        Cut,
        Move,
        RestartClient,
        immediate,
        fast,
        KillServer, //
        KillServer,
        Drain,
        Cut,
        Move,
        RestartClient,
        RestartClient,
        Drain,
        KillServer,
    ]
};

/// Returns the faults of the second half: all changes of definitions, forks, outages and changes of
/// folders, and faults of the first half.
pub(super) fn everything() -> Vec<ChaosFault> {
    use ChaosFault::{
        ClientFolder, CopyStorage, Cut, Drain, Fork, KillServer, KillSnapshotter, Move, Postgres, Redefine,
        RestartClient, ServerFolder,
    };
    let mut faults = vec![
        CopyStorage,
        CopyStorage,
        Fork(self::ChaosFork::PutBack),
        Fork(self::ChaosFork::PutBack),
        Fork(self::ChaosFork::PromoteWhole),
        Fork(self::ChaosFork::PromoteLacking),
        Fork(self::ChaosFork::RestoreToPoint),
        ServerFolder(FolderReplacement::Older),
        ServerFolder(FolderReplacement::Older),
        ServerFolder(FolderReplacement::WithoutJournal),
        ServerFolder(FolderReplacement::Empty),
        ClientFolder,
        ClientFolder,
        KillSnapshotter,
        KillServer,
        KillServer,
        Drain,
        Cut,
        Move,
        Move,
        Move,
        Postgres(StopMode::Immediate),
        RestartClient,
        RestartClient,
    ];
    faults.extend(KINDS.iter().chain(UNDER_LOAD).map(Redefine));
    faults.extend(OUTAGES.map(ChaosFault::Outage));
    faults
}

/// Returns a handful of these faults, different for each seed.
pub(super) fn handful(seed: u64) -> Vec<ChaosFault> {
    use ChaosFault::{ClientFolder, Fork, Move, Redefine, ServerFolder};
    let change = |of: &'static [ReversibleChange], number: u64| Redefine(&of[number as usize % of.len()]);
    let history =
        [self::ChaosFork::PromoteLacking, self::ChaosFork::RestoreToPoint, self::ChaosFork::PutBack][seed as usize % 3];
    let folder =
        [FolderReplacement::Older, FolderReplacement::WithoutJournal, FolderReplacement::Empty][seed as usize % 3];
    vec![
        change(KINDS, seed),
        change(KINDS, seed + 5),
        change(UNDER_LOAD, seed),
        Fork(history),
        ServerFolder(folder),
        ClientFolder,
        ChaosFault::Outage(OUTAGES[seed as usize % OUTAGES.len()]),
        Move,
    ]
}
