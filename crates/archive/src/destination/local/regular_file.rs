//! The files of an archive's folder, to which others may have access. A link could lead to any file
//! of this machine, and a device or a pipe need not have an end.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Opens a file of an archive for reading. `folder` is the operator's, and may be a link. `name` is
/// relative to it, and no part of it may be a link.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if the name leads to something else than a regular file.
pub(super) fn open_regular(folder: &Path, name: &str) -> io::Result<File> {
    let file = open(folder, name)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(irregular()),
    }
}

fn irregular() -> io::Error {
    let problem =
        "it is not a regular file inside of the archive; links are not followed, so copy the archive with its files";
    io::Error::new(ErrorKind::InvalidInput, problem)
}

#[cfg(unix)]
fn open(folder: &Path, name: &str) -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let (subfolder, file) = name.rsplit_once('/').map_or((None, name), |(subfolder, file)| (Some(subfolder), file));
    let mut inside = openat(CWD, folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for part in subfolder.into_iter().flat_map(|subfolder| subfolder.split('/')) {
        inside = open_folder(&inside, part)?;
    }
    // Without NONBLOCK, opening a pipe waits for a writer. Regular files are not affected.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(&inside, file, flags, Mode::empty()).map_err(explain_link)?;
    Ok(File::from(file))
}

#[cfg(not(unix))]
fn open(folder: &Path, name: &str) -> io::Result<File> {
    let path = folder.join(name);
    match std::fs::symlink_metadata(&path)?.is_file() {
        true => File::open(path),
        false => Err(irregular()),
    }
}

#[cfg(unix)]
fn open_folder(inside: &rustix::fd::OwnedFd, name: &str) -> io::Result<rustix::fd::OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(inside, name, flags, Mode::empty()).map_err(explain_link)
}

/// Deletes a file in a folder of the archive. A missing one is not an error. A link that has the
/// file's name is deleted itself, and a link that has the folder's name is an error.
#[cfg(all(unix, feature = "writer"))]
pub(super) fn delete(folder: &Path, name: &str) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
    use rustix::io::Errno;
    let missing = |error: io::Error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) };
    let (subfolder, file) = name.rsplit_once('/').unwrap_or((".", name));
    let base = match openat(CWD, folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(base) => base,
        Err(error) => return missing(error.into()),
    };
    let inside = match open_folder(&base, subfolder) {
        Ok(inside) => inside,
        Err(error) => return missing(error),
    };
    match unlinkat(&inside, file, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    // The folder is removed with its last object; a folder that is not empty stays.
    let _ = unlinkat(&base, subfolder, AtFlags::REMOVEDIR);
    Ok(())
}

#[cfg(all(not(unix), feature = "writer"))]
pub(super) fn delete(folder: &Path, name: &str) -> io::Result<()> {
    let path = folder.join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The folder is removed with its last object; a folder that is not empty stays.
    let _ = path.parent().map(std::fs::remove_dir);
    Ok(())
}

#[cfg(unix)]
fn explain_link(error: rustix::io::Errno) -> io::Error {
    use rustix::io::Errno;
    match error {
        // The last one is for sockets and some devices.
        Errno::LOOP | Errno::NOTDIR | Errno::NXIO => irregular(),
        error => error.into(),
    }
}
