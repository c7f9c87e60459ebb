use std::io;
use std::time::Duration;

/// What went wrong in the harness itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something that the harness needs is not installed.
    #[error("{0}")]
    Missing(String),
    /// A file, socket or program could not be used.
    #[error("could not {doing}: {source}")]
    Io {
        /// The attempt, as in "could not ...".
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program ended with an error, or before it did what it was started for.
    #[error("{program} failed:\n{output}")]
    Program {
        /// Its name.
        program: String,
        /// What it wrote.
        output: String,
    },
    /// The private cluster refused a connection.
    #[error("could not connect to the private cluster: {0}")]
    Connect(#[from] tokio_postgres::Error),
    /// Certificates could not be made.
    #[error("could not make test certificates: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A condition did not come true in time.
    #[error("waited {waited:?} in vain for {what}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// The database's own answer makes no sense.
    #[error("the oracle: {0}")]
    Oracle(String),
    /// A statement of a workload failed in a way that was not foreseen.
    #[error("a workload's statement failed: {0}")]
    Workload(String),
    /// A regular expression that does not parse.
    #[error(transparent)]
    Pattern(#[from] regex::Error),
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
