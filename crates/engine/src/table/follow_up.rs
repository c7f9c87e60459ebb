//! The actions that events of a table cause.

/// The action that a table needs after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FollowUpAction {
    Nothing,
    /// A copy. One that is under way is given up.
    Copy,
    /// A copy after a delay that grows each time, because the last copy could not be used.
    CopyLater,
    /// The next attempt at the copy that is owed.
    Retry,
}
