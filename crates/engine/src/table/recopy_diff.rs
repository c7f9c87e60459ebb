//! The publication of a new copy: as the transactions of the stream if they explain it, otherwise
//! as its differences.

use laredo_core::{DefinitionVersion, Tuple};

use super::apply::{ApplyError, apply_spool};
use super::copy::CompleteCopy;
use super::published::{PublishedTable, RowOrigin, TableChangeCounts, TableCommit};
use super::{TableError, row_diff};

/// Publishes a new copy.
///
/// The transactions since the last position may turn the known rows into exactly the copy. They are
/// then published one by one, as if there had been no copy. Readers can then resume from every
/// position among them, here and on another server.
///
/// # Errors
/// When the journal, or a file with waiting transactions, cannot be read or written.
pub(super) fn publish_copy(
    served: &mut PublishedTable,
    mut done: CompleteCopy,
    definition: DefinitionVersion,
) -> Result<TableChangeCounts, TableError> {
    let mut counts = TableChangeCounts::default();
    let streamed = done.streamed.take().filter(|_| served.origin == RowOrigin::Source);
    let Some(streamed) = streamed.map(|streamed| explain_copy(served, streamed, &done)).transpose()?.flatten() else {
        row_diff::publish_differences(served, done, definition)?;
        return Ok(counts);
    };
    for mut commit in streamed {
        counts.add(&served.apply(&mut commit, None)?);
    }
    served.writer.advance(done.to, done.mark);
    served.writer.publish()?;
    Ok(counts)
}

/// Returns these transactions if they turn the known rows into the rows of the copy.
fn explain_copy(
    served: &PublishedTable,
    mut streamed: Vec<TableCommit>,
    done: &CompleteCopy,
) -> Result<Option<Vec<TableCommit>>, TableError> {
    let PublishedTable { state, pipeline, .. } = served;
    if pipeline.state() != done.pipeline.state() {
        return Ok(None);
    }
    let mut state = state.clone();
    for commit in &mut streamed {
        if !pipeline.fits(&mut commit.spool)? {
            return Ok(None);
        }
        match apply_spool(&mut state, pipeline, &mut commit.spool, commit.committed_at, |_| Ok(())) {
            Ok(()) => {}
            Err(ApplyError::Io(error)) => return Err(error.into()),
            Err(ApplyError::Diverged(_) | ApplyError::Incomplete) => return Ok(None),
        }
    }
    let is_there = |new: &Tuple| {
        let row = state.get_like(new.as_ref());
        row.is_some_and(|row| row.is_same(new) || pipeline.same_source_row(row.as_ref(), new.as_ref()))
    };
    let explains = state.len() == done.state.len() && done.state.rows().all(is_there);
    Ok(explains.then_some(streamed))
}
