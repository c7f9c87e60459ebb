use std::io;
use std::time::Duration;

/// An error of the test harness itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HarnessError {
    /// A missing part of the installation that the harness needs.
    #[error("{0}")]
    Missing(String),
    /// A file, socket or program could not be used.
    #[error("could not {doing}: {source}")]
    Io {
        /// The attempt, as in "could not ...".
        doing: String,
        /// The cause.
        source: io::Error,
    },
    /// A program ended with an error, or before it did what it was started for.
    #[error("{program} failed:\n{output}")]
    Program {
        /// The name of the program.
        program: String,
        /// The output of the program.
        output: String,
    },
    /// A database connection or statement failed.
    #[error("could not connect to the private cluster: {0}")]
    Connect(#[from] tokio_postgres::Error),
    /// Certificates could not be made.
    #[cfg(feature = "tls")]
    #[error("could not make test certificates: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A condition did not become true in time.
    #[error("timed out after {waited:?} while waiting for {what}")]
    Timeout {
        /// The condition that was waited for.
        what: String,
        /// The time that was waited.
        waited: Duration,
    },
    /// The database's own answer is inconsistent.
    #[error("the oracle: {0}")]
    Oracle(String),
    /// A statement of a workload failed unexpectedly.
    #[error("a workload's statement failed: {0}")]
    Workload(String),
    /// A regular expression is invalid.
    #[error(transparent)]
    Pattern(#[from] regex::Error),
}

impl HarnessError {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
