//! The clock that the engine is given.

use std::sync::Arc;

use laredo_core::CommitTime;

/// A function that returns the time of day.
pub type Clock = Arc<dyn Fn() -> CommitTime + Send + Sync>;
