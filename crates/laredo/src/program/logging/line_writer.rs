//! Lines that wait for the thread that writes them, so that a file or a pipe that cannot be written
//! delays nothing else. Lines that do not fit are dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ThreadId};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

#[cfg(test)]
mod tests;

/// The maximum size in bytes of the lines that wait to be written.
const QUEUE_BYTES_MAX: usize = 4 << 20;

/// The number of lines that were dropped since the start.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Returns the number of lines of the log and the audit that were dropped since the start of the
/// process, because they could not be written in time or at all.
pub(crate) fn dropped_log_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The writer of lines, on a thread of its own.
#[derive(Clone)]
pub(super) struct LineWriter {
    queue: Arc<LineQueue>,
}

/// The functions that report lines that are missing.
pub(super) struct LossReports<D, F> {
    /// Called with the number of lines that were dropped.
    pub(super) dropped: D,
    /// Called with the reason why lines could not be written, and their number.
    pub(super) failed: F,
}

/// The lines that wait for the thread that writes them.
struct LineQueue {
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
    /// The thread that writes. Lines of its own report dropped ones, and are never dropped.
    writer: Option<ThreadId>,
}

impl LineWriter {
    /// Starts the thread that writes to `out`. It reports lines that were dropped, or that could
    /// not be written. The thread runs until the process ends.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(super) fn start(
        name: &str,
        out: impl Write + Send + 'static,
        reports: LossReports<impl Fn(u64) + Send + 'static, impl Fn(&io::Error, u64) + Send + 'static>,
    ) -> io::Result<LineWriter> {
        let (state, filled, written) = (Mutex::default(), Condvar::new(), Condvar::new());
        let queue = Arc::new(LineQueue { state, filled, written });
        let writer = LineWriter { queue: queue.clone() };
        thread::Builder::new().name(name.to_owned()).spawn(move || queue.write_lines(out, &reports))?;
        Ok(writer)
    }

    /// Waits until all lines are written, but no longer than `deadline`.
    pub(super) fn flush(&self, deadline: Instant) {
        let mut state = self.queue.state.lock();
        while state.is_writing || !state.buffer.is_empty() || state.dropped > 0 {
            if self.queue.written.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

impl LineQueue {
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

    fn write_lines(&self, mut out: impl Write, reports: &LossReports<impl Fn(u64), impl Fn(&io::Error, u64)>) {
        self.state.lock().writer = Some(thread::current().id());
        let (mut taken, mut is_torn) = (Vec::new(), false);
        loop {
            let (lines, dropped) = self.take(&mut taken);
            if dropped > 0 {
                // The report comes after the lines that were queued before the dropped ones.
                (reports.dropped)(dropped);
            }
            if let Err((error, written)) = write_counted(&mut out, &taken, is_torn) {
                // The lines before the failure are whole.
                let whole = taken[..written].iter().filter(|byte| **byte == b'\n').count() as u64;
                let lost = lines.saturating_sub(whole).max(1);
                is_torn = if written == 0 { is_torn } else { taken[written - 1] != b'\n' };
                DROPPED.fetch_add(lost, Ordering::Relaxed);
                (reports.failed)(&error, lost);
            } else {
                is_torn = false;
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

/// Writes bytes. After a torn line they begin on a line of their own.
///
/// # Errors
/// Returns the error with the number of bytes that were written before it.
fn write_counted(out: &mut impl Write, bytes: &[u8], is_torn: bool) -> Result<(), (io::Error, usize)> {
    if is_torn {
        out.write_all(b"\n").map_err(|error| (error, 0))?;
    }
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => return Err((io::ErrorKind::WriteZero.into(), written)),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((error, written)),
        }
    }
    out.flush().map_err(|error| (error, written))
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = LineAppender<'a>;

    fn make_writer(&'a self) -> LineAppender<'a> {
        LineAppender(&self.queue)
    }
}

/// The writer of one line, which is written with one call.
pub(super) struct LineAppender<'a>(&'a LineQueue);

impl Write for LineAppender<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
