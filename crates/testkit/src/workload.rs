//! Sessions that write random data to tables with columns of every type. They can be paused between
//! transactions.

mod script;
mod tables;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::{HarnessError, Result};
pub use script::{ScriptTransaction, SessionScript};
pub use tables::{TABLES, WorkloadTable, WorkloadTableShape, schema_sql};

/// The time between two attempts to connect.
const RETRY: Duration = Duration::from_millis(20);

/// The settings of a workload.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    /// The number of concurrent sessions.
    pub sessions: u64,
    /// The time that each session rests after a transaction.
    pub rest: Duration,
    /// The largest value, in bytes.
    pub value_bytes_max: u32,
    /// True if tables are truncated at random.
    pub truncates: bool,
    /// The errors that the test expects, in addition to conflicts between sessions and lost
    /// connections.
    pub tolerated: Vec<SqlState>,
}

impl Default for WorkloadOptions {
    /// Returns options with eight sessions and values of up to 1 MiB.
    fn default() -> Self {
        Self {
            sessions: 8,
            rest: Duration::from_millis(2),
            value_bytes_max: 1 << 20,
            truncates: true,
            tolerated: Vec::new(),
        }
    }
}

/// The numbers of things that the sessions have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkloadCounts {
    /// Transactions that committed.
    pub committed: u64,
    /// Transactions that were rolled back on purpose.
    pub rolled_back: u64,
    /// Transactions that failed because of a conflict with another session, a lost connection, or a
    /// tolerated error. Conflicts are deadlocks, serialization failures and duplicate keys.
    pub failed: u64,
    /// TRUNCATE statements that committed. This count and the next two leave out statements in
    /// subtransactions.
    pub truncates: u64,
    /// Rows whose key was changed in a committed transaction.
    pub key_changes: u64,
    /// Committed statements that wrote a row with a value of [`WorkloadOptions::value_bytes_max`].
    pub largest_values: u64,
}

/// A running workload on [`TABLES`]. It ends when it is stopped or dropped.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<WorkloadState>,
    sessions: JoinSet<Result<()>>,
}

/// A guard for a pause: no session is inside a transaction while it exists.
#[derive(Debug)]
pub struct WorkloadPause {
    _gate: OwnedRwLockWriteGuard<()>,
}

#[derive(Debug)]
struct WorkloadState {
    url: String,
    options: WorkloadOptions,
    gate: Arc<RwLock<()>>,
    stopped: AtomicBool,
    counts: Mutex<WorkloadCounts>,
    errors: Mutex<BTreeMap<String, u64>>,
}

impl Workload {
    /// Starts the sessions on a database in which [`schema_sql`] has been run. `seed` determines
    /// the statements of each session, but not the order in which statements of different sessions
    /// run.
    #[must_use]
    pub fn start(url: &str, seed: u64, options: WorkloadOptions) -> Self {
        let scripts =
            (0..options.sessions).map(|session| SessionScript::new(seed, session, &options)).collect::<Vec<_>>();
        let shared = Arc::new(WorkloadState {
            url: url.to_owned(),
            options,
            gate: Arc::default(),
            stopped: AtomicBool::new(false),
            counts: Mutex::default(),
            errors: Mutex::default(),
        });
        let mut sessions = JoinSet::new();
        for script in scripts {
            sessions.spawn(Arc::clone(&shared).session(script));
        }
        Self { shared, sessions }
    }

    /// Waits until no session is inside a transaction. The sessions then wait until
    /// [`Workload::resume`].
    pub async fn pause(&self) -> WorkloadPause {
        WorkloadPause { _gate: Arc::clone(&self.shared.gate).write_owned().await }
    }

    /// Lets the sessions continue.
    pub fn resume(&self, paused: WorkloadPause) {
        drop(paused);
    }

    /// Returns the counts so far.
    #[must_use]
    pub fn counts(&self) -> WorkloadCounts {
        *lock(&self.shared.counts)
    }

    /// Returns the number of failed transactions for each reason.
    #[must_use]
    pub fn errors(&self) -> BTreeMap<String, u64> {
        lock(&self.shared.errors).clone()
    }

    /// Ends the sessions between transactions.
    ///
    /// # Errors
    /// [`HarnessError::Workload`] when a session has ended early, because a statement failed
    /// unexpectedly.
    pub async fn stop(mut self) -> Result<WorkloadCounts> {
        self.shared.stopped.store(true, Ordering::SeqCst);
        while let Some(ended) = self.sessions.join_next().await {
            ended.map_err(|error| HarnessError::Workload(error.to_string()))??;
        }
        Ok(self.counts())
    }
}

impl WorkloadState {
    async fn session(self: Arc<Self>, mut script: SessionScript) -> Result<()> {
        let mut client = self.connect().await;
        while !self.stopped.load(Ordering::SeqCst) {
            let turn = self.gate.read().await;
            let transaction = script.next_transaction();
            match run(&client, &transaction, self.options.value_bytes_max).await {
                Ok(done) => lock(&self.counts).add(done),
                Err((statement, error)) => {
                    self.judge(statement, &error)?;
                    // Without a connection there is nothing to roll back.
                    let _ = client.batch_execute("ROLLBACK").await;
                    lock(&self.counts).failed += 1;
                }
            }
            drop(turn);
            if client.is_closed() {
                client = self.connect().await;
            }
            tokio::time::sleep(self.options.rest).await;
        }
        Ok(())
    }

    /// Counts an expected error by its reason, and returns an unexpected one.
    fn judge(&self, statement: &str, error: &tokio_postgres::Error) -> Result<()> {
        let races = [
            SqlState::UNIQUE_VIOLATION,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
        ];
        let expected = match error.code() {
            None => true,
            Some(code) => races.contains(code) || self.options.tolerated.contains(code),
        };
        let reason = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
        if !expected {
            let statement: String = statement.chars().take(2000).collect();
            return Err(HarnessError::Workload(format!("{reason}: {statement}")));
        }
        *lock(&self.errors).entry(reason).or_default() += 1;
        Ok(())
    }

    /// Connects, and retries until a connection succeeds.
    async fn connect(&self) -> Client {
        loop {
            if let Ok((client, connection)) = tokio_postgres::connect(&self.url, NoTls).await {
                // The next call of the client notices the end of the connection.
                tokio::spawn(connection);
                return client;
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl WorkloadCounts {
    fn add(&mut self, more: WorkloadCounts) {
        self.committed += more.committed;
        self.rolled_back += more.rolled_back;
        self.failed += more.failed;
        self.truncates += more.truncates;
        self.key_changes += more.key_changes;
        self.largest_values += more.largest_values;
    }
}

/// Runs a transaction. Returns its counts, or the statement that failed with its error.
async fn run<'a>(
    client: &Client,
    transaction: &'a ScriptTransaction,
    value_bytes_max: u32,
) -> Result<WorkloadCounts, (&'a str, tokio_postgres::Error)> {
    let end = if transaction.commits { "COMMIT" } else { "ROLLBACK" };
    let statements = transaction.statements.iter().map(String::as_str);
    let largest = format!(", ''), {value_bytes_max})");
    let (mut done, mut depth) = (WorkloadCounts { committed: 1, ..WorkloadCounts::default() }, 0);
    for statement in std::iter::once("BEGIN").chain(statements).chain([end]) {
        let answers = client.simple_query(statement).await.map_err(|error| (statement, error))?;
        let rows = answers.iter().map(|answer| match answer {
            SimpleQueryMessage::CommandComplete(rows) => *rows,
            _ => 0,
        });
        let rows: u64 = rows.sum();
        match statement.split(' ').next() {
            Some("SAVEPOINT") => depth += 1,
            _ if statement.contains(" SAVEPOINT ") => depth -= 1,
            _ if depth > 0 => {}
            Some("TRUNCATE") => done.truncates += 1,
            _ if statement.contains(" AND NOT EXISTS (") => done.key_changes += rows,
            _ if statement.contains(&largest) => done.largest_values += u64::from(rows > 0),
            _ => {}
        }
    }
    Ok(if transaction.commits { done } else { WorkloadCounts { rolled_back: 1, ..WorkloadCounts::default() } })
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
