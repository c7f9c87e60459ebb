//! A command that prints the password, such as one that makes a token for RDS.

use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::super::SecretText;
use super::{ObtainedPassword, PASSWORD_BYTES_MAX, password_of};

/// The maximum size of the part of a command's standard error that a message shows, in bytes.
const COMPLAINT_BYTES_MAX: u64 = 1 << 10;

/// A command that prints the password. Its arguments are not interpreted by a shell.
///
/// All clones of the options of a connection share one command, and with it the password that was
/// printed last.
pub struct PasswordCommand {
    program: String,
    arguments: Vec<SecretText>,
    /// The time for which a printed password is used. Zero runs the command at each attempt.
    lifetime: Duration,
    time_limit: Duration,
    last: Mutex<Option<CommandRun>>,
}

/// A run of the command that has ended.
struct CommandRun {
    began: Instant,
    outcome: Result<SecretText, String>,
}

impl PasswordCommand {
    /// Describes a command by its program and its arguments. A run may take up to `time_limit`. A
    /// password is used for `lifetime` after the run that printed it began. Zero runs the command
    /// at each attempt to connect.
    #[must_use]
    pub fn new(
        program: impl Into<String>,
        arguments: impl IntoIterator<Item = SecretText>,
        lifetime: Duration,
        time_limit: Duration,
    ) -> PasswordCommand {
        let (program, arguments) = (program.into(), arguments.into_iter().collect());
        PasswordCommand { program, arguments, lifetime, time_limit, last: Mutex::new(None) }
    }

    /// Returns the password of the last run if it may still be used. Otherwise runs the command.
    pub(super) async fn obtain(&self) -> Result<ObtainedPassword, String> {
        if self.lifetime.is_zero() {
            return self.run().await.map(ObtainedPassword::fresh);
        }
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        match &*last {
            // Callers that waited together share the outcome of one run. Otherwise each would wait
            // for the time limit of a command that hangs, one after the other.
            Some(run) if run.began >= asked => return run.outcome.clone().map(ObtainedPassword::fresh),
            Some(CommandRun { began, outcome: Ok(text) }) if began.elapsed() < self.lifetime => {
                return Ok(ObtainedPassword { text: text.clone(), is_cached: true });
            }
            Some(_) | None => {}
        }
        let began = Instant::now();
        let outcome = self.run().await;
        *last = Some(CommandRun { began, outcome: outcome.clone() });
        outcome.map(ObtainedPassword::fresh)
    }

    /// Forgets the password, unless a later run has printed another one.
    pub(super) async fn forget(&self, refused: &SecretText) {
        let mut last = self.last.lock().await;
        if last.as_ref().is_some_and(|run| run.outcome.as_ref() == Ok(refused)) {
            *last = None;
        }
    }

    async fn run(&self) -> Result<SecretText, String> {
        let outcome = match tokio::time::timeout(self.time_limit, self.run_to_end()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!(
                "did not end within {:?} and was stopped; raise password_timeout, or find out what it waits for",
                self.time_limit
            )),
        };
        outcome.map_err(|problem| format!("password_command `{}` {problem}", self.program))
    }

    /// Runs the command. The error is a part of a sentence that begins with the program.
    async fn run_to_end(&self) -> Result<SecretText, String> {
        let mut command = Command::new(&self.program);
        command.args(self.arguments.iter().map(SecretText::expose));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Processes that the command starts are stopped together with it.
        command.process_group(0).kill_on_drop(true);
        let cannot_start =
            |error| format!("cannot be started: {error}; name a program on the PATH, or an absolute path");
        let mut child = command.spawn().map_err(cannot_start)?;
        let mut group = ProcessGroup::of(&child);
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let (output, errors, status) = tokio::join!(
            read_beginning(output, PASSWORD_BYTES_MAX + 1),
            read_beginning(errors, COMPLAINT_BYTES_MAX),
            child.wait()
        );
        group.release();
        let status = status.map_err(|error| format!("cannot be waited for: {error}"))?;
        if !status.success() {
            return Err(format!(
                "{}{}; run it as the user of this process to see what it needs",
                ending(status),
                complaint(&errors)
            ));
        }
        if output.len() as u64 > PASSWORD_BYTES_MAX {
            return Err(format!("printed more than {PASSWORD_BYTES_MAX} bytes; let it print the password alone"));
        }
        password_of(output)
            .map_err(|problem| format!("ended, but {problem}{}; let it print the password alone", complaint(&errors)))
    }
}

/// Reads a pipe to its end, and returns the first bytes.
async fn read_beginning(pipe: Option<impl AsyncRead + Unpin>, bytes_max: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let mut beginning = pipe.take(bytes_max);
        // After an error there is nothing more to read. The exit status says if the command failed.
        let _ = beginning.read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut beginning.into_inner(), &mut tokio::io::sink()).await;
    }
    bytes
}

fn ending(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("ended with exit code {code}"),
        None => format!("was ended ({status})"),
    }
}

/// Returns the text that the command wrote to its standard error, in one line.
fn complaint(errors: &[u8]) -> String {
    let text = String::from_utf8_lossy(errors);
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    match words.is_empty() {
        true => String::new(),
        false => format!(" (it wrote: {})", words.join(" ")),
    }
}

/// The processes of a command that has not ended. They are killed when this is dropped.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn of(child: &Child) -> ProcessGroup {
        ProcessGroup(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)))
    }

    /// Leaves the processes alone, since the command has ended.
    fn release(&mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // This fails only if the processes have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

// Arguments may be secret, and the password is.
impl fmt::Debug for PasswordCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PasswordCommand { program, arguments, lifetime, time_limit, last: _ } = self;
        f.debug_struct("PasswordCommand")
            .field("program", program)
            .field("arguments", arguments)
            .field("lifetime", lifetime)
            .field("time_limit", time_limit)
            .finish_non_exhaustive()
    }
}

/// Compares the commands themselves, and not the passwords that they have printed.
impl PartialEq for PasswordCommand {
    fn eq(&self, other: &PasswordCommand) -> bool {
        let PasswordCommand { program, arguments, lifetime, time_limit, last: _ } = self;
        (program, arguments, lifetime, time_limit)
            == (&other.program, &other.arguments, &other.lifetime, &other.time_limit)
    }
}

impl Eq for PasswordCommand {}
