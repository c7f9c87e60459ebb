use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use crate::{HarnessError, Result};

/// A shell that runs `script` when this process dies without dropping it, even by SIGKILL.
///
/// The shell blocks on reading a pipe whose other end only this process holds (Rust opens it
/// close-on-exec), so there is nothing to poll. It has its own process group, because Ctrl-C must
/// not reach it.
#[derive(Debug)]
pub(crate) struct Watchdog(Child);

impl Watchdog {
    /// Starts the shell. `script` receives `args` as `$1`, `$2`...
    pub(crate) fn start(script: &str, args: &[&str]) -> Result<Self> {
        Command::new("sh")
            .arg("-c")
            .arg(format!("read -r _ && exit 0\n{script}"))
            .arg("laredo-watchdog")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map(Self)
            .map_err(HarnessError::io("start a watchdog shell"))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            // Writing fails if the shell is gone, and then there is nothing to stop.
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.0.wait();
    }
}
