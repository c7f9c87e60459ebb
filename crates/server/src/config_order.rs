//! The orders that concern the configuration of a running server. The program that has read the
//! configuration carries them out.

use tokio::sync::oneshot;

/// An order that concerns the configuration.
#[derive(Debug)]
pub struct ConfigOrder {
    /// The order.
    pub kind: ConfigOrderKind,
    /// The sender for the outcome. Its receiver may have gone.
    pub answer: oneshot::Sender<ConfigOutcome>,
}

/// An order that concerns the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigOrderKind {
    /// Reads the configuration again, and compares it with the running one.
    Diff,
    /// Reads the configuration again, and applies it.
    Reload {
        /// True if the rest is applied although some keys need a restart. Otherwise nothing is
        /// applied then.
        skips_restart: bool,
    },
}

/// The outcome of an order that concerns the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigOutcome {
    /// True if the changes were applied, except for those that need a restart.
    pub is_applied: bool,
    /// The changes between the running configuration and the one that was read.
    pub changes: Vec<ConfigChange>,
    /// The reasons why the changes are not or would not be applied, each a sentence.
    pub problems: Vec<String>,
}

/// A change between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// The effect of the change.
    pub effect: ConfigEffect,
    /// The table that it concerns, if it concerns one.
    pub table: Option<String>,
    /// The key; empty for a table that is added or removed. Keys of a table begin in its block.
    pub key: String,
    /// The value of the running configuration, without secrets; empty if there is none.
    pub before: String,
    /// The value that was read, without secrets; empty if there is none.
    pub after: String,
}

/// The effect of a change of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigEffect {
    /// The table is added: it is copied, and then served.
    TableAdded,
    /// The table is removed: its streams end.
    TableRemoved,
    /// The table begins again: its streams end, and it is copied. Other tables are not affected.
    TableRestarted,
    /// The change takes effect at once.
    AtOnce,
    /// The change takes effect at the next start of the server.
    NeedsRestart,
}
