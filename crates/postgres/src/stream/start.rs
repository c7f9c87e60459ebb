//! Starting a stream: finding or creating the slot, and choosing the position to begin at.

use std::time::Duration;

use laredo_core::{Lsn, SourceIdentity, TableName, Xid};
use laredo_engine::Fork;
use laredo_engine::source::SourceServer;
use tokio::time::Instant;

use super::StreamOptions;
use super::error::StreamError;
use super::session::ReplicationSession;
use crate::catalog::quoted;
use crate::ddl::DdlWatch;
use crate::history_proof::{KeptTable, SentCommits, StreamBeginning};
use crate::identity::SERVER_STARTED;
use crate::options::SessionWork;
use crate::signals::SourceSignals;
use crate::slot::{self, SlotMode};
use crate::transport::{ReplicationConnection, TextRow, TransportError};
use crate::{identity, publication};

/// The state from which the connections of one stream are started.
pub(super) struct StreamStarter<'a> {
    options: &'a StreamOptions,
    /// The position where the stream resumes. Before the first slot it is the position of an
    /// earlier run, or `None`.
    resume: Option<Lsn>,
    /// True if this run has had a slot.
    has_slot: bool,
    /// The server of the database at the last check.
    server: Option<SourceServer>,
    /// The new identity, if the database has changed its timeline, contains everything that was
    /// sent, and this was not reported yet.
    promoted: Option<SourceServer>,
    /// The start time of the server that is known to have everything that was sent.
    proven_with: Option<String>,
    /// The start time of the server of the current session.
    started: String,
    /// The state that an earlier run has kept, until a session has proven that it is valid.
    kept: Vec<KeptTable>,
    /// The reason why PostgreSQL could not stream from the slot, or did not find the publication.
    suspect: Option<String>,
    /// True if a check did not find the publication. The slot may still be usable.
    is_publication_lost: bool,
    /// True if the size of a change was such a reason.
    is_beyond_limit: bool,
    /// True if an operator wants the slot to be created again.
    reset: bool,
    /// The consecutive internal errors of PostgreSQL without progress of the stream.
    internal_errors: InternalErrors,
    /// The process of PostgreSQL that served the last connection that streamed.
    walsender: Option<i32>,
}

/// The internal errors of PostgreSQL at one position.
#[derive(Debug, Default)]
struct InternalErrors {
    count: u32,
    /// The last error, and the first time since which all were the same.
    last: Option<(String, Instant)>,
}

/// The number of internal errors at one position after which PostgreSQL counts as unable to read on
/// from the slot. A single error may pass. For example, "could not map filenode … to relation OID"
/// was seen while a transaction that had truncated a table was being rolled back.
const INTERNAL_ERRORS_MAX: u32 = 3;
/// The time after which two errors suffice if they are the same. PostgreSQL may read for seconds
/// before each of them.
const INTERNAL_ERROR_TIME: Duration = Duration::from_secs(5);

impl InternalErrors {
    /// Adds an error. Returns true if PostgreSQL counts as unable to read on from the slot.
    fn add(&mut self, error: String, now: Instant) -> bool {
        let same = self.last.take().filter(|(last, _)| *last == error);
        let since = same.map_or(now, |(_, since)| since);
        self.count += 1;
        let is_lost = self.count >= INTERNAL_ERRORS_MAX || now - since >= INTERNAL_ERROR_TIME;
        self.last = Some((error, since));
        if is_lost {
            *self = InternalErrors::default();
        }
        is_lost
    }
}

/// The state of the server and the slot that a new connection finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ObservedServer {
    slot: Option<ObservedSlot>,
    wal_end: Lsn,
    timeline: u32,
    /// The start time of the server.
    started: String,
    /// The reason why PostgreSQL could not stream from the slot.
    suspect: Option<String>,
    is_reset: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ObservedSlot {
    confirmed: Lsn,
    is_lost: bool,
}

/// The decision about the slot.
#[derive(Debug, PartialEq, Eq)]
enum SlotDecision {
    /// Use the existing slot.
    Use { from: Lsn, restarted: Option<String> },
    /// Drop the slot, if it exists, and create it.
    Make {
        restarted: Option<String>,
        /// The reason why an existing state cannot be continued. `None` if there was none at a
        /// first start.
        lost: Option<String>,
    },
}

impl<'a> StreamStarter<'a> {
    pub(super) fn new(options: &'a StreamOptions) -> StreamStarter<'a> {
        let resume = options.from;
        StreamStarter {
            options,
            resume,
            has_slot: false,
            server: options.server.clone(),
            promoted: None,
            proven_with: None,
            started: String::new(),
            kept: options.kept.clone(),
            suspect: None,
            is_publication_lost: false,
            is_beyond_limit: false,
            reset: false,
            internal_errors: InternalErrors::default(),
            walsender: None,
        }
    }

    /// Makes the next connection drop the slot and create it again.
    pub(super) fn reset(&mut self) {
        self.reset = true;
    }

    /// Records the error that ended a connection, and whether the connection had made progress.
    pub(super) fn failed(&mut self, error: &StreamError, has_progressed: bool) {
        if has_progressed {
            self.internal_errors = InternalErrors::default();
        }
        if error.is_internal() && self.internal_errors.add(error.to_string(), Instant::now()) {
            self.suspect = Some(error.to_string());
        }
        if error.concerns_slot_or_publication() || error.is_beyond_limit() {
            self.suspect = Some(error.to_string());
        }
        self.is_beyond_limit |= error.is_beyond_limit();
        self.is_publication_lost |= matches!(error, StreamError::PublicationLost);
    }

    /// Forgets the old history after a fork. Positions that were sent have no meaning anymore.
    pub(super) fn begin_again(&mut self) {
        (self.resume, self.has_slot, self.proven_with, self.promoted) = (None, false, None, None);
        self.kept.clear();
    }

    /// Records that a session has ended at a position. If its proof was complete, the server has
    /// everything up to there.
    pub(super) fn ended(&mut self, position: Lsn, is_proven: bool) {
        self.resume = Some(position);
        if is_proven {
            self.kept.clear();
            self.proven_with = Some(std::mem::take(&mut self.started));
        }
    }

    /// Returns the server of the database at the last check.
    pub(super) fn server(&self) -> SourceServer {
        self.server.clone().unwrap_or_default()
    }

    /// Returns the highest position that was reported.
    pub(super) fn reported(&self) -> Lsn {
        let kept = self.kept.iter().map(|kept| kept.position).max();
        self.resume.unwrap_or_default().max(kept.unwrap_or_default())
    }

    /// Connects and begins to stream.
    pub(super) async fn open(
        &mut self,
        signals: &SourceSignals,
        sent: &SentCommits,
    ) -> Result<ReplicationSession, StreamError> {
        let mut connection =
            ReplicationConnection::connect(&self.options.connection.for_work(SessionWork::Stream)).await?;
        let mut found = self.identify(&mut connection).await?;
        self.check_history(&mut connection, &found).await?;
        if self.suspect.is_some() || self.is_publication_lost {
            let tables = signals.tables().borrow().names();
            self.check_publication(&mut connection, &tables).await?;
            self.is_publication_lost = false;
        }
        let name = self.slot_name(&connection);
        self.check_holder(&mut connection, &name).await?;
        found.slot = self.slot(&mut connection, &name).await?;
        found.suspect = self.suspicion(&mut connection).await?;
        found.is_reset = self.reset;
        signals.set_slot_name(&name);
        let is_same_server = self.proven_with.as_ref() == Some(&found.started);
        let is_server_restarted = self.proven_with.is_some() && !is_same_server;
        let (begins, floor, restarted, lost) = match plan(&name, &found, self.resume) {
            SlotDecision::Use { from, restarted: Some(reason) } => {
                (StreamBeginning::at(from), from, Some(reason.clone()), Some(reason))
            }
            SlotDecision::Use { from, restarted: None } => {
                let confirmed = found.slot.as_ref().map_or(from, |slot| slot.confirmed);
                (self.beginning(signals, sent, confirmed, from, is_same_server)?, confirmed, None, None)
            }
            SlotDecision::Make { restarted, lost } => {
                let from = self.make(&mut connection, &name, found.slot.is_some()).await?;
                (StreamBeginning::at(from), from, restarted, lost)
            }
        };
        let is_new = restarted.is_some() || !self.has_slot;
        let unproven = (restarted.is_some() && !is_same_server).then(|| Fork {
            common: Lsn::ZERO,
            abandoned: signals.abandoned(self.reported()),
            is_certain: false,
        });
        self.reset = false;
        lost.iter().for_each(|reason| signals.record_loss(reason));
        // A slot that is continued keeps what it kept: copies need not wait again for earlier
        // writers.
        let is_other_slot = !std::mem::replace(&mut self.has_slot, true) || restarted.is_some();
        // Copies may begin now. If this connection fails before it streams, the position where its
        // slot begins must not be forgotten.
        let resume = match (self.resume, &restarted) {
            (Some(resume), None) => resume,
            _ => begins.from,
        };
        self.resume.get_or_insert(resume);
        signals.record_slot(is_other_slot);
        let sql = "SELECT pg_snapshot_xmax(pg_current_snapshot())";
        let recent = Xid(field(&connection.simple_query(sql).await?, 0, "pg_snapshot_xmax")?);
        let has_messages = self.options.ddl == DdlWatch::Trigger;
        let sql = start_replication(&name, begins.from, &self.options.publication, has_messages);
        let process_id = connection.process_id();
        let (reader, writer) = connection.start_replication(&sql).await?;
        self.walsender = Some(process_id);
        self.started.clone_from(&found.started);
        Ok(ReplicationSession {
            reader,
            writer,
            server_started: found.started,
            slot: name,
            resume,
            proof: begins.proof,
            floor,
            recent,
            restarted,
            unproven,
            promoted: self.promoted.take(),
            is_server_restarted,
            is_new,
        })
    }

    /// Chooses the start of a stream of an existing slot, so that it proves what was sent before
    /// `resume`.
    fn beginning(
        &self,
        signals: &SourceSignals,
        sent: &SentCommits,
        confirmed: Lsn,
        resume: Lsn,
        is_same_server: bool,
    ) -> Result<StreamBeginning, StreamError> {
        let begins = match &self.proven_with {
            // The storage of a running server is not restored to an earlier state.
            Some(_) if is_same_server => Ok(StreamBeginning::at(resume)),
            Some(_) => StreamBeginning::again(sent, signals.tables().borrow().complete_after(), confirmed, resume),
            None => StreamBeginning::after_restart(&self.kept, confirmed, resume),
        };
        begins.map_err(|mismatch| StreamError::Assemble(mismatch.into()))
    }

    /// Checks that the server is the same cluster as before, and not in recovery.
    async fn identify(&mut self, connection: &mut ReplicationConnection) -> Result<ObservedServer, StreamError> {
        const WHAT: &str = "IDENTIFY_SYSTEM";
        // The recovery check comes first: a server that is promoted in the meantime would still
        // name the old timeline.
        let asked = connection.simple_query(&format!("SELECT pg_is_in_recovery(), {SERVER_STARTED}")).await?;
        let recovers: String = field(&asked, 0, "pg_is_in_recovery")?;
        if recovers == "t" {
            return Err(StreamError::Recovering);
        }
        let started = field(&asked, 1, SERVER_STARTED)?;
        let rows = connection.simple_query(WHAT).await?;
        let cluster: String = field(&rows, 0, WHAT)?;
        if let Some(SourceIdentity { system_identifier: known, .. }) = self.server.as_ref().map(|known| &known.identity)
            && *known != cluster
        {
            return Err(StreamError::Definite(format!(
                "{} is another database cluster now: its system identifier was {known} and is {cluster}. Restart \
                 laredo if that is intended: it then checks the publication and the tables there, and copies them",
                self.options.connection.address()
            )));
        }
        Ok(ObservedServer {
            timeline: field(&rows, 1, WHAT)?,
            wal_end: field(&rows, 2, WHAT)?,
            started,
            ..ObservedServer::default()
        })
    }

    /// Checks that everything sent is still part of the server's history.
    async fn check_history(
        &mut self,
        connection: &mut ReplicationConnection,
        found: &ObservedServer,
    ) -> Result<(), StreamError> {
        let reported = self.reported();
        let Some(server) = &mut self.server else {
            self.server = Some(identity::read_server_on(connection).await?);
            return Ok(());
        };
        let timeline = server.identity.timeline;
        let is_promoted = found.timeline != timeline;
        if is_promoted {
            server.identity.history = identity::history(connection, found.timeline).await?;
        }
        (server.identity.timeline, server.written) = (found.timeline, found.wal_end);
        server.started.clone_from(&found.started);
        let left = server.identity.left_at(timeline);
        match another_history(found, reported, timeline, left) {
            Some(what) => return Err(StreamError::Forked { what, common: left.unwrap_or_default() }),
            None if is_promoted => self.promoted = Some(server.clone()),
            None => {}
        }
        Ok(())
    }

    /// Checks that the publication exists. Creates it again with `tables` if that is allowed.
    async fn check_publication(
        &self,
        connection: &mut ReplicationConnection,
        tables: &[TableName],
    ) -> Result<(), StreamError> {
        let name = &self.options.publication;
        let sql = format!("SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = {}", literal(name));
        if !connection.simple_query(&sql).await?.is_empty() {
            return Ok(());
        }
        let sql = publication::creation_of(&self.options.connection, name, tables).await?;
        if !self.options.creates_publication {
            return Err(StreamError::Definite(format!(
                "publication {name} is gone, and without it PostgreSQL sends nothing; run {sql}, or let laredo do so \
                 with publication.create = true"
            )));
        }
        tracing::warn!(event = "publication_recreated", %sql, "the publication is gone and is created again");
        match connection.simple_query(&sql).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_transient() => Err(error.into()),
            Err(error) => Err(StreamError::Definite(format!("{error}; as a role with the privilege, run {sql}"))),
        }
    }

    /// Checks that no other process streams from the slot. Such a process may move the slot, and
    /// the commits that it acknowledged are not lost.
    async fn check_holder(&self, connection: &mut ReplicationConnection, name: &str) -> Result<(), StreamError> {
        let rows = connection.simple_query(&slot::holder_query(name)).await?;
        match rows.first().and_then(slot::holder_of) {
            None => Ok(()),
            Some((pid, _)) if Some(pid) == self.walsender => Err(StreamError::Lingering(pid)),
            Some((_, sentence)) => Err(StreamError::Held(sentence)),
        }
    }

    /// Takes the reason why PostgreSQL could not stream from the slot, with details.
    async fn suspicion(&mut self, connection: &mut ReplicationConnection) -> Result<Option<String>, StreamError> {
        let Some(reason) = self.suspect.take() else { return Ok(None) };
        Ok(Some(match std::mem::take(&mut self.is_beyond_limit) {
            true => reason + &self.likely_too_large(connection).await?,
            false => reason,
        }))
    }

    /// Returns a sentence that names the tables whose changes also carry the whole old row.
    /// PostgreSQL does not say which change was too large.
    async fn likely_too_large(&self, connection: &mut ReplicationConnection) -> Result<String, StreamError> {
        let sql = format!(
            "SELECT t.schemaname || '.' || t.tablename FROM pg_catalog.pg_publication_tables t \
             JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname \
             JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename \
             WHERE t.pubname = {} AND c.relreplident = 'f' ORDER BY 1 LIMIT 10",
            literal(&self.options.publication)
        );
        let names: Vec<String> = connection.simple_query(&sql).await?.into_iter().flatten().flatten().collect();
        Ok(match names.as_slice() {
            [] => "; a row is too large for a message of 1 GB".to_owned(),
            names => format!(
                "; an update's old and new row are too large for a message of 1 GB, likely of a table with REPLICA IDENTITY \
                 FULL: {}",
                names.join(", ")
            ),
        })
    }

    fn slot_name(&self, connection: &ReplicationConnection) -> String {
        match &self.options.slot {
            SlotMode::Stateful { name } => name.clone(),
            // The name is unique: a remaining slot of this name would belong to a live process with
            // this ID.
            SlotMode::Ephemeral { name_prefix } => format!("{name_prefix}_{}", connection.process_id()),
        }
    }

    async fn slot(
        &self,
        connection: &mut ReplicationConnection,
        name: &str,
    ) -> Result<Option<ObservedSlot>, StreamError> {
        let sql = format!(
            "SELECT confirmed_flush_lsn, wal_status = 'lost', plugin = 'pgoutput' AND database = current_database() \
             FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
            literal(name)
        );
        let rows = connection.simple_query(&sql).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let is = |column: usize| row.get(column).is_some_and(|value| value.as_deref() == Some("t"));
        if !is(2) {
            return Err(StreamError::Definite(format!(
                "replication slot {name} belongs to another database or to another output plugin. Give laredo another \
                 slot name, or drop that slot: SELECT pg_drop_replication_slot({})",
                literal(name)
            )));
        }
        Ok(Some(ObservedSlot {
            // A lost slot may have no position.
            confirmed: field(&rows, 0, "confirmed_flush_lsn").unwrap_or(Lsn::ZERO),
            is_lost: is(1),
        }))
    }

    /// Creates the slot, after dropping it if it exists. Returns the position from which it keeps
    /// commits.
    async fn make(&self, connection: &mut ReplicationConnection, name: &str, exists: bool) -> Result<Lsn, StreamError> {
        if exists {
            connection.simple_query(&format!("DROP_REPLICATION_SLOT {}", quoted(name))).await?;
        }
        let sql = create_slot(name, &self.options.slot, connection.major_version());
        let process_id = connection.process_id();
        let rows = tokio::select! {
            rows = connection.simple_query(&sql) => rows?,
            never = slot::explain_creation(&self.options.connection, process_id) => match never {},
        };
        Ok(field(&rows, 1, "CREATE_REPLICATION_SLOT")?)
    }
}

/// Returns a description of the event if the server's history does not contain the highest reported
/// position on `timeline`.
fn another_history(found: &ObservedServer, reported: Lsn, timeline: u32, left: Option<Lsn>) -> Option<String> {
    if reported == Lsn::ZERO {
        return None;
    }
    if found.timeline != timeline && left.is_none_or(|left| reported > left) {
        let left = match left {
            Some(at) => format!("timeline {timeline} was left at {at}"),
            None => format!("timeline {timeline} is not part of its history"),
        };
        return Some(format!(
            "the server is on timeline {} now: it was promoted or restored. {left}, and the stream had reached {reported}",
            found.timeline
        ));
    }
    (found.wal_end < reported).then(|| {
        format!("the server's WAL went back from {reported} to {}: it was restored to an earlier state", found.wal_end)
    })
}

fn plan(name: &str, found: &ObservedServer, resume: Option<Lsn>) -> SlotDecision {
    let make = |why: String| {
        let restarted = resume.map(|resume| format!("{why}; commits after {resume} may be missing"));
        let lost = restarted.clone().or_else(|| found.slot.is_some().then_some(why));
        SlotDecision::Make { restarted, lost }
    };
    if found.is_reset {
        return make(format!("an operator requested that replication slot {name} is created again"));
    }
    let Some(slot) = &found.slot else {
        return make(format!("replication slot {name} is gone"));
    };
    if slot.is_lost {
        return make(format!("replication slot {name} was invalidated: PostgreSQL has removed WAL that it needed"));
    }
    if let Some(reason) = &found.suspect {
        return make(format!("PostgreSQL can no longer stream from replication slot {name} ({reason})"));
    }
    match resume {
        // PostgreSQL would silently begin at the slot's own position.
        Some(resume) if resume < slot.confirmed => SlotDecision::Use {
            from: slot.confirmed,
            restarted: Some(format!(
                "replication slot {name} was moved to {}; commits after {resume} are missing",
                slot.confirmed
            )),
        },
        resume => SlotDecision::Use { from: resume.unwrap_or(slot.confirmed), restarted: None },
    }
}

/// Returns the command that creates a slot. It exports no snapshot: reading under an exported one
/// can destroy rows of the source. From PostgreSQL 17 on, a permanent slot is synchronized to the
/// standbys that are set up for it, so that it survives a failover.
fn create_slot(name: &str, mode: &SlotMode, major_version: u32) -> String {
    let name = quoted(name);
    match mode {
        SlotMode::Ephemeral { .. } => {
            format!("CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        }
        SlotMode::Stateful { .. } if major_version < 17 => {
            format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        }
        SlotMode::Stateful { .. } => {
            format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER true)")
        }
    }
}

fn start_replication(slot: &str, from: Lsn, publication: &str, has_messages: bool) -> String {
    let messages = if has_messages { ", messages 'true'" } else { "" };
    // The option is a list of identifiers within a literal.
    let publications = literal(&quoted(publication));
    format!(
        "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '2', publication_names {publications}, binary 'true', \
         streaming 'on'{messages})",
        quoted(slot)
    )
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn field<T: std::str::FromStr>(rows: &[TextRow], column: usize, what: &str) -> Result<T, TransportError> {
    let text = rows.first().and_then(|row| row.get(column)?.as_deref());
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| TransportError::Protocol(format!("the answer to {what} is {text:?}")))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use laredo_engine::spool::SpoolOptions;

    use super::*;
    use crate::options::ConnectionOptions;
    use crate::stream::ReconnectOptions;

    fn found(confirmed: u64) -> ObservedServer {
        ObservedServer {
            slot: Some(ObservedSlot { confirmed: Lsn(confirmed), is_lost: false }),
            wal_end: Lsn(500),
            timeline: 3,
            ..ObservedServer::default()
        }
    }

    #[test]
    fn a_slot_is_continued_where_the_stream_ended() {
        let use_from = |from| SlotDecision::Use { from: Lsn(from), restarted: None };
        assert_eq!(plan("s", &found(100), None), use_from(100), "a first start");
        assert_eq!(plan("s", &found(100), Some(Lsn(300))), use_from(300));
        assert_eq!(plan("s", &found(300), Some(Lsn(300))), use_from(300));
        let none = SlotDecision::Make { restarted: None, lost: None };
        assert_eq!(plan("s", &ObservedServer::default(), None), none, "a first start copies in any case");
    }

    #[test]
    fn a_slot_that_lost_commits_says_so() {
        let mut lost = found(100);
        lost.slot = Some(ObservedSlot { confirmed: Lsn(100), is_lost: true });
        let suspect = ObservedServer { suspect: Some("why".to_owned()), ..found(100) };
        let reset = ObservedServer { is_reset: true, ..found(100) };
        let SlotDecision::Make { restarted: None, lost: Some(said) } = plan("s", &lost, None) else {
            panic!("a first start says what it finds lost, too")
        };
        assert!(said.contains("was invalidated"), "{said}");
        for (found, resume, made, reason) in [
            (ObservedServer::default(), 300, true, "is gone; commits after 0/12C may be missing"),
            (lost, 300, true, "was invalidated"),
            (suspect, 300, true, "can no longer stream"),
            (reset, 300, true, "an operator requested that replication slot s is created again"),
            (found(100), 50, false, "was moved to 0/64"),
        ] {
            let (was_made, said) = match plan("s", &found, Some(Lsn(resume))) {
                SlotDecision::Use { restarted, .. } => (false, restarted.unwrap()),
                SlotDecision::Make { restarted, lost } => {
                    assert_eq!(restarted, lost);
                    (true, restarted.unwrap())
                }
            };
            assert!(was_made == made && said.contains(reason), "{said}");
        }
    }

    #[test]
    fn another_history_differs_from_a_lost_slot() {
        let judged =
            |reported, timeline, left| another_history(&found(100), Lsn(reported), timeline, left).unwrap_or_default();
        assert_eq!(judged(500, 3, None), "", "all that was received is there");
        assert_eq!(
            judged(501, 3, None),
            "the server's WAL went back from 0/1F5 to 0/1F4: it was restored to an earlier state"
        );
        assert!(
            judged(300, 2, Some(Lsn(290)))
                .contains("timeline 3 now: it was promoted or restored. timeline 2 was left at 0/122")
        );
        assert_eq!(judged(300, 2, Some(Lsn(300))), "", "a promotion that lost nothing");
        assert!(judged(301, 2, Some(Lsn(300))).contains("the stream had reached 0/12D"));
        assert!(judged(300, 4, None).contains("timeline 4 is not part of its history"));
        assert_eq!(judged(0, 4, None), "", "nothing was reported");
    }

    #[test]
    fn a_slot_that_postgres_cannot_read_on_from_is_given_up_after_some_tries() {
        let options = StreamOptions {
            connection: ConnectionOptions::parse("host=nowhere user=laredo").unwrap(),
            slot: SlotMode::Stateful { name: "s".to_owned() },
            publication: "p".to_owned(),
            creates_publication: false,
            tables: Vec::new(),
            reconnect: ReconnectOptions::default(),
            spool: Arc::new(SpoolOptions { memory_bytes_max: 0, folder: PathBuf::new() }),
            seed: 0,
            ddl: DdlWatch::Poll,
            from: None,
            kept: Vec::new(),
            server: None,
        };
        let mut start = StreamStarter::new(&options);
        let server = |code: &str| {
            let error = crate::transport::PostgresError { code: code.to_owned(), ..Default::default() };
            StreamError::Transport(TransportError::Server(error))
        };
        assert!(server("XX000").is_transient() && server("54000").is_transient());
        let mut suspects = Vec::new();
        for (code, has_progressed) in [
            ("XX000", false),
            ("XX000", false),
            ("XX000", true),
            ("57P01", false),
            ("XX000", false),
            ("XX000", false),
            ("XX000", false),
            ("54000", false),
            ("53000", false),
        ] {
            start.failed(&server(code), has_progressed);
            suspects.push(start.suspect.take().is_some());
        }
        assert_eq!(suspects, [false, false, false, false, false, true, false, true, false]);
    }

    #[test]
    fn the_same_internal_error_after_seconds_does_not_pass() {
        let (mut errors, began) = (InternalErrors::default(), Instant::now());
        let mut add = |error: &str, second: u64| errors.add(error.to_owned(), began + Duration::from_secs(second));
        assert!(!add("filenode 7", 0) && !add("filenode 7", 4) && add("filenode 7", 4), "three");
        assert!(!add("filenode 7", 10) && add("filenode 7", 15), "two that are the same, after 5 s");
        assert!(!add("filenode 7", 20) && !add("filenode 8", 26) && add("filenode 8", 27), "three of any kind");
    }

    #[test]
    fn a_slot_that_stays_survives_a_failover_where_postgres_can_do_that() {
        let stateful = SlotMode::Stateful { name: "s".to_owned() };
        let ephemeral = SlotMode::Ephemeral { name_prefix: "s".to_owned() };
        for (mode, version, expected) in [
            (&stateful, 14, "\"s\" LOGICAL pgoutput NOEXPORT_SNAPSHOT"),
            (&stateful, 16, "\"s\" LOGICAL pgoutput NOEXPORT_SNAPSHOT"),
            (&stateful, 17, "\"s\" LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER true)"),
            (&ephemeral, 17, "\"s\" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT"),
        ] {
            assert_eq!(create_slot("s", mode, version), format!("CREATE_REPLICATION_SLOT {expected}"));
        }
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(
            start_replication("s", Lsn(16), "it's \"one\"", false),
            "START_REPLICATION SLOT \"s\" LOGICAL 0/10 (proto_version '2', publication_names '\"it''s \"\"one\"\"\"', \
             binary 'true', streaming 'on')"
        );
    }
}
