//! The formats in which streams carry rows and changes.

use laredo_proto::replication::RowEncoding;

/// The format of a stream's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StreamFormat {
    /// Messages of `Sync` with a Struct for each row.
    Structs,
    /// Messages of `Subscribe`, each with one change or one existing row.
    Events,
    /// Messages of `Sync` with many rows in PostgreSQL's binary form.
    Batches,
}

impl From<RowEncoding> for StreamFormat {
    fn from(encoding: RowEncoding) -> StreamFormat {
        match encoding {
            RowEncoding::Struct => StreamFormat::Structs,
            RowEncoding::PostgresBinary => StreamFormat::Batches,
        }
    }
}
