//! Small disks that a test can fill.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system for one test. It is unmounted when this is dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts a file system of a size such as `96m` on a folder, which is created. Returns `None`,
    /// with a note on standard error, if the test may not mount. Mounting requires root or a `sudo`
    /// without a password.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn mount(at: &Path, size: &str) -> std::io::Result<Option<SmallDisk>> {
        std::fs::create_dir_all(at)?;
        let options = format!("size={size},mode=0777");
        let arguments = ["mount", "-t", "tmpfs", "-o", &options, "tmpfs"];
        let is_mounted =
            [&arguments[..], &[&["sudo", "-n"], &arguments[..]].concat()].iter().any(|command| run(command, at));
        if !is_mounted {
            eprintln!("left out: this test mounts a small file system, which takes root");
        }
        Ok(is_mounted.then(|| SmallDisk(at.to_owned())))
    }

    /// Returns the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Uses all its space until the returned value is dropped.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn fill(&self) -> std::io::Result<DiskFiller> {
        let filler = DiskFiller(self.0.join("filler"));
        let mut file = File::create(&filler.0)?;
        while file.write_all(&[0; 4096]).is_ok() {}
        Ok(filler)
    }
}

/// A file that leaves no space on a [`SmallDisk`]. It is removed when this is dropped.
#[derive(Debug)]
pub struct DiskFiller(PathBuf);

impl Drop for DiskFiller {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmount = ["umount", "--lazy"];
        let _ = run(&unmount, &self.0) || run(&[&["sudo", "-n"], &unmount[..]].concat(), &self.0);
    }
}

/// Runs a command on a folder, and returns true if it succeeded.
fn run(command: &[&str], at: &Path) -> bool {
    let mut program = Command::new(command[0]);
    program.args(&command[1..]).arg(at).output().is_ok_and(|output| output.status.success())
}
