//! The log of the long-running programs. A thread of its own writes the lines to stderr, so that a
//! log that cannot be written delays nothing else. Lines that do not fit into the queue are dropped
//! and counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

use crate::config::server::{LogLevel, LogType, LoggingConfig};

#[cfg(test)]
mod tests;

/// The maximum size in bytes of the lines that wait to be written.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// The maximum time for which the end of the process waits for its last lines to be written.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// The number of lines that were dropped since the start.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Returns the number of log lines that were dropped since the start of the process, because they
/// could not be written in time or at all.
pub(crate) fn dropped_log_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The log of this process. When it is dropped, it waits until the last lines are written, but no
/// longer than [`FLUSH_MAX`].
#[derive(Clone)]
pub(crate) struct ProcessLog {
    queue: Arc<LogQueue>,
}

/// The end of the process's log, at which its last lines are written.
pub(crate) struct LogEnd(ProcessLog);

impl Drop for LogEnd {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Logs to stderr from now on, panics as well.
///
/// # Errors
/// Returns an error if the thread that writes the log cannot be started.
pub(super) fn log_to_stderr(logging: &LoggingConfig) -> io::Result<ProcessLog> {
    let level = match logging.level {
        LogLevel::Trace => tracing::Level::TRACE,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Error => tracing::Level::ERROR,
    };
    // An error, so that it is shown at every level.
    let report = |lines: u64| {
        tracing::error!(lines, "log lines were dropped, because the log was not written or read as fast as they came");
    };
    let log = ProcessLog::start(io::stderr(), report)?;
    let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(log.clone());
    match logging.log_type {
        LogType::Structured => subscriber.json().flatten_event(true).init(),
        LogType::Text => subscriber.with_ansi(io::stderr().is_terminal()).init(),
    }
    std::panic::set_hook(Box::new(log_panic));
    Ok(log)
}

/// Logs a panic. The default hook would write to stderr on the thread that panicked.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let reason = panic.payload_as_str().unwrap_or("no reason was given");
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let current = thread::current();
    tracing::error!(place, thread = current.name(), backtrace, "a thread panicked: {reason}");
}

/// The lines that wait for the thread that writes them.
struct LogQueue {
    state: Mutex<QueuedLines>,
    /// Notified when there is something to write.
    filled: Condvar,
    /// Notified when all of it was written.
    written: Condvar,
}

#[derive(Default)]
struct QueuedLines {
    buffer: Vec<u8>,
    lines: u64,
    /// The number of lines that were dropped since the last report of them.
    dropped: u64,
    is_writing: bool,
    /// The thread that writes. Its own lines report dropped ones, and are never dropped.
    writer: Option<ThreadId>,
}

impl ProcessLog {
    /// Starts the thread that writes to `out`. It calls `report` with the number of lines that were
    /// dropped. The thread runs until the process ends.
    fn start(out: impl Write + Send + 'static, report: impl Fn(u64) + Send + 'static) -> io::Result<ProcessLog> {
        let (state, filled, written) = (Mutex::default(), Condvar::new(), Condvar::new());
        let queue = Arc::new(LogQueue { state, filled, written });
        let log = ProcessLog { queue: queue.clone() };
        thread::Builder::new().name("log".to_owned()).spawn(move || queue.write_lines(out, report))?;
        Ok(log)
    }

    /// Returns a value that flushes the log when it is dropped.
    pub(super) fn end(&self) -> LogEnd {
        LogEnd(self.clone())
    }

    /// Waits until all lines are written, but no longer than [`FLUSH_MAX`].
    pub(super) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_MAX;
        let mut state = self.queue.state.lock();
        while state.is_writing || !state.buffer.is_empty() || state.dropped > 0 {
            if self.queue.written.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

impl LogQueue {
    fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        let is_full = state.buffer.len() + line.len() > QUEUE_BYTES_MAX;
        if is_full && state.writer != Some(thread::current().id()) {
            state.dropped += 1;
            DROPPED.fetch_add(1, Ordering::Relaxed);
            self.filled.notify_one();
            return;
        }
        let was_empty = state.buffer.is_empty();
        state.buffer.extend_from_slice(line);
        state.lines += 1;
        drop(state);
        if was_empty {
            self.filled.notify_one();
        }
    }

    fn write_lines(&self, mut out: impl Write, report: impl Fn(u64)) {
        self.state.lock().writer = Some(thread::current().id());
        let mut taken = Vec::new();
        loop {
            let (lines, dropped) = self.take(&mut taken);
            if dropped > 0 {
                // The report comes after the lines that were queued before the dropped ones.
                report(dropped);
            }
            // There is no place to report that the log cannot be written, other than the metric.
            if out.write_all(&taken).and_then(|()| out.flush()).is_err() {
                DROPPED.fetch_add(lines, Ordering::Relaxed);
            }
            self.state.lock().is_writing = false;
            self.written.notify_all();
        }
    }

    /// Waits for lines and moves them into the buffer. Returns their number, and that of lines that
    /// were dropped.
    fn take(&self, taken: &mut Vec<u8>) -> (u64, u64) {
        // A large buffer is needed only while the log cannot be written.
        taken.clear();
        taken.shrink_to(64 << 10);
        let mut state = self.state.lock();
        while state.buffer.is_empty() && state.dropped == 0 {
            self.filled.wait(&mut state);
        }
        state.is_writing = true;
        std::mem::swap(taken, &mut state.buffer);
        (std::mem::take(&mut state.lines), std::mem::take(&mut state.dropped))
    }
}

impl<'a> MakeWriter<'a> for ProcessLog {
    type Writer = LogLineWriter<'a>;

    fn make_writer(&'a self) -> LogLineWriter<'a> {
        LogLineWriter(&self.queue)
    }
}

/// The writer of one line, which is written with one call.
pub(crate) struct LogLineWriter<'a>(&'a LogQueue);

impl Write for LogLineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
