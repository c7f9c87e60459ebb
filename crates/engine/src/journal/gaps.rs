//! The sequences that a journal skips.

use laredo_core::Sequence;

/// Runs of sequences that no entry has.
///
/// After a restart, a journal continues beyond all sequences that may have been served before and
/// were lost with the process. The gaps are known when the journal is opened, and never change
/// after that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SequenceGaps {
    /// The last entry before each gap, and the last sequence in it.
    runs: Vec<(Sequence, Sequence)>,
}

impl SequenceGaps {
    /// Adds a gap after the existing ones, from `after` (exclusive) up to `until`. Does nothing if
    /// the gap is empty.
    pub(crate) fn push(&mut self, after: Sequence, until: Sequence) {
        if until > after {
            self.runs.push((after, until));
        }
    }

    /// Returns the number of entries after `from`, up to `to`.
    pub(crate) fn entries(&self, from: Sequence, to: Sequence) -> u64 {
        let left_out = self.runs.iter().map(|(after, until)| to.min(*until).entries_since(from.max(*after)));
        to.entries_since(from).saturating_sub(left_out.sum())
    }

    /// Returns true if no entry has this sequence. A client that has it was served an entry that
    /// was lost.
    pub(crate) fn contain(&self, sequence: Sequence) -> bool {
        self.runs.iter().any(|(after, until)| *after < sequence && sequence <= *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_counted_without_what_is_left_out() {
        let mut gaps = SequenceGaps::default();
        gaps.push(Sequence(10), Sequence(100));
        gaps.push(Sequence(105), Sequence(105));
        gaps.push(Sequence(110), Sequence(200));
        let count = |from, to| gaps.entries(Sequence(from), Sequence(to));
        assert_eq!((count(5, 10), count(5, 101), count(10, 110)), (5, 6, 10));
        assert_eq!((count(50, 110), count(0, 201), count(10, 50)), (10, 21, 0));
        assert!([11, 100, 111, 200].into_iter().all(|at| gaps.contain(Sequence(at))));
        assert!([10, 101, 105, 201].into_iter().all(|at| !gaps.contain(Sequence(at))));
    }
}
