//! Tests of a log that is not read, is read again, or cannot be written.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;

/// A pipe that holds one write, as far as it is read.
struct UnreadPipe {
    written: Arc<Mutex<Vec<u8>>>,
    /// Each write waits for one message, until the sender is dropped.
    gate: Receiver<()>,
}

impl Write for UnreadPipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.gate.recv();
        self.written.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns a log to a pipe that nothing reads until the sender is used or dropped.
fn unread_log() -> (LineWriter, Arc<Mutex<Vec<u8>>>, Sender<()>) {
    let (gate, reader) = channel();
    let written = Arc::<Mutex<Vec<u8>>>::default();
    let pipe = UnreadPipe { written: written.clone(), gate: reader };
    let log = Arc::new(Mutex::new(None::<LineWriter>));
    let reporter = log.clone();
    let report = move |lines: u64| {
        let log = reporter.lock().clone().unwrap();
        log.make_writer().write_all(format!("dropped {lines}\n").as_bytes()).unwrap();
    };
    let started =
        LineWriter::start("log", pipe, LossReports { dropped: report, failed: |_: &io::Error, _| {} }).unwrap();
    *log.lock() = Some(started.clone());
    (started, written, gate)
}

fn flush(log: &LineWriter) {
    log.flush(Instant::now() + Duration::from_secs(2));
}

fn line(log: &LineWriter, text: &str) {
    log.make_writer().write_all(format!("{text}\n").as_bytes()).unwrap();
}

#[test]
fn a_log_that_nothing_reads_holds_nothing_up_and_says_how_many_lines_it_lacks() {
    let (log, written, gate) = unread_log();
    let text = "x".repeat(1023);
    let lines_max = QUEUE_BYTES_MAX / 1024;
    line(&log, "first");
    // The thread takes the first line, and then the pipe is full.
    while !log.queue.state.lock().is_writing {
        thread::yield_now();
    }
    for _ in 0..lines_max + 1000 {
        line(&log, &text);
    }
    let queued = log.queue.state.lock().buffer.len();
    assert!(queued <= QUEUE_BYTES_MAX, "{queued}");
    drop(gate);
    flush(&log);
    line(&log, "last");
    flush(&log);
    let written = String::from_utf8(written.lock().clone()).unwrap();
    let lines: Vec<&str> = written.lines().collect();
    assert_eq!((lines[0], *lines.last().unwrap()), ("first", "last"));
    assert_eq!(lines.iter().filter(|line| **line == text).count(), lines_max);
    let reports: Vec<_> = lines.iter().filter(|line| line.starts_with("dropped")).collect();
    assert_eq!(reports, [&"dropped 1000"]);
}

#[test]
fn the_last_lines_are_written_before_the_end() {
    let (log, written, gate) = unread_log();
    for number in 0..1000 {
        line(&log, &number.to_string());
    }
    let reading = thread::spawn(move || drop(gate));
    flush(&log);
    assert_eq!(written.lock().iter().filter(|byte| **byte == b'\n').count(), 1000);
    reading.join().unwrap();
}

#[test]
fn the_end_does_not_wait_for_a_log_that_is_never_read() {
    let (log, written, _gate) = unread_log();
    line(&log, "never");
    flush(&log);
    assert!(written.lock().is_empty());
}

#[test]
fn lines_that_cannot_be_written_are_counted_and_reported_and_later_ones_are_tried_again() {
    struct ClosedPipe;
    impl Write for ClosedPipe {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lost = Arc::<Mutex<Vec<(io::ErrorKind, u64)>>>::default();
    let reported = lost.clone();
    let reports = LossReports {
        dropped: |_| panic!("a log would report its own reports, without end"),
        failed: move |error: &io::Error, lines: u64| reported.lock().push((error.kind(), lines)),
    };
    let log = LineWriter::start("log", ClosedPipe, reports).unwrap();
    let before = dropped_log_lines();
    for _ in 0..10 {
        line(&log, "lost");
        flush(&log);
    }
    assert!(dropped_log_lines() >= before + 10);
    assert_eq!(*lost.lock(), [(io::ErrorKind::BrokenPipe, 1); 10]);
}

/// A disk that is full after some bytes, until there is room again.
struct FullDisk {
    written: Arc<Mutex<Vec<u8>>>,
    room: Arc<Mutex<usize>>,
}

impl Write for FullDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.room.lock();
        let taken = bytes.len().min(*room);
        if taken == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *room -= taken;
        self.written.lock().extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_line_after_a_torn_one_is_whole_and_only_lost_lines_are_counted() {
    let (written, room) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::new(Mutex::new(usize::MAX)));
    let lost = Arc::<Mutex<Vec<u64>>>::default();
    let reported = lost.clone();
    let reports =
        LossReports { dropped: |_: u64| {}, failed: move |_: &io::Error, lines: u64| reported.lock().push(lines) };
    let disk = FullDisk { written: written.clone(), room: room.clone() };
    let log = LineWriter::start("log", disk, reports).unwrap();
    line(&log, "first");
    flush(&log);
    *room.lock() = "second\nfour".len();
    for text in ["second", "fourth", "fifth"] {
        line(&log, text);
        flush(&log);
    }
    *room.lock() = usize::MAX;
    line(&log, "last");
    flush(&log);
    assert_eq!(String::from_utf8(written.lock().clone()).unwrap(), "first\nsecond\nfour\nlast\n");
    assert_eq!(*lost.lock(), [1, 1]);
}
