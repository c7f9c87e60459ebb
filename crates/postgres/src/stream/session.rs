//! A connection that streams.

use laredo_core::{Lsn, Xid};

use laredo_engine::Fork;
use laredo_engine::source::SourceIdentity;

use super::proof::Proof;
use crate::transport::{ReplicationReader, ReplicationWriter};

#[derive(Debug)]
pub(super) struct Session {
    pub(super) reader: ReplicationReader,
    pub(super) writer: ReplicationWriter,
    pub(super) slot: String,
    /// Commits that end after this come, and have not been sent before.
    pub(super) resume: Lsn,
    /// The commits before them that make a proof.
    pub(super) proof: Option<Proof>,
    /// What the slot has confirmed.
    pub(super) floor: Lsn,
    pub(super) recent: Xid,
    /// Set where commits before `resume` were never sent.
    pub(super) restarted: Option<String>,
    /// Set with `restarted` where nothing proves that the history is still the one that was followed.
    pub(super) unproven: Option<Fork>,
    /// Set where the database writes another timeline now, and has everything that was sent.
    pub(super) promoted: Option<SourceIdentity>,
    /// True where PostgreSQL was started again since the session before.
    pub(super) is_server_restarted: bool,
    /// True for the first session of the run, and behind a fork or a restart: earlier commits are not known.
    pub(super) is_new: bool,
}
