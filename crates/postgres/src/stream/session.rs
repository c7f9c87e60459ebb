//! A connection that streams.

use laredo_core::{Lsn, Xid};

use laredo_engine::Fork;
use laredo_engine::source::SourceServer;

use crate::history_proof::HistoryProof;
use crate::transport::{ReplicationReader, ReplicationWriter};

#[derive(Debug)]
pub(super) struct ReplicationSession {
    pub(super) reader: ReplicationReader,
    pub(super) writer: ReplicationWriter,
    /// The time at which the server was started.
    pub(super) server_started: String,
    pub(super) slot: String,
    /// The position after which commits arrive that were not sent before.
    pub(super) resume: Lsn,
    /// The proof that the earlier commits have to give.
    pub(super) proof: Option<HistoryProof>,
    /// The position that the slot has confirmed.
    pub(super) floor: Lsn,
    pub(super) recent: Xid,
    /// The reason, if commits before `resume` were never sent.
    pub(super) restarted: Option<String>,
    /// Set with `restarted` if nothing proves that the history is still the one that was followed.
    pub(super) unproven: Option<Fork>,
    /// Set if the database now writes another timeline and contains everything that was sent.
    pub(super) promoted: Option<SourceServer>,
    /// True if PostgreSQL was restarted since the last session.
    pub(super) is_server_restarted: bool,
    /// True for the first session of the run, and after a fork or a restart of the stream. Earlier
    /// commits are then unknown.
    pub(super) is_new: bool,
}
