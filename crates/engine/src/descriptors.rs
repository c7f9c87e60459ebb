//! A reserve of file descriptors for files, so that sockets cannot use up all descriptors.
//!
//! A process has one table of descriptors, so there is one reserve for the process. It consists of
//! open handles of the null device. If a file cannot be opened for lack of a descriptor,
//! [`with_reserve`] frees one of them. A task that accepts connections first checks that the
//! reserve is complete ([`refill`]).

use std::fs::File;
use std::io;
use std::time::Duration;

use parking_lot::Mutex;

/// The error code `EMFILE`: the process has reached its limit of descriptors.
const PROCESS_LIMIT: i32 = 24;
/// The error code `ENFILE`: the system has reached its limit.
const SYSTEM_LIMIT: i32 = 23;
/// The wait before a file is opened again if the reserve is empty, too, and the number of such
/// waits.
const AGAIN: Duration = Duration::from_millis(50);
const WAITS_MAX: usize = 20;

static RESERVE: Mutex<DescriptorReserve> = Mutex::new(DescriptorReserve { wanted: 0, handles: Vec::new() });

struct DescriptorReserve {
    wanted: usize,
    handles: Vec<File>,
}

impl DescriptorReserve {
    fn refill(&mut self) -> bool {
        while self.handles.len() < self.wanted {
            match File::open("/dev/null") {
                Ok(handle) => self.handles.push(handle),
                Err(_) => return false,
            }
        }
        true
    }
}

/// Sets the size of the reserve, and returns true if all its descriptors could be opened.
pub fn reserve(wanted: usize) -> bool {
    let mut reserve = RESERVE.lock();
    reserve.wanted = wanted;
    reserve.handles.truncate(wanted);
    reserve.refill()
}

/// Returns the configured size of the reserve; 0 if there is none.
#[must_use]
pub fn reserved() -> usize {
    RESERVE.lock().wanted
}

/// Completes the reserve, and returns true if it is complete. A process without a reserve
/// ([`reserve`]) always gets true.
pub fn refill() -> bool {
    RESERVE.lock().refill()
}

/// Closes one descriptor of the reserve for the caller's next attempt. Returns true if there was
/// one.
pub fn release() -> bool {
    RESERVE.lock().handles.pop().is_some()
}

/// Returns true if an operation failed for lack of a descriptor.
#[must_use]
pub fn is_exhausted(error: &io::Error) -> bool {
    let code = |code: i32| {
        error.raw_os_error().map_or_else(
            // `tempfile` adds the path and keeps only the text of the cause, which contains the
            // error code.
            || error.to_string().contains(&format!("(os error {code})")),
            |found| found == code,
        )
    };
    code(PROCESS_LIMIT) || code(SYSTEM_LIMIT)
}

/// Opens a file, and takes a descriptor of the reserve if no other is left. May block for a second
/// if there is a reserve and it is empty, too.
///
/// # Errors
/// The errors of `open`, including the lack of descriptors if there still are none.
pub fn with_reserve<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..WAITS_MAX {
        match open() {
            Err(error) if is_exhausted(&error) => {}
            result => return result,
        }
        // The lock is held until the file is open, so that no refill takes the descriptor in
        // between.
        let mut reserve = RESERVE.lock();
        while reserve.handles.pop().is_some() {
            match open() {
                Err(error) if is_exhausted(&error) => {}
                result => return result,
            }
        }
        let waits = reserve.wanted > 0;
        drop(reserve);
        if !waits {
            break;
        }
        std::thread::sleep(AGAIN);
    }
    open()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_a_descriptor_of_the_reserve_and_a_refill_puts_it_back() {
        assert!(refill(), "without a reserve nothing is missing");
        assert!(reserve(2));
        // Two attempts fail. The first has no descriptor. The second has one of the reserve, which
        // another thread takes.
        let mut failures = 2;
        let opened = with_reserve(|| {
            failures -= 1;
            if failures >= 0 { Err(io::Error::from_raw_os_error(PROCESS_LIMIT)) } else { Ok(7) }
        });
        assert_eq!(opened.unwrap(), 7);
        assert!(RESERVE.lock().handles.is_empty());
        assert!(refill());
        assert_eq!(RESERVE.lock().handles.len(), 2);
        assert!(reserve(0));
        let refused = with_reserve(|| Err::<(), _>(io::Error::from_raw_os_error(SYSTEM_LIMIT)));
        assert!(is_exhausted(&refused.unwrap_err()));
        let in_folder = io::Error::from_raw_os_error(PROCESS_LIMIT);
        assert!(is_exhausted(&io::Error::new(in_folder.kind(), format!("{in_folder} at path \"/tmp/x\""))));
        let other = with_reserve(|| Err::<(), _>(io::Error::other("no room")));
        assert_eq!(other.unwrap_err().to_string(), "no room");
    }
}
