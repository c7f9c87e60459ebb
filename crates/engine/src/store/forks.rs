//! Forks of the database's history, noted in a folder of journals or snapshots. The file is
//! readable text.

use std::fs;
use std::io::{self, Write};

use laredo_core::Lsn;
use serde::{Deserialize, Serialize};

use super::error::{StoreError, io_error};
use super::folder::LockedFolder;
use crate::source::Fork;

/// The name of the file. It stays in place when the other files are set aside.
pub(crate) const NAME: &str = "history.json";
/// The maximum number of forks that are remembered. The newest are kept.
const FORKS_MAX: usize = 64;

/// The forks that were noted in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForkLog {
    /// The number of forks noted since the folder was first used, including those no longer listed.
    #[serde(default)]
    count: u64,
    forks: Vec<NotedFork>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NotedFork {
    number: u64,
    common: String,
    abandoned: String,
    is_certain: bool,
    reason: String,
}

impl ForkLog {
    /// Reads the forks of a folder.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub(crate) fn read(folder: &LockedFolder) -> Result<ForkLog, StoreError> {
        let path = folder.path().join(NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ForkLog::default()),
            Err(error) => return Err(io_error("reading", &path)(error)),
        };
        serde_json::from_slice(&text).map_err(|error| StoreError::damaged(&path, 0, error.to_string()))
    }

    /// Adds a fork to the file. It is on disk when this returns.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub(crate) fn note(folder: &LockedFolder, fork: &Fork, reason: &str) -> Result<(), StoreError> {
        let mut forks = ForkLog::read(folder)?;
        forks.count += 1;
        forks.forks.push(NotedFork {
            number: forks.count,
            common: fork.common.to_string(),
            abandoned: fork.abandoned.to_string(),
            is_certain: fork.is_certain,
            reason: reason.to_owned(),
        });
        let surplus = forks.forks.len().saturating_sub(FORKS_MAX);
        forks.forks.drain(..surplus);
        let path = folder.path().join(NAME);
        let text = serde_json::to_vec_pretty(&forks).map_err(io::Error::from).map_err(io_error("writing", &path))?;
        let mut file = folder.temporary().map_err(io_error("creating a file next to", &path))?;
        file.write_all(&text).map_err(io_error("writing", &path))?;
        folder.persist_file(file, NAME).map(drop)
    }

    /// Returns the number of forks noted so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Returns the highest position that may belong to an abandoned history.
    pub(crate) fn abandoned(&self) -> Lsn {
        self.forks.iter().map(|fork| lsn(&fork.abandoned)).max().unwrap_or_default()
    }

    /// Checks that contents up to `position` do not belong to a history that was abandoned later.
    /// `known` is the number of forks that were noted when the contents began.
    ///
    /// # Errors
    /// The reason if they do.
    pub(crate) fn check(&self, known: u64, position: Lsn) -> Result<(), String> {
        let parted =
            self.forks.iter().find(|fork| fork.number > known && fork.is_certain && lsn(&fork.common) < position);
        match parted {
            None => Ok(()),
            Some(NotedFork { common, reason, .. }) => Err(format!(
                "it ends at {position}, and the database's history has forked since, at or after {common}: {reason}"
            )),
        }
    }
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_before_a_fork_counts_up_to_it_and_what_was_kept_after_it_counts() {
        let place = tempfile::tempdir().unwrap();
        let folder = LockedFolder::open(place.path()).unwrap();
        assert_eq!(ForkLog::read(&folder).unwrap(), ForkLog::default());
        let fork = |common, is_certain| Fork { common: Lsn(common), abandoned: Lsn(common + 100), is_certain };
        ForkLog::note(&folder, &fork(500, true), "put back").unwrap();
        ForkLog::note(&folder, &fork(300, false), "no proof").unwrap();
        let forks = ForkLog::read(&folder).unwrap();
        assert_eq!((forks.count(), forks.abandoned()), (2, Lsn(600)));
        assert!(forks.check(0, Lsn(501)).unwrap_err().contains("put back"));
        assert_eq!(forks.check(0, Lsn(500)), Ok(()));
        assert_eq!(forks.check(1, Lsn(501)), Ok(()), "begun after the fork");
        for _ in 0..FORKS_MAX {
            ForkLog::note(&folder, &fork(700, true), "again").unwrap();
        }
        let forks = ForkLog::read(&folder).unwrap();
        assert_eq!((forks.count(), forks.forks.len()), (2 + FORKS_MAX as u64, FORKS_MAX));
    }
}
