//! A folder for unfinished files, which only its owner may enter.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tempfile::TempDir;

/// The beginning of the names of all such folders.
const PREFIX: &str = "laredo-staging-";
/// The number of attempts to make a folder while another process removes it.
const ATTEMPTS: u32 = 10;

/// A folder inside another one. It has an unpredictable name, is made when it is first needed, and
/// is removed when this is dropped. The process keeps it locked, so that a later one recognizes
/// folders that a crash left behind.
#[derive(Debug)]
pub(super) struct PrivateFolder {
    parent: PathBuf,
    /// True if the parent may be a symbolic link.
    follows_link: bool,
    made: Mutex<Option<LockedTempDir>>,
}

#[derive(Debug)]
struct LockedTempDir {
    folder: TempDir,
    /// The open folder. The lock ends with the process at the latest.
    _lock: File,
}

impl PrivateFolder {
    pub(super) fn new(parent: PathBuf) -> PrivateFolder {
        PrivateFolder { parent, follows_link: true, made: Mutex::new(None) }
    }

    /// Prepares a folder in the subfolder of an archive for unfinished files. Others may write to
    /// an archive, so the subfolder must not be a link.
    pub(super) fn of_archive(subfolder: PathBuf) -> PrivateFolder {
        PrivateFolder { parent: subfolder, follows_link: false, made: Mutex::new(None) }
    }

    /// Returns the path of the folder in which this folder is made.
    pub(super) fn parent(&self) -> &Path {
        &self.parent
    }

    /// Returns the folder's path. If there is none yet, removes what a crash left behind and makes
    /// the folder.
    pub(super) fn path(&self) -> io::Result<PathBuf> {
        let mut made = self.made.lock();
        if let Some(made) = made.as_ref().filter(|made| made.folder.path().is_dir()) {
            return Ok(made.folder.path().to_owned());
        }
        self.make_parent()?;
        self.remove_abandoned();
        let new = make(&self.parent)?;
        let path = new.folder.path().to_owned();
        *made = Some(new);
        Ok(path)
    }

    /// Makes the parent, which only its owner may enter if it is new.
    pub(super) fn make_parent(&self) -> io::Result<()> {
        if let Some(outer) = self.parent.parent() {
            fs::create_dir_all(outer)?;
        }
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(&self.parent) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match self.follows_link || fs::symlink_metadata(&self.parent)?.is_dir() {
            true => Ok(()),
            false => Err(io::Error::new(ErrorKind::InvalidInput, "it is not a folder; links are not followed")),
        }
    }

    /// Removes the folders of processes that have ended. A folder that cannot be removed is logged,
    /// and stays.
    pub(super) fn remove_abandoned(&self) {
        let entries = match fs::read_dir(&self.parent) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(
                    event = "unfinished_files_not_listed", folder = %self.parent.display(), %error,
                    "cannot look for unfinished files"
                );
                return;
            }
        };
        for entry in entries.filter_map(Result::ok) {
            let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
            if !is_ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match remove_if_abandoned(&entry.path()) {
                Ok(true) => {
                    tracing::info!(
                        event = "unfinished_files_removed", folder = %entry.path().display(),
                        "removed unfinished files of an earlier run"
                    )
                }
                Ok(false) => {}
                // In a shared folder such as /tmp, these are folders of other users.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                Err(error) => {
                    tracing::warn!(
                        event = "unfinished_files_not_removed", folder = %entry.path().display(), %error,
                        "cannot remove unfinished files of an earlier run"
                    );
                }
            }
        }
    }
}

fn make(parent: &Path) -> io::Result<LockedTempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    for _ in 0..ATTEMPTS {
        let folder = builder.tempdir_in(parent)?;
        let lock = match File::open(folder.path()) {
            // Another process took the folder, which was not locked yet, for an abandoned one.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            lock => lock?,
        };
        lock.lock()?;
        if folder.path().is_dir() {
            return Ok(LockedTempDir { folder, _lock: lock });
        }
    }
    Err(io::Error::other("other processes keep removing the folder for unfinished files"))
}

fn remove_if_abandoned(folder: &Path) -> io::Result<bool> {
    let lock = File::open(folder)?;
    match lock.try_lock() {
        Ok(()) => fs::remove_dir_all(folder).map(|()| true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parent: &Path) -> Vec<String> {
        let names = fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn only_abandoned_folders_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let live = PrivateFolder::new(parent.path().to_owned());
        fs::write(live.path().unwrap().join("file"), "unfinished").unwrap();
        fs::create_dir(parent.path().join("laredo-staging-crashed")).unwrap();
        fs::write(parent.path().join("laredo-staging-crashed/file"), "unfinished").unwrap();
        fs::create_dir(parent.path().join("another")).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), parent.path().join("laredo-staging-link")).unwrap();
        let later = PrivateFolder::new(parent.path().to_owned());
        later.remove_abandoned();
        let live_name = live.path().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let mut expected = vec!["another".to_owned(), live_name, "laredo-staging-link".to_owned()];
        expected.sort();
        assert_eq!(names(parent.path()), expected);
        assert_eq!(fs::read(live.path().unwrap().join("file")).unwrap(), b"unfinished");
        assert!(elsewhere.path().is_dir());
        drop(live);
        assert_eq!(names(parent.path()), ["another", "laredo-staging-link"]);
    }

    #[test]
    fn a_folder_that_vanished_is_made_again() {
        let parent = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::new(parent.path().join("not/yet"));
        fs::remove_dir_all(folder.path().unwrap()).unwrap();
        let again = folder.path().unwrap();
        assert!(again.is_dir());
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(&again), mode(folder.parent())], [0o700; 2]);
    }
}
