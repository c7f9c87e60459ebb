//! Targets and their runs.

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::allocations::measured;
use crate::corpus::{CorpusFolders, RunningInput};
use crate::coverage::Coverage;
use crate::mutation::mutate;
use crate::random::FuzzRandom;

/// The default maximum size of an input.
const LENGTH_MAX: usize = 8 << 10;
/// The default maximum memory that one input may take.
const MEMORY_BYTES_MAX: usize = 64 << 20;
/// The maximum time of an input, if it takes longer each time.
const TIME_MAX: Duration = Duration::from_secs(2);
/// The time after which the process is ended, because the input may never end.
const HANG_MAX: Duration = Duration::from_secs(300);
/// The maximum number of outcomes that make an input worth keeping.
const OUTCOMES_MAX: usize = 500;
/// The maximum number of attempts to make a failing input smaller.
const SMALLER_ATTEMPTS: usize = 300;
/// The variable with the seconds of a target, and their number without it.
const SECONDS_VARIABLE: &str = "LAREDO_FUZZ_SECONDS";
const SECONDS: u64 = 3;

/// A decoder under test, with valid inputs and its bounds.
///
/// ```
/// use laredo_fuzz::{FuzzTarget, outcome};
///
/// // A target in a module `fuzz_tests::numbers`, so that `./dev fuzz numbers` finds it.
/// FuzzTarget::new("numbers", vec![b"42".to_vec()]).run(|input| {
///     let text = std::str::from_utf8(input).map_err(outcome)?;
///     let number: i64 = text.parse().map_err(outcome)?;
///     assert_eq!(number.to_string().parse(), Ok(number));
///     Ok(1)
/// });
/// ```
#[derive(Debug)]
pub struct FuzzTarget {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    dictionary: Vec<Vec<u8>>,
    length_max: usize,
    memory_bytes_max: usize,
}

/// Returns the outcome of an input that is refused with this error.
pub fn outcome(error: impl Display) -> String {
    error.to_string()
}

impl FuzzTarget {
    /// Returns a target with valid inputs. The name is that of the module inside `fuzz_tests`.
    #[must_use]
    pub fn new(name: &'static str, seeds: Vec<Vec<u8>>) -> FuzzTarget {
        let (dictionary, memory_bytes_max) = (Vec::new(), MEMORY_BYTES_MAX);
        FuzzTarget { name, seeds, dictionary, length_max: LENGTH_MAX, memory_bytes_max }
    }

    /// Adds words of the format, which mutations insert.
    #[must_use]
    pub fn dictionary(mut self, words: &[&str]) -> FuzzTarget {
        self.dictionary.extend(words.iter().map(|word| word.as_bytes().to_vec()));
        self
    }

    /// Sets the maximum size of an input in bytes (8 KiB unless set).
    #[must_use]
    pub fn length_max(mut self, bytes: usize) -> FuzzTarget {
        self.length_max = bytes;
        self
    }

    /// Sets the most bytes of memory that the target's thread may hold for one input (64 MiB unless
    /// set).
    #[must_use]
    pub fn memory_bytes_max(mut self, bytes: usize) -> FuzzTarget {
        self.memory_bytes_max = bytes;
        self
    }

    /// Runs the target: on the inputs that once failed, on the seeds, and on mutations of inputs
    /// until its time is over. The target returns a number for the kind of an input that it
    /// accepts, or the text of the error that refuses it. Every seed must be accepted.
    ///
    /// # Panics
    /// If an input makes the target panic, or take too much memory or time. The message names the
    /// file with the input.
    #[expect(clippy::panic, reason = "a test fails by a panic")]
    pub fn run(self, target: impl Fn(&[u8]) -> Result<u64, String>) {
        let folders = CorpusFolders::of(self.name);
        if let Err(why) = run_time().and_then(|time| self.run_in(&folders, time, &target)) {
            std::panic::panic_any(why);
        }
    }

    fn run_in(
        &self,
        folders: &CorpusFolders,
        time: Duration,
        target: &dyn Fn(&[u8]) -> Result<u64, String>,
    ) -> Result<(), String> {
        let failed = |error: io::Error| format!("fuzz target {}: cannot use its folders: {error}", self.name);
        let (found, kept) = (folders.found().map_err(failed)?, folders.kept().map_err(failed)?);
        let mut run = FuzzRun {
            about: self,
            target,
            coverage: Coverage::new(),
            outcomes: HashSet::new(),
            running: folders.note_running().map_err(failed)?,
            watchdog: HangWatchdog::start(self.name),
        };
        for (path, input) in found {
            run.execute(&input).map_err(|why| self.describe(&why, &path, input.len()))?;
        }
        let mut corpus = Vec::new();
        let seeds = self.seeds.iter().map(|seed| (seed, true)).chain(kept.iter().map(|input| (input, false)));
        for (input, is_seed) in seeds {
            let ran = run.execute(input).map_err(|why| self.save(&run, folders, &why, input))?;
            if let Some(error) = ran.refused.filter(|_| is_seed) {
                return Err(format!("fuzz target {}: a valid input is refused: {error}", self.name));
            }
            if is_seed || ran.is_new {
                corpus.push(input.clone());
            }
        }
        let (new, inputs) = self.explore(&mut run, folders, corpus, time)?;
        folders.keep(&new).map_err(failed)?;
        let (reached, counters) = (run.coverage.reached(), run.coverage.counters());
        eprintln!(
            "fuzz target {}: {inputs} inputs in {} s, {} of them reached something new; {reached} of {counters} branches",
            self.name,
            time.as_secs(),
            new.len(),
        );
        Ok(())
    }

    /// Runs mutations until the time is over. Returns the inputs that reached something new, and
    /// the number of all inputs.
    fn explore(
        &self,
        run: &mut FuzzRun<'_>,
        folders: &CorpusFolders,
        mut corpus: Vec<Vec<u8>>,
        time: Duration,
    ) -> Result<(Vec<Vec<u8>>, u64), String> {
        let (seeds, begun, mut inputs) = (corpus.len(), Instant::now(), 0);
        let mut random = FuzzRandom::new();
        while begun.elapsed() < time {
            // Newer inputs are further from the seeds, and chosen half of the time.
            let newest = corpus.len().saturating_sub(corpus.len() / 4 + 1);
            let from = if random.below(2) == 0 { newest } else { 0 };
            let mut input = corpus[from + random.below(corpus.len() - from)].clone();
            let other = &corpus[random.below(corpus.len())];
            mutate(&mut input, other, &self.dictionary, self.length_max, &mut random);
            inputs += 1;
            let ran = run.execute(&input).map_err(|why| self.save(run, folders, &why, &input))?;
            if ran.is_new {
                corpus.push(input);
            }
        }
        Ok((corpus.split_off(seeds.min(corpus.len())), inputs))
    }

    /// Saves a failing input, as small as it becomes, and describes it.
    fn save(&self, run: &FuzzRun<'_>, folders: &CorpusFolders, why: &str, input: &[u8]) -> String {
        let input = run.smaller(input);
        match folders.save_found(&input) {
            Ok(path) => self.describe(why, &path, input.len()),
            Err(error) => {
                format!("fuzz target {} fails: {why}\ncannot save the input ({error}): {input:02x?}", self.name)
            }
        }
    }

    fn describe(&self, why: &str, path: &Path, length: usize) -> String {
        let name = self.name;
        format!(
            "fuzz target {name} fails: {why}\n  the input: {} ({length} bytes)\n  to repeat: ./dev fuzz {name}",
            path.display()
        )
    }
}

/// Returns the time of a target's mutations.
fn run_time() -> Result<Duration, String> {
    let Ok(text) = std::env::var(SECONDS_VARIABLE) else { return Ok(Duration::from_secs(SECONDS)) };
    text.parse().map(Duration::from_secs).map_err(|_| format!("{SECONDS_VARIABLE}={text}: give whole seconds"))
}

/// The state of a target's run.
struct FuzzRun<'a> {
    about: &'a FuzzTarget,
    target: &'a dyn Fn(&[u8]) -> Result<u64, String>,
    coverage: Coverage,
    outcomes: HashSet<u64>,
    running: RunningInput,
    watchdog: HangWatchdog,
}

/// The result of an input that did not fail.
struct InputResult {
    /// True if the input reached something that no input had reached.
    is_new: bool,
    /// The error that refused the input.
    refused: Option<String>,
}

impl FuzzRun<'_> {
    /// Runs the target on one input.
    ///
    /// # Errors
    /// The reason if the input fails.
    fn execute(&mut self, input: &[u8]) -> Result<InputResult, String> {
        let result = self.measure(input)?;
        let is_covered = self.coverage.add();
        let mut hasher = DefaultHasher::new();
        match &result {
            Ok(kind) => kind.hash(&mut hasher),
            // Digits and quoted parts of the input would make every error a new one.
            Err(error) => error.chars().filter(char::is_ascii_lowercase).take(60).for_each(|c| c.hash(&mut hasher)),
        }
        let is_new = self.outcomes.len() < OUTCOMES_MAX && self.outcomes.insert(hasher.finish());
        Ok(InputResult { is_new: is_new || is_covered, refused: result.err() })
    }

    /// Runs the target, and checks its bounds.
    fn measure(&self, input: &[u8]) -> Result<Result<u64, String>, String> {
        self.running.set(input).map_err(|error| format!("cannot note the input: {error}"))?;
        let (mut slow_runs, mut slowest) = (0, Duration::ZERO);
        loop {
            // The machine may be busy, so a slow input runs again, and its time is that of the
            // thread.
            let cpu_before = if slow_runs > 0 { thread_cpu_time() } else { None };
            let begun = self.watchdog.begin();
            let (result, bytes) = measured(|| catch_unwind(AssertUnwindSafe(|| (self.target)(input))));
            self.watchdog.end();
            let result = result.map_err(|panic| format!("it panics: {}", panic_message(panic.as_ref())))?;
            if bytes > self.about.memory_bytes_max {
                return Err(format!(
                    "it takes {bytes} bytes of memory, and {} are allowed",
                    self.about.memory_bytes_max
                ));
            }
            let cpu_time = cpu_before.and_then(|before| Some(thread_cpu_time()?.saturating_sub(before)));
            let time = cpu_time.unwrap_or_else(|| begun.elapsed());
            if time <= TIME_MAX {
                return Ok(result);
            }
            (slow_runs, slowest) = (slow_runs + 1, slowest.max(time));
            if slow_runs == 3 {
                return Err(format!("it takes up to {slowest:?}, and {TIME_MAX:?} are allowed"));
            }
        }
    }

    /// Removes parts of an input while it still fails.
    fn smaller(&self, input: &[u8]) -> Vec<u8> {
        let (mut input, mut attempts) = (input.to_vec(), 0);
        let mut size = input.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at + size <= input.len() && attempts < SMALLER_ATTEMPTS {
                let candidate = [&input[..at], &input[at + size..]].concat();
                attempts += 1;
                match self.measure(&candidate) {
                    Err(_) => input = candidate,
                    Ok(_) => at += size,
                }
            }
            size /= 2;
        }
        input
    }
}

/// Returns the time that this thread has run; `None` where the system does not say it.
fn thread_cpu_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

/// A thread that ends the process when an input does not end.
struct HangWatchdog {
    begun: Arc<Mutex<Option<Instant>>>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HangWatchdog {
    fn start(name: &'static str) -> HangWatchdog {
        let (begun, (stop, stopped)) = (Arc::new(Mutex::new(None)), channel());
        let watched = begun.clone();
        let thread = std::thread::spawn(move || watch(name, &watched, &stopped));
        HangWatchdog { begun, stop: Some(stop), thread: Some(thread) }
    }

    fn begin(&self) -> Instant {
        let now = Instant::now();
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        now
    }

    fn end(&self) {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for HangWatchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread does not panic.
            let _ = thread.join();
        }
    }
}

fn watch(name: &str, begun: &Mutex<Option<Instant>>, stopped: &Receiver<()>) {
    while stopped.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
        let begun = *begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.is_some_and(|begun| begun.elapsed() > HANG_MAX) {
            eprintln!(
                "fuzz target {name}: an input has run for {} s; it is target/fuzz/{name}.running; to repeat: ./dev fuzz {name}",
                HANG_MAX.as_secs()
            );
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the message with which a run fails, in folders of its own.
    fn failure(name: &'static str, seed: &[u8], target: impl Fn(&[u8]) -> Result<u64, String>) -> String {
        let folder = std::env::temp_dir().join(format!("laredo-fuzz-run-{name}-{}", std::process::id()));
        let folders = CorpusFolders::in_folders(&folder.join("source"), &folder.join("build"), name);
        let fuzz = FuzzTarget::new(name, vec![seed.to_vec()]).dictionary(&["magic"]).memory_bytes_max(1 << 20);
        let first = fuzz.run_in(&folders, Duration::from_secs(60), &target).expect_err("the target has an error");
        if first.contains("the input") {
            let again = fuzz.run_in(&folders, Duration::ZERO, &target).expect_err("a found input runs first");
            let input = |message: &str| message.lines().find(|line| line.contains("the input")).map(str::to_owned);
            assert_eq!(input(&again), input(&first));
        }
        std::fs::remove_dir_all(&folder).expect("the folder is there");
        first
    }

    #[test]
    fn a_panic_is_found_and_its_input_made_small() {
        let message = failure("panics", b"hello, world", |input| {
            assert!(!input.windows(3).any(|part| part == b"mag"), "magic");
            Ok(0)
        });
        assert!(message.contains("it panics: magic") && message.contains("(3 bytes)"), "{message}");
        assert!(message.contains("./dev fuzz panics"), "{message}");
    }

    #[test]
    fn memory_that_a_length_reserves_is_found() {
        let message = failure("memory", &[0, 0, 0, 4, 1, 2, 3, 4], |input| {
            let length = input.first_chunk::<4>().ok_or("short")?;
            let bytes = Vec::<u8>::with_capacity(u32::from_be_bytes(*length) as usize);
            std::hint::black_box(&bytes);
            Ok(0)
        });
        assert!(message.contains("bytes of memory, and 1048576 are allowed"), "{message}");
    }

    #[test]
    fn a_valid_input_that_is_refused_is_an_error() {
        let message = failure("seeds", b"x", |_| Err("no".to_owned()));
        assert_eq!(message, "fuzz target seeds: a valid input is refused: no");
    }

    #[test]
    fn outcomes_lead_deeper_without_counters() {
        // Each letter of the word must be found after the one before it.
        let message = failure("deeper", b"------", |input| {
            let right = input.iter().zip(b"laredo").take_while(|(one, other)| one == other).count();
            assert!(right < 5, "found");
            Ok(right as u64)
        });
        assert!(message.contains("found"), "{message}");
    }
}
