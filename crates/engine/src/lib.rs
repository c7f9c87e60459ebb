//! From a source's transactions to frames that readers share: table states, journals, bases, copies.
//!
//! No gRPC and no PostgreSQL here: a source is a [`source::Source`], a reader a [`journal::Journal`] cursor.

pub mod base;
pub mod descriptors;
mod durable;
mod engine;
mod history;
pub mod journal;
mod pipeline;
pub mod retention;
mod retry_delay;
mod snapshots;
pub mod source;
pub mod spool;
mod status;
mod store;
mod table;
mod verify;

pub use durable::Durable;
pub use engine::{Engine, EngineHandle};
pub use history::{Fork, Receipt, Receipts, ScopedMark, SourceHistory, Verdict};
pub use pipeline::{PipelineError, PipelineOptions, Transform};
pub use snapshots::{SnapshotError, SnapshotFormat, SnapshotInfo, SnapshotOptions, SnapshotStatus, Snapshots};
pub use status::{CopyProgress, ReloadError, TableHandle, TablePhase, TableStatus};
pub use store::{StoreError, StoreStatus};
pub use table::{Clock, TableOptions};
pub use verify::{RowDifference, VerifyError, VerifyProgress, VerifyReport, VerifySchedule, VerifyStatus, VerifyTerms};
