//! Sequences that a journal leaves out.

use laredo_core::Sequence;

/// Runs of sequences that no entry has: after a restart a journal goes on beyond whatever may have been served before and was
/// lost with the process. Known when the journal is opened, and the same ever after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gaps {
    /// The last entry before each, and the last sequence that is left out.
    runs: Vec<(Sequence, Sequence)>,
}

impl Gaps {
    /// Adds one behind the others.
    pub(crate) fn push(&mut self, after: Sequence, until: Sequence) {
        if until > after {
            self.runs.push((after, until));
        }
    }

    /// Entries after `from`, up to `to`.
    pub(crate) fn entries(&self, from: Sequence, to: Sequence) -> u64 {
        let left_out = self.runs.iter().map(|(after, until)| to.min(*until).entries_since(from.max(*after)));
        to.entries_since(from).saturating_sub(left_out.sum())
    }

    /// Whether no entry has this sequence: who holds it was served something that was lost.
    pub(crate) fn contain(&self, sequence: Sequence) -> bool {
        self.runs.iter().any(|(after, until)| *after < sequence && sequence <= *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_counted_without_what_is_left_out() {
        let mut gaps = Gaps::default();
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
