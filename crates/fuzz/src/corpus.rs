//! The files of a target: inputs that once failed, and inputs that earlier runs kept.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The maximum number of inputs that are kept for later runs.
const KEPT_MAX: usize = 2000;

/// The folders of a target.
pub(crate) struct CorpusFolders {
    /// Inputs that once failed: they are part of the source, and always run.
    found: PathBuf,
    /// Inputs that an earlier run kept, in the build's folder.
    kept: PathBuf,
    /// The input that is running. The file is left when the process ends inside of it.
    running: PathBuf,
}

impl CorpusFolders {
    /// Returns the folders of a target of the crate whose test is running.
    pub(crate) fn of(target: &str) -> CorpusFolders {
        // Cargo sets the variable for a test, and runs it in the crate's folder without it.
        let source = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
        let program = std::env::current_exe().unwrap_or_default();
        // The program is target/debug/deps/NAME.
        let build = program.ancestors().nth(3).unwrap_or(Path::new(".")).join("fuzz");
        CorpusFolders::in_folders(&source, &build, target)
    }

    pub(crate) fn in_folders(source: &Path, build: &Path, target: &str) -> CorpusFolders {
        CorpusFolders {
            found: source.join("fuzz").join(target),
            kept: build.join(target),
            running: build.join(format!("{target}.running")),
        }
    }

    /// Returns the inputs that once failed, with their paths, and the one in which an earlier run
    /// has ended.
    pub(crate) fn found(&self) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let mut inputs = read_folder(&self.found)?;
        match fs::read(&self.running) {
            Ok(input) => inputs.push((self.running.clone(), input)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(inputs)
    }

    /// Returns the inputs that earlier runs kept.
    pub(crate) fn kept(&self) -> io::Result<Vec<Vec<u8>>> {
        Ok(read_folder(&self.kept)?.into_iter().map(|(_, input)| input).take(KEPT_MAX).collect())
    }

    /// Keeps inputs for later runs.
    pub(crate) fn keep(&self, inputs: &[Vec<u8>]) -> io::Result<()> {
        fs::create_dir_all(&self.kept)?;
        let there = fs::read_dir(&self.kept)?.count();
        for input in inputs.iter().take(KEPT_MAX.saturating_sub(there)) {
            fs::write(self.kept.join(name_of(input)), input)?;
        }
        Ok(())
    }

    /// Saves an input that fails, and returns its path.
    pub(crate) fn save_found(&self, input: &[u8]) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.found)?;
        let path = self.found.join(name_of(input));
        fs::write(&path, input)?;
        Ok(path)
    }

    /// Begins to note the input that is running.
    pub(crate) fn note_running(&self) -> io::Result<RunningInput> {
        if let Some(folder) = self.running.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(RunningInput { file: File::create(&self.running)?, path: self.running.clone() })
    }
}

/// The file with the input that is running.
pub(crate) struct RunningInput {
    file: File,
    path: PathBuf,
}

impl RunningInput {
    pub(crate) fn set(&self, input: &[u8]) -> io::Result<()> {
        self.file.set_len(input.len() as u64)?;
        self.file.write_all_at(input, 0)
    }
}

impl Drop for RunningInput {
    fn drop(&mut self) {
        // A file that is left is only one more input of the next run.
        let _ = fs::remove_file(&self.path);
    }
}

fn read_folder(folder: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    paths.into_iter().map(|path| fs::read(&path).map(|input| (path, input))).collect()
}

fn name_of(input: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_or_ends_a_process_runs_again() {
        let folder = std::env::temp_dir().join(format!("laredo-fuzz-{}", std::process::id()));
        let folders = CorpusFolders::in_folders(&folder.join("source"), &folder.join("build"), "t");
        assert!(folders.found().unwrap().is_empty() && folders.kept().unwrap().is_empty());
        let path = folders.save_found(b"bad").unwrap();
        folders.keep(&[b"good".to_vec()]).unwrap();
        let running = folders.note_running().unwrap();
        running.set(b"longer").unwrap();
        running.set(b"last").unwrap();
        // The process ends here.
        std::mem::forget(running);
        let found = folders.found().unwrap();
        assert_eq!(found[0], (path, b"bad".to_vec()));
        assert_eq!(found[1].1, b"last");
        assert_eq!(folders.kept().unwrap(), [b"good".to_vec()]);
        drop(folders.note_running().unwrap());
        assert_eq!(folders.found().unwrap().len(), 1, "a run that ends leaves no input");
        fs::remove_dir_all(&folder).unwrap();
    }
}
