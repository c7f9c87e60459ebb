//! The waiting side of verification: it schedules passes, and reads the source part by part.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::Instrument;

use super::lifecycle::LiveTable;
use super::published::RowOrigin;
use super::verification::VerifyPartError;
use super::{FollowUpAction, Table, TableError, VerifyTurns, verification_log};
use crate::source::{
    SnapshotCheck, Source, SourceError, TableIndex, TablePartEvent, TablePartOrder, TransactionSnapshot,
};
use crate::status::{TablePhase, VerifyCommand};
use crate::verify::{VerifyError, VerifyReport, VerifySchedule, VerifyTerms};

/// The number of chunks of a part that may wait for the table.
const PART_QUEUE: usize = 4;
/// The delay before a part that failed is read again. It doubles each time, up to the maximum.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The number of failures in a row after which a pass is given up.
const ATTEMPTS_MAX: u32 = 10;
/// The number of times that a pass begins again after a copy has interrupted it, and the time for
/// which it does so. It is given up when both are over.
const RESTARTS_MAX: u32 = 3;
const RESTARTING: Duration = Duration::from_secs(60);
/// The longest time for which a snapshot is held open while the stream is behind it.
const STALL: Duration = Duration::from_secs(30);
/// The delay before another attempt at a background pass that could not begin or complete.
const POSTPONED: Duration = Duration::from_secs(60);

type VerifyResultSender = oneshot::Sender<Result<Arc<VerifyReport>, VerifyError>>;

/// The verification of one table, on schedule and on request.
pub(super) struct TableVerifier<S> {
    source: Arc<S>,
    index: TableIndex,
    schedule: Option<VerifySchedule>,
    /// The time of the next background pass.
    due: Option<Pin<Box<Sleep>>>,
    /// The turns that the passes of one source take.
    turns: VerifyTurns,
    pass: Option<VerifyJob>,
}

/// A pass that was requested or scheduled.
struct VerifyJob {
    terms: VerifyTerms,
    /// The sender for the outcome; `None` for a background pass.
    answer: Option<VerifyResultSender>,
    _turn: Option<OwnedSemaphorePermit>,
    has_begun: bool,
    restarts: u32,
    /// The time of the first restart.
    restarted_at: Option<Instant>,
    /// The number of failures in a row.
    failures: u32,
    inspection: Option<InspectionTask>,
    /// The time before which nothing is read, because of the rate or after a failure.
    resume_at: Instant,
    /// The time at which the wait for the stream ends.
    stall_at: Instant,
}

/// A task that reads parts of the source's table.
struct InspectionTask {
    orders: mpsc::Sender<TablePartOrder>,
    events: mpsc::Receiver<TablePartEvent>,
    task: JoinHandle<Result<(), SourceError>>,
}

impl Drop for InspectionTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The next step of a verification.
#[derive(Debug)]
pub(super) enum VerifierEvent {
    /// A background pass is due.
    Due,
    /// The pass may begin, or never can.
    Begin,
    /// The pass was interrupted by a copy or by a failure of the table.
    Interrupted,
    /// The receiver of the outcome was dropped.
    Cancelled,
    /// The next part may be read.
    Order,
    /// The source has sent an event of the part.
    Part(TablePartEvent),
    /// The part cannot be read or compared.
    PartFailed(VerifyPartError),
    /// The next buckets of the state are due to be searched.
    Sweep,
    /// All rows are compared.
    Done,
}

impl<S: Source> TableVerifier<S> {
    pub(super) fn new(
        source: Arc<S>,
        index: TableIndex,
        schedule: Option<VerifySchedule>,
        turns: VerifyTurns,
    ) -> TableVerifier<S> {
        TableVerifier { source, index, schedule, due: None, turns, pass: None }
    }

    /// Schedules the first background pass. It comes early, because a server may never run for a
    /// whole interval.
    pub(super) fn start(&mut self) {
        self.due = self.schedule.as_ref().map(|schedule| timer(schedule.interval / 10));
    }

    /// Handles a request for a pass. The request replaces a background pass.
    pub(super) fn request(&mut self, command: VerifyCommand, table: &mut Table) {
        let VerifyCommand { terms, answer } = command;
        if self.pass.as_ref().is_some_and(|pass| pass.answer.is_some()) {
            // The receiver of the answer may have been dropped.
            let _ = answer.send(Err(VerifyError::Busy));
            return;
        }
        drop_verification(table);
        self.pass = Some(VerifyJob::new(terms, Some(answer), None));
    }

    /// Waits for the next step. Dropping the future loses nothing.
    pub(super) async fn next(&mut self, table: &Table) -> VerifierEvent {
        match (&mut self.pass, &mut self.due) {
            (Some(pass), _) => pass.next(table).await,
            (None, Some(due)) => {
                due.as_mut().await;
                VerifierEvent::Due
            }
            (None, None) => std::future::pending().await,
        }
    }

    /// Takes the step that [`TableVerifier::next`] has found.
    pub(super) fn handle(&mut self, event: VerifierEvent, table: &mut Table) -> Result<FollowUpAction, TableError> {
        match event {
            VerifierEvent::Due => self.begin_scheduled(table),
            VerifierEvent::Begin => self.begin(table),
            VerifierEvent::Interrupted => self.restart(table),
            VerifierEvent::Cancelled => self.give_up("it was cancelled".to_owned(), table),
            VerifierEvent::Order => self.order_part(table),
            VerifierEvent::Part(event) => {
                let bytes = if let TablePartEvent::Rows(chunk) = &event { chunk.len() } else { 0 };
                // Only a whole part is progress: the rest of one may never be compared.
                let is_end = matches!(event, TablePartEvent::End { .. });
                match table.on_part(event) {
                    Ok(()) => {
                        report_progress(table);
                        self.pass.iter_mut().for_each(|pass| pass.progressed(bytes, is_end));
                    }
                    Err(error) => self.part_failed(error, table),
                }
            }
            VerifierEvent::PartFailed(error) => self.part_failed(error, table),
            VerifierEvent::Sweep => table.live_mut().into_iter().for_each(LiveTable::sweep_some),
            VerifierEvent::Done => return self.finish(table),
        }
        Ok(FollowUpAction::Nothing)
    }

    fn begin_scheduled(&mut self, table: &Table) {
        let Some(schedule) = &self.schedule else { return };
        let turn = Arc::clone(&self.turns.background).try_acquire_owned().ok().filter(|_| can_verify(table));
        match turn {
            Some(turn) => self.pass = Some(VerifyJob::new(schedule.terms.clone(), None, Some(turn))),
            None => self.due = Some(timer(POSTPONED.min(schedule.interval))),
        }
    }

    fn begin(&mut self, table: &mut Table) {
        let Some(pass) = &mut self.pass else { return };
        match failure(table) {
            Some(error) => self.end(Err(VerifyError::Failed(error)), table),
            None => {
                pass.has_begun = true;
                table.live_mut().into_iter().for_each(|live| live.begin_verification(&pass.terms));
                report_progress(table);
            }
        }
    }

    fn restart(&mut self, table: &mut Table) {
        let Some(pass) = &mut self.pass else { return };
        pass.restarts += 1;
        let restarting = pass.restarted_at.get_or_insert_with(Instant::now).elapsed();
        if pass.restarts > RESTARTS_MAX && restarting > RESTARTING {
            let reason = format!("the table was copied {} times meanwhile", pass.restarts);
            self.give_up(reason, table);
            return;
        }
        (pass.has_begun, pass.inspection) = (false, None);
        report_progress(table);
    }

    fn order_part(&mut self, table: &mut Table) {
        let Some(pass) = &mut self.pass else { return };
        let Some(part) = table.live_mut().and_then(LiveTable::begin_part) else { return };
        let recent = table.recent().clone();
        let admits: SnapshotCheck = Arc::new(move |snapshot: &TransactionSnapshot| recent.admits(snapshot));
        let inspection = pass.inspection.get_or_insert_with(|| {
            let ((orders, ordered), (parts, events)) = (mpsc::channel(1), mpsc::channel(PART_QUEUE));
            let (source, index, turns) = (self.source.clone(), self.index, self.turns.clone());
            let inspecting = async move {
                let _turn = turns.take_session_permit().await;
                source.inspect(index, ordered, parts).await
            };
            InspectionTask { orders, events, task: tokio::spawn(inspecting.in_current_span()) }
        });
        pass.stall_at = Instant::now() + STALL;
        // Only one part is ordered at a time. If the task has ended, the next wait for the part's
        // events returns its error.
        let _ = inspection.orders.try_send(TablePartOrder { part, admits });
    }

    fn part_failed(&mut self, error: VerifyPartError, table: &mut Table) {
        let Some(pass) = &mut self.pass else { return };
        pass.failures += 1;
        match error {
            VerifyPartError::Retry(reason) if pass.failures < ATTEMPTS_MAX => {
                tracing::debug!(
                    event = "verification_part_repeated", table = %table.name(), reason,
                    "a part of the verification is read again"
                );
                // Events of the part that are still to come are dropped with the task.
                pass.inspection = None;
                table.live_mut().into_iter().for_each(LiveTable::drop_part);
                pass.resume_at = Instant::now() + (BACKOFF * 2_u32.pow(pass.failures)).min(BACKOFF_MAX);
            }
            VerifyPartError::Retry(reason) | VerifyPartError::GiveUp(reason) => self.give_up(reason, table),
        }
    }

    fn give_up(&mut self, reason: String, table: &mut Table) {
        self.end(Err(VerifyError::GivenUp(reason)), table);
    }

    fn finish(&mut self, table: &mut Table) -> Result<FollowUpAction, TableError> {
        let (report, action) = table.end_verification()?;
        let given_up = || VerifyError::GivenUp("the table is not followed any more".to_owned());
        self.end(report.ok_or_else(given_up), table);
        Ok(action)
    }

    /// Ends the pass, and schedules the next one in the background.
    fn end(&mut self, result: Result<Arc<VerifyReport>, VerifyError>, table: &mut Table) {
        if let Err(error) = &result {
            drop_verification(table);
            table.shared_status().lock().verify.count_failure(error);
            tracing::warn!(
                event = "verification_given_up", table = %table.name(), %error,
                "the table was not verified"
            );
        }
        self.due = self.schedule.as_ref().map(|schedule| match &result {
            Ok(_) => timer(schedule.interval),
            Err(_) => timer(POSTPONED.min(schedule.interval)),
        });
        if let Some(answer) = self.pass.take().and_then(|pass| pass.answer) {
            // The receiver of the answer may have been dropped.
            let _ = answer.send(result);
        }
    }
}

impl Table {
    /// Handles an event of the part that the verification pass reads.
    pub(super) fn on_part(&mut self, event: TablePartEvent) -> Result<(), VerifyPartError> {
        if let TablePartEvent::Begin { snapshot, .. } = &event {
            self.server_run.check(snapshot).map_err(|reason| VerifyPartError::Retry(reason.to_owned()))?;
            self.recent.forget_below(snapshot.xmin);
        }
        self.live_mut().map_or(Ok(()), |live| live.on_part(event))
    }

    /// Ends the verification pass that is done, and begins a copy if the pass requires one.
    fn end_verification(&mut self) -> Result<(Option<Arc<VerifyReport>>, FollowUpAction), TableError> {
        let now = (self.clock)();
        let Some(report) = self.live_mut().and_then(|live| live.end_verification(now)) else {
            return Ok((None, FollowUpAction::Nothing));
        };
        let report = Arc::new(report);
        verification_log::log_report(self.name(), &report);
        self.status.lock().verify.count_pass(report.clone());
        // Readers, bases and files may have the right rows while the state has not, so the
        // difference to the state is not what they lack.
        if let Some(served) = self.lifecycle.served_mut().filter(|_| report.heals) {
            served.origin = RowOrigin::Nothing;
        }
        let action = match report.heals {
            true => self.copy_again(&format!("verification found {} rows that differ", report.differing))?,
            false => FollowUpAction::Nothing,
        };
        Ok((Some(report), action))
    }
}

impl VerifyJob {
    fn new(terms: VerifyTerms, answer: Option<VerifyResultSender>, turn: Option<OwnedSemaphorePermit>) -> VerifyJob {
        let now = Instant::now();
        VerifyJob {
            terms,
            answer,
            _turn: turn,
            has_begun: false,
            restarts: 0,
            restarted_at: None,
            failures: 0,
            inspection: None,
            resume_at: now,
            stall_at: now,
        }
    }

    async fn next(&mut self, table: &Table) -> VerifierEvent {
        let VerifyJob { answer, has_begun, inspection, resume_at, stall_at, .. } = self;
        let cancelled = async {
            match answer {
                Some(answer) => answer.closed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancelled => VerifierEvent::Cancelled,
            event = next_event(*has_begun, inspection, *resume_at, *stall_at, table) => event,
        }
    }

    /// Notes that this many bytes were compared, and perhaps a whole part. Delays the next read by
    /// the time that they take at the requested rate.
    fn progressed(&mut self, bytes: usize, is_whole_part: bool) {
        if is_whole_part {
            self.failures = 0;
        }
        if let Some(bytes_per_second) = self.terms.bytes_per_second {
            let seconds = bytes as f64 / bytes_per_second.max(1) as f64;
            self.resume_at = self.resume_at.max(Instant::now()) + Duration::from_secs_f64(seconds);
        }
    }
}

async fn next_event(
    has_begun: bool,
    inspection: &mut Option<InspectionTask>,
    resume_at: Instant,
    stall_at: Instant,
    table: &Table,
) -> VerifierEvent {
    let verification = match table.live().and_then(LiveTable::verification) {
        Some(verification) => verification,
        None if has_begun => return VerifierEvent::Interrupted,
        None if can_verify(table) || failure(table).is_some() => return VerifierEvent::Begin,
        None => return std::future::pending().await,
    };
    if verification.is_done() {
        return VerifierEvent::Done;
    }
    if verification.is_sweeping() {
        return VerifierEvent::Sweep;
    }
    let Some(inspection) = inspection.as_mut().filter(|_| verification.has_part()) else {
        // Between parts only: a part is read under a lock on the table.
        if resume_at > Instant::now() {
            sleep_until(resume_at).await;
        }
        return VerifierEvent::Order;
    };
    if verification.awaited().is_some_and(|position| table.live().is_none_or(|live| live.served.position() < position))
    {
        sleep_until(stall_at).await;
        let reason =
            "the stream has not passed the position of the rows that were read; check the table's lag".to_owned();
        return VerifierEvent::PartFailed(VerifyPartError::Retry(reason));
    }
    match inspection.events.recv().await {
        Some(event) => VerifierEvent::Part(event),
        None => VerifierEvent::PartFailed(match (&mut inspection.task).await {
            Ok(Ok(())) => VerifyPartError::Retry("the source ended the part too early".to_owned()),
            Ok(Err(SourceError::Transient(error) | SourceError::Held(error))) => VerifyPartError::Retry(error),
            Ok(Err(error @ SourceError::Definite(_))) => VerifyPartError::GiveUp(error.to_string()),
            Err(panic) => VerifyPartError::GiveUp(format!("the task that reads the source failed: {panic}")),
        }),
    }
}

/// Returns true if a pass may begin: the table follows its source, and its rows are the source's.
fn can_verify(table: &Table) -> bool {
    table.live().is_some_and(LiveTable::can_verify)
}

/// Returns the error of a table that has failed until an operator acts.
fn failure(table: &Table) -> Option<String> {
    match &table.shared_status().lock().phase {
        TablePhase::Failed { error } => Some(error.clone()),
        TablePhase::Copying { .. } | TablePhase::Live | TablePhase::Retrying { .. } => None,
    }
}

/// Ends the pass that is running without a result.
fn drop_verification(table: &mut Table) {
    table.live_mut().into_iter().for_each(LiveTable::drop_verification);
    report_progress(table);
}

/// Shows the progress of the pass in the table's status.
fn report_progress(table: &Table) {
    let running = table.live().and_then(LiveTable::verification).map(|running| running.progress().clone());
    table.shared_status().lock().verify.running = running;
}

fn timer(after: Duration) -> Pin<Box<Sleep>> {
    Box::pin(sleep_until(Instant::now() + after))
}
