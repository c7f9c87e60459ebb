//! The path from a source's transactions to the frames that readers share: table states, journals,
//! bases and copies.
//!
//! This crate contains no gRPC and no PostgreSQL. A source is a [`source::Source`], and a reader
//! has a cursor in a [`journal::Journal`].

pub mod base;
mod clock;
pub mod descriptors;
mod durable;
mod engine;
mod head;
mod history;
pub mod journal;
mod pipeline;
mod recovery;
pub mod retention;
mod segment;
mod snapshots;
pub mod source;
pub mod spool;
mod status;
mod store;
mod table;
mod verify;

pub use clock::Clock;
pub use durable::DurablePosition;
pub use engine::{Engine, EngineHandle, TableSetChange};
pub use history::{MarkVerdict, SourceHistory};
pub use pipeline::{
    CellReplacement, HashKey, PipelineError, PipelineOptions, ReplacedColumn, ShortHashKey, Transform, ValueMask,
    with_replaced_columns,
};
pub use snapshots::{SnapshotError, SnapshotFolder, SnapshotFormat, SnapshotInfo, SnapshotOptions, SnapshotStatus};
pub use source::{Fork, ForkReceipt, ForkReceiptCollector};
pub use status::{CopyProgress, CopySession, ReloadError, TableHandle, TablePhase, TableStatus};
pub use store::{FolderKind, RetiredFolder, StoreError, StoreStatus};
pub use table::{CopyCounts, TableOptions};
pub use verify::{RowDifference, VerifyError, VerifyProgress, VerifyReport, VerifySchedule, VerifyStatus, VerifyTerms};
