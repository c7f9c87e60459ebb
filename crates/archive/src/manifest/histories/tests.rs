//! Tests of the rule for histories against a model that holds the commits of every history.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::manifest::{ArtifactObject, SealedManifest};

/// An event at the database or its archive.
#[derive(Clone, Debug)]
enum ArchiveHistoryStep {
    /// A commit at this distance from the newest one.
    Commit(u64),
    Diff,
    Base,
    /// A fork: the newest `lost` commits are lost. Of the remaining ones, all but the newest
    /// `unknown` are known to be shared; with `None`, no commit is.
    Fork {
        lost: usize,
        unknown: Option<usize>,
    },
}

/// A commit: its end, and its number among all commits.
type ModelCommit = (u64, usize);

#[derive(Default)]
struct ArchiveHistoryModel {
    /// The commits of the present history, from the first one on.
    commits: Vec<ModelCommit>,
    made: usize,
    manifest: Option<Manifest>,
    /// The commits that each artifact's rows consist of.
    contents: Vec<Vec<ModelCommit>>,
    /// The commits of each history whose epochs the archive has, by the history's number.
    histories: BTreeMap<u64, Vec<ModelCommit>>,
    /// The newest position up to which the head's history and the present one are known to be the
    /// same.
    shared_until: u64,
}

fn artifact(kind: ArtifactKind, epoch: u64, from: Option<Lsn>, to: u64) -> Artifact {
    let stored = ArtifactObject { uri: "u".to_owned(), size_bytes: 1, sha256: None, unpacked_bytes: None };
    let formats = BTreeMap::from([("jsonl".to_owned(), stored)]);
    Artifact { formats, ..Artifact::new(kind, epoch, from, Lsn(to), "2026-01-02T03:04:05Z") }
}

impl ArchiveHistoryModel {
    fn begin() -> ArchiveHistoryModel {
        let manifest = Some(Manifest::empty("public.t", "2026-01-02T03:04:05Z"));
        ArchiveHistoryModel {
            commits: vec![(10, 0)],
            made: 1,
            manifest,
            shared_until: u64::MAX,
            ..ArchiveHistoryModel::default()
        }
    }

    fn manifest(&self) -> &Manifest {
        self.manifest.as_ref().unwrap()
    }

    fn end(&self) -> u64 {
        self.commits.last().unwrap().0
    }

    fn run(&mut self, step: &ArchiveHistoryStep) {
        match step {
            ArchiveHistoryStep::Commit(gap) => {
                self.commits.push((self.end() + gap, self.made));
                self.made += 1;
            }
            ArchiveHistoryStep::Diff => self.diff(),
            ArchiveHistoryStep::Base => self.base(),
            ArchiveHistoryStep::Fork { lost, unknown } => {
                let kept = self.commits.len().saturating_sub(*lost).max(1);
                self.commits.truncate(kept);
                let known = unknown.and_then(|unknown| kept.checked_sub(1 + unknown));
                let known = known.map_or(0, |newest| self.commits[newest].0);
                self.shared_until = self.shared_until.min(known);
                // The next commit is a different one, even if it ends at the same position.
                self.run(&ArchiveHistoryStep::Commit(1));
            }
        }
        if let Some(of_head) = self.manifest().histories().last().filter(|_| self.shared_until == u64::MAX) {
            self.histories.insert(of_head.id, self.commits.clone());
        }
    }

    /// Adds a diff. Only archived rows can be continued.
    fn diff(&mut self) {
        let Some(head) = self.manifest().head_position else { return };
        if self.shared_until < u64::MAX || head.0 >= self.end() {
            return;
        }
        self.append(artifact(ArtifactKind::Diff, self.manifest().epoch, Some(head), self.end()));
    }

    fn base(&mut self) {
        let epoch = self.manifest().epoch + 1;
        let mut base = artifact(ArtifactKind::Snapshot, epoch, None, self.end());
        let history = self.manifest().next_history(epoch, Lsn(self.end()), Lsn(self.shared_until), None);
        base.history = Some(Box::new(history));
        self.shared_until = u64::MAX;
        self.append(base);
    }

    fn append(&mut self, artifact: Artifact) {
        let mut manifest = self.manifest().clone();
        (manifest.epoch, manifest.head_position) = (artifact.epoch, artifact.to_position);
        manifest.artifacts.push(artifact);
        manifest.check().unwrap();
        self.manifest = Some(manifest);
        self.contents.push(self.commits.clone());
    }

    /// Returns the commits of a history up to a position.
    fn state(commits: &[ModelCommit], at: Lsn) -> Vec<ModelCommit> {
        commits.iter().copied().filter(|(end, _)| *end <= at.0).collect()
    }

    /// Checks the answer for every position in the history of this number.
    fn check(&self, manifest: &Manifest, id: u64, contents: &[&Vec<ModelCommit>]) {
        let own = manifest.histories().pop().unwrap();
        assert_eq!(own.id, id);
        let to = |number: usize| manifest.artifacts[number].to_position.unwrap();
        let own_ends: Vec<(u64, Lsn)> = own.artifacts.clone().map(|n| (manifest.artifacts[n].epoch, to(n))).collect();
        for at in (0..=self.manifest().artifacts.iter().filter_map(|a| a.to_position).max().unwrap().0 + 2).map(Lsn) {
            let newest_own = own_ends.iter().map(|(_, end)| *end).filter(|end| *end <= at).max();
            match manifest.locate(at) {
                Ok(number) => {
                    assert!(to(number) <= at);
                    assert!(newest_own.is_none_or(|own| own <= to(number)), "an older state than there is at {at}");
                    let expected = ArchiveHistoryModel::state(&self.histories[&id], to(number));
                    assert_eq!(*contents[number], expected, "at {at}: of another history");
                }
                Err(LocateError::TooEarly) => assert!((0..contents.len()).all(|number| to(number) > at)),
                Err(LocateError::OtherHistory { history, number, newest }) => {
                    assert!(to(number) <= at && history < id && newest == id);
                    let epochs = |end: &dyn Fn(Lsn) -> bool| -> Vec<u64> {
                        own_ends.iter().filter(|(_, to)| end(*to)).map(|(epoch, _)| *epoch).collect()
                    };
                    let (begun, ended) = (epochs(&|end| end <= at), epochs(&|end| end >= at));
                    assert!(!begun.iter().any(|epoch| ended.contains(epoch)), "the newest history has {at}");
                }
            }
        }
    }

    fn check_all(&self) {
        let manifest = self.manifest();
        assert_eq!(manifest.history_faults(), []);
        assert_eq!(Manifest::parse(&manifest.to_json().unwrap(), None).unwrap().histories(), manifest.histories());
        self.check_sealed();
        for history in manifest.histories() {
            let line = manifest.of_history(history.id).unwrap();
            line.check().unwrap();
            let place = |artifact: &Artifact| {
                manifest
                    .artifacts
                    .iter()
                    .position(|other| (other.epoch, other.to_position) == (artifact.epoch, artifact.to_position))
            };
            let contents: Vec<_> = line.artifacts.iter().map(|one| &self.contents[place(one).unwrap()]).collect();
            self.check(&line, history.id, &contents);
            let last = line.artifacts.len() - 1;
            assert_eq!(line.locate_where(|_| true), Ok(last));
        }
        if let Some(newest) = manifest.histories().last() {
            self.check(manifest, newest.id, &self.contents.iter().collect::<Vec<_>>());
            for (number, is_past) in manifest.past().into_iter().enumerate() {
                let to = manifest.artifacts[number].to_position.unwrap();
                let expected = ArchiveHistoryModel::state(&self.histories[&newest.id], to);
                assert!(!is_past || self.contents[number] == expected);
                let asked =
                    manifest.locate_where(|artifact| std::ptr::eq(artifact, &raw const manifest.artifacts[number]));
                assert_eq!(asked.is_ok(), is_past);
            }
        }
    }
}

impl ArchiveHistoryModel {
    /// Checks that sealing any part of the archive changes neither its meaning nor the next entry.
    fn check_sealed(&self) {
        let whole = self.manifest();
        for count in whole.openings() {
            let mut named = whole.clone();
            let moved = named.take_oldest(count);
            named.check().unwrap();
            for (shared, to) in [(u64::MAX, self.end()), (0, self.end()), (self.end() / 2, self.end() + 1)] {
                let next = |manifest: &Manifest| manifest.next_history(99, Lsn(to), Lsn(shared), None);
                assert_eq!(next(&named), next(whole));
            }
            if count == 0 {
                continue;
            }
            let sealed = SealedManifest::new(&whole.table, moved, None);
            let (_, link) = sealed.link(0, &"0".repeat(64)).unwrap();
            let read = SealedManifest::parse(&sealed.to_json().unwrap(), &link, &whole.table).unwrap();
            assert_eq!(read, sealed);
            let again = named.unsealed(read.artifacts);
            assert_eq!(again.histories(), whole.histories());
            assert_eq!(again.past(), whole.past());
            let ends = |manifest: &Manifest| manifest.artifacts.iter().map(|one| one.to_position).collect::<Vec<_>>();
            assert_eq!(ends(&again), ends(whole));
        }
    }
}

fn step() -> impl Strategy<Value = ArchiveHistoryStep> {
    prop_oneof![
        4 => (1..6_u64).prop_map(ArchiveHistoryStep::Commit),
        3 => Just(ArchiveHistoryStep::Diff),
        2 => Just(ArchiveHistoryStep::Base),
        1 => (0..6_usize, proptest::option::of(0..3_usize)).prop_map(|(lost, unknown)| ArchiveHistoryStep::Fork { lost, unknown }),
    ]
}

proptest! {
    #[test]
    fn no_position_is_answered_from_another_history(steps in proptest::collection::vec(step(), 1..40)) {
        let mut model = ArchiveHistoryModel::begin();
        model.run(&ArchiveHistoryStep::Base);
        steps.iter().for_each(|step| model.run(step));
        model.check_all();
    }
}

/// Returns a manifest with two histories. History 1 has 10, 20, 30 and 40. It forks after 20.
/// History 2 begins with a snapshot at 25 and ends at 35.
fn forked(shared_until: u64) -> Manifest {
    let mut artifacts = vec![artifact(ArtifactKind::Snapshot, 1, None, 10)];
    artifacts.extend([10, 20, 30].map(|from| artifact(ArtifactKind::Diff, 1, Some(Lsn(from)), from + 10)));
    let mut base = artifact(ArtifactKind::Snapshot, 2, None, 25);
    let shared_until = Some(Lsn(shared_until)).filter(|shared| *shared > Lsn::ZERO);
    base.history = Some(Box::new(EpochHistory { id: 2, shared_until, source: None }));
    artifacts.extend([base, artifact(ArtifactKind::Diff, 2, Some(Lsn(25)), 35)]);
    let (epoch, head_position) = (2, Some(Lsn(35)));
    Manifest { epoch, head_position, artifacts, ..Manifest::empty("public.t", "2026-01-02T03:04:05Z") }
}

fn answers(manifest: &Manifest) -> Vec<(u64, Result<usize, u64>)> {
    let answer = |at| match manifest.locate(Lsn(at)) {
        Ok(number) => Ok(number),
        Err(LocateError::OtherHistory { history, .. }) => Err(history),
        Err(LocateError::TooEarly) => Err(0),
    };
    [9, 10, 20, 24, 25, 30, 34, 35, 39, 40, 99].map(|at| (at, answer(at))).to_vec()
}

#[test]
fn a_position_of_both_histories_is_the_newest_ones() {
    let (one, none) = (Err(1), Err(0));
    let expected = [
        (9, none),
        (10, one),
        (20, one),
        (24, one),
        (25, Ok(4)),
        (30, Ok(4)),
        (34, Ok(4)),
        (35, Ok(5)),
        (39, Ok(5)),
        (40, one),
        (99, one),
    ];
    assert_eq!(answers(&forked(0)), expected);
    let expected = [
        (9, none),
        (10, Ok(0)),
        (20, Ok(1)),
        (24, Ok(1)),
        (25, Ok(4)),
        (30, Ok(4)),
        (34, Ok(4)),
        (35, Ok(5)),
        (39, Ok(5)),
        (40, one),
        (99, one),
    ];
    assert_eq!(answers(&forked(20)), expected);
    let old = forked(20).of_history(1).unwrap();
    assert_eq!((old.head_position, old.locate(Lsn(39))), (Some(Lsn(40)), Ok(2)));
    let new = forked(20).of_history(2).unwrap();
    assert_eq!((new.artifacts.len(), new.locate(Lsn(24)), new.locate(Lsn(40))), (4, Ok(1), Ok(3)));
    assert_eq!(forked(20).of_history(3), None);
}

#[test]
fn epochs_without_a_history_are_distinguished_by_their_positions() {
    let bases = |ends: &[u64]| {
        let artifacts: Vec<_> =
            ends.iter().zip(1..).map(|(to, epoch)| artifact(ArtifactKind::Snapshot, epoch, None, *to)).collect();
        let head_position = artifacts.last().unwrap().to_position;
        Manifest { epoch: ends.len() as u64, head_position, artifacts, ..Manifest::empty("public.t", "") }
    };
    let ids = |ends: &[u64]| -> Vec<u64> { bases(ends).histories().iter().map(|history| history.id).collect() };
    assert_eq!(ids(&[10, 10, 30]), [1]);
    assert_eq!(ids(&[10, 30, 20, 25, 5, 6]), [1, 3, 5]);
    let manifest = bases(&[10, 30, 20, 25]);
    assert_eq!(manifest.locate(Lsn(10)), Err(LocateError::OtherHistory { history: 1, number: 0, newest: 3 }));
    assert_eq!((manifest.locate(Lsn(22)), manifest.locate(Lsn(25))), (Ok(2), Ok(3)));
    // If older epochs are sealed, the remaining ones state their histories.
    let mut named = manifest.clone();
    let moved = named.take_oldest(1);
    assert_eq!(named.histories().iter().map(|history| history.id).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(named.unsealed(moved).histories(), manifest.histories());
    // A laredo writer continues this history, and begins a new one if nothing proves that it is the
    // same.
    let next = |to, shared| manifest.next_history(5, Lsn(to), Lsn(shared), None);
    assert_eq!(next(40, u64::MAX), EpochHistory { id: 3, shared_until: None, source: None });
    assert_eq!(next(40, 25), EpochHistory { id: 3, shared_until: None, source: None });
    assert_eq!(next(40, 24), EpochHistory { id: 5, shared_until: Some(Lsn(24)), source: None });
    assert_eq!(next(40, 0), EpochHistory { id: 5, shared_until: None, source: None });
    assert_eq!(next(22, u64::MAX), EpochHistory { id: 5, shared_until: Some(Lsn(22)), source: None });
}

#[test]
fn another_database_is_another_history_whatever_is_said() {
    let source = |system_identifier: &str, timeline| {
        let (system_identifier, database) = (system_identifier.to_owned(), "db".to_owned());
        Some(SourceIdentity { system_identifier, database, timeline, history: Vec::new() })
    };
    let mut manifest = forked(20);
    manifest.artifacts[4].history.as_mut().unwrap().source = source("7", 1);
    assert_eq!(manifest.next_history(3, Lsn(50), Lsn(u64::MAX), source("7", 2)).id, 2);
    let other = manifest.next_history(3, Lsn(50), Lsn(u64::MAX), source("8", 1));
    assert_eq!((other.id, other.shared_until), (3, None));
}

#[test]
fn what_contradicts_itself_is_found() {
    let faults = |change: &dyn Fn(&mut Manifest)| -> Vec<String> {
        let mut manifest = forked(20);
        change(&mut manifest);
        manifest.history_faults().into_iter().map(|fault| format!("{}: {}", fault.number, fault.reason)).collect()
    };
    let mark = |end, xid| {
        let commit = CommitMark { end: Lsn(end), xid: laredo_core::Xid(xid), committed_at: Default::default() };
        Some(ScopedMark { commit, scope: 0 })
    };
    let said = |id| Some(Box::new(EpochHistory { id, shared_until: None, source: None }));
    assert_eq!(faults(&|_| {}), [""; 0]);
    let right = |manifest: &mut Manifest| {
        (manifest.artifacts[0].mark, manifest.artifacts[1].mark) = (mark(10, 1), mark(10, 1));
        manifest.artifacts[4].mark = mark(10, 2);
    };
    assert_eq!(faults(&right), [""; 0], "other histories have other commits");
    for (change, expected) in [
        (
            &(|m: &mut Manifest| m.artifacts[0].mark = mark(11, 1)) as &dyn Fn(&mut Manifest),
            "0: its commit mark at 0/B",
        ),
        (&|m| (m.artifacts[1].mark, m.artifacts[2].mark) = (mark(20, 1), mark(19, 2)), "2: its commit mark at 0/13"),
        (&|m| (m.artifacts[1].mark, m.artifacts[2].mark) = (mark(20, 1), mark(20, 2)), "2: its commit mark at 0/14"),
        (&|m| m.artifacts[4].history = said(1), "4: its positions go back within history 1"),
        (&|m| m.artifacts[4].history = said(3), "4: it names history 3"),
        (&|m| m.artifacts[3].history = said(1), "3: a diff names a history"),
    ] {
        let found = faults(change);
        assert!(found.first().is_some_and(|fault| fault.starts_with(expected)), "{expected}: {found:?}");
    }
}
