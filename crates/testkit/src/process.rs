use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use regex::Regex;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use tokio::sync::watch;

use crate::watchdog::Watchdog;
use crate::{HarnessError, Result};

/// Returns a command without the `LAREDO_` variables of this process. They would configure a
/// laredo-server, but tests and the demo must determine its whole configuration.
#[must_use]
pub fn clean_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"LAREDO_")) {
        command.env_remove(name);
    }
    command
}

const PATIENCE: Duration = Duration::from_secs(60);

/// A child process whose output is captured.
///
/// The process has its own process group, so Ctrl-C reaches only its parent, which then stops it.
/// It is killed when this is dropped and when the test process dies. The output is shown when the
/// test panics.
#[derive(Debug)]
pub struct ChildProcess {
    program: String,
    pid: Pid,
    shared: Arc<CapturedChild>,
}

#[derive(Debug)]
struct CapturedChild {
    /// The child, which is reaped only under this lock. A signal sent under the lock therefore
    /// cannot reach another process.
    child: Mutex<Child>,
    lines: Mutex<Vec<String>>,
    progress: watch::Sender<ChildProgress>,
}

#[derive(Debug, Default, Clone, Copy)]
struct ChildProgress {
    lines: usize,
    /// The number of output streams, of two, that have ended.
    ended: usize,
    exit: Option<ExitStatus>,
}

impl ChildProcess {
    /// Starts `command` with an empty standard input.
    ///
    /// # Errors
    /// [`HarnessError::Io`] when there is no such program.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(HarnessError::io(format!("start {program}")))?;
        let pid = Pid::from_child(&child);
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        let shared = Arc::new(CapturedChild {
            child: Mutex::new(child),
            lines: Mutex::default(),
            progress: watch::Sender::default(),
        });
        let process = Self { program, pid, shared };
        let watchdog = Watchdog::start(r#"kill -KILL "$1""#, &[&pid.to_string()])?;
        for stream in streams.into_iter().flatten() {
            let shared = Arc::clone(&process.shared);
            thread::spawn(move || shared.read(stream));
        }
        let shared = Arc::clone(&process.shared);
        thread::spawn(move || shared.await_exit(pid, watchdog));
        Ok(process)
    }

    /// Returns the process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// Returns the lines that the process has written to its standard output and standard error.
    #[must_use]
    pub fn output(&self) -> Vec<String> {
        lock(&self.shared.lines).clone()
    }

    /// Waits, up to a minute, for a line that matches the regular expression `pattern`. Returns the
    /// first such line since the process started.
    ///
    /// # Errors
    /// The errors of [`ChildProcess::wait_for_nth_line`].
    pub async fn wait_for_line(&self, pattern: &str) -> Result<String> {
        self.wait_for_nth_line(pattern, 1).await
    }

    /// Waits, up to a minute, for the `nth` line (from 1) that matches the regular expression
    /// `pattern`.
    ///
    /// # Errors
    /// [`HarnessError::Program`] when the output ended without it, [`HarnessError::Timeout`],
    /// [`HarnessError::Pattern`].
    pub async fn wait_for_nth_line(&self, pattern: &str, nth: usize) -> Result<String> {
        let regex = Regex::new(pattern)?;
        let mut progress = self.shared.progress.subscribe();
        let found = async {
            let (mut seen, mut matches) = (0, 0);
            loop {
                // This is read before the lines. So if the streams have ended, all lines are there.
                let ended = progress.borrow_and_update().ended == 2;
                for line in &lock(&self.shared.lines)[seen..] {
                    seen += 1;
                    matches += usize::from(regex.is_match(line));
                    if matches == nth {
                        return Some(line.clone());
                    }
                }
                if ended || progress.changed().await.is_err() {
                    return None;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(HarnessError::Program {
                program: self.program.clone(),
                output: format!("it ended without writing {pattern:?}\n{}", self.output().join("\n")),
            }),
            Err(_) => {
                Err(HarnessError::Timeout { what: format!("{pattern:?} from {}", self.program), waited: PATIENCE })
            }
        }
    }

    /// Sends SIGTERM to the process.
    pub fn terminate(&self) {
        self.shared.signal(Signal::TERM);
    }

    /// Sends SIGINT to the whole process group, as Ctrl-C does.
    pub fn interrupt(&self) {
        self.shared.signal_by(kill_process_group, Signal::INT);
    }

    /// Sends SIGKILL to the process.
    pub fn kill9(&self) {
        self.shared.signal(Signal::KILL);
    }

    /// Suspends the process (SIGSTOP) until [`ChildProcess::thaw`], as an overloaded machine might.
    pub fn freeze(&self) {
        self.shared.signal(Signal::STOP);
    }

    /// Continues the process after [`ChildProcess::freeze`] (SIGCONT).
    pub fn thaw(&self) {
        self.shared.signal(Signal::CONT);
    }

    /// Waits until the process has ended and all of its output has been read. Output that another
    /// process may still write is waited for no longer than `timeout`.
    ///
    /// # Errors
    /// [`HarnessError::Timeout`].
    pub async fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        let mut progress = self.shared.progress.subscribe();
        let ended = progress.wait_for(|progress| progress.exit.is_some() && progress.ended == 2);
        let _ = tokio::time::timeout(timeout, ended).await;
        let exit = self.shared.progress.borrow().exit;
        exit.ok_or_else(|| HarnessError::Timeout { what: format!("{} to end", self.program), waited: timeout })
    }

    /// Returns the current resident memory of the process, in bytes.
    ///
    /// # Errors
    /// [`HarnessError::Io`] when it has ended.
    pub fn rss_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// Returns the peak resident memory of the process, in bytes.
    ///
    /// # Errors
    /// [`HarnessError::Io`] when it has ended.
    pub fn peak_rss_bytes(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// Returns the processor time used in user and kernel mode, to 10 ms.
    ///
    /// # Errors
    /// [`HarnessError::Io`] when it has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = self.proc("stat")?;
        // The program's name comes first, in parentheses, and may contain anything.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Duration::from_millis(ticks * 1000 / per_second))
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = self.proc("status")?;
        let kib =
            status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        // A process that has ended but was not waited for has no memory fields.
        kib.map(|kib| kib * 1024).ok_or_else(|| {
            HarnessError::io(format!("read the memory of {}", self.program))(std::io::ErrorKind::NotFound.into())
        })
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.id());
        fs::read_to_string(&path).map_err(HarnessError::io(format!("read {path}")))
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // A browser has child processes, which would outlive it.
        self.shared.signal_by(kill_process_group, Signal::KILL);
        let _ = lock(&self.shared.child).wait();
        if thread::panicking() {
            eprintln!("-- the output of {}:\n{}", self.program, self.output().join("\n"));
        }
    }
}

impl CapturedChild {
    fn signal(&self, signal: Signal) {
        self.signal_by(kill_process, signal);
    }

    fn signal_by(&self, send: fn(Pid, Signal) -> rustix::io::Result<()>, signal: Signal) {
        let mut child = lock(&self.child);
        if matches!(child.try_wait(), Ok(None)) {
            // This fails only if the process has ended.
            let _ = send(Pid::from_child(&child), signal);
        }
    }

    fn read(&self, stream: impl Read) {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            lock(&self.lines).push(text);
            self.progress.send_modify(|progress| progress.lines += 1);
            line.clear();
        }
        self.progress.send_modify(|progress| progress.ended += 1);
    }

    fn await_exit(&self, pid: Pid, watchdog: Watchdog) {
        // Returns when the process has ended, without reaping it. The line after the loop does
        // that.
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), ended), Err(Errno::INTR)) {}
        let exit = lock(&self.child).wait().ok();
        drop(watchdog);
        self.progress.send_modify(|progress| progress.exit = exit);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
