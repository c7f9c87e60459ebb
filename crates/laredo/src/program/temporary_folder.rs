//! The folder for temporary files.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::ProgramFailure;

/// Returns the folder after a test file was written there. `key` is the path of the key that sets
/// the folder, and `set` its value. Without a value, the folder is that of the environment.
///
/// # Errors
/// A folder in which no file can be written. A full disk is only logged.
pub(crate) fn temporary_folder(key: &str, set: Option<&Path>) -> Result<PathBuf, ProgramFailure> {
    let folder = set.map_or_else(std::env::temp_dir, Path::to_owned);
    let written = tempfile::tempfile_in(&folder).and_then(|mut file| file.write_all(&[0]));
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            tracing::warn!(
                event = "temporary_disk_full", folder = %folder.display(), %error,
                "the disk for temporary files is full"
            );
        }
        Err(error) => {
            let chosen = match set {
                Some(_) => key.to_owned(),
                None => format!("the default, which the variable TMPDIR sets; {key} is not set"),
            };
            return Err(ProgramFailure::Misconfigured(vec![format!(
                "cannot write temporary files in {} ({chosen}): {error}; set {key} to a folder on a disk that laredo may write",
                folder.display()
            )]));
        }
    }
    if is_memory(&folder) {
        tracing::warn!(
            event = "temporary_folder_in_memory",
            folder = %folder.display(),
            "temporary files are in memory, and count against its limit; set {key} to a folder on a disk"
        );
    }
    Ok(folder)
}

/// Returns true if the files of a folder use memory instead of a disk.
fn is_memory(folder: &Path) -> bool {
    const TMPFS: i128 = 0x0102_1994;
    const RAMFS: i128 = 0x8584_58f6;
    #[cfg(target_os = "linux")]
    let kind = rustix::fs::statfs(folder).ok().map(|found| i128::from(found.f_type));
    #[cfg(not(target_os = "linux"))]
    let kind = {
        let _ = folder;
        None
    };
    matches!(kind, Some(TMPFS | RAMFS))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_is_distinguished_from_a_disk() {
        assert!(is_memory(Path::new("/dev/shm")));
        assert!(!is_memory(Path::new(env!("CARGO_MANIFEST_DIR"))));
        assert!(!is_memory(Path::new("/no/such/folder")));
    }
}
